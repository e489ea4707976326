"""Spectra in every format: the same numbers, the same rows refused, the same catalogue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import h5py
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from gaia_rows import assert_same

import xpkern as xk
from bench import spectrum_formats
from bench.spectrum_formats import ALL, FEW, FILES, FIXED, Columns, make, some_columns
from xpkern.errors import InputError
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks
from xpkern.observe.xp_block import SeenSources, XpBlock
from xpkern.status import Status


def read_all(source, calibration=FEW, rows=2, **options) -> XpBlock:
    """All blocks of a source as one."""
    blocks = list(read_blocks(source, calibration, rows=rows, **options))
    assert all(len(block) == rows for block in blocks[:-1])
    coefficients = replace(
        blocks[0].coefficients,
        **{
            name: np.concatenate([getattr(block.coefficients, name) for block in blocks])
            for name in vars(blocks[0].coefficients)
        },
    )
    return XpBlock(
        source_id=np.concatenate([block.source_id for block in blocks]),
        coefficients=coefficients,
        calibration=blocks[0].calibration,
        bad=np.concatenate([block.bad for block in blocks]),
        reasons=[reason for block in blocks for reason in block.reasons],
        is_sampled=blocks[0].is_sampled,
        missing=None if blocks[0].missing is None else np.concatenate([block.missing for block in blocks]),
    )


def without_band(columns: Columns, band: str, row: int) -> None:
    """Take a band away from a row."""
    for name in columns:
        if name.startswith(band):
            columns[name][row] = None


# ---- the same numbers


@pytest.mark.parametrize("form", ALL)
def test_every_format_gives_the_numbers_that_were_written(form, tmp_path, rng):
    columns = some_columns(rng)
    without_band(columns, "bp", 1)
    without_band(columns, "rp", 2)
    block = read_all(make(form, columns, tmp_path))
    assert block.reasons == []
    assert block.source_id.tolist() == columns["source_id"]
    c = block.coefficients
    assert c.has_bp.tolist() == [True, False, True, True, True]
    assert c.has_rp.tolist() == [True, True, False, True, True]
    for band in ("bp", "rp"):
        for name, ending in (("s", ""), ("_errors", "_error"), ("_correlations", "_correlation")):
            for written, found in zip(columns[f"{band}_coefficient{name}"], getattr(c, band + ending), strict=True):
                assert np.array_equal(found, np.zeros(found.size) if written is None else written)
        deviation = [1.0 if s is None else s for s in columns[f"{band}_standard_deviation"]]
        assert getattr(c, f"{band}_standard_deviation").tolist() == np.array(deviation, np.float32).tolist()


@pytest.mark.parametrize("form", ALL)
def test_blocks_of_any_size_hold_the_same_and_leave_the_source_alone(form, tmp_path, rng):
    columns = some_columns(rng, 7)
    columns["bp_coefficient_errors"][4] = np.full(5, -1.0, np.float32)
    source = make(form, columns, tmp_path)
    whole = read_all(source, rows=7)
    assert [reason[:3] for reason in whole.reasons] == [(columns["source_id"][4], 5, "bp_coefficient_errors")]
    for rows in (1, 3, 100):
        again = read_all(source, rows=rows)
        assert_same(again, whole)
        assert again.reasons == whole.reasons


# chunks of HDF5 cannot be written without rows, nor can VOTables by astropy
@pytest.mark.parametrize("form", [form for form in ALL if form != "compound.h5" and not form.endswith("xml")])
def test_no_rows(form, tmp_path, rng):
    columns = {name: [] for name in some_columns(rng)}
    assert list(read_blocks(make(form, columns, tmp_path), FEW)) == []


def test_the_real_files_read_identically_in_each_format(shared_data):
    calibration = Calibration.default()
    seen: dict[tuple[int, bool], dict[str, np.ndarray]] = {}
    kinds = set()
    folder = shared_data / "gaiaxpy"
    for path in [*sorted(folder.glob("xp_continuous/*")), *sorted(folder.glob("xp_sampled/*"))]:
        block = read_all(path, calibration, rows=100)
        assert not block.reasons, path
        kinds.add(path.suffix)
        for row, source_id in enumerate(block.source_id.tolist()):
            numbers = {name: values[row] for name, values in vars(block.coefficients).items()}
            first = seen.setdefault((source_id, block.is_sampled), numbers)
            for name, values in numbers.items():
                assert np.array_equal(values, first[name]), (path, source_id, name)
    assert kinds == {".csv", ".ecsv", ".fits", ".xml", ".avro"}
    assert len(seen) == 3 + 3 + 2


@pytest.mark.filterwarnings("ignore")  # GaiaXPy's own business
def test_the_real_files_read_as_gaiaxpy_reads_them(shared_data, capsys):
    gaiaxpy = pytest.importorskip("gaiaxpy")
    from gaiaxpy.input_reader.input_reader import InputReader

    calibration = Calibration.default()
    for path in sorted((shared_data / "gaiaxpy" / "xp_continuous").glob("*")):
        frame = InputReader(path, gaiaxpy.calibrate, False).read()
        frame = frame[0] if isinstance(frame, tuple) else frame
        # errors and correlation matrices, or covariances where the file is AVRO
        assert_same(read_all(frame, calibration, rows=100), read_all(path, calibration, rows=100))


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("filling", [np.nan, 0])
def test_nothing_but_nan_or_0_is_a_band_that_is_not_there(form, filling, tmp_path, rng):
    columns = some_columns(rng, 4)
    for row, bands in ((1, ("bp", "rp")), (2, ("rp",))):
        for name in columns:
            if spectrum_formats.is_array(name) and name.startswith(bands):
                columns[name][row] = np.full_like(columns[name][row], filling)
            elif filling == 0 and name.startswith(bands) and not name.endswith("standard_deviation"):
                columns[name][row] = 0
    stars = xk.read_xp(make(form, columns, tmp_path), calibration=FEW, engine="reference")
    assert stars.reasons == []
    nothing = Status.NO_BP | Status.NO_RP
    assert (stars.status & np.uint32(nothing)).tolist() == [0, nothing, Status.NO_RP, 0]


@pytest.mark.parametrize("form", ALL)
def test_some_arrays_filled_up_are_a_bad_row(form, tmp_path, rng):
    columns = some_columns(rng, 4)
    for row, (name, filling) in enumerate(
        [("bp_coefficients", np.nan), ("rp_coefficient_errors", 0), ("rp_coefficient_correlations", np.nan)]
    ):
        columns[name][row] = np.full_like(columns[name][row], filling)
    reasons = read_all(make(form, columns, tmp_path)).reasons
    assert [(row, name, message.split(": ")[1]) for _, row, name, message in reasons] == [
        (1, "bp_coefficients", "element 1, nan, is not a finite number"),
        (2, "rp_coefficient_errors", "element 1, 0, is not a positive error"),
        (3, "rp_coefficient_correlations", "element 1, nan, is not a finite number"),
    ]


def test_errors_and_correlations_of_a_covariance(tmp_path, rng):
    """GaiaXPy's own columns: covariances without the factor s², packed or square."""
    columns = some_columns(rng)
    expected = read_all(make("dict", columns, tmp_path))
    table = make("dict", columns, tmp_path)
    for band, n in (("bp", 5), ("rp", 4)):
        e = table.pop(f"{band}_coefficient_errors").astype(float) / table[f"{band}_standard_deviation"][:, None]
        rho = np.tile(np.eye(n), (5, 1, 1))
        i, j = np.tril_indices(n, -1)
        rho[:, i, j] = rho[:, j, i] = table.pop(f"{band}_coefficient_correlations")
        covariance = e[:, :, None] * rho * e[:, None, :]
        if band == "bp":
            table["bp_covariance_matrix"] = covariance
        else:
            table["rp_coefficient_covariances"] = np.stack([square[np.tril_indices(n)] for square in covariance])
    block = read_all(table)
    for name, values in vars(expected.coefficients).items():
        np.testing.assert_allclose(getattr(block.coefficients, name), values, rtol=3e-7, atol=1e-7)
    table["bp_standard_deviation"] = np.array([1.0, np.nan, 1, 1, 1])
    assert read_all(table).reasons[0][2:] == ("bp_standard_deviation", "table: empty, but covariances need it")
    table["bp_covariance_matrix"][2, 1, 1] = -1.0
    assert read_all(table).reasons[1][1:3] == (3, "bp_covariance_matrix")
    del table["rp_standard_deviation"]
    with pytest.raises(InputError, match="no column rp_standard_deviation"):
        read_all(table)


def test_correlations_as_square_matrices(tmp_path, rng):
    columns = some_columns(rng)
    expected = read_all(make("lists", columns, tmp_path))
    for band, n in (("bp", 5), ("rp", 4)):
        for row, packed in enumerate(columns[f"{band}_coefficient_correlations"]):
            square = np.eye(n)
            square[np.tril_indices(n, -1)] = packed
            columns[f"{band}_coefficient_correlations"][row] = square
    assert_same(read_all(make("lists", columns, tmp_path)), expected)
    assert_same(read_all(make("dict", {**columns}, tmp_path)), expected)


def test_arrays_of_numbers_beside_arrays_of_text(tmp_path, rng):
    columns = some_columns(rng, 4)
    expected = read_all(make("lists", columns, tmp_path))
    texts = make("pandas of text", columns, tmp_path)
    for names in (["bp_coefficients"], ["bp_coefficient_errors", "rp_coefficient_correlations", "rp_coefficients"]):
        mixed = dict(columns) | {name: texts[name].to_numpy() for name in names}
        assert_same(read_all(mixed), expected)
        arrays = {name: np.array(values) for name, values in columns.items()}
        assert_same(read_all(arrays | {name: texts[name] for name in names}), expected)


# ---- the same rows refused


#: What may be wrong with a row: (column that is named, element that is replaced (None: all), by what, part of the
#: message). Tables whose arrays have one length cannot hold those of another.
BAD_ROWS = [
    ("bp_coefficients", 2, np.nan, "element 3, nan, is not a finite number"),
    ("rp_coefficients", 0, np.inf, "element 1"),
    ("bp_coefficient_errors", 4, np.nan, "is not a finite number"),
    ("rp_coefficient_errors", 1, np.inf, "element 2"),
    ("rp_coefficient_errors", 3, -2, "element 4, -2, is not a positive error"),
    ("bp_coefficient_errors", 0, 0, "element 1, 0, is not a positive error"),
    ("bp_coefficient_correlations", 9, 1.5, "element 10, 1.5, is no correlation"),
    ("rp_coefficient_correlations", 5, np.nan, "element 6"),
    ("bp_standard_deviation", None, 0, "not positive"),
    ("rp_standard_deviation", None, -1, "not positive"),
    ("bp_n_parameters", None, 51, "'51', but the calibration is for 5"),
    ("rp_basis_function_id", None, 58, "calibration is for 57"),
]
BAD_LENGTHS = [
    ("rp_coefficients", None, np.ones(3), "expected 4 numbers, found 3"),
    ("bp_coefficient_errors", None, np.ones(6), "expected 5 numbers, found 6"),
    ("bp_coefficient_correlations", None, np.zeros(11), "expected 10 numbers, found 11"),
    ("rp_coefficients", None, None, "empty, although the other arrays"),
]


@pytest.mark.parametrize("form", ALL)
def test_bad_rows_keep_their_place_and_harm_no_other(form, tmp_path, rng):
    damages = BAD_ROWS if form in FIXED else BAD_ROWS + BAD_LENGTHS
    n = 2 * len(damages) + 1
    columns = some_columns(rng, n)
    good = read_all(make(form, columns, tmp_path))
    for number, (field, element, value, _) in enumerate(damages):
        row = 2 * number + 1
        if element is None:
            columns[field][row] = value
        else:
            columns[field][row] = columns[field][row].copy()
            columns[field][row][element] = value
    block = read_all(make(form, columns, tmp_path, "damaged"))
    bad = np.arange(n) % 2 == 1
    assert block.bad.tolist() == bad.tolist()
    for number, (damage, reason) in enumerate(zip(damages, block.reasons, strict=True)):
        row = 2 * number + 1
        assert reason[:3] == (columns["source_id"][row], row + 1, damage[0])
        assert reason[3].startswith(f"damaged.{form}: " if form in FILES else "table: ")
        # text spells numbers as it has them
        assert damage[3].split(", ")[0] in reason[3]
        if not any(kind in form for kind in ("csv", "text")):
            assert damage[3] in reason[3]
    c = block.coefficients
    assert c.has_bp.tolist() == c.has_rp.tolist() == (~bad).tolist()
    for name, values in vars(good.coefficients).items():
        assert np.array_equal(getattr(c, name)[~bad], values[~bad]), name
        if values.ndim == 2:
            assert not getattr(c, name)[bad].any()


@pytest.mark.parametrize("form", [form for form in ALL if form not in FIXED])
def test_a_row_without_source_id(form, tmp_path, rng):
    columns = some_columns(rng, 3)
    columns["source_id"][1] = None
    if form == "pandas of text":  # pandas has made it a float, which has lost digits
        with pytest.raises(InputError, match="must be 64-bit integers"):
            read_all(make(form, columns, tmp_path))
        return
    block = read_all(make(form, columns, tmp_path))
    assert block.source_id.tolist() == [columns["source_id"][0], -1, columns["source_id"][2]]
    ((_, row, field, message),) = block.reasons
    assert (row, field) == (2, "source_id")
    assert "empty" in message


@pytest.mark.parametrize("form", ["dict", "pandas", "arrow", "fits", "h5", "parquet"])
def test_source_id_in_text_beside_numbers(form, tmp_path, rng):
    """Arrays in text are those of a csv file; beside arrays of numbers, something went wrong with the table."""
    columns = some_columns(rng, 3)
    table: Any = dict(make("dict", columns, tmp_path)) | {"source_id": np.array([str(i) for i in columns["source_id"]])}
    sources = {"source_id": table["source_id"], "parallax": np.ones(3), "parallax_error": np.ones(3)}

    def made(values: dict[str, np.ndarray], name: str) -> Any:
        path = tmp_path / f"{name}.{form}"
        if form == "dict":
            return values
        if form == "pandas":
            return pandas.DataFrame({name: list(each) for name, each in values.items()})
        if form == "h5":
            with h5py.File(path, "w") as file:
                for each in values:
                    file[each] = values[each].astype("S") if each == "source_id" else values[each]
            return path
        if form == "fits":
            Table(values).write(path)
            return path
        arrow = pa.table({name: list(each) for name, each in values.items()})
        if form == "parquet":
            pq.write_table(arrow, path)
        return path if form == "parquet" else arrow

    good = make("dict", columns, tmp_path)
    for arguments in ((made(table, "spectra"),), (good, made(sources, "sources"))):
        with pytest.raises(InputError, match="must be 64-bit integers, not text; convert it") as caught:
            xk.read_xp(*arguments, calibration=FEW, engine="reference")
        assert caught.value.field == "source_id"


@pytest.mark.parametrize("form", [form for form in ALL if "csv" not in form and "text" not in form])
def test_a_source_id_that_is_no_integer(form, tmp_path, rng, monkeypatch):
    monkeypatch.setitem(spectrum_formats.TYPES, "source_id", np.float64)
    columns = some_columns(rng, 3) | {"source_id": [0.5, 1.5, 2.5]}
    with pytest.raises(InputError, match="must be 64-bit integers, not float64") as caught:
        read_all(make(form, columns, tmp_path))
    assert caught.value.field == "source_id"


@pytest.mark.parametrize("ids", [np.array([1, 1 << 63, 3], np.uint64), [1, 1 << 70, 3]], ids=["uint64", "objects"])
def test_a_source_id_that_is_too_large(ids, rng, tmp_path):
    table = make("dict", some_columns(rng, 3), tmp_path) | {"source_id": ids}
    block = read_all(table)
    assert block.source_id.tolist() == [1, -1, 3]
    assert [reason[:3] for reason in block.reasons] == [(-1, 2, "source_id")]


@pytest.mark.parametrize("form", ALL)
def test_missing_and_renamed_columns(form, tmp_path, rng):
    columns = some_columns(rng, 3)
    columns["bp_coeffs"] = columns.pop("bp_coefficients")
    with pytest.raises(InputError, match="no column bp_coefficients; is bp_coeffs that of bp_coefficients") as caught:
        read_all(make(form, columns, tmp_path))
    assert caught.value.field == "bp_coefficients"
    with pytest.raises(InputError, match="source_id") as caught:
        read_all(make(form, {"ra": columns["ra"], "other_source_id": columns["source_id"]}, tmp_path, "second"))
    assert caught.value.field == "source_id"


@pytest.mark.parametrize("form", ALL)
def test_columns_of_any_case_and_order(form, tmp_path, rng):
    columns = some_columns(rng, 3)
    expected = read_all(make(form, columns, tmp_path))
    names = rng.permutation(list(columns)).tolist()
    assert_same(read_all(make(form, {name.upper(): columns[name] for name in names}, tmp_path, "upper")), expected)


@pytest.mark.parametrize("form", FIXED)
def test_arrays_of_one_length_that_is_another(form, tmp_path, rng):
    columns = some_columns(rng, 3)
    for name in ("bp_coefficients", "bp_coefficient_errors"):
        columns[name] = [values[:3] for values in columns[name]]
    with pytest.raises(InputError, match=r"arrays of 3 numbers, but the calibration \(few\) is for 5") as caught:
        read_all(make(form, columns, tmp_path))
    assert caught.value.field == "bp_coefficients"


@pytest.mark.parametrize("form", ALL)
def test_a_table_of_another_release_is_refused_as_a_whole(form, tmp_path, rng):
    columns = some_columns(rng, 3) | {"rp_basis_function_id": [58] * 3}
    with pytest.raises(InputError, match=r"'58', but the calibration is for 57 \(few\); no row") as caught:
        read_all(make(form, columns, tmp_path))
    assert (caught.value.row, caught.value.field) == (1, "rp_basis_function_id")


@pytest.mark.parametrize("form", ALL)
def test_a_needed_standard_deviation(form, tmp_path, rng):
    columns = some_columns(rng, 3)
    columns["rp_standard_deviation"][1] = None
    source = make(form, columns, tmp_path)
    assert read_all(source).reasons == []
    ((_, row, field, message),) = read_all(source, need_standard_deviation=True).reasons
    assert (row, field) == (2, "rp_standard_deviation")
    assert "the noise model needs it" in message


def test_columns_of_mixed_lengths(rng, tmp_path):
    table = make("dict", some_columns(rng, 3), tmp_path)
    table["rp_coefficients"] = table["rp_coefficients"][:2]
    with pytest.raises(InputError, match="field rp_coefficients: 2 rows, but 3 in the columns before"):
        read_all(table)
    with h5py.File(tmp_path / "mixed.h5", "w") as file:
        for name, values in table.items():
            file[name] = values
    with pytest.raises(InputError, match="2 rows, but 3 of source_id"):
        read_all(tmp_path / "mixed.h5")


def test_sources_that_occur_again(rng):
    ids = rng.integers(0, 500, 2000)
    seen, found = SeenSources(), []
    for first in range(0, 2000, 37):
        block = ids[first : first + 37]
        found += seen.add(block, np.ones(len(block), bool)).tolist()
    expected = np.ones(2000, bool)
    expected[np.unique(ids, return_index=True)[1]] = False
    assert found == expected.tolist()
    assert not SeenSources().add(np.array([-1, -1]), np.zeros(2, bool)).any()
