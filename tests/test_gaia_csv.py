"""Gaia's csv files: what is in them, in every spelling, in blocks of any size, compressed or not."""

from __future__ import annotations

import csv
import gzip
import tracemalloc

import numpy as np
import pytest
from gaia_rows import COLUMNS, ROW, SMALL, assert_same, file_of, read, real_files, row_text
from isal import isal_zlib

from xpkern.errors import InputError
from xpkern.observe import spectra_csv
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks


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


def test_long_arrays_of_numbers_of_every_shape(tmp_path, rng):
    # long enough for every way in which numbers are read, in every place of an array
    def number(largest_first_digit):
        first, digits = rng.integers(0, largest_first_digit + 1), "".join(map(str, rng.integers(0, 10, 20)))
        text = f"{first}.{digits[: rng.integers(1, rng.choice([10, 21]))]}1"
        return rng.choice(
            [text, text, text, f"{text}E-{rng.integers(0, 12)}", f"0{text}", f".{digits[1:9]}1", "1", "1."]
        )

    def signed(text):
        return rng.choice(["", "-", "+"], p=[0.5, 0.45, 0.05]) + text

    calibration = Calibration.default()
    expected = {"coefficients": [], "errors": [], "correlations": []}
    rows = []
    for _ in range(8):
        texts = {
            "coefficients": [signed(f"{rng.integers(0, 1000)}{number(9)}") for _ in range(calibration.n_bp)],
            "errors": [number(9) for _ in range(calibration.n_bp)],
            "correlations": [signed(number(0)) for _ in range(calibration.n_bp * (calibration.n_bp - 1) // 2)],
        }
        for name, array in texts.items():
            expected[name].append([float(text) for text in array])
        arrays = {name: f'"[{",".join(array)}]"' for name, array in texts.items()}
        rows.append(
            row_text(
                bp_n_parameters=str(calibration.n_bp),
                bp_coefficients=arrays["coefficients"],
                bp_coefficient_errors=arrays["errors"],
                bp_coefficient_correlations=arrays["correlations"],
                rp_n_parameters="",
                rp_coefficients="",
                rp_coefficient_errors="",
                rp_coefficient_correlations="",
            )
        )
    block = read(file_of(tmp_path, rows), calibration)
    assert not block.reasons
    c = block.coefficients
    assert c.bp.tolist() == expected["coefficients"]
    assert c.bp_error.tobytes() == np.array(expected["errors"], np.float64).astype(np.float32).tobytes()
    assert c.bp_correlation.tobytes() == np.array(expected["correlations"], np.float64).astype(np.float32).tobytes()


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
    monkeypatch.setattr(spectra_csv, "PIECE", piece)
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
