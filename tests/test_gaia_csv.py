"""Gaia's csv files: what is in them, in every spelling; what is wrong with them; files that break off."""

import csv
import gzip
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from xpkern.errors import InputError
from xpkern.grid import XP_WAVELENGTH
from xpkern.observe import _csv, gaia_csv
from xpkern.observe.calibration import Calibration
from xpkern.observe.gaia_csv import read_blocks

#: Three BP and two RP coefficients: rows that fit on a line.
SMALL = Calibration(
    release="small",
    instrument_model="none",
    bp_design=np.zeros((61, 3)),
    rp_design=np.zeros((61, 2)),
    wavelength=XP_WAVELENGTH,
    bp_basis_function_id=56,
    rp_basis_function_id=57,
)

COLUMNS = ["source_id", "solution_id"] + [
    f"{band}_{name}"
    for band in ("bp", "rp")
    for name in (
        "basis_function_id",
        "n_parameters",
        "standard_deviation",
        "coefficients",
        "coefficient_errors",
        "coefficient_correlations",
    )
]

ROW = {
    "source_id": "4295806720",
    "solution_id": "1",
    "bp_basis_function_id": "56",
    "bp_n_parameters": "3",
    "bp_standard_deviation": "1.25",
    "bp_coefficients": '"[347.1327779877959,-1.0E-4,0.026582440001875898]"',
    "bp_coefficient_errors": '"[1.5,0.25,2.06604E-4]"',
    "bp_coefficient_correlations": '"[0.11236182,-0.05383272,1.0]"',
    "rp_basis_function_id": "57",
    "rp_n_parameters": "2",
    "rp_standard_deviation": "1.5",
    "rp_coefficients": '"[-7.0,8.0]"',
    "rp_coefficient_errors": '"[0.5,0.75]"',
    "rp_coefficient_correlations": '"[-0.5]"',
}


def row_text(columns=COLUMNS, **changes):
    row = ROW | changes
    return ",".join(row[name] for name in columns)


def file_of(tmp_path, rows, columns=COLUMNS, *, before="", end="\n", name="spectra.csv"):
    path = tmp_path / name
    data = (before + end.join([",".join(columns), *rows, ""])).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def read(path, calibration=SMALL, rows=1000, **options):
    """The only block of a small file."""
    blocks = list(read_blocks(path, calibration, rows=rows, **options))
    assert len(blocks) == 1
    return blocks[0]


def assert_same(block, other):
    assert np.array_equal(block.source_id, other.source_id)
    assert np.array_equal(block.bad, other.bad)
    for name, value in vars(block.coefficients).items():
        assert np.array_equal(value, getattr(other.coefficients, name)), name


def real_files(shared_data):
    paths = sorted((shared_data / "gaiaxpy" / "xp_continuous").glob("*.*csv"))
    return [*paths, *(shared_data / "real").glob("Xp*.csv.gz")]


# ---- what is in a file


def test_every_number_of_the_real_files_is_exact(shared_data):
    csv.field_size_limit(1 << 20)
    files = real_files(shared_data)
    assert len(files) == 8
    for path in files:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = (line for line in text.decode().splitlines() if not line.startswith("#"))
        expected = list(csv.DictReader(lines))
        block = read(path, Calibration.default())
        assert not block.reasons
        assert not block.bad.any()
        assert block.source_id.tolist() == [int(row["source_id"]) for row in expected]
        c = block.coefficients
        for band, present, arrays in (
            ("bp", c.has_bp, (c.bp, c.bp_error, c.bp_correlation)),
            ("rp", c.has_rp, (c.rp, c.rp_error, c.rp_correlation)),
        ):
            for index, row in enumerate(expected):
                assert present[index] == bool(row[f"{band}_coefficients"])
                for name, array in zip(("s", "_errors", "_correlations"), arrays, strict=True):
                    text = row[f"{band}_coefficient{name}"]
                    numbers = [float(number) for number in text.strip("()[]").split(",") if number]
                    if not numbers:
                        numbers = [0.0] * array.shape[1]
                    assert array[index].tolist() == np.array(numbers, array.dtype).tolist()
                if present[index]:
                    deviation = getattr(c, f"{band}_standard_deviation")[index]
                    assert deviation == np.float32(float(row[f"{band}_standard_deviation"]))


def test_the_numbers_of_a_small_row(tmp_path):
    c = read(file_of(tmp_path, [row_text()])).coefficients
    assert c.bp.tolist() == [[347.1327779877959, -1e-4, 0.026582440001875898]]
    assert c.bp_error.dtype == np.float32
    assert c.bp_error.tolist() == np.array([[1.5, 0.25, 2.06604e-4]], np.float32).tolist()
    assert c.bp_correlation.tolist() == np.array([[0.11236182, -0.05383272, 1.0]], np.float32).tolist()
    assert c.rp_correlation.tolist() == [[-0.5]]
    assert (c.bp_standard_deviation[0], c.rp_standard_deviation[0]) == (1.25, 1.5)
    assert c.has_bp[0]
    assert c.has_rp[0]


def test_float32_columns_are_rounded_from_float64(tmp_path):
    # just above halfway between 1 and the next float32, but halfway itself in float64: narrowing goes to even
    text = "1.000000059604644775390625000000001"
    block = read(file_of(tmp_path, [row_text(rp_coefficient_errors=f'"[{text},1]"')]))
    assert block.coefficients.rp_error[0, 0] == np.float32(float(text)) == 1.0


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("before", ["", "# %ECSV 1.0\n# ---\n# delimiter: ','\n", "\ufeff", "\n\n"])
@pytest.mark.parametrize("name", ["spectra.csv", "spectra.csv.gz"])
def test_headers_line_ends_and_compression(tmp_path, end, before, name):
    rows = [row_text(), row_text(source_id="7"), "", row_text(source_id="9")]
    block = read(file_of(tmp_path, rows, before=before, end=end, name=name))
    assert block.source_id.tolist() == [4295806720, 7, 9]
    assert not block.reasons
    assert np.array_equal(block.coefficients.rp, [[-7.0, 8.0]] * 3)


@pytest.mark.parametrize(
    "array", ['"(-7.0, 8.0)"', '"[ -7.0 , 8.0 ]"', "[-7.0,8.0]", "(-7, 8)", '"[-7,+8.]"', '"[-0.7E1,8e0]"']
)
def test_spellings_of_an_array(tmp_path, array):
    assert read(file_of(tmp_path, [row_text(rp_coefficients=array)])).coefficients.rp.tolist() == [[-7.0, 8.0]]


def test_columns_are_found_by_name_whatever_their_order(tmp_path, rng):
    expected = read(file_of(tmp_path, [row_text()]))
    for _ in range(20):
        columns = list(rng.permutation([*COLUMNS, "extra", "arrays"]))
        row = ROW | {"extra": rng.choice(["", "null", "text", '"quoted, text"']), "arrays": '"[1,2,3]"'}
        path = file_of(tmp_path, [",".join(row[name] for name in columns)], [name.upper() for name in columns])
        assert_same(read(path), expected)


def test_last_line_may_lack_its_end(tmp_path):
    path = file_of(tmp_path, [row_text(), row_text(source_id="8")])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read(path).source_id.tolist() == [4295806720, 8]


@pytest.mark.parametrize("nothing", ["", "null", "NaN", '""', '"null"'])
@pytest.mark.parametrize("band", ["bp", "rp"])
def test_a_band_that_is_not_there(tmp_path, nothing, band):
    changes = {name: nothing for name in COLUMNS if name.startswith(band)}
    block = read(file_of(tmp_path, [row_text(), row_text(**changes), row_text()]))
    assert not block.reasons
    c = block.coefficients
    assert getattr(c, f"has_{band}").tolist() == [True, False, True]
    assert (c.has_bp | c.has_rp).all()
    for name in (band, f"{band}_error", f"{band}_correlation"):
        assert not getattr(c, name)[1].any()
        assert getattr(c, name)[2].any()


def test_only_the_necessary_columns_are_necessary(tmp_path):
    columns = ["source_id", *(name for name in COLUMNS if "coefficient" in name)]
    block = read(file_of(tmp_path, [row_text(columns)], columns))
    assert block.coefficients.bp_standard_deviation[0] == 1.0
    assert not block.reasons


def test_needed_standard_deviation(tmp_path):
    rows = [row_text(), row_text(bp_standard_deviation="null"), row_text(rp_standard_deviation="")]
    block = read(file_of(tmp_path, rows), need_standard_deviation=True)
    assert block.bad.tolist() == [False, True, True]
    assert [(row, field) for _, row, field, _ in block.reasons] == [
        (2, "bp_standard_deviation"),
        (3, "rp_standard_deviation"),
    ]
    assert not block.coefficients.has_bp[1:].any()
    assert not read(file_of(tmp_path, rows)).reasons


# ---- blocks and pieces


@pytest.mark.parametrize("rows", [1, 2, 7, 30, 31])
def test_blocks_of_any_size_hold_the_same(shared_data, rows):
    path = next((shared_data / "real").glob("Xp*.csv.gz"))
    whole = read(path, Calibration.default())
    blocks = list(read_blocks(path, Calibration.default(), rows=rows))
    assert [len(block) for block in blocks] == [rows] * (30 // rows) + [30 % rows] * (30 % rows > 0)
    for name, value in vars(whole.coefficients).items():
        joined = np.concatenate([getattr(block.coefficients, name) for block in blocks])
        assert np.array_equal(joined, value), name
    assert np.array_equal(np.concatenate([block.source_id for block in blocks]), whole.source_id)


@pytest.mark.parametrize("name", ["spectra.csv", "spectra.csv.gz"])
@pytest.mark.parametrize("piece", [2, 3, 17, 100, 1000])
def test_pieces_of_any_size_hold_the_same(tmp_path, monkeypatch, name, piece):
    path = file_of(tmp_path, [row_text(source_id=str(i)) for i in range(20)], before="# comment\n", name=name)
    expected = read(path)
    monkeypatch.setattr(gaia_csv, "PIECE", piece)
    assert_same(read(path), expected)


def test_memory_does_not_grow_with_the_file(tmp_path, rng):
    def peak(n_rows):
        # numbers that compress no better than real ones: one piece of gzip is then a few pieces of text
        arrays = [str(list(values)) for values in rng.normal(size=(n_rows, 3)).tolist()]
        rows = [row_text(source_id=str(i), bp_coefficients=f'"{array}"') for i, array in enumerate(arrays)]
        path = file_of(tmp_path, rows, name="spectra.csv.gz")
        tracemalloc.start()
        assert sum(len(block) for block in read_blocks(path, SMALL, rows=100)) == n_rows
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)
    small, large = peak(5_000), peak(20_000)
    assert large < 1.5 * small


# ---- gzip


def test_gzip_of_several_members_and_with_padding(tmp_path):
    header, *rows = file_of(tmp_path, [row_text(source_id=str(i)) for i in range(9)]).read_bytes().splitlines(True)
    parts = [header, b"".join(rows[:4]), b"".join(rows[4:])]
    path = tmp_path / "members.csv.gz"
    path.write_bytes(b"\0\0".join(gzip.compress(part) for part in parts) + b"\0" * 1000)
    assert read(path).source_id.tolist() == list(range(9))


def test_gzip_is_recognised_without_its_ending(tmp_path):
    path = file_of(tmp_path, [row_text()], name="spectra.csv.gz").rename(tmp_path / "spectra.csv")
    assert len(read(path)) == 1


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.97])
@pytest.mark.parametrize("rows", [4, 1000])
def test_truncated_gzip_yields_every_complete_row_first(tmp_path, rng, kept, rows):
    ids = rng.integers(1, 1 << 62, 300)
    path = file_of(tmp_path, [row_text(source_id=str(i)) for i in ids], name="spectra.csv.gz")
    data = path.read_bytes()[: int(kept * path.stat().st_size)]
    path.write_bytes(data)
    text = isal_zlib.decompressobj(31).decompress(data)
    complete = text.count(b"\n") - 1
    assert 0 < complete < 300

    blocks = []
    with pytest.raises(InputError, match="end too early") as caught:
        blocks.extend(read_blocks(path, SMALL, rows=rows))
    assert not any(block.bad.any() for block in blocks)
    found = [source_id for block in blocks for source_id in block.source_id.tolist()]
    assert found == ids[:complete].tolist()
    assert (caught.value.file, caught.value.row) == (str(path), complete + 1)


def test_truncation_inside_the_checksum_loses_no_row(tmp_path):
    path = file_of(tmp_path, [row_text()], name="spectra.csv.gz")
    path.write_bytes(path.read_bytes()[:-3])
    blocks = read_blocks(path, SMALL)
    assert len(next(blocks)) == 1
    with pytest.raises(InputError, match="end too early"):
        next(blocks)


def test_damaged_gzip(tmp_path):
    path = file_of(tmp_path, [row_text()] * 20, name="spectra.csv.gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF  # the checksum
    path.write_bytes(data)
    with pytest.raises(InputError, match="corrupt"):
        list(read_blocks(path, SMALL))
    path.write_bytes(gzip.compress(b"x") + b"not gzip")
    with pytest.raises(InputError, match="followed by something else"):
        list(read_blocks(path, SMALL))


# ---- files that are none


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("spectra.csv.gz", b"plain text", "not a gzip file"),
        ("spectra.csv", b"", "no header"),
        ("spectra.csv.gz", gzip.compress(b""), "no header"),
        ("spectra.csv", b"# only\n# comments\n", "no header"),
        ("spectra.csv", b"SIMPLE  =                    T", "no column source_id"),
        ("spectra.csv", bytes(range(256)) * 10, "no column source_id"),
        ("spectra.csv", b"x" * (5 << 20), "no line end"),
    ],
)
def test_files_of_another_kind(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        list(read_blocks(path, SMALL))
    assert caught.value.file == str(path)


def test_absent_files_and_folders(tmp_path):
    for path in (tmp_path / "nothing.csv", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            list(read_blocks(path, SMALL))


@pytest.mark.parametrize("column", ["source_id", "bp_coefficients", "rp_coefficient_correlations"])
def test_missing_column_is_named(tmp_path, column):
    columns = [name for name in COLUMNS if name != column]
    with pytest.raises(InputError, match=f"no column {column}") as caught:
        list(read_blocks(file_of(tmp_path, [row_text(columns)], columns), SMALL))
    assert caught.value.field == column


def test_file_without_rows(tmp_path):
    assert list(read_blocks(file_of(tmp_path, []), SMALL)) == []


# ---- rows that are none

BAD_ROWS = {
    "garbage": ("complete nonsense", "source_id", "not a 64-bit integer"),
    "too short": (row_text().rsplit(",", 2)[0].rsplit(",", 1)[0], "", "expected 14 fields"),
    "too long": (row_text() + ",1", "", "found more"),
    "array too short": (row_text(bp_coefficients='"[1,2]"'), "bp_coefficients", "expected 3 numbers, found 2"),
    "array too long": (row_text(rp_coefficient_errors='"[1,2,3]"'), "rp_coefficient_errors", "found 3"),
    "word in array": (row_text(rp_coefficients='"[1,abc]"'), "rp_coefficients", "element 2, 'abc'"),
    "gap in array": (row_text(rp_coefficients='"[,1]"'), "rp_coefficients", "element 1"),
    "null in array": (row_text(rp_coefficients='"[1,null]"'), "rp_coefficients", "'null', is not a finite"),
    "nan in array": (row_text(bp_coefficients='"[1,NaN,2]"'), "bp_coefficients", "element 2"),
    "infinity in array": (row_text(bp_coefficients='"[1,2,-Infinity]"'), "bp_coefficients", "element 3"),
    "too large for float32": (row_text(rp_coefficient_errors='"[1,1E39]"'), "rp_coefficient_errors", "element 2"),
    "two points": (row_text(rp_coefficients='"[1.2.3,4]"'), "rp_coefficients", "element 1 is followed by"),
    "open bracket": (row_text(rp_coefficients='"[1,2"'), "rp_coefficients", "element 2 is followed by"),
    "wrong bracket": (row_text(rp_coefficients='"[1,2)"'), "rp_coefficients", "element 2 is followed by"),
    "no bracket": (row_text(rp_coefficients='"1"'), "rp_coefficients", "in brackets"),
    "open quote": (row_text(rp_coefficient_correlations='"[1]'), "rp_coefficient_correlations", "quote"),
    "text behind array": (row_text(rp_coefficients='"[1,2]"x'), "rp_coefficients", "unexpected 'x'"),
    "negative error": (row_text(rp_coefficient_errors='"[1,-2]"'), "rp_coefficient_errors", "negative"),
    "errors alone missing": (row_text(rp_coefficient_errors="null"), "rp_coefficient_errors", "empty, although"),
    "coefficients alone missing": (row_text(bp_coefficients=""), "bp_coefficients", "empty, although"),
    "zero deviation": (row_text(bp_standard_deviation="0"), "bp_standard_deviation", "not positive"),
    "word for a number": (row_text(bp_n_parameters="three"), "bp_n_parameters", "'three' is not a finite number"),
    "other number of parameters": (row_text(bp_n_parameters="51"), "bp_n_parameters", "calibration is for 3"),
    "other basis functions": (row_text(rp_basis_function_id="58"), "rp_basis_function_id", "calibration is for 57"),
    "other basis functions, other length": (
        row_text(bp_n_parameters="2", bp_coefficients='"[1,2]"'),
        "bp_n_parameters",
        "'2', but the calibration is for 3",
    ),
    "no source_id": (row_text(source_id=""), "source_id", "empty"),
    "source_id out of range": (row_text(source_id="9223372036854775808"), "source_id", "not a 64-bit integer"),
    "source_id not whole": (row_text(source_id="12.5"), "source_id", "unexpected '.5'"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_keeps_its_place_and_harms_no_other(tmp_path, case):
    text, field, message = BAD_ROWS[case]
    good = read(file_of(tmp_path, [row_text(source_id="1"), row_text(source_id="2")]))
    block = read(file_of(tmp_path, [row_text(source_id="1"), text, row_text(source_id="2")]))
    assert block.bad.tolist() == [False, True, False]
    ((source_id, row, found_field, found_message),) = block.reasons
    assert (row, found_field) == (2, field)
    assert message in found_message
    assert found_message.startswith("spectra.csv: ")
    assert source_id == block.source_id[1]
    if field != "source_id":
        assert source_id == 4295806720
    elif "whole" not in case:
        assert source_id == -1
    c = block.coefficients
    assert not (c.has_bp[1] | c.has_rp[1])
    assert not any(np.any(getattr(c, name)[1]) for name in ("bp", "rp", "bp_error", "rp_error", "bp_correlation"))
    for name, value in vars(good.coefficients).items():
        assert np.array_equal(getattr(c, name)[[0, 2]], value), name


def test_source_id_is_read_even_behind_a_bad_field(tmp_path):
    columns = [*COLUMNS[1:], "source_id"]
    block = read(file_of(tmp_path, [row_text(), row_text(columns, rp_coefficients='"[1,"')][1:], columns))
    assert block.source_id.tolist() == [4295806720]
    assert block.bad[0]


def test_rows_are_counted_from_one_across_blocks(tmp_path):
    rows = [row_text(source_id=str(i)) for i in range(10)]
    rows[6] = row_text(source_id="6", rp_coefficients='"[1]"')
    reasons = [reason for block in read_blocks(file_of(tmp_path, rows), SMALL, rows=4) for reason in block.reasons]
    assert [reason[:3] for reason in reasons] == [(6, 7, "rp_coefficients")]


def test_a_file_of_another_release_is_refused_as_a_whole(tmp_path):
    row = row_text(bp_n_parameters="2", bp_coefficients='"[1,2]"')
    with pytest.raises(InputError, match="calibration is for 3") as caught:
        list(read_blocks(file_of(tmp_path, [row] * 5), SMALL))
    assert (caught.value.row, caught.value.field) == (1, "bp_n_parameters")
    # one row that fits is enough to take the others for damaged
    assert read(file_of(tmp_path, [row, row, row_text()])).bad.tolist() == [True, True, False]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_row_reaches_its_neighbours(tmp_path, data):
    text = bytearray(row_text().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(text)))
        new = data.draw(
            st.one_of(st.sampled_from([b",", b'"', b"[", b"]", b"(", b" ", b"\r", b"-", b"9"]), st.binary(max_size=3))
        )
        length = data.draw(st.integers(0, 5))
        text[position : position + length] = new.replace(b"\n", b"")
    first, last = row_text(source_id="1").encode(), row_text(source_id="2").encode()
    path = tmp_path / "spectra.csv"
    path.write_bytes(b"\n".join([",".join(COLUMNS).encode(), first, bytes(text), last, b""]))
    block = read(path)
    assert block.source_id[[0, -1]].tolist() == [1, 2]
    assert not block.bad[[0, -1]].any()
    assert len(block.reasons) == block.bad.sum()
    c = block.coefficients
    assert c.bp[0].tolist() == c.bp[-1].tolist() == [347.1327779877959, -1e-4, 0.026582440001875898]
    assert np.isfinite(c.bp).all()
    assert np.isfinite(c.rp).all()


# ---- the compiled parser refuses what it would have to copy or overrun


def parser_arguments(n=4):
    text = np.frombuffer((row_text() + "\n").encode() + b"\0" * _csv.SLACK, np.uint8)

    def band(k):
        return [
            np.empty((n, k)),
            *(np.empty((n, c), np.float32) for c in (k, k * (k - 1) // 2)),
            np.empty(n, np.float32),
        ]

    bp, rp = ([*band(k), np.empty(n, bool)] for k in (3, 2))
    return [text, 0, text.size - _csv.SLACK, 0, np.empty(n, np.int64), np.empty(n, bool), bp, rp]


def parse(arguments):
    parser = _csv.RowParser(COLUMNS, n_bp=3, n_rp=2, bp_basis_function_id=56, rp_basis_function_id=57)
    *others, bp, rp = arguments
    return parser.parse(*others, tuple(bp), tuple(rp))


def test_parser_fills_the_given_arrays():
    arguments = parser_arguments()
    assert parse(arguments) == (len(row_text()) + 1, 1, [])
    assert arguments[4][0] == 4295806720
    assert arguments[7][0][0].tolist() == [-7.0, 8.0]


@pytest.mark.parametrize(
    ("position", "change", "error"),
    [
        (2, lambda end: end + 1, ValueError),  # no slack
        (1, lambda begin: -1, ValueError),
        (3, lambda filled: 5, ValueError),
        (4, lambda a: a[:0], ValueError),
        (4, lambda a: a.astype(np.int32), TypeError),
        (5, lambda a: a.astype(np.uint8), TypeError),
        (6, lambda band: [band[0][:, :2].copy(), *band[1:]], ValueError),
        (6, lambda band: [np.asfortranarray(band[0]), *band[1:]], TypeError),
        (6, lambda band: [band[0].astype(np.float32), *band[1:]], TypeError),
        (7, lambda band: [band[0], band[1].astype(np.float64), *band[2:]], TypeError),
        (7, lambda band: [*band[:4], band[4][:2].copy()], ValueError),
    ],
)
def test_parser_refuses_arrays_that_do_not_fit(position, change, error):
    arguments = parser_arguments()
    arguments[position] = change(arguments[position])
    with pytest.raises(error):
        parse(arguments)


def test_parser_refuses_arrays_that_cannot_be_written():
    arguments = parser_arguments()
    arguments[4].flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        parse(arguments)
