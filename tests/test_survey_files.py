"""The files of a simulated survey: what they hold, that they are the same bytes again, and what goes wrong."""

from __future__ import annotations

import errno
import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from mock_atmospheres import black_bodies

import xpkern as xk
from xpkern.cli import main
from xpkern.errors import InputError, XpkernError
from xpkern.observe.bulk_writer import format_rows
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks
from xpkern.survey import run, simulator
from xpkern.survey.fits_writer import FitsTableWriter
from xpkern.survey.planted import BAD_ROWS, NONE, Planted
from xpkern.survey.spectrum_files import BulkFile, Hdf5File
from xpkern.survey.tables import TABLES, TableColumn
from xpkern.survey.truth import AtmosphereTruth
from xpkern.train.packages import Package

ENGINE = "cpu" if xk.available_engines()["cpu"] is None else "reference"
FAULTY = Planted(no_bp=0.1, bad_row=0.3)
N_STARS, PER_FILE = 300, 130


TRUTH = AtmosphereTruth(black_bodies())


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks so small that a short survey has several."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (simulator, run):
            patch.setattr(module, "BLOCK_ROWS", 64)
        yield


def simulate(folder: Path, n: int = N_STARS, **options) -> run.SurveySummary:
    given = {"seed": 3, "truth": TRUTH, "planted": FAULTY, "stars_per_file": PER_FILE, "threads": 1} | options
    return run.simulate_survey(folder, n, **given)


@pytest.fixture(scope="module")
def survey(small_blocks, tmp_path_factory) -> run.SurveySummary:
    return simulate(tmp_path_factory.mktemp("folder") / "survey")


def read_table(path: Path) -> Table:
    table = Table.read(path)
    table.convert_bytestring_to_unicode()
    return table


def contents(summary: run.SurveySummary) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in summary.folder.iterdir()}


def rows_of(spectra: list[Path]) -> list[bytes]:
    """Rows of bulk files, without the headers."""
    return [
        line
        for path in spectra
        for line in gzip.decompress(path.read_bytes()).splitlines()
        if not line.startswith((b"#", b"source_id"))
    ]


# ---- what is in them -------------------------------------------------------------------------------------------


def test_the_reader_finds_exactly_the_faults_of_the_truth(survey):
    truth = read_table(survey.tables["truth"])
    calibration = Calibration.default()
    blocks = [block for path in survey.spectra for block in read_blocks(path, calibration)]
    np.testing.assert_array_equal(np.concatenate([block.source_id for block in blocks]), truth["source_id"])
    bad = np.concatenate([block.bad for block in blocks])
    fault = np.asarray(truth["fault"])
    assert {*BAD_ROWS, "no_bp", NONE} <= set(fault)
    # a repeated source_id is no bad row: it is marked when the catalogue is made
    np.testing.assert_array_equal(bad, np.isin(fault, [name for name in BAD_ROWS if name != "duplicate_id"]))
    has_bp = np.concatenate([block.coefficients.has_bp for block in blocks])
    np.testing.assert_array_equal(~has_bp & ~bad, fault == "no_bp")
    reasons = " ".join(message for block in blocks for _, _, _, message in block.reasons)
    for words in ("not a finite number", "expected 55 numbers, found 54", "not a positive error", "is no correlation"):
        assert words in reasons


def test_files_have_the_rows_that_were_asked_for(survey):
    assert [path.name for path in survey.spectra] == [
        f"XpContinuousMeanSpectrum_simulated-000{k}.csv.gz" for k in range(3)
    ]
    assert [len(rows_of([path])) for path in survey.spectra] == [130, 130, 40]
    assert sorted(path.name for path in survey.folder.iterdir()) == sorted(
        [path.name for path in (*survey.spectra, *survey.tables.values())]
    )
    assert survey.rows["spectra"] == survey.rows["truth"] == sum(survey.classes.values()) == N_STARS


def test_tables_have_units_descriptions_and_their_rows(survey):
    for name, columns in TABLES.items():
        with fits.open(survey.tables[name]) as file:
            file.verify("exception")
            header = file[1].header
            assert header["EXTNAME"] == name.upper()
            assert header["NAXIS2"] == survey.rows[name] == len(file[1].data)
            assert [header[f"TTYPE{k}"] for k in range(1, len(columns) + 1)] == [column.name for column in columns]
            assert [header.get(f"TUNIT{k}", "") for k in range(1, len(columns) + 1)] == [c.unit for c in columns]
            assert all(header[f"TCOMM{k}"] for k in range(1, len(columns) + 1))
            assert "not a Gaia product" in str(header["COMMENT"])
    source_id = Table.read(survey.tables["gaia_source"])["source_id"]
    assert len(np.unique(source_id)) == len(source_id)


def test_hdf5_holds_the_same_numbers(survey, tmp_path):
    mirrored = simulate(tmp_path / "mirror", format="hdf5")
    calibration = Calibration.default()
    truth = read_table(survey.tables["truth"])
    first = 0
    for text, path in zip(survey.spectra, mirrored.spectra, strict=True):
        block = next(read_blocks(text, calibration))
        with h5py.File(path) as file:
            columns = {name: dataset[()] for name, dataset in file.items()}
            assert all(dataset.attrs["description"] for dataset in file.values())
        mirror = next(read_blocks(path, calibration))
        np.testing.assert_array_equal(mirror.bad, block.bad)
        for name, numbers in vars(block.coefficients).items():
            np.testing.assert_array_equal(getattr(mirror.coefficients, name), numbers, err_msg=name)
        n = len(block)
        assert {len(values) for values in columns.values()} == {n}
        np.testing.assert_array_equal(columns["source_id"], block.source_id)
        whole = ~block.bad
        without_bp = np.asarray(truth["fault"])[first : first + n] == "no_bp"
        for name, read in (("coefficients", ""), ("coefficient_errors", "_error")):
            for band in ("bp", "rp"):
                rows = whole & ~without_bp if band == "bp" else whole
                expected = getattr(block.coefficients, band + read)[rows]
                np.testing.assert_array_equal(columns[f"{band}_{name}"][rows], expected)
        assert np.isnan(columns["bp_coefficients"][without_bp]).all()
        assert (columns["bp_n_parameters"][without_bp] == 0).all()
        short = np.asarray(truth["fault"])[first : first + n] == "wrong_length"
        assert np.isnan(columns["rp_coefficients"][short, -1]).all()
        first += n
    for name in TABLES:
        assert mirrored.tables[name].read_bytes() == survey.tables[name].read_bytes()


def test_masked_values_are_left_out_of_the_text():
    array = np.ma.array([[1.0, np.nan, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], mask=False)
    array[1, 2] = np.ma.masked
    array[2] = np.ma.masked
    number = np.ma.array(np.array([1, 2, 3], np.int16), mask=[False, True, False])
    text = format_rows({"source_id": np.arange(3), "bp_coefficients": array, "bp_n_parameters": number}).decode()
    lines = text.splitlines()
    assert '"[1.0,NaN,3.0]"' in lines[0]
    assert '"[4.0,5.0]"' in lines[1]
    assert "[" not in lines[2]
    assert [line.split(",")[4] for line in lines] == ["1", "null", "3"]


@pytest.mark.parametrize("n_rows", [0, 1, 15, 16, 17])
def test_a_fits_table_of_any_length(tmp_path, n_rows, rng):
    columns = (TableColumn("a", "i8", "", "integers"), TableColumn("b", "f4", "mas", "numbers"))
    columns += (TableColumn("c", "S5", "", "text"),)
    rows = {
        "a": rng.integers(-(1 << 62), 1 << 62, n_rows),
        "b": rng.standard_normal(n_rows),
        "c": rng.choice(np.array(["x", "yes", "other"]), n_rows),
    }
    writer = FitsTableWriter(tmp_path / "t.fits", "thing", columns)
    for part in (slice(0, 7), slice(7, None)):
        writer.append({name: values[part] for name, values in rows.items()})
    writer.close()
    assert (tmp_path / "t.fits").stat().st_size % 2880 == 0
    read = Table.read(tmp_path / "t.fits")
    assert len(read) == n_rows
    np.testing.assert_array_equal(read["a"], rows["a"])
    np.testing.assert_array_equal(read["b"], rows["b"].astype(np.float32))
    assert [str(text) for text in read["c"]] == rows["c"].tolist()


# ---- the same again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["csv", "hdf5"])
def test_the_same_bytes_whatever_the_threads(tmp_path, format):  # noqa: A002
    one, three = (simulate(tmp_path / str(n), 200, format=format, threads=n) for n in (1, 3))
    assert contents(one) == contents(three)


def test_rows_depend_neither_on_the_files_nor_on_the_length(survey, tmp_path):
    expected = rows_of(survey.spectra)
    assert len(expected) == N_STARS
    assert rows_of(simulate(tmp_path / "whole", stars_per_file=10_000).spectra) == expected
    for n in (1, 15, 16, 17, 65):
        part = simulate(tmp_path / str(n), n, stars_per_file=16)
        assert rows_of(part.spectra) == expected[:n]
        assert len(part.spectra) == -(-n // 16)


def test_another_seed_gives_other_stars(survey, tmp_path):
    assert rows_of(simulate(tmp_path / "other", 5, seed=4).spectra) != rows_of(survey.spectra)[:5]


# ---- end to end ------------------------------------------------------------------------------------------------


def test_simulate_then_catalog(tmp_path, capsys):
    folder, catalog = tmp_path / "survey", tmp_path / "catalog.h5"
    arguments = ["--n", "120", "--seed", "2", "--truth", "model", "--bad-row", "0.2", "--stars-per-file", "70"]
    assert main(["simulate", *arguments, "--threads", "1", "-o", str(folder)]) == 0
    said = capsys.readouterr()
    assert "120 sources" in said.out
    assert "spectra in 2 files" in said.out
    assert said.err == ""  # no progress bar where there is no terminal
    files = [str(path) for path in sorted(folder.glob("Xp*.csv.gz"))]
    source = ["--source", str(folder / "gaia_source.fits")]
    assert main(["catalog", *files, *source, "--engine", ENGINE, "-o", str(catalog)]) == 3
    truth = read_table(folder / "truth.fits")
    with h5py.File(catalog) as file:
        teff, status = file["teff"][()], file["status"][()]
        np.testing.assert_array_equal(file["source_id"][()], truth["source_id"])
        # the row of gaia_source is that of the first row with its source_id
        own = np.asarray(truth["fault"]) != "duplicate_id"
        np.testing.assert_allclose(file["ra"][()][own], truth["ra"][own], rtol=1e-12)
    good = (np.asarray(truth["class"]) == "star") & (np.asarray(truth["fault"]) == NONE)
    assert np.median(np.abs(teff[good] / truth["teff"][good] - 1.0)) < 0.1
    assert not (status[good] & np.uint32(xk.Status.NO_GAIA_SOURCE | xk.Status.NO_PARALLAX)).any()


def test_nothing_planted_is_nothing_planted(tmp_path, capsys):
    arguments = ["--n", "70", "--truth", "model", "--none-planted", "--quasar", "0.5", "--threads", "1"]
    assert main(["simulate", *arguments, "-o", str(tmp_path / "survey")]) == 0
    truth = read_table(tmp_path / "survey" / "truth.fits")
    assert set(truth["class"]) == {"star", "quasar"}
    assert set(truth["fault"]) == {NONE}
    assert set(truth["rv"]) == {np.float32(3.1)}


# ---- what goes wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--n", "0"], "n_stars: 0 is not a number of stars"),
        (["--n", "-5"], "-5 is not a number of stars"),
        (["--seed", "-1"], "seed: -1 is negative"),
        (["--stars-per-file", "0"], "stars_per_file"),
        (["--binary", "1.2"], "binary: 1.2 is not a fraction"),
        (["--binary", "0.9", "--quasar", "0.2"], "add up to"),
        (["--no-bp", "0.9", "--bad-row", "0.2"], "add up to"),
        (["--magnitudes", "17", "10"], "17 to 10 is not a range"),
    ],
)
def test_wrong_numbers_are_refused_in_a_line(tmp_path, capsys, arguments, words):
    given = ["simulate", "--truth", "model", "--n", "10", "-o", str(tmp_path / "survey"), *arguments]
    assert main(given) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("truth", "phoenix"), ("format", "parquet")])
def test_unknown_names_are_refused(tmp_path, name, value):
    with pytest.raises(InputError, match=f"{name}: '{value}' is none of"):
        simulate(tmp_path / "survey", **{name: value})


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "survey").mkdir()
    (tmp_path / "survey" / "precious").write_text("work")
    with pytest.raises(InputError, match="not empty"):
        simulate(tmp_path / "survey")
    assert [path.name for path in (tmp_path / "survey").iterdir()] == ["precious"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "survey").mkdir()
    assert simulate(tmp_path / "survey", 3).rows["spectra"] == 3


def test_places_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no folder"):
        simulate(tmp_path / "file")
    with pytest.raises(InputError, match="does not exist"):
        simulate(tmp_path / "missing" / "survey")


def test_a_place_that_cannot_be_written_is_an_error_in_a_line(tmp_path, monkeypatch, capsys):
    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["simulate", "--truth", "model", "--n", "3", "-o", str(tmp_path / "survey")]) == 1
    error = capsys.readouterr().err
    assert "Permission denied" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("written", [BulkFile, Hdf5File, FitsTableWriter])
@pytest.mark.parametrize("reason", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_survey_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, written, reason):
    append, calls = written.append, []

    def breaks_off(self, *arguments):
        calls.append(1)
        if len(calls) > 4:
            raise reason
        return append(self, *arguments)

    monkeypatch.setattr(written, "append", breaks_off)
    with pytest.raises(type(reason)):
        simulate(tmp_path / "survey", 250, format="hdf5" if written is Hdf5File else "csv", threads=2)
    assert len(calls) == 5
    assert list(tmp_path.iterdir()) == []


def test_atmospheres_that_cannot_be_fetched_are_an_error_in_a_line(tmp_path, monkeypatch, capsys):
    def no_network(self, cache):
        raise XpkernError("pip cannot download it: no network")

    monkeypatch.setattr(Package, "fetch", no_network)
    given = ["simulate", "--n", "3", "--cache", str(tmp_path / "cache"), "-o", str(tmp_path / "survey")]
    assert main(given) == 1
    error = capsys.readouterr().err
    assert "no network" in error
    assert "pip download" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "survey").exists()


def test_progress_adds_up(tmp_path):
    blocks: list[int] = []
    simulate(tmp_path / "survey", 150, on_progress=blocks.append)
    assert blocks == [64, 64, 22]
