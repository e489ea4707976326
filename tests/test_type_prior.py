"""The Gaussian mixture over stellar types."""

from __future__ import annotations

import numpy as np
import pytest
from mock_stars import random_prior
from scipy.stats import multivariate_normal

import xpkern as xk
from xpkern.engine.arrays import to_host


@pytest.fixture
def prior(rng):
    return random_prior(rng, components=6)


def scipy_density(prior, theta):
    return sum(
        weight * multivariate_normal(mean, covariance).pdf(theta)
        for weight, mean, covariance in zip(prior.weights, prior.means, prior.covariances, strict=True)
    )


def test_density(prior, rng):
    theta = prior.sample(200, rng)
    np.testing.assert_allclose(prior.ln_density(theta), np.log(scipy_density(prior, theta)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17])
@pytest.mark.parametrize("inputs", [1, 3, 4])
def test_curvature(engine, rng, n, inputs):
    """Against central differences; a star's does not depend on the others."""
    prior = random_prior(rng, inputs=inputs)
    theta = prior.sample(n, rng)
    found = to_host(engine.prior_curvature(prior, theta, threads=2))
    assert found.shape == (n, inputs, inputs)
    np.testing.assert_array_equal(found, found.swapaxes(1, 2))
    step = 1e-3 * np.eye(inputs)  # rounding of ln p and the fourth derivative are then below 1e-6 of the curvature
    for i in range(inputs):
        for j in range(inputs):
            corners = [
                left * right * prior.ln_density(theta + left * step[i] + right * step[j])
                for left in (1, -1)
                for right in (1, -1)
            ]
            expected = -sum(corners) / (4 * 1e-3**2)
            np.testing.assert_allclose(found[:, i, j], expected, rtol=1e-3, atol=1e-3)
    for star in range(n):
        alone = to_host(engine.prior_curvature(prior, theta[star : star + 1], threads=1))
        # NumPy's sums may depend on how many stars there are
        np.testing.assert_allclose(alone[0], found[star], rtol=0, atol=1e-11 if engine.name == "reference" else 0)


def test_density_far_away_does_not_underflow(prior):
    far = np.array([[60.0, 20.0, -30.0]])
    assert scipy_density(prior, far) == 0.0
    assert np.isfinite(prior.ln_density(far)).all()
    assert prior.ln_density(far)[0] < -750.0


def test_samples_follow_the_density(prior, rng):
    drawn = prior.sample(40_000, rng)
    mean = prior.weights @ prior.means
    spread = prior.covariances + np.einsum("ki,kj->kij", prior.means - mean, prior.means - mean)
    covariance = np.einsum("k,kij->ij", prior.weights, spread)
    error = np.sqrt(np.diag(covariance) / len(drawn))
    # six standard errors: 1 failure in 10^8
    assert (np.abs(drawn.mean(axis=0) - mean) < 6 * error).all()
    assert np.abs(np.cov(drawn.T) - covariance).max() < 0.1 * np.diag(covariance).max()


def test_threshold_marks_a_thousandth_of_the_mass(prior, rng):
    below = (prior.ln_density(prior.sample(200_000, rng)) < prior.ln_prior_threshold).mean()
    # 65,536 draws fix the quantile to 0.00012, these to 0.00007; five standard errors
    assert abs(below - 0.001) < 7e-4
    again = xk.TypePrior.from_arrays(prior.weights, prior.means, prior.covariances)
    assert again.ln_prior_threshold == prior.ln_prior_threshold
    assert again.digest == prior.digest
    given = xk.TypePrior(prior.weights, prior.means, prior.covariances, ln_prior_threshold=-7.0)
    assert given.ln_prior_threshold == -7.0
    assert given.digest != prior.digest


def test_support_holds_five_sigma_of_each_component(prior):
    lower, upper = prior.support()
    sigma = np.sqrt(np.diagonal(prior.covariances, axis1=1, axis2=2))
    assert (lower <= prior.means - 4.999 * sigma).all()
    assert (upper >= prior.means + 4.999 * sigma).all()
    assert (lower >= (prior.means - 5.001 * sigma).min(axis=0)).all()
    assert (upper <= (prior.means + 5.001 * sigma).max(axis=0)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.full(6, 0.5)}, "weights: must be positive and add up to 1"),
        ({"weights": np.full(5, 0.2)}, r"weights: shape \(5,\), expected \(6,\)"),
        ({"covariances": np.tile(-np.eye(3), (6, 1, 1))}, "covariances: must be symmetric and positive definite"),
        ({"covariances": np.tile(np.eye(3) + np.eye(3, k=1), (6, 1, 1))}, "covariances: must be symmetric"),
        ({"means": np.zeros((6, 2))}, r"covariances: shape \(6, 3, 3\), expected \(6, 2, 2\)"),
    ],
)
def test_bad_arrays(prior, change, message):
    arrays = {"weights": prior.weights, "means": prior.means, "covariances": prior.covariances}
    with pytest.raises(xk.InputError, match=message):
        xk.TypePrior.from_arrays(**arrays | change)
