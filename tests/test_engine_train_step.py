"""The model's loss (Eq. 12) and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
from mock_stars import random_model, random_params, random_prior, random_stars, some_bands_missing

from xpkern.engine.reference import ReferenceEngine
from xpkern.engine.training import ModelArrays
from xpkern.model.flux_model import FluxModel
from xpkern.observe.whiteners import dense_whitener

REFERENCE = ReferenceEngine()

#: Relative errors of the loss and, by its norm, of the gradient; single precision in compiled engines.
LOSS_TOLERANCE = {"reference": 1e-10, "cpu": 1e-5, "cuda": 1e-5}
GRADIENT_TOLERANCE = {"reference": 1e-10, "cpu": 1e-4, "cuda": 1e-4}


def changed(model, arrays, step):
    """The model with (weights, biases, ln R) moved by ``step`` times ``arrays``."""
    weights, biases, ln_ext_curve = arrays
    return FluxModel.from_arrays(
        [weight + step * change for weight, change in zip(model.weights, weights, strict=True)],
        [bias + step * change for bias, change in zip(model.biases, biases, strict=True)],
        model.ext_curve * np.exp(step * ln_ext_curve),
        model.input_zp,
        model.input_scale,
        model.wavelength,
    )


@pytest.mark.parametrize(("inputs", "hidden", "samples"), [(3, (32, 32, 32), 66), (2, (5,), 20)])
def test_train_step(engine, rng, inputs, hidden, samples):
    model = random_model(rng, inputs=inputs, hidden=hidden, samples=samples)
    params = random_params(rng, random_prior(rng, inputs=inputs), 7)
    missing = some_bands_missing(rng, 7) if samples == 66 else None
    stars = random_stars(rng, model, params, missing=missing)
    params = params * 1.01
    loss, *gradient = engine.train_step(model, stars, params)
    gradient = ModelArrays(*gradient).flatten()

    difference = np.exp(model.ln_flux(params)) - stars.flux
    chi2 = (np.einsum("nij,nj->ni", dense_whitener(stars.whitener), difference) ** 2).sum(axis=1)
    squares = sum((weight**2).sum() for weight in model.weights) / sum(weight.size for weight in model.weights)
    np.testing.assert_allclose(loss, chi2.mean() + squares, rtol=LOSS_TOLERANCE[engine.name])

    for _ in range(5):
        direction = (
            [rng.normal(size=weight.shape) for weight in model.weights],
            [rng.normal(size=bias.shape) for bias in model.biases],
            rng.normal(size=samples),
        )
        # fourth-order differences, step 1e-5: what is neglected is ~1e-20 times a fifth derivative, rounding 1e-16
        # over 1e-5 of the loss, and the derivative is tens of times the loss
        values = [REFERENCE.train_step(changed(model, direction, 1e-5 * k), stars, params)[0] for k in (-2, -1, 1, 2)]
        numerical = (8.0 * (values[2] - values[1]) - (values[3] - values[0])) / 12e-5
        step = ModelArrays(*direction).flatten()
        rounding = GRADIENT_TOLERANCE[engine.name] * np.linalg.norm(gradient) * np.linalg.norm(step)
        np.testing.assert_allclose(gradient @ step, numerical, rtol=1e-6, atol=1e-8 * loss + rounding)


@pytest.mark.parametrize("snr", [3.0, 30.0, 200.0])
@pytest.mark.parametrize("offset", [1.0, 1.02])
def test_gradient_is_that_of_the_reference(engine, rng, snr, offset):
    """At the true parameters, where it is made of noise alone, and away from them."""
    model = random_model(rng)
    params = random_params(rng, random_prior(rng), 600)
    stars = random_stars(rng, model, params, snr=snr, missing=some_bands_missing(rng, 600))
    at, expected = (chosen.train_step(model, stars, params * offset, threads=2) for chosen in (engine, REFERENCE))
    np.testing.assert_allclose(at[0], expected[0], rtol=LOSS_TOLERANCE[engine.name])
    found, gradient = (ModelArrays(*of[1:]).flatten() for of in (at, expected))
    # residuals of single precision: 1e-6 of the flux, so many times that in sigma; they are of order 1 at the truth
    tolerance = GRADIENT_TOLERANCE[engine.name] * max(1.0, snr / 30.0)
    assert np.linalg.norm(found - gradient) < tolerance * np.linalg.norm(gradient)


def test_gradient_is_that_of_automatic_differentiation(engine, rng):
    """Eq. 12 written down once more, in JAX, which differentiates it."""
    jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'xpkern[bench]'")
    model = random_model(rng)
    params = random_params(rng, random_prior(rng), 30)
    stars = random_stars(rng, model, params, missing=some_bands_missing(rng, 30))
    params = params * 1.02
    inputs = (params[:, :3] - model.input_zp) / model.input_scale
    whitener = dense_whitener(stars.whitener)

    def loss(weights, biases, ln_ext_curve):
        hidden = inputs
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden = jax.numpy.tanh(hidden @ weight + bias)
        dust = params[:, 3, None] * jax.numpy.exp(ln_ext_curve)
        flux = jax.numpy.exp(hidden @ weights[-1] + biases[-1] - dust) * params[:, 4, None] ** 2
        whitened = jax.numpy.einsum("nij,nj->ni", whitener, flux - stars.flux)
        n_weights = sum(weight.size for weight in weights)
        return (whitened**2).sum() / len(params) + sum((weight**2).sum() for weight in weights) / n_weights

    jax.config.update("jax_enable_x64", True)
    try:
        at = [*model.weights], [*model.biases], np.log(model.ext_curve)
        value, gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))(*at)
        expected = ModelArrays(*(jax.tree.map(np.asarray, part) for part in gradient)).flatten()
    finally:
        jax.config.update("jax_enable_x64", False)
    found, *gradient = engine.train_step(model, stars, params)
    assert expected.dtype == np.float64
    np.testing.assert_allclose(found, float(value), rtol=LOSS_TOLERANCE[engine.name])
    error = np.linalg.norm(ModelArrays(*gradient).flatten() - expected)
    assert error < max(GRADIENT_TOLERANCE[engine.name], 1e-6) * np.linalg.norm(
        expected
    )  # dense and packed factors differ


def test_more_stars_than_are_summed_at_a_time(engine, rng):
    """20,000 stars: the compiled engine keeps the sums of 16,384."""
    model = random_model(rng, hidden=(4,), samples=5)
    params = random_params(rng, random_prior(rng), 20000)
    stars = random_stars(rng, model, params)
    at, expected = (chosen.train_step(model, stars, params * 1.01) for chosen in (engine, REFERENCE))
    np.testing.assert_allclose(at[0], expected[0], rtol=LOSS_TOLERANCE[engine.name])
    found, gradient = (ModelArrays(*of[1:]).flatten() for of in (at, expected))
    assert np.linalg.norm(found - gradient) < GRADIENT_TOLERANCE[engine.name] * np.linalg.norm(gradient)


def test_no_stars(engine, rng):
    model = random_model(rng)
    stars = random_stars(rng, model, np.zeros((0, 5)))
    loss, weights, biases, ln_ext_curve = engine.train_step(model, stars, np.zeros((0, 5)))
    total = sum(weight.size for weight in model.weights)
    np.testing.assert_allclose(loss, sum((weight**2).sum() for weight in model.weights) / total)
    np.testing.assert_allclose(weights[0], 2.0 * model.weights[0] / total)
    assert not any(bias.any() for bias in biases)
    assert not ln_ext_curve.any()
