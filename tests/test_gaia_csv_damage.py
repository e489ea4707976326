"""Gaia's csv files that are none, rows that are none, and what the compiled parser refuses."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from gaia_rows import COLUMNS, SMALL, file_of, read, row_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xpkern.errors import InputError
from xpkern.observe import _csv
from xpkern.observe.spectra import read_blocks


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("spectra.csv.gz", b"plain text", "not a gzip file"),
        ("spectra.csv", b"", "no header"),
        ("spectra.csv.gz", gzip.compress(b"", mtime=0), "no header"),
        ("spectra.csv", b"# only\n# comments\n", "no header"),
        ("spectra.csv", b"SIMPLE  =                    T", "not a readable FITS file"),
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


BAD_ROWS = {
    "garbage": ("complete nonsense", "source_id", "not a 64-bit integer"),
    "too short": (row_text().rsplit(",", 2)[0].rsplit(",", 1)[0], "", "expected 14 fields"),
    "too long": (row_text() + ",1", "", "found more"),
    "array too short": (row_text(bp_coefficients='"[1,2]"'), "bp_coefficients", "expected 3 numbers, found 2"),
    "array too long": (row_text(rp_coefficient_errors='"[1,2,3]"'), "rp_coefficient_errors", "found 3"),
    "word in array": (row_text(rp_coefficients='"[1,abc]"'), "rp_coefficients", "element 2, 'abc'"),
    "gap in array": (row_text(rp_coefficients='"[,1]"'), "rp_coefficients", "element 1"),
    "null in array": (row_text(rp_coefficients='"[1,null]"'), "rp_coefficients", "element 2, nan, is not a finite"),
    "nan in array": (row_text(bp_coefficients='"[1,NaN,2]"'), "bp_coefficients", "element 2"),
    "infinity in array": (row_text(bp_coefficients='"[1,2,-Infinity]"'), "bp_coefficients", "element 3"),
    "too large for float32": (row_text(rp_coefficient_errors='"[1,1E39]"'), "rp_coefficient_errors", "element 2"),
    "two points": (row_text(rp_coefficients='"[1.2.3,4]"'), "rp_coefficients", "element 1 is followed by"),
    "open bracket": (row_text(rp_coefficients='"[1,2"'), "rp_coefficients", "element 2 is followed by"),
    "wrong bracket": (row_text(rp_coefficients='"[1,2)"'), "rp_coefficients", "element 2 is followed by"),
    "no bracket": (row_text(rp_coefficients='"1"'), "rp_coefficients", "in brackets"),
    "open quote": (row_text(rp_coefficient_correlations='"[1]'), "rp_coefficient_correlations", "quote"),
    "text behind array": (row_text(rp_coefficients='"[1,2]"x'), "rp_coefficients", "unexpected 'x'"),
    "negative error": (
        row_text(rp_coefficient_errors='"[1,-2]"'),
        "rp_coefficient_errors",
        "element 2, -2, is not a positive error",
    ),
    "zero error": (
        row_text(rp_coefficient_errors='"[0,2]"'),
        "rp_coefficient_errors",
        "element 1, 0, is not a positive",
    ),
    "correlation above 1": (
        row_text(rp_coefficient_correlations='"[1.5]"'),
        "rp_coefficient_correlations",
        "1.5, is no",
    ),
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
    "source_id not whole": (row_text(source_id="12.5"), "source_id", "'12.5' is not a 64-bit integer"),
    "source_id as a float": (row_text(source_id="5.05e17"), "source_id", "'5.05e17' is not a 64-bit integer"),
    "source_id in other digits": (row_text(source_id="0x1F"), "source_id", "'0x1F' is not a 64-bit integer"),
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
    else:
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
