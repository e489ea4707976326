"""What users hand to the command line by mistake: one line that names file and field, the exit code, nothing lost.

Damage to rows and to gzip is in test_cli_input.py, names and permissions are in test_cli_output.py.
"""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from command_lines import ENGINE, STARS, catalog_arguments, one_line, read

from bench import spectrum_formats
from bench.spectrum_formats import Columns, columns_of, make
from xpkern.catalog.rows import BP_USED, RP_USED
from xpkern.cli import main
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks
from xpkern.status import Status

ERROR_DOCUMENT = b"""<?xml version="1.0"?><VOTABLE version="1.3"><RESOURCE type="results">
<INFO name="QUERY_STATUS" value="ERROR">Job not found</INFO></RESOURCE></VOTABLE>"""


@pytest.fixture(scope="module")
def columns(bulk_files) -> Columns:
    (block,) = read_blocks(bulk_files.spectra, Calibration.default())
    return columns_of(block.source_id, block.coefficients)


def _without(name: str) -> Callable[[Columns], Columns]:
    return lambda columns: {key: values for key, values in columns.items() if key != name}


def _renamed(old: str, new: str) -> Callable[[Columns], Columns]:
    return lambda columns: {new if key == old else key: values for key, values in columns.items()}


#: Tables of spectra as a whole: form, change of the columns, message.
TABLES = {
    "missing column": ("csv", _without("rp_coefficient_errors"), "field rp_coefficient_errors: there is no column"),
    "renamed column": ("parquet", _renamed("bp_coefficients", "bp_coeffs"), "is bp_coeffs that of bp_coefficients?"),
    "no source_id": ("fits", _without("source_id"), "field source_id: none of its HDUs is a table with source_id"),
    "wrong length": (
        "h5",
        lambda columns: columns | {"bp_coefficients": [c[:40] for c in columns["bp_coefficients"]]},
        "field bp_coefficients: arrays of 40 numbers, but the calibration (Gaia DR3) is for 55",
    ),
    "float source_id": (
        "h5",
        lambda columns: columns | {"source_id": [float(i) for i in columns["source_id"]]},
        "field source_id: must be 64-bit integers, not float64",
    ),
}

#: Files that are no table of spectra: name, content, message.
FILES = {
    "empty": ("Xp.csv.gz", b"", "the file is empty"),
    "empty gzip": ("Xp.csv.gz", gzip.compress(b"", mtime=0), "no header line"),
    "web page": ("Xp.vot", b"<!DOCTYPE html><html>Log in</html>", "is a web page, not a VOTable"),
    "error document": ("Xp.vot", ERROR_DOCUMENT, "holds an error in place of a table: Job not found"),
    "pickle": ("Xp.pkl", pickle.dumps({"source_id": [1]}, protocol=5), "is a pickle, which is never loaded"),
    "npz": ("Xp.npz", b"PK\x03\x04", "is a zip archive (or npz)"),
    "text": ("Xp.csv", b"These are no spectra.\n", "there is no column source_id"),
    "folder": ("Xp", None, "Is a directory"),
}


def fails(capsys, arguments: list[str], folder: Path, kept: list[str]) -> str:
    """The only line of a command that fails and leaves nothing."""
    assert main(arguments) == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)
    return one_line(capsys)


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_lacks_something(columns, bulk_files, tmp_path, capsys, monkeypatch, case):
    form, change, message = TABLES[case]
    if case == "float source_id":
        monkeypatch.setitem(spectrum_formats.TYPES, "source_id", np.float64)
    spectra = make(form, change(columns), tmp_path)
    arguments = [*catalog_arguments(spectra, bulk_files), "-o", str(tmp_path / "catalog.h5")]
    said = fails(capsys, arguments, tmp_path, [spectra.name])
    assert said.startswith(f"xpkern: {spectra}, ")
    assert message in said


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_none(bulk_files, tmp_path, capsys, case):
    name, content, message = FILES[case]
    spectra = tmp_path / name
    spectra.mkdir() if content is None else spectra.write_bytes(content)
    arguments = [*catalog_arguments(spectra, bulk_files), "-o", str(tmp_path / "catalog.h5")]
    said = fails(capsys, arguments, tmp_path, [name])
    assert said.startswith(f"xpkern: {spectra}")
    assert message in said


@pytest.mark.parametrize("option", ["--source", "--photometry"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "the file holds no header line"),
        (
            "t.csv",
            b"source_id,parallax\n1,2\n1,2\n",
            "row 2, field source_id: 1 occurs more than once",
        ),
        ("t.csv", b"source_id,parallax\n1.5,2\n", "row 1, field source_id: '1.5' is no 64-bit integer"),
        ("t.csv", b"parallax,parallax_error\n2,3\n", "field source_id: the table has no column source_id"),
        ("t.csv.gz", gzip.compress(b"source_id,parallax\n1,2\n" * 99, mtime=0)[:-9], "cannot be read"),
        ("t.csv", b"<html>Log in</html>", "is a web page, not a table"),
        ("t.vot", ERROR_DOCUMENT, "holds an error in place of a table: Job not found"),
        ("t.vot.gz", gzip.compress(ERROR_DOCUMENT, mtime=0), "holds an error in place of a table: Job not found"),
        ("t.vot", b"<VOTABLE><RESOURCE/></VOTABLE>", "cannot be read as a table"),
        ("t.parquet", b"PAR1 and so on", "cannot be read as Parquet"),
    ],
)
def test_a_table_of_sources_that_is_none(bulk_files, tmp_path, capsys, option, name, content, message):
    table = tmp_path / name
    table.write_bytes(content)
    arguments = ["catalog", str(bulk_files.spectra), option, str(table), "--engine", ENGINE]
    said = fails(capsys, [*arguments, "-o", str(tmp_path / "catalog.h5")], tmp_path, [name])
    assert said.startswith(f"xpkern: {table}")
    assert message in said


def test_the_wrong_hdu(bulk_files, tmp_path, capsys):
    spectra = tmp_path / "images.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((2, 2)))]).writeto(spectra)
    arguments = [*catalog_arguments(spectra, bulk_files), "-o", str(tmp_path / "catalog.h5")]
    said = fails(capsys, arguments, tmp_path, [spectra.name])
    assert f"{spectra}, field source_id: none of its HDUs is a table with source_id: 0 is PrimaryHDU" in said


def test_stars_of_which_something_is_missing(columns, bulk_files, expected_catalog, tmp_path, capsys):
    """Counted by status in the catalogue and the summary; each has its row, and no other one changes."""
    changed = {name: list(values) for name, values in columns.items()}
    parts = ("coefficients", "coefficient_errors", "coefficient_correlations")
    for star, bands in ((1, ("bp", "rp")), (2, ("bp",)), (3, ("rp",))):
        for band in bands:
            for part in parts:
                name = f"{band}_{part}"
                changed[name][star] = np.full_like(changed[name][star], np.nan)
    changed["bp_coefficients"][4] = -changed["bp_coefficients"][4]
    changed["source_id"][5] = changed["source_id"][6] ^ 1  # no row of gaia_source has it, nor 2MASS
    changed["source_id"][8] = changed["source_id"][7]
    changed["rp_coefficient_correlations"][9] = np.full_like(changed["rp_coefficient_correlations"][9], -0.9)
    spectra = make("h5", changed, tmp_path)
    output = tmp_path / "catalog.h5"
    assert main([*catalog_arguments(spectra, bulk_files), "-o", str(output)]) == 3
    printed = capsys.readouterr()
    assert printed.err == "xpkern: sources without a row in the gaia_source table: 1\n"
    catalog = read(output)
    assert len(catalog["source_id"]) == STARS
    expected = {
        Status.NO_BP: [1, 2],
        Status.NO_RP: [1, 3],
        Status.NO_GAIA_SOURCE: [5],
        Status.REPEATED_SOURCE: [8],
    }
    for bit, stars in expected.items():
        assert np.flatnonzero(catalog["status"] & np.uint32(bit)).tolist() == stars, bit.name
        assert f"{len(stars)}  status {int(bit)} {bit.name}: " in printed.out
    assert catalog["status"][5] & Status.NO_INFRARED
    floored = np.uint32(Status.EIGENVALUE_FLOORED | Status.SINGULAR_COVARIANCE)
    assert np.flatnonzero(catalog["status"] & floored).tolist() == [9]
    assert (catalog["bands_used"][1] & (BP_USED | RP_USED)) == 0  # photometry and parallax are all that star has
    assert np.isfinite(catalog["teff"][[2, 3, 4, 5, 8]]).all()
    others = [0, 6, 7, 10, 11]
    for name, values in expected_catalog.items():
        np.testing.assert_array_equal(catalog[name][others], values[others], err_msg=name)
    assert not (tmp_path / "catalog.reasons.csv").exists()


def test_positions_that_are_no_numbers_match_nothing(tmp_path, capsys):
    sources, rows = tmp_path / "gaia.fits", tmp_path / "rows.fits"
    ra, dec = np.array([10.0, np.nan, 30.0, 40.0]), np.array([0.0, 0.0, 91.0, 0.0])
    Table({"source_id": np.arange(1, 5), "ra": ra, "dec": dec}).write(sources)
    Table({"ra": ra[[0, 3, 0]], "dec": [0.0, np.nan, np.inf], "mag": [1.0, 2.0, 3.0]}).write(rows)
    output = tmp_path / "matched.h5"
    assert main(["match", str(rows), "--to", str(sources), "--radius", "1", "-o", str(output)]) == 0
    printed = capsys.readouterr()
    assert "2  sources without usable coordinates" in printed.out
    assert "2  rows without usable coordinates" in printed.out
    assert printed.err == ""
    assert read(output)["source_id"].tolist() == [1]
