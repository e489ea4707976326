"""Flux of the model: by every engine, for any shape of network."""

from __future__ import annotations

import numpy as np
import pytest
from mock_stars import assert_same, random_model, random_params, random_prior

#: Relative to the flux. Rounding of ln f is a few eps times the sum of the layers' absolute values (~30); exp and
#: tanh of the compiled engines are good to a few ulp in double.
TOLERANCE = 1e-12


def slow_flux(model, star):
    """Eq. 8 for one star, sample by sample, with Python's floats."""
    layer = [
        (value - zp) / scale for value, zp, scale in zip(star[:-2], model.input_zp, model.input_scale, strict=True)
    ]
    for weight, bias in zip(model.weights[:-1], model.biases[:-1], strict=True):
        layer = [np.tanh(bias[o] + sum(layer[i] * weight[i, o] for i in range(len(layer)))) for o in range(len(bias))]
    last_weight, last_bias = model.weights[-1], model.biases[-1]
    ext, plx = star[-2:]
    return [
        plx**2
        * np.exp(last_bias[o] + sum(layer[i] * last_weight[i, o] for i in range(len(layer))) - ext * model.ext_curve[o])
        for o in range(len(last_bias))
    ]


@pytest.mark.parametrize(
    ("inputs", "hidden", "samples"), [(3, (32, 32, 32), 66), (3, (7,), 66), (2, (5, 9), 20), (4, (33, 16, 8, 3), 61)]
)
def test_flux_of_any_network(engine, rng, inputs, hidden, samples):
    model = random_model(rng, inputs=inputs, hidden=hidden, samples=samples)
    params = random_params(rng, random_prior(rng, inputs=inputs), 3)
    expected = [slow_flux(model, star) for star in params]
    np.testing.assert_allclose(engine.predict(model, params), expected, rtol=TOLERANCE)


@pytest.mark.parametrize("stars", [0, 1, 15, 16, 17])
def test_a_star_does_not_notice_how_many_there_are(engine, rng, stars):
    model = random_model(rng)
    params = random_params(rng, random_prior(rng), 17)
    flux = engine.predict(model, params[:stars])
    assert flux.shape == (stars, 66)
    assert flux.dtype == np.float64
    assert_same(engine.name, flux, engine.predict(model, params)[:stars])
