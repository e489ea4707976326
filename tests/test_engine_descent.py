"""First-order descent of every engine: the gradient it follows, its steps, and what stops it."""

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

import xpkern as xk
from xpkern.engine.contract import Box, Descent, LossTerms
from xpkern.engine.reference import ReferenceEngine
from xpkern.fit.fit import default_box

REFERENCE = ReferenceEngine()
EVERYWHERE = Box(np.array([-99.0, -99.0, -99.0, 0.0, 1e-9]), np.array([99.0, 99.0, 99.0, 1e9, 1e300]))


@pytest.fixture
def mock(rng):
    model, prior = random_model(rng), random_prior(rng)
    return model, prior, random_params(rng, prior, 17)


def descend(engine, model, prior, stars, start, descent, *, terms=None, box=EVERYWHERE, threads=1):
    return engine.descend(model, prior, stars, start, terms or LossTerms(), box, descent, threads=threads)


def in_x(params):
    return np.column_stack([params[:, :3], np.log(params[:, 3:])])


def gradient_scale(model, prior, stars, params, terms):
    """How large each component of the gradient in x could be, by Cauchy-Schwarz: 2 sqrt(F_aa chi^2), plus 2."""
    at = REFERENCE.evaluate(model, prior, stars, params, terms)
    slope = np.column_stack([np.ones((len(params), 3)), params[:, 3:]])
    return 2.0 * np.sqrt(np.einsum("naa->na", at.fisher) * at.chi2[:, None]) * slope + 2.0


def assert_follows_gradient(engine, model, prior, stars, params, terms, tolerance):
    rate = 1e-7
    moved = descend(engine, model, prior, stars, params, Descent("sgd", 1, rate), terms=terms)
    found = (in_x(params) - in_x(moved)) / rate
    expected = REFERENCE.evaluate(model, prior, stars, params, terms).gradient
    # steps of 1e-7 times the gradient are read off numbers of order 1 in float64
    scale = gradient_scale(model, prior, stars, params, terms)
    assert (np.abs(found - expected) <= tolerance * scale + 1e-7).all()


@pytest.mark.parametrize("name", ["complete", "no infrared", "some bands", "no BP", "no RP", "no parallax"])
def test_one_step_is_the_gradient(engine, rng, mock, name):
    model, prior, truth = mock
    missing = {
        "no infrared": infrared_missing(17),
        "some bands": some_bands_missing(rng, 17),
        "no BP": side_missing(17, "bp"),
        "no RP": side_missing(17, "rp"),
    }.get(name)
    stars = random_stars(rng, model, truth, missing=missing, parallax=name != "no parallax")
    params = truth * rng.uniform(0.95, 1.05, truth.shape)
    # single precision: 1e-7 a sample, times the signal-to-noise ratio of 50 and the condition of the covariance
    assert_follows_gradient(engine, model, prior, stars, params, LossTerms(), 1e-4)


@pytest.mark.parametrize("snr", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("terms", [LossTerms(False, False, False), LossTerms(True, False, True)])
def test_gradient_of_other_losses(engine, rng, mock, terms, snr):
    model, prior, truth = mock
    stars = random_stars(rng, model, truth, snr=snr)
    stars.mean[:, :4], stars.sigma[:, :4] = truth[:, :4], 0.3
    params = truth * rng.uniform(0.95, 1.05, truth.shape)
    assert_follows_gradient(engine, model, prior, stars, params, terms, 3e-4)


@pytest.mark.parametrize(
    "sizes",
    [
        {"inputs": 3, "hidden": (), "samples": 66},
        {"inputs": 3, "hidden": (7,), "samples": 20},
        {"inputs": 3, "hidden": (32, 16, 32, 9), "samples": 66},
    ],
)
def test_gradient_of_other_networks(engine, rng, sizes):
    model, prior = random_model(rng, **sizes), random_prior(rng, components=1)
    params = random_params(rng, prior, 5)
    stars = random_stars(rng, model, params)
    assert_follows_gradient(engine, model, prior, stars, params * 1.01, LossTerms(), 1e-4)


def test_other_numbers_of_inputs(engine, rng):
    """Against the reference engine: its gradient is tested elsewhere for any number of inputs."""
    for inputs in (1, 2, 4):
        model, prior = random_model(rng, inputs=inputs), random_prior(rng, inputs=inputs)
        params = random_params(rng, prior, 3)
        stars = random_stars(rng, model, params)
        box = Box(np.append(np.full(inputs, -99.0), [0.0, 1e-9]), np.append(np.full(inputs, 99.0), [99.0, 99.0]))
        descent = Descent("sgd", 3, 1e-6, clip=100.0)
        found = descend(engine, model, prior, stars, params * 1.01, descent, box=box)
        expected = descend(REFERENCE, model, prior, stars, params * 1.01, descent, box=box)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        assert (np.abs(expected - params * 1.01).max(axis=1) > 1e-6).all()


def test_adam_is_the_textbooks(engine, rng, mock):
    """Kingma & Ba 2014, algorithm 1, on the engine's own gradients; epsilon is far below them."""
    model, prior, truth = mock
    stars = random_stars(rng, model, truth)
    params = truth * 1.05
    rate, steps = 0.01, 15
    x, mean, square = in_x(params), 0.0, 0.0
    for step in range(1, steps + 1):
        at = np.column_stack([x[:, :3], np.exp(x[:, 3:])])
        gradient = engine.evaluate(model, prior, stars, at, LossTerms()).gradient
        gradient = gradient * np.minimum(1.0, 100.0 / np.linalg.norm(gradient, axis=1))[:, None]
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        halved = rate * (0.5 if step > 9 else 1.0)
        x = x - halved * (mean / (1 - 0.9**step)) / np.sqrt(square / (1 - 0.999**step))
    found = descend(engine, model, prior, stars, params, Descent("adam", steps, rate, 0.5, 9, 100.0))
    # a component near 0 may have either sign in single precision, and Adam steps as far either way: not many
    close = np.abs(in_x(found) - x) < 2e-5
    assert close.mean() > 0.9


def test_fifty_steps_agree_with_the_reference(engine, rng, mock):
    model, prior, truth = mock
    stars = random_stars(rng, model, truth, missing=some_bands_missing(rng, 17))
    start = truth * rng.uniform(0.9, 1.1, truth.shape)
    box = default_box(prior)
    descent = Descent("adam", 50, 0.01, 0.5, 20, 100.0)
    found, expected = (descend(chosen, model, prior, stars, start, descent, box=box) for chosen in (engine, REFERENCE))
    losses = [REFERENCE.evaluate(model, prior, stars, params, LossTerms()).loss for params in (start, found, expected)]
    assert (losses[2] < losses[0]).mean() > 0.8
    assert (np.abs(losses[1] - losses[2]) < 1e-2 * (1.0 + np.abs(losses[0] - losses[2]))).mean() > 0.8


def test_schedule(engine, rng, mock):
    model, prior, truth = mock
    stars = random_stars(rng, model, truth)
    for method in ("sgd", "adam"):
        none = descend(engine, model, prior, stars, truth, Descent(method, 0, 0.01))
        np.testing.assert_allclose(none, truth, rtol=1e-14)
        once = descend(engine, model, prior, stars, truth, Descent(method, 1, 0.01, clip=1.0))
        assert (np.abs(once - truth).max(axis=1) > 1e-4).all()
        # a rate of 0 from the second step on moves nothing more
        stopped = descend(engine, model, prior, stars, truth, Descent(method, 9, 0.01, 0.0, 1, clip=1.0))
        np.testing.assert_array_equal(stopped, once)


def test_clip_is_of_a_stars_norm(engine, rng, mock):
    model, prior, truth = mock
    stars = random_stars(rng, model, truth)
    params = truth * 1.05
    free = in_x(params) - in_x(descend(engine, model, prior, stars, params, Descent("sgd", 1, 1e-6)))
    norm = np.linalg.norm(free, axis=1)
    clip = np.median(norm) / 1e-6
    clipped = in_x(params) - in_x(descend(engine, model, prior, stars, params, Descent("sgd", 1, 1e-6, clip=clip)))
    expected = free * np.minimum(1.0, np.median(norm) / norm)[:, None]
    np.testing.assert_allclose(clipped, expected, rtol=1e-7, atol=1e-13)


def test_box(engine, rng, mock):
    model, prior, truth = mock
    stars = random_stars(rng, model, truth)
    lower, upper = truth.min(axis=0) * 0.9, np.abs(truth).max(axis=0) * 1.1
    lower[:3] = np.quantile(truth[:, :3], 0.3, axis=0)
    upper[3] = np.quantile(truth[:, 3], 0.7)
    found = descend(engine, model, prior, stars, truth, Descent("adam", 30, 0.05), box=Box(lower, upper))
    slack = 1e-12 * np.abs(found)
    assert (found >= lower - slack).all()
    assert (found <= upper + slack).all()
    assert (np.abs(found - lower) <= slack).any()
    # ext = 0 is no start for its logarithm
    bare = truth.copy()
    bare[:, 3] = 0.0
    assert np.isfinite(descend(engine, model, prior, stars, bare, Descent("adam", 3, 0.01))).all()


def test_what_is_no_number_moves_nothing(engine, rng, mock):
    model, prior, truth = mock
    stars = random_stars(rng, model, truth)
    start = truth.copy()
    start[3, 4] = 1e200  # its flux overflows
    for method in ("sgd", "adam"):
        found = descend(engine, model, prior, stars, start, Descent(method, 5, 1e-3, clip=100.0))
        np.testing.assert_allclose(found[3], start[3], rtol=1e-12)
        np.testing.assert_array_equal(
            np.delete(found, 3, axis=0),
            np.delete(descend(engine, model, prior, stars, truth, Descent(method, 5, 1e-3, clip=100.0)), 3, axis=0),
        )


@pytest.mark.parametrize("snr", [1e-4, 1e5])
def test_extreme_signal_to_noise_lowers_the_loss(engine, rng, mock, snr):
    model, prior, truth = mock
    stars = random_stars(rng, model, truth, snr=snr)
    start = truth * 1.1
    found = descend(engine, model, prior, stars, start, Descent("adam", 60, 0.01, clip=100.0), box=default_box(prior))
    before, after = (REFERENCE.evaluate(model, prior, stars, params, LossTerms()).loss for params in (start, found))
    assert np.isfinite(found).all()
    assert (after < before).mean() > 0.7


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17])
def test_a_star_does_not_notice_its_neighbours(engine, rng, mock, count):
    model, prior, truth = mock
    missing = some_bands_missing(rng, 17)
    missing[5] = True
    stars = random_stars(rng, model, truth, missing=missing)
    descent = Descent("adam", 12, 0.01, 0.5, 5, 100.0)
    whole = descend(engine, model, prior, stars, truth * 1.02, descent)
    order = rng.permutation(17)
    some = descend(engine, model, prior, stars[:count], truth[:count] * 1.02, descent, threads=2)
    shuffled = descend(engine, model, prior, stars[order], truth[order] * 1.02, descent, threads=3)
    assert some.shape == (count, 5)
    assert_same(engine.name, some, whole[:count])
    assert_same(engine.name, shuffled, whole[order])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "lbfgs"}, "field method: 'lbfgs' is neither adam nor sgd"),
        ({"steps": -1}, "field steps: -1 is not a number >= 0"),
        ({"decay_every": 0}, "field decay_every: 0 is not a number >= 1"),
        ({"rate": float("nan")}, "field rate: nan is not"),
        ({"clip": -1.0}, "field clip: -1.0 is not"),
    ],
)
def test_descents_that_make_no_sense(wrong, message):
    with pytest.raises(xk.InputError, match=message):
        Descent(**{"method": "sgd", "steps": 1, "rate": 0.1, **wrong})


def test_same_bytes_for_any_threads_and_order(engine, rng):
    """More stars than a task of a thread holds."""
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 100)
    stars = random_stars(rng, model, params)
    descent = Descent("adam", 4, 0.01, clip=100.0)
    whole, order = descend(engine, model, prior, stars, params, descent), rng.permutation(100)
    assert_same(engine.name, descend(engine, model, prior, stars, params, descent, threads=3), whole)
    shuffled = descend(engine, model, prior, stars[order], params[order], descent, threads=2)
    assert_same(engine.name, shuffled, whole[order])
