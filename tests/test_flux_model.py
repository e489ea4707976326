"""The flux model as a user meets it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from mock_stars import random_model

import xpkern as xk


@pytest.fixture
def model(rng):
    return random_model(rng)


def arrays(model):
    return {
        "weights": list(model.weights),
        "biases": list(model.biases),
        "ext_curve": model.ext_curve,
        "input_zp": model.input_zp,
        "input_scale": model.input_scale,
        "wavelength": model.wavelength,
    }


SUN = {"teff": 5.77, "feh": 0.0, "logg": 4.44, "ext": 0.1, "plx": 10.0}


def test_predict_broadcasts(model):
    assert model.predict(**SUN).shape == (1, 66)
    flux = model.predict(**SUN | {"teff": [4.0, 5.0, 6.0], "ext": np.array([0.0, 0.1, 0.2])})
    assert flux.shape == (3, 66)
    np.testing.assert_allclose(flux[1], model.predict(**SUN | {"teff": 5.0})[0], rtol=1e-14)


def test_dust_and_distance(model):
    """One unit of extinction is R in ln flux, and flux goes with the square of the parallax (Eq. 8)."""
    flux = model.predict(**SUN)
    dusty = model.predict(**SUN | {"ext": 1.1})
    np.testing.assert_allclose(np.log(flux / dusty)[0], model.ext_curve, rtol=1e-12)
    np.testing.assert_allclose(model.predict(**SUN | {"plx": 20.0}), 4.0 * flux, rtol=1e-13)


def test_a_temperature_in_kelvin_is_recognised(model):
    with pytest.raises(xk.InputError, match=r"5777 kK.*5777 K is teff=5.777"):
        model.predict(**SUN | {"teff": 5777.0})


def test_units_of_astropy(model):
    from astropy import units

    flux = model.predict(teff=5770 * units.K, feh=0.0, logg=4.44, ext=0.1, plx=0.01 * units.arcsec)
    np.testing.assert_allclose(flux, model.predict(**SUN), rtol=1e-12)
    with pytest.raises(xk.InputError, match="field plx: its unit is pc, which is no mas"):
        model.predict(**SUN | {"plx": 100 * units.pc})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plx": 0.0}, "plx: the parallax must be positive"),
        ({"feh": np.nan}, "feh: not a finite number"),
        ({"teff": [5.0, 6.0], "logg": [4.0, 4.1, 4.2]}, "do not broadcast"),
        ({"ext": "dusty"}, "do not broadcast"),
        ({"ext": -0.01}, "ext: the extinction must not be negative"),
    ],
)
def test_bad_parameters(model, change, message):
    with pytest.raises(xk.InputError, match=message):
        model.predict(**SUN | change)


def test_other_inputs_need_ln_flux(rng):
    model = random_model(rng, inputs=2)
    with pytest.raises(xk.InputError, match="2 inputs: use ln_flux"):
        model.predict(**SUN)
    assert model.ln_flux(np.array([[5.0, 0.0, 0.1, 1.0]])).shape == (1, 66)
    assert (model.n_inputs, model.n_parameters, model.n_samples) == (2, 4, 66)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weights", [np.ones((3, 4))], "1 weight matrices and 4 bias vectors"),
        ("ext_curve", np.ones(5), r"ext_curve: shape \(5,\), expected \(66,\)"),
        ("ext_curve", np.zeros(66), "ext_curve: must be positive"),
        ("input_scale", np.ones(4), r"input_scale: shape \(4,\), expected \(3,\)"),
        ("input_zp", np.array([1.0, np.inf, 1.0]), "input_zp: holds numbers that are not finite"),
        ("wavelength", ["blue"] * 66, "wavelength: not an array of numbers"),
    ],
)
def test_bad_arrays(model, field, value, message):
    with pytest.raises(xk.InputError, match=message):
        xk.FluxModel.from_arrays(**arrays(model) | {field: value})


def test_layers_must_fit_together(model):
    weights = list(model.weights)
    weights[1] = weights[1][:-1]
    with pytest.raises(xk.InputError, match=r"weights_1: shape \(31, 32\), expected \(32, any\)"):
        xk.FluxModel.from_arrays(**arrays(model) | {"weights": weights})


def test_a_model_cannot_be_changed(model):
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.ext_curve = np.ones(66)
    with pytest.raises(ValueError, match="read-only"):
        model.weights[0][0, 0] = 1.0


def test_the_model_keeps_its_own_copy(model):
    mine = model.ext_curve.copy()
    other = xk.FluxModel.from_arrays(**arrays(model) | {"ext_curve": mine})
    mine[:] = 7.0
    np.testing.assert_array_equal(other.ext_curve, model.ext_curve)


def test_digest_is_of_the_numbers(model):
    same = xk.FluxModel.from_arrays(**arrays(model))
    assert same.digest == model.digest
    assert len(model.digest) == 64
    biases = [bias.copy() for bias in model.biases]
    biases[2][5] = np.nextafter(biases[2][5], 10.0)
    assert xk.FluxModel.from_arrays(**arrays(model) | {"biases": biases}).digest != model.digest
