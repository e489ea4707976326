"""Tuning of a learned noise by labels: its gradient, and what it does for stars whose noise is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mock_stars import random_model, random_prior
from scipy import optimize
from test_learned_noise import random_error
from test_noise_fit import SAMPLES, labelled_stars

import xpkern as xk
from xpkern.engine.contract import LossTerms
from xpkern.train import noise_tuning
from xpkern.train.noise_tuning import FittedStars, TuningRecipe, loss_and_gradient, tune_model_error

OUTLIER, WIDTH = 4.0, 1.3


@pytest.fixture
def error(rng):
    return random_error(rng, groups=3, samples=SAMPLES, size=0.05)


@pytest.fixture
def fitted(rng, error):
    """Stars with all kinds of slopes, some of whose samples are missing."""
    stars, samples, parameters = 9, SAMPLES, 5
    present = rng.random((stars, samples)) > 0.1
    present[0] = True
    archive = np.einsum("nij,nkj->nik", *[0.02 * rng.standard_normal((stars, samples, samples + 3))] * 2)
    archive[~(present[:, :, None] & present[:, None, :])] = 0.0
    np.einsum("njj->nj", archive)[~present] = 1.0
    root = rng.standard_normal((stars, parameters, parameters))
    return FittedStars(
        theta=error.centre[rng.integers(3, size=stars)] + 0.5 * error.scale * rng.standard_normal((stars, 3)),
        off=0.1 * rng.standard_normal((stars, 3)),
        label=rng.uniform(0.01, 0.05, (stars, 3)) ** 2,
        residual=np.where(present, 0.05 * rng.standard_normal((stars, samples)), 0.0),
        slope=np.where(present[:, :, None], rng.standard_normal((stars, samples, parameters)), 0.0),
        archive=archive,
        error=np.where(present, rng.uniform(0.01, 0.1, (stars, samples)), 0.0),
        present=present,
        curvature=2.0 * root @ root.swapaxes(1, 2),
    )


def random_correlation(rng):
    root = rng.standard_normal((SAMPLES, SAMPLES + 4))
    return root @ root.T / (SAMPLES + 4)


def loss_of_a_star(stars, error, before, covariance, correlation, star):
    """l of the module's text, in dense matrices of the samples that are there."""
    there = np.flatnonzero(stars.present[star])
    share, square = error.shares(stars.theta[star : star + 1])[0], np.ix_(there, there)

    def inverse(groups, shared):
        measured = stars.archive[star] + np.diag(stars.error[star]) @ shared @ np.diag(stars.error[star])
        return np.linalg.inv((np.einsum("g,gij->ij", share, groups) + measured)[square])

    slope, residual = stars.slope[star][there], stars.residual[star][there]
    now = inverse(covariance, correlation)
    m = np.linalg.inv(slope.T @ now @ slope + stars.curvature[star])
    d = stars.off[star] + (m @ slope.T @ (now - inverse(error.covariance, before)) @ residual)[:3]
    spread = m[:3, :3] + np.diag(stars.label[star])
    chi2 = d @ np.linalg.inv(spread) @ d
    return 0.5 * np.log(np.linalg.det(spread)) + 0.5 * (OUTLIER + 3) * np.log(1.0 + WIDTH**2 * chi2 / OUTLIER)


def test_loss_and_gradients(fitted, error, rng):
    covariance = random_error(rng, groups=3, samples=SAMPLES, size=0.04).covariance
    before, correlation = random_correlation(rng), random_correlation(rng)

    def at(groups, shared):
        return loss_and_gradient(fitted, error, before, groups, shared, OUTLIER, WIDTH)

    loss, *gradients = at(covariance, correlation)
    expected = [
        loss_of_a_star(fitted, error, before, covariance, correlation, star) for star in range(len(fitted.theta))
    ]
    assert loss == pytest.approx(np.mean(expected), rel=1e-9)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, gradient.swapaxes(-1, -2), rtol=0, atol=1e-9 * np.abs(gradient).max())
    # differences of losses of about 1 to 10, good to some 1e-14, over steps of 1e-5 of the matrices
    for group in range(3):
        direction = np.zeros_like(covariance)
        direction[group] = rng.standard_normal((SAMPLES, SAMPLES)) * np.trace(covariance[group]) / SAMPLES * 1e-5
        direction[group] += direction[group].T
        up, down = at(covariance + direction, correlation)[0], at(covariance - direction, correlation)[0]
        assert (up - down) / 2.0 == pytest.approx((gradients[0] * direction).sum(), rel=1e-4, abs=1e-10)
    direction = 1e-5 * rng.standard_normal((SAMPLES, SAMPLES))
    direction += direction.T
    up, down = at(covariance, correlation + direction)[0], at(covariance, correlation - direction)[0]
    assert (up - down) / 2.0 == pytest.approx((gradients[1] * direction).sum(), rel=1e-4, abs=1e-10)


def test_errors_are_as_wide_as_the_recipe_says(rng):
    """Stars whose differences are normal, and of whose errors all come from S: by how much is S best scaled?"""
    stars = 4_000
    error = random_error(rng, groups=1, samples=SAMPLES, size=0.05)
    slope = np.broadcast_to(rng.standard_normal((SAMPLES, 5)), (stars, SAMPLES, 5))
    spread = np.linalg.inv(slope[0].T @ np.linalg.inv(error.covariance[0]) @ slope[0])[:3, :3]
    nothing = np.zeros((stars, SAMPLES))
    normal = FittedStars(
        theta=np.broadcast_to(error.centre, (stars, 3)),
        off=rng.multivariate_normal(np.zeros(3), spread, stars),
        label=np.zeros((stars, 3)),
        residual=nothing,
        slope=slope,
        archive=np.zeros((stars, SAMPLES, SAMPLES)),
        error=nothing,
        present=np.ones((stars, SAMPLES), bool),
        curvature=np.zeros((stars, 5, 5)),
    )

    def best(width):
        def loss(scale):
            covariance = scale**2 * error.covariance
            return loss_and_gradient(normal, error, np.eye(SAMPLES), covariance, np.eye(SAMPLES), 5.0, width)[0]

        return optimize.minimize_scalar(loss, bracket=(0.8, 1.2), tol=1e-4).x

    as_student = best(1.0)
    # scale of the likeliest Student's distribution of 3 numbers, nu = 5, for normal ones; of 4,000 known to 0.006
    assert as_student == pytest.approx(0.89, abs=0.03)
    assert best(1.25) == pytest.approx(1.25 * as_student, rel=1e-3)


@pytest.mark.parametrize(("of_fits", "of_recipe"), [(True, True), (True, False), (False, True)])
def test_the_priors_curvature_counts_where_the_recipe_says(rng, error, monkeypatch, of_fits, of_recipe):
    model, prior = random_model(rng, hidden=(8,), samples=SAMPLES), random_prior(rng)
    model = replace(model, noise=xk.Noise(independent=np.full(SAMPLES, 0.05)))
    stars = labelled_stars(rng, model, prior, error, 40)
    terms = LossTerms(prior=of_fits, jacobian_ext=False, jacobian_plx=False)
    seen = []

    def noted(fitted, *others):
        seen.append(fitted)
        return loss_and_gradient(fitted, *others)

    monkeypatch.setattr(noise_tuning, "loss_and_gradient", noted)
    recipe = TuningRecipe(rounds=1, batch=40, prior_curvature=of_recipe)
    tune_model_error(model, prior, stars, None, error, recipe, terms=terms, engine="reference")
    (fitted,) = seen
    expected = np.zeros_like(fitted.curvature)
    if of_fits and of_recipe:
        of_prior = xk.get_engine("reference").prior_curvature(prior, fitted.theta, threads=1)
        values, vectors = np.linalg.eigh(of_prior)
        expected[:, :3, :3] = np.einsum("nij,nj,nkj->nik", vectors, np.maximum(values, 0.0), vectors)
        assert np.abs(expected).max() > 1.0
    least = noise_tuning._LEAST_CURVATURE * np.eye(3)
    np.testing.assert_allclose(
        fitted.curvature[:, :3, :3], expected[:, :3, :3] + least, rtol=1e-6, atol=1e-9 * np.abs(expected).max()
    )


def test_tuned_noise_finds_types_that_agree_with_labels(rng):
    """The noise of a model that is wrong in half of its samples, where it begins with the belief that all are alike."""
    model, prior = random_model(rng, hidden=(8,), samples=SAMPLES), random_prior(rng)
    model = replace(model, noise=xk.Noise(independent=np.full(SAMPLES, 0.05)))
    size = np.where(np.arange(SAMPLES) % 2, 0.005, 0.3)
    truth = random_error(rng, groups=1, samples=SAMPLES, factor=1.0)
    truth = replace(truth, covariance=np.diag(size**2)[None])
    alike = replace(truth, covariance=(0.1**2 * np.eye(SAMPLES))[None])
    terms = LossTerms(jacobian_ext=False, jacobian_plx=False)
    stars = labelled_stars(rng, model, prior, truth, 1500, snr=(200.0, 500.0), free=(3, 4))
    said = []
    recipe = TuningRecipe(rounds=2, batch=50, rate=0.05, prior_stars=1.0)
    tuned, correlation = tune_model_error(model, prior, stars[:1000], None, alike, recipe, terms=terms, log=said.append)
    assert len(said) == recipe.rounds
    np.testing.assert_array_equal(correlation, np.eye(SAMPLES))
    assert tuned.archive_factor == alike.archive_factor
    others, labels = stars[1000:], stars.mean[1000:, :3]

    def scatter(noise):
        found = noise_tuning._optima(model, prior, others, None, noise, terms, xk.get_engine("auto"), None)
        return np.median(np.abs(found[:, :3] - labels), axis=0)

    begun, best, reached = scatter(alike), scatter(truth), scatter(tuned)
    assert (best < begun).all()
    assert (reached < begun).all()
    assert (reached - best < 0.7 * (begun - best)).mean() > 0.5


def test_bad_input(rng, error):
    model, prior = random_model(rng, hidden=(8,), samples=SAMPLES), random_prior(rng)
    stars = labelled_stars(rng, model, prior, error, 6)
    stars.sigma[4, 1] = np.inf
    with pytest.raises(xk.InputError, match="sigma: a star lacks a label of its type"):
        tune_model_error(model, prior, stars, None, error)
    with pytest.raises(xk.InputError, match="rounds: 0 is not a number >= 1"):
        TuningRecipe(rounds=0)
    with pytest.raises(xk.InputError, match="rate: nan is not a number > 0"):
        TuningRecipe(rate=np.nan)
    with pytest.raises(xk.InputError, match=r"width: 0\.0 is not a number > 0"):
        TuningRecipe(width=0.0)
