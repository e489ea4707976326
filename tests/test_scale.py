"""A theoretical flux scale, marginalised: against the information on all six parameters, and against drawn scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mock_stars import random_model, random_params, random_prior, random_stars

import xpkern as xk
from xpkern.engine.contract import StarData
from xpkern.fit.scale import marginalise_scale, widen_parallax
from xpkern.grid import PARAMETERS

SCALE_SIGMA = 0.2


def with_parallaxes(plx, sigma):
    """Stars of which only the parallax matters; sigma inf where it is missing."""
    stars = len(plx)
    mean, error = np.zeros((stars, 5)), np.full((stars, 5), np.inf)
    mean[:, -1], error[:, -1] = np.where(np.isfinite(sigma), plx, 0.0), sigma
    return StarData(np.zeros((stars, 66), np.float32), np.zeros((stars, 2211), np.float32), mean, error)


def random_information(rng, stars):
    """What spectra say of (Theta, E, plx_s)."""
    roots = rng.normal(size=(stars, 5, 7))
    units = np.array([20.0, 5.0, 5.0, 50.0, 30.0])
    information = roots @ roots.swapaxes(1, 2) * units[:, None] * units
    return 0.5 * (information + information.swapaxes(1, 2))


def assert_close_matrices(found, expected, tolerance=1e-9):
    scale = np.sqrt(np.einsum("nii->ni", expected))
    assert (np.abs(found - expected) / (scale[:, :, None] * scale[:, None, :])).max() < tolerance


def test_information_is_that_of_six_parameters_with_one_marginalised(rng):
    n = 40
    # parallaxes from far better than the scale to far worse, and none
    tau_over_sigma = 10.0 ** rng.uniform(-4, 4, n)
    model_plx = rng.uniform(0.2, 5.0, n)
    tau = 0.5 * SCALE_SIGMA * model_plx
    sigma = tau / tau_over_sigma
    measured = model_plx + np.hypot(tau, sigma) * rng.standard_normal(n)
    sigma[:4] = np.inf
    of_spectrum = random_information(rng, n)

    joint = np.zeros((n, 6, 6))
    joint[:, :5, :5] = of_spectrum
    joint[:, 4, 4] += tau**-2.0
    joint[:, 4, 5] = joint[:, 5, 4] = -(tau**-2.0)
    joint[:, 5, 5] = tau**-2.0 + sigma**-2.0
    keep = [0, 1, 2, 3, 5]
    expected = np.linalg.inv(joint)[:, keep][:, :, keep]

    widened = of_spectrum.copy()
    widened[:, 4, 4] += 1.0 / (sigma**2 + tau**2)
    plx, information = marginalise_scale(model_plx, widened, with_parallaxes(measured, sigma), SCALE_SIGMA)
    assert_close_matrices(np.linalg.inv(information), expected)
    np.testing.assert_array_equal(information, information.swapaxes(1, 2))

    # the same by the law of total covariance: T C T^T + v, T the derivative of plx by plx_s
    share = tau**2 / (sigma**2 + tau**2)
    transform = np.broadcast_to(np.eye(5), (n, 5, 5)).copy()
    transform[:, 4, 4] = 1.0 - share
    covariance = transform @ np.linalg.inv(widened) @ transform
    covariance[:, 4, 4] += 1.0 / (tau**-2.0 + sigma**-2.0)
    assert_close_matrices(np.linalg.inv(information), covariance)
    np.testing.assert_allclose(plx, (1.0 - share) * model_plx + share * measured, rtol=1e-9)
    np.testing.assert_allclose(plx[:4], model_plx[:4], rtol=1e-12)


def test_a_parallax_without_any_error_is_the_measured_one(rng):
    sigma = np.array([1e-300, 5e-324, 1e-100, 1e-3])
    measured, model_plx = np.full(4, 2.0), np.full(4, 2.5)
    plx, information = marginalise_scale(
        model_plx, random_information(rng, 4), with_parallaxes(measured, sigma), SCALE_SIGMA
    )
    np.testing.assert_allclose(plx, measured, rtol=1e-4)
    assert np.isfinite(information).all()
    np.testing.assert_array_equal(plx[:3], measured[:3])


@pytest.mark.filterwarnings("error")
def test_a_fit_with_such_a_parallax(survey):
    model, prior, truth, _, obs = survey
    exact = xk.Observations.from_arrays(
        flux=obs.flux[1:4], packed_factor=obs.whitener[1:4], plx=truth[1:4, 4], plx_err=[1e-300, 1e-3, 1e-3]
    )
    found = xk.fit(exact, model, prior, engine="reference", start=truth[1:4])
    assert found.params[0, 4] == truth[1, 4]
    assert np.isfinite(found.params).all()
    assert np.isfinite(found.cov).all()


def test_parallax_is_widened_where_there_is_one():
    sigma = np.array([0.1, np.inf, 0.1, 3.0])
    stars = with_parallaxes(np.array([2.0, 5.0, -1.0, 40.0]), sigma)
    widened = widen_parallax(stars, SCALE_SIGMA)
    np.testing.assert_allclose(widened.sigma[:, -1], [np.hypot(0.1, 0.2), np.inf, 0.1, 5.0])
    np.testing.assert_array_equal(stars.sigma[:, -1], sigma)
    assert np.isinf(widened.sigma[:, :-1]).all()
    np.testing.assert_array_equal(widened.mean, stars.mean)
    np.testing.assert_array_equal(widen_parallax(stars, 0.0).sigma, stars.sigma)


@pytest.fixture(scope="module")
def survey():
    """Stars whose own scale is off by 20 %, a third of them without a parallax, and their true parameters."""
    rng = np.random.default_rng(5)
    model, prior = replace(random_model(rng), scale_sigma=SCALE_SIGMA), random_prior(rng)
    truth = random_params(rng, prior, 240)
    shown = truth.copy()
    shown[:, 4] *= np.exp(0.5 * SCALE_SIGMA * rng.standard_normal(len(truth)))
    stars = random_stars(rng, model, shown, snr=50.0)
    plx_err = truth[:, 4] * 10.0 ** rng.uniform(-3.0, -0.5, len(truth))
    plx = truth[:, 4] + plx_err * rng.standard_normal(len(truth))
    plx_err[::3] = np.inf
    obs = xk.Observations.from_arrays(flux=stars.flux, packed_factor=stars.whitener, plx=plx, plx_err=plx_err)
    return model, prior, truth, shown, obs


def test_scales_drawn_are_within_the_errors(survey):
    model, prior, truth, shown, obs = survey
    found = xk.fit(obs, model, prior, start=truth)
    error = np.sqrt(np.einsum("naa->na", found.cov))
    pull = (found.params - truth) / error
    spread = 0.5 * (np.quantile(pull, 0.84, axis=0) - np.quantile(pull, 0.16, axis=0))
    # 240 stars fix a spread to about 6 %; the prior narrows what the spectrum leaves open
    assert (spread > 0.6).all()
    assert (spread < 1.25).all()
    assert 0.75 < spread[4] < 1.25
    # chi2 knows nothing of the scale
    assert np.median(found.chi2) == pytest.approx(61.0, abs=5.0)
    # the parallax is never worse than Gaia's, nor than the scale allows
    np.testing.assert_array_less(error[:, 4], 1.001 * obs.plx_err)
    np.testing.assert_array_less(0.999 * 0.5 * SCALE_SIGMA * found.model_plx[::3], error[::3, 4])
    np.testing.assert_allclose(found.params[::3, 4], found.model_plx[::3], rtol=1e-12)
    # what the spectrum shows is told apart from what the star is at
    assert np.median(np.abs(found.model_plx / shown[:, 4] - 1.0)) < np.median(np.abs(truth[:, 4] / shown[:, 4] - 1.0))
    np.testing.assert_allclose(found.cov @ found.icov, np.broadcast_to(np.eye(5), found.cov.shape), atol=1e-5)


def test_model_at_model_plx_lies_on_the_data(survey, engine):
    model, prior, truth, _, obs = survey
    few = obs[:40]
    found = xk.fit(few, model, prior, engine=engine, start=truth[:40])
    predicted = model.predict(**dict(zip(PARAMETERS, [*found.params[:, :4].T, found.model_plx], strict=True)))
    whitened = [few.whitener_dense(star) @ (predicted[star] - few.flux[star]) for star in range(40)]
    np.testing.assert_allclose((np.array(whitened) ** 2).sum(axis=1), found.chi2, rtol=1e-3)


def test_a_calibrated_scale_changes_nothing(survey):
    model, prior, truth, _, obs = survey
    model = replace(model, scale_sigma=0.0)
    found = xk.fit(obs[:5], model, prior, engine="reference", start=truth[:5])
    np.testing.assert_array_equal(found.params[:, 4], found.model_plx)


def test_parallax_stays_within_the_box(survey):
    model, prior, truth, _, obs = survey
    negative = xk.Observations.from_arrays(
        flux=obs.flux[1:2], packed_factor=obs.whitener[1:2], plx=[-1.0], plx_err=[0.001]
    )
    found = xk.fit(negative, model, prior, engine="reference", start=truth[1:2])
    assert found.params[0, 4] >= 1e-4
    assert np.isfinite(found.cov).all()
