"""Calibrated spectra in a file: the numbers that a fit would see, in every format."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from astropy import units
from astropy.io.votable.ucd import check_ucd
from catalog_files import read
from command_lines import ENGINE, STARS, first_row, one_line

import xpkern as xk
from xpkern.catalog.hdf5_writer import Hdf5Writer
from xpkern.catalog.spectra import SPECTRA, WHITENER
from xpkern.cli import main
from xpkern.engine.packed import present_samples
from xpkern.grid import WAVELENGTH


@pytest.fixture(scope="module")
def observed(bulk_files) -> xk.Observations:
    return xk.read_xp(bulk_files.spectra, gaia_source=bulk_files.gaia_source, engine=ENGINE)


def arguments(spectra, survey, *more: str) -> list[str]:
    return ["spectra", str(spectra), "--source", str(survey.gaia_source), "--engine", ENGINE, *more]


@pytest.mark.parametrize("suffix", [".h5", ".fits", ".ecsv", ".parquet"])
def test_what_a_fit_would_see(bulk_files, observed, tmp_path, capsys, suffix):
    path = tmp_path / f"spectra{suffix}"
    assert main(arguments(bulk_files.spectra, bulk_files, "-o", str(path))) == 0
    printed = capsys.readouterr()
    assert f"{STARS} stars in" in printed.out
    assert printed.err == ""
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    table = read(path)
    assert table.colnames == [column.name for column in (*SPECTRA, WHITENER)]
    np.testing.assert_array_equal(table["source_id"], observed.source_id)
    np.testing.assert_array_equal(table["status"], observed.status)
    np.testing.assert_array_equal(table["whitener"], observed.whitener)
    np.testing.assert_array_equal(table["parallax"], observed.plx)
    np.testing.assert_array_equal(table["parallax_error"], observed.plx_err)
    present = present_samples(observed.whitener)
    assert not present.all()
    np.testing.assert_array_equal(np.asarray(table["flux"]), np.where(present, observed.flux, np.nan))
    for star in (0, STARS - 1):
        square = observed.whitener_dense(star)[np.ix_(present[star], present[star])]
        error = np.sqrt(np.diag(np.linalg.inv(square.T @ square)))
        np.testing.assert_allclose(np.asarray(table["flux_error"])[star, present[star]], error, rtol=1e-4)
    assert np.isnan(np.asarray(table["flux_error"])[~present]).all()
    assert units.Unit(str(table["flux"].unit)).is_equivalent("W m-2 nm-1")
    about = json.loads(table.meta["XPKERN"]) if suffix == ".fits" else table.meta
    np.testing.assert_array_equal(about["wavelength"], WAVELENGTH)
    assert about["noise_digest"] == xk.load_model()[0].noise.digest


def test_exit_codes_are_those_of_a_catalogue(bulk_files, bulk_lines, tmp_path, capsys):
    start = first_row(bulk_lines)
    good, bad, nothing = tmp_path / "good.csv", tmp_path / "bad.csv", tmp_path / "nothing.csv"
    good.write_bytes(b"".join([*bulk_lines[: start + 2], b"3,4\n"]))
    bad.write_bytes(b"".join([*bulk_lines[:start], b"1,2\n", b"3,4\n"]))
    nothing.write_bytes(b"".join(bulk_lines[:start]))
    for spectra, code, said in (
        (good, 3, "rows that could not be read: 1"),
        (bad, 1, f"no star could be fitted; its column status says why, and {tmp_path / 'bad.reasons.csv'} of rows"),
        (nothing, 0, ""),
    ):
        for command in ("catalog", "spectra"):
            output = tmp_path / f"{spectra.stem}.h5"
            assert main([command, *arguments(spectra, bulk_files, "-o", str(output), "--overwrite")[1:]]) == code
            assert said in (one_line(capsys) if code else capsys.readouterr().out)
            assert output.exists()


def test_a_fit_of_the_file_is_that_of_the_spectra(bulk_files, observed, tmp_path):
    xk.write_spectra(bulk_files.spectra, tmp_path / "s.h5", gaia_source=bulk_files.gaia_source, engine=ENGINE)
    with h5py.File(tmp_path / "s.h5") as file:
        again = xk.Observations.from_arrays(
            flux=file["flux"][:],
            packed_factor=file["whitener"][:],
            plx=file["parallax"][:],
            plx_err=file["parallax_error"][:],
            noise=xk.load_model()[0].noise,
        )
    first, second = (xk.fit(obs, *xk.load_model(), engine=ENGINE) for obs in (observed, again))
    np.testing.assert_array_equal(first.params, second.params)


def test_bytes_depend_on_neither_threads_nor_blocks(bulk_files, tmp_path, monkeypatch):
    monkeypatch.setattr(Hdf5Writer, "group_rows", 5)
    contents = []
    for index, (threads, rows) in enumerate(((1, None), (2, 3), (5, 1))):
        path = tmp_path / f"{index}.h5"
        xk.write_spectra(bulk_files.spectra, path, engine=ENGINE, threads=threads, rows=rows)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_without_whiteners_and_without_parallaxes(bulk_files, tmp_path):
    path = tmp_path / "s.parquet"
    assert main(["spectra", str(bulk_files.spectra), "--engine", ENGINE, "--no-whiteners", "-o", str(path)]) == 0
    table = read(path)
    assert table.colnames == [column.name for column in SPECTRA]
    assert np.isnan(table["parallax"]).all()


def test_what_was_read_before_a_break_is_kept(bulk_files, observed, tmp_path, capsys):
    broken = tmp_path / "broken.csv.gz"
    content = bulk_files.spectra.read_bytes()
    broken.write_bytes(content[: int(0.7 * len(content))])
    assert main(arguments(broken, bulk_files, "-o", str(tmp_path / "s.fits"))) == 1
    message, table = one_line(capsys), read(tmp_path / "s.incomplete.fits")
    assert f"the {len(table)} rows before it are in {tmp_path / 's.incomplete.fits'}" in message
    assert 0 < len(table) < STARS
    np.testing.assert_array_equal(table["flux"][:, :61], observed.flux[: len(table), :61])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.csv.gz", "s.incomplete.fits"]


def test_bad_rows_have_a_place_and_a_reason(bulk_files, bulk_lines, tmp_path, capsys):
    lines = list(bulk_lines)
    lines[first_row(lines) + 2] = b"what is this\n"
    spectra = tmp_path / "damaged.csv"
    spectra.write_bytes(b"".join(lines))
    # a catalogue of the same stem has companions of its own, which are none of ours
    (tmp_path / "s.diagnostics.h5").write_bytes(b"precious")
    assert main(arguments(spectra, bulk_files, "-o", str(tmp_path / "s.h5"))) == 3
    assert "xpkern: rows that could not be read: 1" in capsys.readouterr().err
    assert np.isnan(read(tmp_path / "s.h5")["flux"][2]).all()
    assert (tmp_path / "s.reasons.csv").read_text().count("\n") == 2
    assert (tmp_path / "s.diagnostics.h5").read_bytes() == b"precious"


def test_columns_are_described():
    for column in (*SPECTRA, WHITENER):
        assert check_ucd(column.ucd, check_controlled_vocabulary=True), column.name
        units.Unit(column.unit)
        assert len(column.description) > 10
