"""Loss, gradient, Hessian and Fisher matrix of every engine, held against finite differences and dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
from mock_stars import (
    assert_same,
    infrared_missing,
    random_model,
    random_params,
    random_prior,
    random_stars,
    side_missing,
    some_bands_missing,
)
from scipy.stats import multivariate_normal

from xpkern.engine.contract import LossTerms, StarData
from xpkern.engine.packed import present_samples
from xpkern.engine.reference import ReferenceEngine
from xpkern.observe.whiteners import dense_whitener

REFERENCE = ReferenceEngine()

#: In units of sqrt(H_ii H_jj). float32 engines: a float32 whitener times tangents rounded to 6e-8, summed over 66
#: samples; the design's bar. Reference: the error of the finite differences.
HESSIAN_TOLERANCE = {"reference": 1e-5, "cpu": 1e-3, "cuda": 1e-3}

TERMS = [LossTerms(), LossTerms(False, False, False), LossTerms(True, False, True), LossTerms(False, True, False)]


def loss_tolerance(loss):
    """What the design allows: forward pass and residual in float64, whitening in float32."""
    return np.maximum(1e-3, 1e-5 * np.abs(loss))


def by_scale(difference, scale):
    """Largest element of a difference of matrices (n, k, k) in units of scale_i scale_j, scale (n, k)."""
    return np.abs(difference / (scale[:, :, None] * scale[:, None, :])).max(initial=0.0)


def stiffness(evaluation, params):
    """Square root of the diagonal of 2 Fisher in x, (n, k), a prior of width 1 added: sqrt(H_ii) at an optimum.

    The Hessian itself may have any sign away from an optimum.
    """
    slope = np.ones_like(params)
    slope[:, -2:] = params[:, -2:]
    return np.sqrt(2.0 * np.einsum("naa->na", evaluation.fisher) * slope**2 + 2.0)


def slow_loss(model, prior, stars: StarData, params, terms: LossTerms):
    """Eq. 19 star by star, from dense matrices and scipy's normal densities."""
    losses = []
    for star, (theta_end, whitener) in enumerate(zip(params, dense_whitener(stars.whitener), strict=True)):
        theta, ext, plx = theta_end[:-2], theta_end[-2], theta_end[-1]
        difference = np.exp(model.ln_flux(params[star : star + 1]))[0] - stars.flux[star].astype(float)
        loss = ((whitener @ difference) ** 2).sum()
        loss += (((theta_end - stars.mean[star]) / stars.sigma[star]) ** 2).sum()
        density = sum(
            weight * multivariate_normal(mean, covariance).pdf(theta)
            for weight, mean, covariance in zip(prior.weights, prior.means, prior.covariances, strict=True)
        )
        loss += terms.prior * -2.0 * np.log(density)
        loss += terms.jacobian_ext * -2.0 * np.log(ext) + terms.jacobian_plx * -2.0 * np.log(plx)
        losses.append(loss)
    return np.array(losses)


def to_x(params):
    return np.column_stack([params[:, :-2], np.log(params[:, -2:])])


def from_x(x):
    return np.column_stack([x[:, :-2], np.exp(x[:, -2:])])


def derivative(function, at, step):
    """Central differences of fourth order along each coordinate; the derivative's axis comes last."""
    columns = []
    for axis in range(at.shape[1]):
        offset = np.zeros(at.shape[1])
        offset[axis] = step
        far, near = function(at + 2 * offset) - function(at - 2 * offset), function(at + offset) - function(at - offset)
        columns.append((8.0 * near - far) / (12.0 * step))
    return np.stack(columns, axis=-1)


@pytest.fixture
def constrained(rng):
    """Stars away from their optimum, with Gaussian constraints on all parameters of every other star."""
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 12)
    stars = random_stars(rng, model, params)
    stars.mean[::2] = params[::2] + 0.1
    stars.sigma[::2] = 0.2
    return model, prior, stars, params * rng.uniform(0.97, 1.03, params.shape)


@pytest.mark.parametrize("terms", TERMS)
def test_loss(engine, constrained, terms):
    model, prior, stars, params = constrained
    expected = slow_loss(model, prior, stars, params, terms)
    found = engine.evaluate(model, prior, stars, params, terms)
    assert (np.abs(found.loss - expected) <= loss_tolerance(expected)).all()
    only_flux = StarData(stars.flux, stars.whitener, np.zeros_like(stars.mean), np.full_like(stars.sigma, np.inf))
    expected_chi2 = slow_loss(model, prior, only_flux, params, LossTerms(False, False, False))
    assert (np.abs(found.chi2 - expected_chi2) <= loss_tolerance(expected_chi2)).all()
    np.testing.assert_allclose(found.ln_prior, prior.ln_density(params[:, :3]), atol=1e-4)


@pytest.mark.parametrize("terms", TERMS)
def test_gradient_and_hessian_against_finite_differences(engine, constrained, terms):
    model, prior, stars, params = constrained
    x = to_x(params)

    def loss(at):
        return REFERENCE.evaluate(model, prior, stars, from_x(at), terms).loss

    def gradient(at):
        return REFERENCE.evaluate(model, prior, stars, from_x(at), terms).gradient

    # With a step of 1e-3 the rule's error is ~1e-12 times a fifth derivative and rounding is ~1e-13 times the loss over
    # 1e-3: both below 1e-6 in units of sqrt(H_ii) for losses of some thousands. Whitening in float32 leaves ~1e-7
    # sqrt(loss) in the gradient, some times over for the sums of 66 terms.
    found = engine.evaluate(model, prior, stars, params, terms)
    scale = stiffness(found, params)
    worst = np.abs(found.gradient - derivative(loss, x, 1e-3)) / scale
    assert (worst <= 1e-5 * (1.0 + np.sqrt(np.abs(found.loss)))[:, None]).all()
    assert by_scale(found.hessian - derivative(gradient, x, 1e-3), scale) <= HESSIAN_TOLERANCE[engine.name]
    np.testing.assert_array_equal(found.hessian, found.hessian.swapaxes(1, 2))


def test_fisher_from_finite_differences(engine, constrained):
    model, prior, stars, params = constrained
    jacobian = derivative(lambda at: REFERENCE.predict(model, at), params, 1e-4)
    whitened = dense_whitener(stars.whitener) @ jacobian
    expected = whitened.swapaxes(1, 2) @ whitened
    np.einsum("naa->na", expected)[:] += 1.0 / stars.sigma**2
    found = engine.evaluate(model, prior, stars, params, LossTerms()).fisher
    scale = np.sqrt(np.einsum("naa->na", expected))
    assert by_scale(found - expected, scale) <= HESSIAN_TOLERANCE[engine.name]
    assert (np.linalg.eigvalsh(found / (scale[:, :, None] * scale[:, None, :])) > 0).all()


@pytest.mark.parametrize(("inputs", "hidden", "samples"), [(3, (7,), 66), (2, (5, 9), 20), (4, (33, 16, 8, 3), 61)])
def test_derivatives_of_any_network(engine, rng, inputs, hidden, samples):
    model = random_model(rng, inputs=inputs, hidden=hidden, samples=samples)
    prior = random_prior(rng, inputs=inputs, components=3)
    params = random_params(rng, prior, 5)
    stars = random_stars(rng, model, params)
    params = params * 1.02

    def gradient(at):
        return REFERENCE.evaluate(model, prior, stars, from_x(at), LossTerms()).gradient

    found = engine.evaluate(model, prior, stars, params, LossTerms())
    expected = slow_loss(model, prior, stars, params, LossTerms())
    assert (np.abs(found.loss - expected) <= loss_tolerance(expected)).all()
    hessian = derivative(gradient, to_x(params), 1e-3)
    assert by_scale(found.hessian - hessian, stiffness(found, params)) <= HESSIAN_TOLERANCE[engine.name]


CASES = ["complete", "no infrared", "some bands", "no BP", "no RP", "no parallax", "nothing"]


def case(rng, model, params, name, snr=50.0):
    stars = len(params)
    missing = {
        "no infrared": infrared_missing(stars),
        "some bands": some_bands_missing(rng, stars),
        "no BP": side_missing(stars, "bp"),
        "no RP": side_missing(stars, "rp"),
        "nothing": np.ones((stars, model.n_samples), bool),
    }.get(name)
    return random_stars(rng, model, params, snr=snr, missing=missing, parallax=name != "no parallax")


@pytest.mark.parametrize("name", CASES)
def test_missing_data(engine, rng, name):
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 5)
    stars = case(rng, model, params, name)
    found = engine.evaluate(model, prior, stars, params, LossTerms())
    expected = slow_loss(model, prior, stars, params, LossTerms())
    assert (np.abs(found.loss - expected) <= loss_tolerance(expected)).all()
    # what is missing has no weight at all: any flux there gives the same bytes
    stars.flux[~present_samples(stars.whitener)] = 123.0
    again = engine.evaluate(model, prior, stars, params, LossTerms())
    for field in vars(found):
        np.testing.assert_array_equal(getattr(found, field), getattr(again, field))


@pytest.mark.parametrize("snr", [0.1, 3.0, 300.0, 3000.0])
def test_any_signal_to_noise(engine, rng, snr):
    model, prior = random_model(rng), random_prior(rng)
    truth = random_params(rng, prior, 40)
    stars = random_stars(rng, model, truth, snr=snr)
    # a typical star is evaluated near its optimum: one sigma away in the best determined direction
    params = truth * (1.0 + 0.3 / max(snr, 10.0))
    found = engine.evaluate(model, prior, stars, params, LossTerms())
    expected = REFERENCE.evaluate(model, prior, stars, params, LossTerms())
    assert (np.abs(found.loss - expected.loss) <= loss_tolerance(expected.loss)).all()
    scale = stiffness(expected, params)
    assert by_scale(found.hessian - expected.hessian, scale) <= 1e-3
    assert by_scale(found.fisher - expected.fisher, np.sqrt(np.einsum("naa->na", expected.fisher))) <= 1e-3


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17])
def test_a_star_does_not_notice_how_many_there_are(engine, rng, count):
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 17)
    stars = random_stars(rng, model, params)
    everything = engine.evaluate(model, prior, stars, params, LossTerms())
    some = engine.evaluate(model, prior, stars[:count], params[:count], LossTerms())
    for field in vars(everything):
        assert_same(engine.name, getattr(some, field), getattr(everything, field)[:count])
        assert getattr(some, field).dtype == np.float64


def test_shared_optima(engine, optimum, optimum_model, optimum_observations):
    """The optima that other code found: same loss, Hessian (of the loss, in x) and Fisher matrix (linear)."""
    model, prior = optimum_model
    params = from_x(optimum["best_params"])
    found = engine.evaluate(model, prior, optimum_observations.star_data(), params, LossTerms())
    # best_loss belongs to the whitener as given, the rest to its stored form; both are float32
    assert np.abs(found.loss - optimum["best_loss"]).max() <= 1e-2
    for matrix, name in ((found.hessian, "best_hessian"), (found.fisher, "best_fisher")):
        scale = np.sqrt(np.einsum("naa->na", optimum[name]))
        assert by_scale(matrix - optimum[name], scale) <= 1e-3
