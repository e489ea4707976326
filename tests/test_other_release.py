"""Another data release: 51 + 55 coefficients of another instrument, and nothing new but its calibration."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from command_lines import ENGINE, catalog_arguments, one_line, read

import xpkern as xk
from bench.spectrum_formats import Columns, columns_of, make
from xpkern.cli import main
from xpkern.cli.run import PARTIAL
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks

N_BP, N_RP = 51, 55


@pytest.fixture(scope="module")
def release() -> Calibration:
    """An instrument whose design matrices share with those of DR3 only which samples each band covers."""
    rng, dr3 = np.random.default_rng(4), Calibration.default()

    def design(old: np.ndarray, n: int) -> np.ndarray:
        covered = old.any(axis=1)
        return np.where(covered[:, None], rng.normal(size=(len(old), n)) * np.abs(old).mean(), 0.0)

    return Calibration(
        release="Gaia DR4, made up",
        instrument_model="random numbers",
        bp_design=design(dr3.bp_design, N_BP),
        rp_design=design(dr3.rp_design, N_RP),
        wavelength=dr3.wavelength,
        bp_basis_function_id=101,
        rp_basis_function_id=102,
    )


def translated(columns: Columns, release: Calibration) -> Columns:
    """The same fluxes and covariances in the coefficients of another release."""
    dr3, made = Calibration.default(), dict(columns)
    for band, old, new, basis in (
        ("bp", dr3.bp_design, release.bp_design, release.bp_basis_function_id),
        ("rp", dr3.rp_design, release.rp_design, release.rp_basis_function_id),
    ):
        covered = old.any(axis=1)
        inverse = np.linalg.pinv(new[covered])
        n, n_old = new.shape[1], old.shape[1]
        nothing_seen = np.eye(n) - inverse @ new[covered]
        made |= {f"{band}_n_parameters": [n] * len(columns["source_id"])}
        made |= {f"{band}_basis_function_id": [basis] * len(columns["source_id"])}
        arrays = []
        for c, e, packed in zip(
            *(columns[f"{band}_coefficient{ending}"] for ending in ("s", "_errors", "_correlations")), strict=True
        ):
            rho = np.eye(n_old)
            below = np.tril_indices(n_old, -1)
            rho[below] = packed
            sigma = rho + np.tril(rho, -1).T
            sigma = e[:, None].astype(float) * sigma * e
            sampled = old[covered] @ sigma @ old[covered].T
            new_sigma = inverse @ sampled @ inverse.T
            new_sigma += np.trace(new_sigma) / n * nothing_seen
            error = np.sqrt(np.diag(new_sigma))
            correlation = (new_sigma / np.outer(error, error))[np.tril_indices(n, -1)]
            arrays.append((inverse @ (old[covered] @ c), error.astype(np.float32), correlation.astype(np.float32)))
        for ending, values in zip(("s", "_errors", "_correlations"), zip(*arrays, strict=True), strict=True):
            made[f"{band}_coefficient{ending}"] = list(values)
    return made


@pytest.fixture(scope="module")
def made_columns(bulk_files, release) -> Columns:
    (block,) = read_blocks(bulk_files.spectra, Calibration.default())
    return translated(columns_of(block.source_id, block.coefficients), release)


@pytest.mark.parametrize("form", ["csv.gz", "parquet", "h5", "fits"])
def test_the_same_stars_in_another_release(form, bulk_files, release, made_columns, expected_catalog, tmp_path, capsys):
    release.save(tmp_path / "release.npz")
    spectra = make(form, made_columns, tmp_path)
    arguments = [*catalog_arguments(spectra, bulk_files), "-o", str(tmp_path / "catalog.h5")]
    assert main([*arguments, "--calibration", str(tmp_path / "release.npz")]) == 0
    capsys.readouterr()
    catalog = read(tmp_path / "catalog.h5")
    np.testing.assert_array_equal(catalog["source_id"], expected_catalog["source_id"])
    # float32 errors and correlations: what is left of a covariance is good to some 1e-6
    for name in ("teff", "feh", "logg"):
        difference = np.abs(catalog[name] - expected_catalog[name])
        assert (difference < 0.01 * expected_catalog[f"{name}_error"]).all(), name
    np.testing.assert_allclose(catalog["chi2"], expected_catalog["chi2"], rtol=1e-2)

    assert main([*arguments[:-1], str(tmp_path / "by DR3.h5")]) == 1
    message = one_line(capsys)
    assert "Gaia DR3" in message
    assert "51" in message


def test_a_survey_of_another_release(bulk_files, release, made_columns, expected_catalog, tmp_path, capsys):
    """Every command that reads spectra: as the catalogue of DR3, or as what :func:`xpkern.read_xp` gives."""
    release.save(tmp_path / "release.npz")
    spectra = make("parquet", made_columns, tmp_path)
    settings = tmp_path / "survey.toml"
    names = {"spectra": spectra.name, "gaia_source": str(bulk_files.gaia_source), "output": "shards", "engine": ENGINE}
    settings.write_text("".join(f'{name} = "{value}"\n' for name, value in names.items()))
    assert main(["run", str(settings)]) == PARTIAL  # as of DR3
    assert "give the calibration of their release" in capsys.readouterr().err
    settings.write_text(settings.read_text() + 'calibration = "release.npz"\n')
    assert main(["run", str(settings)]) == 0
    assert main(["collect", str(settings), "-o", str(tmp_path / "catalog.h5")]) == 0
    catalog = read(tmp_path / "catalog.h5")
    order = np.argsort(expected_catalog["source_id"], kind="stable")
    for name in ("source_id", "teff", "feh", "logg"):
        tolerance = 0 if name == "source_id" else 0.01 * expected_catalog[f"{name}_error"][order]
        assert (np.abs(catalog[name] - expected_catalog[name][order]) <= tolerance).all(), name
    with h5py.File(tmp_path / "catalog.h5") as file:
        assert file.attrs["calibration_release"] == "Gaia DR4, made up"

    option = ["--calibration", str(tmp_path / "release.npz")]
    assert main(["convert", str(spectra), *option, "--lossless", "-o", str(tmp_path / "compact")]) == 0
    compact = tmp_path / "compact" / f"{spectra.stem}.h5"
    source = ["--source", str(bulk_files.gaia_source), "--engine", ENGINE]
    assert main(["spectra", str(compact), *source, *option, "-o", str(tmp_path / "spectra.h5")]) == 0
    stars = xk.read_xp(spectra, gaia_source=bulk_files.gaia_source, calibration=release, engine=ENGINE)
    written = read(tmp_path / "spectra.h5")
    np.testing.assert_array_equal(written["whitener"], stars.whitener)
    present = np.isfinite(written["flux"])
    np.testing.assert_array_equal(written["flux"][present], stars.flux[present])


@pytest.mark.parametrize("n", [(51, 55), (2, 3), (70, 12)])
def test_no_engine_knows_how_many_coefficients_there_are(n, engine, rng):
    designs = [
        rng.normal(size=(61, k)) * (Calibration.default().bp_design.any(axis=1)[:, None] == first)
        for k, first in zip(n, (True, False), strict=True)
    ]
    calibration = Calibration("x", "y", *designs, Calibration.default().wavelength, 1, 2)
    columns: Columns = {"source_id": [1, 2, 3]}
    for band, k in zip(("bp", "rp"), n, strict=True):
        columns[f"{band}_coefficients"] = list(rng.normal(size=(3, k)))
        columns[f"{band}_coefficient_errors"] = list(rng.lognormal(size=(3, k)).astype(np.float32))
        columns[f"{band}_coefficient_correlations"] = list(np.zeros((3, k * (k - 1) // 2), np.float32))
    stars = xk.read_xp({name: np.array(v) for name, v in columns.items()}, calibration=calibration, engine=engine)
    flux = sum(
        np.stack(columns[f"{band}_coefficients"]) @ design.T for band, design in zip(("bp", "rp"), designs, strict=True)
    )
    np.testing.assert_allclose(stars.flux[:, :61], flux, rtol=1e-5, atol=1e-5)
