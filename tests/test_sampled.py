"""Sampled spectra: what becomes of fluxes with independent errors, and how the output says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Column, Table
from command_lines import ENGINE, read

import xpkern as xk
from bench.spectrum_formats import ALL, Columns, make
from xpkern.errors import InputError
from xpkern.grid import N_XP, XP_WAVELENGTH
from xpkern.model.noise import Noise
from xpkern.observe.sampled import N_SAMPLES, SAMPLE_WAVELENGTH, bp_weight, sampled_calibration
from xpkern.status import Status

NOISE = Noise.eq2()
OF_GRID = np.isin(SAMPLE_WAVELENGTH, XP_WAVELENGTH)


def some_spectra(rng, rows=3) -> Columns:
    flux = (rng.lognormal(size=(rows, N_SAMPLES)) * 1e-16).astype(np.float32)
    error = (rng.lognormal(size=(rows, N_SAMPLES)) * 1e-18).astype(np.float32)
    return {"source_id": list(range(7, 7 + rows)), "ra": [1.0] * rows, "flux": list(flux), "flux_error": list(error)}


def covariance_of(flux: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Eq. 2 as it stands, with f_BP = w_BP f and f_RP = w_RP f; flux and error in our unit."""
    weight = np.clip((643.0 - XP_WAVELENGTH) / 8.0, 0.0, 1.0)
    f_bp, f_rp = weight * flux, (1 - weight) * flux
    covariance = np.diag(error**2 + (NOISE.independent[:N_XP] * flux) ** 2)
    covariance += NOISE.common**2 * np.outer(flux, flux)
    return covariance + NOISE.bp**2 * np.outer(f_bp, f_bp) + NOISE.rp**2 * np.outer(f_rp, f_rp)


def assert_whitens(stars: xk.Observations, star: int, covariance: np.ndarray, present: np.ndarray) -> None:
    whitener = stars.whitener_dense(star)[:N_XP, :N_XP]
    assert (whitener[:, ~present] == 0).all()
    white = (whitener @ covariance @ whitener.T)[np.ix_(present, present)]
    np.testing.assert_allclose(white, np.eye(present.sum()), atol=2e-4)


def test_weights_are_those_of_gaiaxpy(shared_data):
    with np.load(shared_data / "vectors" / "xp_design_gaiaxpy_2.1.5_392_992_10.npz") as stored:
        np.testing.assert_allclose(bp_weight(XP_WAVELENGTH), stored["w_bp"], atol=1e-15)


@pytest.mark.parametrize("form", ALL)
def test_fluxes_and_covariances(form, tmp_path, rng):
    columns = some_spectra(rng)
    stars = xk.read_xp(make(form, columns, tmp_path), noise=NOISE, engine="reference")
    flux = np.stack(columns["flux"])[:, OF_GRID].astype(float) / 1e-18
    error = np.stack(columns["flux_error"])[:, OF_GRID].astype(float) / 1e-18
    assert stars.source_id.tolist() == columns["source_id"]
    assert (stars.status & Status.SAMPLED_SPECTRUM).all()
    assert not (stars.status & (Status.NO_BP | Status.NO_RP | Status.MISSING_SAMPLES)).any()
    np.testing.assert_allclose(stars.flux[:, :N_XP], flux, rtol=1e-7)
    for star in range(3):
        assert_whitens(stars, star, covariance_of(flux[star], error[star]), np.ones(N_XP, bool))


def test_fluxes_in_other_units(rng):
    from astropy import units
    from astropy.table import QTable

    columns = some_spectra(rng)
    table = QTable({"source_id": columns["source_id"]})
    for name in ("flux", "flux_error"):
        table[name] = (np.stack(columns[name]).astype(float) * units.Unit("W m-2 nm-1")).to("erg s-1 cm-2 AA-1")
    stars = xk.read_xp(table, noise=NOISE, engine="reference")
    expected = xk.read_xp({name: np.array(v) for name, v in columns.items()}, noise=NOISE, engine="reference")
    np.testing.assert_allclose(stars.flux, expected.flux, rtol=3e-7)
    np.testing.assert_allclose(stars.whitener, expected.whitener, rtol=1e-5)


def with_units(form: str, columns: Columns, unit: str, folder: Path) -> Any:
    """A table of sampled spectra that says in which unit its fluxes and errors are."""
    arrays = {name: np.array(values) for name, values in columns.items()}
    path = folder / f"{unit.replace('/', '')}.{form}"
    if form == "ecsv":
        make("ecsv", columns, folder)
        text = (folder / "spectra.ecsv").read_text()
        for name in ("flux", "flux_error"):
            text = text.replace(f"{{name: {name}, ", f"{{name: {name}, unit: '{unit}', ")
        path.write_text(text)
        return path
    if form == "h5":
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values
                file[name].attrs["unit"] = unit if name.startswith("flux") else ""
        return path
    if form == "arrow":
        kinds = {name: pa.from_numpy_dtype(values.dtype) for name, values in arrays.items()}
        fields = [
            pa.field(name, pa.list_(kind), metadata={"unit": unit}) if name.startswith("flux") else pa.field(name, kind)
            for name, kind in kinds.items()
        ]
        return pa.table([pa.array(list(values)) for values in arrays.values()], schema=pa.schema(fields))
    if form == "parquet":
        pq.write_table(with_units("arrow", columns, unit, folder), path)
        return path
    table = Table(arrays)
    for name in ("flux", "flux_error"):
        table[name].unit = unit
    if form == "astropy":
        return table
    if form == "text":  # arrays as the csv file has them
        for name in ("flux", "flux_error"):
            table[name] = Column([str(list(map(float, values))) for values in arrays[name]], unit=unit, dtype=object)
        return table
    kind = {"fits": "fits", "xml": "votable", "astropy.parquet": "parquet"}[form]
    table.write(path, format=kind)
    return path


FORMS_WITH_UNITS = ["ecsv", "h5", "arrow", "parquet", "astropy.parquet", "astropy", "text", "fits", "xml"]


@pytest.mark.filterwarnings("ignore::astropy.units.UnitsWarning")
@pytest.mark.parametrize("form", FORMS_WITH_UNITS)
def test_units_that_the_table_names(form, tmp_path, rng):
    columns = some_spectra(rng)
    expected = xk.read_xp(make("dict", columns, tmp_path), noise=NOISE, engine="reference")
    for unit, factor in (("W m-2 nm-1", 1.0), ("W m-2 Angstrom-1", 0.1), ("erg s-1 cm-2 nm-1", 1e3)):
        numbers = {
            name: [(v * factor).astype(v.dtype) for v in values] if name.startswith("flux") else values
            for name, values in columns.items()
        }
        stars = xk.read_xp(with_units(form, numbers, unit, tmp_path), noise=NOISE, engine="reference")
        np.testing.assert_allclose(stars.flux, expected.flux, rtol=4e-7)
        np.testing.assert_allclose(stars.whitener, expected.whitener, rtol=1e-5)
    for unit in ("Jy", "K"):
        source = with_units(form, columns, unit, tmp_path)
        with pytest.raises(InputError, match=f"its unit is {unit}, which is no W m-2 nm-1") as caught:
            xk.read_xp(source, noise=NOISE, engine="reference")
        assert caught.value.field == "flux"
        assert caught.value.file == (str(source) if isinstance(source, Path) else "table")


@pytest.mark.parametrize("form", ["ecsv", "h5", "parquet"])
def test_units_that_nobody_understands(form, tmp_path, rng):
    source = with_units(form, some_spectra(rng), "counts of mine", tmp_path)
    with pytest.raises(InputError, match="its unit, counts of mine, is not understood"):
        xk.read_xp(source, noise=NOISE, engine="reference")


def test_engines_agree(rng, engine, tmp_path):
    table = make("dict", some_spectra(rng, 20), tmp_path)
    found = xk.read_xp(table, noise=NOISE, engine=engine)
    expected = xk.read_xp(table, noise=NOISE, engine="reference")
    np.testing.assert_allclose(found.flux, expected.flux, rtol=1e-6)
    np.testing.assert_allclose(found.whitener, expected.whitener, rtol=1e-4, atol=1e-6)


def test_real_file(shared_data):
    path = shared_data / "gaiaxpy" / "xp_sampled" / "XP_SAMPLED_RAW_dr3int6.csv"
    stars = xk.read_xp(path, noise=NOISE, engine=ENGINE)
    text = path.read_text().splitlines()[1].split('"')[1].strip("()")
    flux = np.array([float(number) for number in text.split(",")])[OF_GRID] / 1e-18
    np.testing.assert_allclose(stars.flux[0, :N_XP], flux, rtol=2e-7)
    assert sampled_calibration().n_bp + sampled_calibration().n_rp == N_XP + 1


@pytest.mark.parametrize("form", ALL)
def test_missing_samples_and_bands(form, tmp_path, rng):
    columns = some_spectra(rng, 5)
    bluer, redder = SAMPLE_WAVELENGTH < 642, SAMPLE_WAVELENGTH > 642
    lost = (SAMPLE_WAVELENGTH == 502) | (SAMPLE_WAVELENGTH == 504)
    for row, (name, where) in enumerate([("flux", lost), ("flux_error", lost), ("flux", bluer), ("flux", redder)]):
        columns[name][row][where] = np.nan
    columns["flux"][4] = columns["flux_error"][4] = None
    stars = xk.read_xp(make(form, columns, tmp_path), noise=NOISE, engine="reference")
    assert stars.reasons == []
    bits = Status.NO_BP | Status.NO_RP | Status.MISSING_SAMPLES | Status.NO_DATA | Status.BAD_ROW
    assert (stars.status & np.uint32(bits)).tolist() == [
        Status.MISSING_SAMPLES,
        Status.MISSING_SAMPLES,
        Status.NO_BP,
        Status.NO_RP,
        Status.NO_BP | Status.NO_RP | Status.NO_DATA,
    ]
    for star in range(2):
        flux, error = (columns[name][star][OF_GRID].astype(float) / 1e-18 for name in ("flux", "flux_error"))
        present = XP_WAVELENGTH != 502
        sound = np.where(present, flux, 1.0), np.where(present, error, 1.0)
        assert stars.flux[star, np.flatnonzero(~present)[0]] == 0
        assert_whitens(stars, star, covariance_of(*sound), present)


def test_bad_rows(tmp_path, rng):
    for form in ALL:
        columns = some_spectra(rng, 5)
        columns["flux_error"][1][3] = -1.0
        columns["flux"][3][5] = np.inf
        stars = xk.read_xp(make(form, columns, tmp_path), noise=NOISE, engine=ENGINE)
        assert [reason[1:3] for reason in stars.reasons] == [(2, "flux_error"), (4, "flux")], form
        assert ((stars.status & Status.BAD_ROW) != 0).tolist() == [False, True, False, True, False]
    short = {
        name: values if name == "source_id" else [v[:100] for v in values]
        for name, values in columns.items()
        if name != "ra"
    }
    with pytest.raises(InputError, match=r"arrays of 100 numbers, but the calibration \(sampled spectra\) is for 343"):
        xk.read_xp(make("dict", short, tmp_path), noise=NOISE)
    stars = xk.read_xp(make("csv", short, tmp_path, "short"), noise=NOISE, engine=ENGINE)
    assert len(stars.reasons) == 5


def test_a_catalogue_says_that_spectra_were_sampled(tmp_path, rng):
    model, _ = xk.load_model()
    flux = model.predict(teff=[5.0, 6.0], feh=0.0, logg=4.5, ext=0.1, plx=1.0)[:, :N_XP].astype(float)
    sampled = np.stack([np.interp(SAMPLE_WAVELENGTH, XP_WAVELENGTH, row) for row in flux]) * 1e-18
    columns = some_spectra(rng, 2) | {"flux": list(sampled), "flux_error": list(0.01 * sampled)}
    xk.make_catalog(make("fits", columns, tmp_path), tmp_path / "catalog.h5", engine=ENGINE, threads=1)
    catalog = read(tmp_path / "catalog.h5")
    assert (catalog["status"] & Status.SAMPLED_SPECTRUM).all()
    assert np.isfinite(catalog["teff"]).all()
