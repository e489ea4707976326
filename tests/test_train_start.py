"""Where a training starts, the coordinates it moves in, and the prior that goes with its model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from labelled_stars import LABEL_ERRORS
from mock_stars import random_model, random_params, random_prior, random_stars

import xpkern as xk
from xpkern.engine.training import ModelArrays
from xpkern.errors import InputError
from xpkern.grid import N_XP
from xpkern.train.curvature import EvenCoordinates
from xpkern.train.recipe_file import load_recipe
from xpkern.train.start import start_model
from xpkern.train.type_prior_fit import fit_prior_of_kind


@pytest.fixture
def mock(rng):
    model, prior = random_model(rng, hidden=(5, 4)), random_prior(rng)
    params = random_params(rng, prior, 60)
    return model, random_stars(rng, model, params), params


def test_the_gradient_in_even_coordinates_is_that_of_the_loss(mock, rng):
    model, stars, params = mock
    stars.mean[:, :] = params
    stars.sigma[:, :4] = LABEL_ERRORS
    even = EvenCoordinates.of(model, stars, params, xk.LossTerms(prior=False), 1e-3)
    reference = xk.get_engine("reference")
    at = even.moved(model, 0.1 * rng.standard_normal(even.size))
    _, *arrays = reference.train_step(at, stars, params)
    gradient = even.gradient(ModelArrays(*arrays))
    assert even.moved(model, np.zeros(even.size)).digest == model.digest
    for _ in range(3):
        direction = rng.standard_normal(even.size) / np.sqrt(even.size)
        base = np.zeros(even.size)
        step = 1e-5
        ends = [
            reference.train_step(even.moved(at, base + sign * step * direction), stars, params)[0] for sign in (1, -1)
        ]
        # central differences: an error of step^2, relative to the largest curvature along the direction
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(gradient @ direction, rel=1e-4, abs=1e-5)


def test_coordinates_of_one_layer_cost_what_the_loss_does(rng):
    # no hidden layer, and labels that leave the stars no room: Gauss-Newton is exact but for the mean of products
    model, prior = random_model(rng, hidden=()), random_prior(rng)
    params = np.repeat(random_params(rng, prior, 1), 40, axis=0)
    stars = random_stars(rng, model, params)
    stars.mean[:, :], stars.sigma[:, :] = params, 1e-9
    stars.flux[:] = np.exp(model.ln_flux(params))  # no residual, so that nothing but curvature is left
    stars.whitener[:] = stars.whitener[0]
    even = EvenCoordinates.of(model, stars, params, xk.LossTerms(prior=False), 1e-12)
    reference = xk.get_engine("reference")

    def chi2(at):
        penalty = sum(float((weight**2).sum()) for weight in at.weights) / sum(weight.size for weight in at.weights)
        return reference.train_step(at, stars, params)[0] - penalty

    # smaller steps would be lost in what fluxes are rounded to, larger ones in their curvature
    rank = len(even.ln_ext_curve)  # types are all the same: one direction of the inputs for each output
    for _ in range(3):
        u = np.zeros(even.size)
        u[-rank:] = 1e-3 * rng.standard_normal(rank)
        assert chi2(even.moved(model, u)) == pytest.approx(u @ u, rel=0.005)


def test_a_regression_starts_closer_than_the_median(labelled, ours):
    data = labelled.training_set(ours)
    rows = np.flatnonzero(~data.held_out)
    losses = {}
    for output in ("median", "regression"):
        recipe = replace(ours, start=replace(ours.start, output=output, hidden=(16, 16)))
        model = start_model(data.stars, data.start, rows, recipe)
        ln_flux = model.ln_flux(data.start[rows])[:, 10:N_XP]
        observed = np.log(np.maximum(data.stars.flux[rows, 10:N_XP], 1e-3))
        losses[output] = np.median(np.abs(ln_flux - observed))
    assert losses["regression"] < 0.5 * losses["median"]


def test_a_sample_that_nobody_has_starts_as_its_neighbour(labelled, ours):
    data = labelled.training_set(ours)  # 2MASS only: W1 and W2 are missing
    model = start_model(data.stars, data.start, np.flatnonzero(~data.held_out), ours)
    assert model.biases[-1][-1] == model.biases[-1][-2]
    assert np.isfinite(model.biases[-1]).all()


@pytest.mark.parametrize("kind", ["coverage", "zgr23"])
def test_a_prior_over_labels(kind, rng):
    settings = replace(load_recipe("default").prior, kind=kind, components=4, most_stars=500)
    truth = random_prior(rng, components=2)
    labels = truth.sample(2000, rng)
    prior, note = fit_prior_of_kind(labels, settings, 1)
    assert prior.n_components == 4
    assert "500 labels" in note
    again, _ = fit_prior_of_kind(labels, settings, 1)
    assert again.digest == prior.digest
    low = np.mean(prior.ln_density(prior.sample(40000, rng)) < prior.ln_prior_threshold)
    assert 0.0004 < low < 0.0025  # 0.1 % of its own mass
    assert prior.ln_density(labels).mean() > prior.ln_density(labels + np.array([3.0, 0.0, 0.0])).mean()
    if kind == "zgr23":  # the labels' own distribution
        assert abs(prior.ln_density(labels).mean() - truth.ln_density(labels).mean()) < 0.3


def test_too_few_stars_for_a_prior(rng):
    with pytest.raises(InputError, match="3 stars are too few for 16 components"):
        fit_prior_of_kind(rng.standard_normal((3, 3)), load_recipe("default").prior, 1)
