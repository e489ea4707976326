"""The learning of a model's error from residuals, against a made truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mock_stars import random_model, random_prior
from test_learned_noise import random_error

import xpkern as xk
from xpkern.engine.contract import StarData
from xpkern.engine.packed import pack_factor
from xpkern.model.model_error import ModelError
from xpkern.train.noise_fit import NoiseRecipe, learn_model_error, residuals_at_labels, whitened_precision

SAMPLES, LABEL_ERRORS = 12, np.array([0.012, 0.012, 0.012, 0.008])


def labelled_stars(
    rng, model, prior, error, stars, *, snr=(50.0, 500.0), outliers=0.0, free=(), label_errors=LABEL_ERRORS
):
    """Stars with labels, whose spectra have the model's ``error`` and more noise than they say, by its factor."""
    theta = prior.sample(stars, rng)
    ext, plx = rng.uniform(0.1, 0.5, stars), np.exp(rng.uniform(-1.0, 1.0, stars))
    truth = np.column_stack([theta, ext, plx])
    flux = np.exp(model.ln_flux(truth))
    root = np.linalg.cholesky(error.at(theta))
    wrong = np.einsum("nij,nj->ni", root, rng.standard_normal(flux.shape))
    binary = rng.random(stars) < outliers
    wrong[binary] *= 8.0
    # errors of a third of the stars' own brightness, so that what grows with it can be told from what does not
    sigma = flux / np.exp(rng.uniform(*np.log(snr), (stars, 1)))
    observed = flux * (1.0 + wrong) + np.sqrt(error.archive_factor) * sigma * rng.standard_normal(flux.shape)
    factor = np.zeros((stars, SAMPLES, SAMPLES))
    np.einsum("njj->nj", factor)[:] = sigma
    errors = np.column_stack([np.broadcast_to(label_errors, (stars, 4)), label_errors[-1] * plx])
    mean = truth + errors * rng.standard_normal(truth.shape)
    for column in free:
        mean[:, column], errors[:, column] = 0.0, np.inf
    whitener = pack_factor(factor, np.ones((stars, SAMPLES), bool))
    return StarData(observed.astype(np.float32), whitener, mean, errors)


@pytest.fixture
def small(rng):
    noise = xk.Noise(independent=np.full(SAMPLES, 0.3))
    return replace(random_model(rng, hidden=(8,), samples=SAMPLES), noise=noise), random_prior(rng)


def one_group(rng, size=0.02):
    return random_error(rng, groups=1, samples=SAMPLES, size=size, factor=1.7)


#: What S is known to from 2000 stars, sqrt(2 / 2000) of the whole variance: with the noise of the measurement and of
#: the labels that is several times S where S is small.
KNOWN_TO = 0.2

RECIPE = NoiseRecipe(groups=1, iterations=25, most_stars=2000, outlier=np.inf, prior_stars=1.0)


#: And in any direction, of the whole variance there: four to five times sqrt(2 / 2000).
KNOWN_OF_WHOLE = 0.15

#: And in half of the directions. How much of the whole S is there depends on the network that is drawn, whose slopes
#: decide what the labels' errors do; how well S is known, relative to S alone, with it.
KNOWN_IN_HALF = 3 * np.sqrt(2 / 2000)


def relative_error(found, truth):
    """Relative deviations of the variance in the directions in which the truth has its axes."""
    values, vectors = np.linalg.eigh(truth)
    return np.abs(np.einsum("ik,ij,jk->k", vectors, found, vectors) / values - 1.0)


def error_of_whole(found, truth, model, prior, stars):
    """The same, relative to the variance of residuals: with that of the labels, as far as they tell, and of noise."""
    part = residuals_at_labels(model, prior, stars, None)
    told = np.isfinite(stars.sigma[0])
    labels = np.einsum("nik,nk,njk->ij", part.slope[:, :, told], 1.0 / part.precision[:, told], part.slope[:, :, told])
    whole = truth.covariance[0] + labels / len(stars) + truth.archive_factor * part.archive.mean(axis=0)
    vectors = np.linalg.eigh(truth.covariance[0])[1]
    deviation = np.einsum("ik,ij,jk->k", vectors, found.covariance[0] - truth.covariance[0], vectors)
    return np.abs(deviation) / np.einsum("ik,ij,jk->k", vectors, whole, vectors)


def test_known_covariance_and_factor(rng, small):
    model, prior = small
    truth = one_group(rng)
    stars = labelled_stars(rng, model, prior, truth, 2000)
    found = learn_model_error(model, prior, stars, None, RECIPE)
    deviation = error_of_whole(found, truth, model, prior, stars)
    assert np.median(deviation) < KNOWN_IN_HALF
    assert deviation.max() < KNOWN_OF_WHOLE
    assert abs(found.archive_factor / truth.archive_factor - 1.0) < 0.15
    # as if the labels were true: what their errors do to the spectra is then taken for errors of the model
    certain = replace(stars, sigma=np.where(np.isfinite(stars.sigma), 1e-6, np.inf))
    naive = learn_model_error(model, prior, certain, None, RECIPE)
    assert error_of_whole(naive, truth, model, prior, stars).max() > 2 * KNOWN_OF_WHOLE
    assert np.trace(naive.covariance[0]) > 1.3 * np.trace(found.covariance[0])


def test_groups(rng, small):
    model, prior = small
    cool, hot = one_group(rng, 0.02), one_group(rng, 0.06)
    low, high = np.quantile(prior.sample(2000, rng)[:, 0], [0.15, 0.85])
    truth = ModelError(
        np.array([[low, -0.3, 3.5], [high, -0.3, 3.5]]),
        np.array([0.3, 9.0, 9.0]),
        np.concatenate([cool.covariance, hot.covariance]),
        1.0,
    )
    stars = labelled_stars(rng, model, prior, truth, 5000)
    recipe = replace(RECIPE, groups=3, scale=(0.3, 9.0, 9.0), learn_archive_factor=False)
    found = learn_model_error(model, prior, stars, None, recipe)
    assert (np.diff(found.centre[:, 0]) > 0).all()
    assert found.archive_factor == 1.0
    # each group has the mean of its stars' errors, and these differ from group to group
    share = found.shares(stars.mean[:, :3])
    of_stars = np.trace(truth.at(stars.mean[:, :3]), axis1=1, axis2=2)
    expected = share.T @ of_stars / share.sum(axis=0)
    np.testing.assert_allclose(np.trace(found.covariance, axis1=1, axis2=2), expected, rtol=0.3)
    assert expected[-1] > 2.0 * expected[0]


def test_free_extinction_and_scale(rng, small):
    model, prior = small
    truth = one_group(rng)
    stars = labelled_stars(rng, model, prior, truth, 2000, free=(3, 4))
    found = learn_model_error(model, prior, stars, None, RECIPE)
    # along R and along a constant nothing can be known; across them everything
    axes = np.linalg.qr(np.column_stack([model.ext_curve, np.ones(SAMPLES)]))[0]
    across = np.linalg.svd(np.eye(SAMPLES) - axes @ axes.T)[0][:, : SAMPLES - 2]
    deviation = relative_error(across.T @ found.covariance[0] @ across, across.T @ truth.covariance[0] @ across)
    assert np.median(deviation) < KNOWN_TO
    # and there S stays what is assumed beforehand: neither lost nor without bound
    along = np.einsum("ik,ij,jk->k", axes, found.covariance[0], axes)
    assert (along > 1e-5).all()
    assert (along < 1.0).all()


def test_outliers_count_for_little(rng, small):
    model, prior = small
    truth = one_group(rng)
    stars = labelled_stars(rng, model, prior, truth, 2000, outliers=0.03)
    size = {}
    for outlier in (8.0, np.inf):
        found = learn_model_error(model, prior, stars, None, replace(RECIPE, outlier=outlier))
        size[outlier] = np.trace(found.covariance[0]) / np.trace(truth.covariance[0])
    assert 0.7 < size[8.0] < 1.3
    assert size[np.inf] > 1.8


def test_missing_samples(rng, small):
    model, prior = small
    truth = one_group(rng)
    stars = labelled_stars(rng, model, prior, truth, 2000)
    missing = rng.random((2000, SAMPLES)) < 0.2
    missing[:, 5] = True  # that no star has
    sigma = 1.0 / stars.whitener[:, np.arange(SAMPLES) * (np.arange(SAMPLES) + 3) // 2].astype(float)
    factor = np.zeros((2000, SAMPLES, SAMPLES))
    np.einsum("njj->nj", factor)[:] = sigma
    stars = replace(stars, whitener=pack_factor(factor, ~missing), flux=np.where(missing, 0, stars.flux))
    found = learn_model_error(model, prior, stars, None, RECIPE).covariance[0]
    seen = np.arange(SAMPLES) != 5
    assert (
        np.median(relative_error(found[np.ix_(seen, seen)], truth.covariance[0][np.ix_(seen, seen)])) < 1.5 * KNOWN_TO
    )
    np.testing.assert_allclose(found[5, 5], 0.3**2, rtol=1e-6)
    assert np.abs(found[5, seen]).max() < 1e-6


def test_weight_of_residuals(rng):
    """W against the inverse of the whole covariance, with labels known, unknown, and certain."""
    covariance = random_error(rng, groups=4, samples=9).covariance
    slope = rng.normal(size=(4, 9, 3))
    present = rng.random((4, 9)) < 0.8
    slope[~present] = 0.0
    sigma = np.array([0.1, np.inf, 1e-5])
    found = whitened_precision(covariance, slope, np.broadcast_to(1.0 / sigma**2, (4, 3)), present)
    for star in range(4):
        kept = np.flatnonzero(present[star])
        part = slope[star, kept]
        variance = np.where(np.isinf(sigma), 1e6, sigma**2)
        expected = np.linalg.inv(covariance[star][np.ix_(kept, kept)] + (part * variance) @ part.T)
        np.testing.assert_allclose(
            found[star][np.ix_(kept, kept)], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()
        )
        assert not np.delete(found[star], kept, axis=0).any()


def test_residuals_are_those_at_the_labels(rng, small):
    model, prior = small
    truth = one_group(rng, 1e-3)
    stars = labelled_stars(rng, model, prior, truth, 50, snr=(1e4, 2e4), label_errors=0.3 * LABEL_ERRORS)
    found = residuals_at_labels(model, prior, stars, None)
    at_labels = stars.flux / np.exp(model.ln_flux(stars.mean)) - 1.0
    # to second order in the labels' errors, which move fluxes by a few per cent at most
    np.testing.assert_allclose(found.residual, at_labels, atol=0.005)
    assert np.abs(at_labels).max() > 0.01
    np.testing.assert_allclose(found.precision[:, :4], stars.sigma[:, :4] ** -2)
    np.testing.assert_allclose(found.precision[:, 4], (stars.sigma[:, 4] / stars.mean[:, 4]) ** -2, rtol=0.05)
    free = replace(stars, sigma=np.ascontiguousarray(np.where(np.arange(5) >= 3, np.inf, stars.sigma)))
    assert (residuals_at_labels(model, prior, free, None).precision[:, 3:] == 0).all()
    with pytest.raises(xk.InputError, match="sigma: a star lacks a label of its type"):
        residuals_at_labels(model, prior, replace(stars, sigma=np.full((50, 5), np.inf)), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 0}, "groups: 0 is not a number >= 1"),
        ({"iterations": 0}, "iterations: 0"),
        ({"outlier": 0.0}, "outlier: 0.0 is not a number > 0"),
        ({"prior_stars": -1.0}, "prior_stars: -1.0"),
    ],
)
def test_bad_recipe(change, message):
    with pytest.raises(xk.InputError, match=message):
        NoiseRecipe(**change)


def test_no_stars(small):
    model, prior = small
    nothing = StarData(
        np.zeros((0, SAMPLES), np.float32), np.zeros((0, 78), np.float32), np.zeros((0, 5)), np.zeros((0, 5))
    )
    with pytest.raises(xk.InputError, match="stars: no star to learn from"):
        learn_model_error(model, prior, nothing, None)
