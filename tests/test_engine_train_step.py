"""The model's loss (Eq. 12) and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
from mock_stars import random_model, random_params, random_prior, random_stars, some_bands_missing
from test_engine_contract import MAY_REFUSE

from xpkern.model.flux_model import FluxModel
from xpkern.observe.whiteners import dense_whitener


@pytest.fixture
def trainer(engine):
    if "train_step" in MAY_REFUSE.get(engine.name, ()):
        pytest.skip(f"{engine.name} does not train")
    return engine


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
def test_train_step(trainer, rng, inputs, hidden, samples):
    model = random_model(rng, inputs=inputs, hidden=hidden, samples=samples)
    params = random_params(rng, random_prior(rng, inputs=inputs), 7)
    missing = some_bands_missing(rng, 7) if samples == 66 else None
    stars = random_stars(rng, model, params, missing=missing)
    params = params * 1.01
    loss, weights, biases, ln_ext_curve = trainer.train_step(model, stars, params)

    difference = np.exp(model.ln_flux(params)) - stars.flux
    chi2 = (np.einsum("nij,nj->ni", dense_whitener(stars.whitener), difference) ** 2).sum(axis=1)
    squares = sum((weight**2).sum() for weight in model.weights) / sum(weight.size for weight in model.weights)
    np.testing.assert_allclose(loss, chi2.mean() + squares, rtol=1e-10)

    for _ in range(5):
        direction = (
            [rng.normal(size=weight.shape) for weight in model.weights],
            [rng.normal(size=bias.shape) for bias in model.biases],
            rng.normal(size=samples),
        )
        # fourth-order differences, step 1e-5: what is neglected is ~1e-20 times a fifth derivative, rounding 1e-16
        # over 1e-5 of the loss, and the derivative is tens of times the loss
        values = [trainer.train_step(changed(model, direction, 1e-5 * k), stars, params)[0] for k in (-2, -1, 1, 2)]
        numerical = (8.0 * (values[2] - values[1]) - (values[3] - values[0])) / 12e-5
        analytic = sum((a * b).sum() for a, b in zip(weights, direction[0], strict=True))
        analytic += sum((a * b).sum() for a, b in zip(biases, direction[1], strict=True))
        analytic += (ln_ext_curve * direction[2]).sum()
        np.testing.assert_allclose(analytic, numerical, rtol=1e-6, atol=1e-8 * loss)


def test_no_stars(trainer, rng):
    model = random_model(rng)
    stars = random_stars(rng, model, np.zeros((0, 5)))
    loss, weights, biases, ln_ext_curve = trainer.train_step(model, stars, np.zeros((0, 5)))
    total = sum(weight.size for weight in model.weights)
    np.testing.assert_allclose(loss, sum((weight**2).sum() for weight in model.weights) / total)
    np.testing.assert_allclose(weights[0], 2.0 * model.weights[0] / total)
    assert not any(bias.any() for bias in biases)
    assert not ln_ext_curve.any()
