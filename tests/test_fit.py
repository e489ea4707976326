"""The fit as a user calls it."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest
from mock_stars import random_model, random_params, random_prior, random_stars

import xpkern as xk
from xpkern.engine.arrays import to_host
from xpkern.fit.covariance import EIGENVALUE_FLOOR, invert_held, invert_information
from xpkern.fit.fit import default_box
from xpkern.status import Status


@pytest.fixture(scope="module")
def fitted(optimum_model, optimum_observations):
    obs = xk.Observations.concatenate([optimum_observations])
    obs.columns["ra"] = np.linspace(0.0, 359.0, len(obs))
    return xk.fit(obs, *optimum_model, engine="reference")


def test_shapes_and_meaning(fitted, optimum):
    n = 128
    shapes = {
        "source_id": (n,),
        "params": (n, 5),
        "cov": (n, 5, 5),
        "icov": (n, 5, 5),
        "fisher": (n, 5, 5),
        "hessian": (n, 5, 5),
        "loss": (n,),
        "chi2": (n,),
        "ln_prior": (n,),
        "gradient_norm": (n,),
        "decrement": (n,),
        "residual": (n, 66),
        "status": (n,),
        "iterations": (n,),
        "fitted": (n,),
    }
    assert {name: getattr(fitted, name).shape for name in shapes} == shapes
    assert len(fitted) == n
    assert fitted.engine == "reference"
    assert fitted.fitted.all()
    best = np.abs(fitted.loss - optimum["best_loss"]) < 0.01
    np.testing.assert_allclose(fitted.chi2[best], optimum["best_chi2"][best], atol=0.2)
    np.testing.assert_allclose(fitted.ln_prior[best], optimum["best_ln_prior"][best], atol=0.1)
    terms = fitted.chi2 - 2 * fitted.ln_prior - 2 * np.log(fitted.params[:, 3]) - 2 * np.log(fitted.params[:, 4])
    terms += ((fitted.params[:, 4] - fitted.observations.plx) / fitted.observations.plx_err) ** 2
    np.testing.assert_allclose(fitted.loss, terms, rtol=1e-10)


def test_errors_are_those_of_the_scatter(fitted, optimum):
    """Pulls of well measured stars: the covariance is the right one, not its inverse or half of it."""
    sigma = np.sqrt(np.einsum("naa->na", fitted.cov))
    pulls = (fitted.params - optimum["truth"]) / sigma
    spread = 0.5 * (np.quantile(pulls, 0.84, axis=0) - np.quantile(pulls, 0.16, axis=0))
    # 128 stars fix each spread to about 9 %; the prior narrows some, the modes in ln E and ln plx shift others
    assert (spread > 0.5).all()
    assert (spread < 1.4).all()


def test_covariance_is_the_inverse_and_positive(fitted):
    np.testing.assert_array_equal(fitted.icov, fitted.fisher)
    product = fitted.cov @ fitted.icov
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(5), product.shape), atol=1e-6)
    assert (np.linalg.eigvalsh(fitted.cov) > 0).all()
    np.testing.assert_array_equal(fitted.cov, fitted.cov.swapaxes(1, 2))


def test_table_has_units(fitted):
    table = fitted.to_table()
    assert len(table) == 128
    np.testing.assert_array_equal(table["source_id"], fitted.source_id)
    np.testing.assert_allclose(table["teff"].quantity.to_value("K"), 1e3 * fitted.params[:, 0], rtol=1e-6)
    np.testing.assert_allclose(table["teff_error"].quantity.to_value("kK"), np.sqrt(fitted.cov[:, 0, 0]), rtol=1e-6)
    assert all(table[name].description for name in table.colnames)
    with pytest.raises(xk.InputError, match="layout"):
        fitted.to_table("binary")


def test_diagnostics_are_the_companion_of_the_catalogue(fitted):
    table = fitted.diagnostics
    assert len(table) == len(fitted)
    np.testing.assert_array_equal(table["source_id"], fitted.source_id)
    np.testing.assert_allclose(table["decrement"], fitted.decrement, rtol=1e-6)
    np.testing.assert_allclose(table["residual"], fitted.residual, rtol=1e-3, atol=1e-3)


def test_everything_says_what_it_is_in_one_line(fitted):
    for thing in (fitted, fitted.model, fitted.prior, fitted.observations):
        assert repr(thing).startswith(type(thing).__name__ + "(")
        assert len(repr(thing)) < 120


def test_engines_agree(optimum_model, optimum_observations, fitted, engine):
    found = xk.fit(optimum_observations, *optimum_model, engine=engine, threads=2)
    same = np.abs(found.loss - fitted.loss) < 0.01
    assert same.mean() > 0.95
    sigma = np.sqrt(np.einsum("naa->na", fitted.cov))
    assert (np.abs(found.params - fitted.params) / sigma)[same].max() < 0.05
    assert found.engine == engine.name


def test_start_of_the_users_choice(optimum_model, optimum_observations, optimum):
    model, prior = optimum_model
    start = np.column_stack([optimum["best_params"][:, :3], np.exp(optimum["best_params"][:, 3:])])
    found = xk.fit(optimum_observations, model, prior, engine="reference", start=start)
    assert np.abs(found.loss - optimum["best_loss"]).max() < 0.01
    assert found.iterations.max() <= 5
    for wrong, message in (
        (start[:, :4], r"field start: shape \(128, 4\), expected \(128, 5\)"),
        (-start, "field start: needs finite parameters with ext > 0 and plx > 0"),
    ):
        with pytest.raises(xk.InputError, match=message):
            xk.fit(optimum_observations, model, prior, engine="reference", start=wrong)


def test_box_of_the_users_choice(optimum_model, optimum_observations):
    model, prior = optimum_model
    box = default_box(prior)
    assert (box.lower[3:] == [0.0, 1e-4]).all()
    assert (box.upper[3:] == [15.0, 1e3]).all()
    upper = box.upper.copy()
    upper[3] = 0.2
    found = xk.fit(optimum_observations, model, prior, engine="reference", box=xk.Box(box.lower, upper))
    assert found.params[:, 3].max() <= 0.2
    assert ((found.status & Status.ON_BOX_EDGE) != 0).any()
    for lower, message in ((upper, "field box: needs lower < upper"), (box.lower - 1.0, "field box: extinction must")):
        with pytest.raises(xk.InputError, match=message):
            xk.fit(optimum_observations, model, prior, engine="reference", box=xk.Box(lower, upper))


def test_what_does_not_fit_together(rng, optimum_observations, optimum_model):
    model, prior = optimum_model
    with pytest.raises(xk.InputError, match="field wavelength: observations and model have different"):
        xk.fit(optimum_observations, random_model(rng, samples=61), prior, engine="reference")
    with pytest.raises(xk.InputError, match="the prior has 2 dimensions, the model 3 inputs"):
        xk.fit(optimum_observations, model, random_prior(rng, inputs=2), engine="reference")


def test_status_of_stars_tells_what_happened(engine, rng):
    from dataclasses import replace

    model, prior = replace(random_model(rng), scale_sigma=0.15), random_prior(rng)
    params = random_params(rng, prior, 4)
    # far outside the prior, but well measured: the fit follows the data
    params[3, :3] = prior.means.max(axis=0) + 4.0 * np.sqrt(prior.covariances.max(axis=(0, 1)))
    stars = random_stars(rng, model, params, snr=1000.0)
    flux = stars.flux.copy()
    flux[1] = np.nan
    obs = xk.Observations.from_arrays(
        flux=flux, packed_factor=stars.whitener, plx=stars.mean[:, 4], plx_err=stars.sigma[:, 4]
    )
    obs.status[2] |= np.uint32(Status.BAD_ROW)
    found = xk.fit(obs, model, prior, engine=engine, start=params)
    np.testing.assert_array_equal(found.fitted, [True, False, False, True])
    assert found.status[1] & Status.NO_DATA
    assert found.status[2] & Status.BAD_ROW
    assert np.isnan(found.params[1:3]).all()
    assert np.isnan(found.cov[1:3]).all()
    np.testing.assert_array_equal((found.status & Status.THEORETICAL_SCALE) != 0, found.fitted)
    extrapolated = (found.status & Status.EXTRAPOLATED) != 0
    np.testing.assert_array_equal(extrapolated[found.fitted], (found.ln_prior < prior.ln_prior_threshold)[found.fitted])
    assert extrapolated[3]
    # the observations are not written to
    assert not (obs.status & Status.THEORETICAL_SCALE).any()


def test_no_stars(engine, rng):
    obs = xk.Observations.from_arrays(flux=np.zeros((0, 66)), whitener=np.zeros((0, 66, 66)))
    found = xk.fit(obs, random_model(rng), random_prior(rng), engine=engine)
    assert len(found) == 0
    assert found.cov.shape == (0, 5, 5)


class TestCovariance:
    def random_fisher(self, rng, smallest):
        rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
        scaled = rotation @ np.diag([smallest, 0.5, 1.0, 1.5, 2.0]) @ rotation.T
        scaled /= np.sqrt(np.outer(np.diag(scaled), np.diag(scaled)))
        units = 10.0 ** rng.uniform(-3, 5, 5)
        return scaled * np.outer(units, units)

    def test_floor_acts_on_degenerate_matrices_only(self, engine, rng):
        fisher = np.array([self.random_fisher(rng, 1e-2), self.random_fisher(rng, -1e-7), np.full((5, 5), np.nan)])
        covariance, inverse, floored = map(to_host, engine.invert_information(fisher))
        np.testing.assert_array_equal(floored, [False, True, False])
        np.testing.assert_array_equal(inverse[0], fisher[0])
        diagonal = np.sqrt(np.diag(fisher[0]))
        product = (covariance[0] * np.outer(diagonal, diagonal)) @ (fisher[0] / np.outer(diagonal, diagonal))
        np.testing.assert_allclose(product, np.eye(5), atol=1e-10)
        scale = np.sqrt(np.diag(covariance[1]))
        assert (np.linalg.eigvalsh(covariance[1] / np.outer(scale, scale)) > 0).all()
        diagonal = np.sqrt(np.diag(fisher[1]))
        values = np.linalg.eigvalsh(inverse[1] / np.outer(diagonal, diagonal))
        np.testing.assert_allclose(values[0], EIGENVALUE_FLOOR, rtol=1e-6)
        assert np.isnan(covariance[2]).all()

    def test_a_certificate_that_fails_is_no_floor(self, engine, rng):
        """Small eigenvalues just above the floor: the bound cannot tell, the eigenvalues can."""
        fisher = np.array([self.random_fisher(rng, smallest) for smallest in np.geomspace(3e-6, 1e-3, 30)])
        covariance, inverse, floored = map(to_host, engine.invert_information(fisher))
        diagonal = np.sqrt(np.einsum("naa->na", fisher))
        outer = diagonal[:, :, None] * diagonal[:, None, :]
        values = np.linalg.eigvalsh(fisher / outer)[:, 0]
        np.testing.assert_array_equal(floored, values < EIGENVALUE_FLOOR)
        np.testing.assert_array_equal(inverse[~floored], fisher[~floored])
        product = (covariance * outer) @ (fisher / outer)
        np.testing.assert_allclose(product[~floored], np.broadcast_to(np.eye(5), (30, 5, 5))[~floored], atol=1e-8)

    def test_a_parameter_nothing_depends_on_is_very_uncertain(self, engine, rng):
        fisher = self.random_fisher(rng, 0.1)[None]
        fisher[:, 2] = fisher[:, :, 2] = 0.0
        covariance, _, floored = map(to_host, engine.invert_information(fisher))
        assert floored.all()
        np.testing.assert_allclose(covariance[0, 2, 2], 1.0 / EIGENVALUE_FLOOR)
        assert (np.linalg.eigvalsh(covariance) > 0).all()

    def test_a_prior_adds_its_curvature(self, engine, rng):
        fisher = np.array([self.random_fisher(rng, 0.1) for _ in range(17)])
        unit = np.sqrt(np.einsum("njj->nj", fisher))[:, :3]
        bend = rng.standard_normal((17, 3, 3))
        bend = 0.005 * (bend + bend.swapaxes(1, 2)) * unit[:, :, None] * unit[:, None, :]
        bend[3] = -2.0 * np.diag(unit[3] ** 2)  # bends the other way, and more than the data hold the star
        bend[4] = np.diag([1.0, -2.0, 0.5]) * unit[4] ** 2
        bend[5] = np.nan
        covariance, inverse, floored = map(to_host, invert_held(engine, fisher, bend))
        expected = np.zeros_like(fisher)
        expected[:, :3, :3] = bend
        expected[3] = 0.0
        expected[4, 1, 1] = 0.0
        expected += fisher
        assert not floored.any()
        assert np.isnan(covariance[5]).all()
        assert np.isnan(inverse[5, :3, :3]).all()
        there = np.arange(17) != 5
        np.testing.assert_allclose(inverse[there], expected[there], rtol=1e-12)
        outer = np.sqrt(np.einsum("njj->nj", expected))[there]
        product = (covariance[there] * outer[:, :, None] * outer[:, None, :]) @ (
            expected[there] / outer[:, :, None] / outer[:, None, :]
        )
        np.testing.assert_allclose(product, np.broadcast_to(np.eye(5), product.shape), atol=1e-9)

    def test_no_stars(self, engine):
        assert invert_held(engine, np.zeros((0, 5, 5)), np.zeros((0, 3, 3)))[0].shape == (0, 5, 5)
        covariance, inverse, floored = engine.invert_information(np.zeros((0, 5, 5)))
        assert covariance.shape == inverse.shape == (0, 5, 5)
        assert floored.shape == (0,)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 300])
@pytest.mark.parametrize("k", [1, 5, 6])
def test_covariances_are_those_of_the_reference_whatever_stars_are_beside(engine, n, k, rng):
    rows = rng.normal(size=(n, k + 4, k)) * 10.0 ** rng.uniform(-4, 6, (n, 1, k))
    information = rows.swapaxes(1, 2) @ rows
    information = 0.5 * (information + information.swapaxes(1, 2))
    if n > 10:
        information[3], information[5, 0, 0], information[6], information[7] = np.nan, np.inf, 0.0, np.ones((k, k))
        information[8, k // 2], information[8, :, k // 2] = 0.0, 0.0
    with np.errstate(invalid="ignore"):
        expected = invert_information(information)
        found = [to_host(values) for values in engine.invert_information(information, threads=2)]
    np.testing.assert_array_equal(found[2], expected[2])
    for values, wanted in zip(found[:2], expected[:2], strict=True):
        size = np.sqrt(np.einsum("nkk->nk", wanted))
        unit = np.where((size > 0) & np.isfinite(size), size, 1.0)
        outer = unit[:, :, None] * unit[:, None, :]
        np.testing.assert_allclose(values / outer, wanted / outer, rtol=1e-9, atol=1e-9)
    if engine.name == "reference":
        return
    for star in range(min(n, 20)):
        alone = engine.invert_information(information[star : star + 1], threads=1)
        for values, value in zip(found, alone, strict=True):
            np.testing.assert_array_equal(values[star : star + 1], to_host(value))


def test_public_names():
    assert xk.fit is importlib.import_module("xpkern.fit.fit").fit
    for name in xk.__all__:
        assert getattr(xk, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'read_xq'"):
        _ = xk.read_xq


def test_importing_is_light():
    """The compute path never imports plotting, and reading needs pyarrow only once it reads."""
    heavy = "matplotlib", "gaiaxpy", "pyarrow", "astropy", "sklearn"
    code = f"import sys, xpkern; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
