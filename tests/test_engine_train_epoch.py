"""Training steps of every engine: of the model, of the stars, of both; what stops them without losing anything."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from mock_stars import assert_same, random_model, random_params, random_prior, random_stars, some_bands_missing

import xpkern as xk
from xpkern.engine.contract import Box, LossTerms
from xpkern.engine.groups import GroupedStars, in_random_groups
from xpkern.engine.reference import ReferenceEngine
from xpkern.engine.training import ModelArrays, ModelMoments, Steps
from xpkern.errors import TrainingDiverged

REFERENCE = ReferenceEngine()
TERMS = LossTerms(prior=False)
EVERYWHERE = Box(np.array([-99.0, -99.0, -99.0, 0.0, 1e-9]), np.array([99.0, 99.0, 99.0, 1e9, 1e300]))


class Mock:
    """Stars with labels, a model that is not quite theirs, and parameters that are not quite right."""

    def __init__(self, rng, count=40, **sizes):
        inputs = sizes.get("inputs", 3)
        self.rng = rng
        self.truth = random_model(rng, **sizes)
        true_params = random_params(rng, random_prior(rng, inputs=inputs), count)
        missing = some_bands_missing(rng, count) if self.truth.n_samples == 66 else None
        self.stars = random_stars(rng, self.truth, true_params, missing=missing)
        self.stars.sigma[:, :-1] = 0.1
        self.stars.mean[:, :-1] = true_params[:, :-1] + 0.1 * rng.standard_normal((count, inputs + 1))
        self.model = moved(self.truth, flat(self.truth) * 0.03 * rng.standard_normal(flat(self.truth).size))
        self.params = true_params * rng.uniform(0.97, 1.03, true_params.shape)

    def batches(self, size, steps):
        return np.stack([self.rng.permutation(len(self.stars))[:size] for _ in range(steps)])


@pytest.fixture
def mock(rng):
    return Mock(rng)


def flat(model):
    return ModelArrays(list(model.weights), list(model.biases), np.log(model.ext_curve)).flatten()


def moved(model, change):
    """The model with ``change`` added to its weights, biases and ln R."""
    arrays = ModelArrays.unflatten(change, model)
    return replace(
        model,
        weights=[weight + delta for weight, delta in zip(model.weights, arrays.weights, strict=True)],
        biases=[bias + delta for bias, delta in zip(model.biases, arrays.biases, strict=True)],
        ext_curve=model.ext_curve * np.exp(arrays.ln_ext_curve),
    )


def train(engine, mock, batches, *, model_steps=None, star_steps=None, moments=None, threads=1, **changed):
    given = {
        "model": mock.model,
        "stars": mock.stars,
        "params": mock.params,
        "terms": TERMS,
        "box": EVERYWHERE,
    } | changed
    return engine.train_epoch(
        given["model"],
        given["stars"],
        given["params"],
        batches,
        given["terms"],
        given["box"],
        model_steps,
        star_steps,
        moments,
        threads=threads,
    )


def gradient_of(engine, model, stars, params):
    return ModelArrays(*engine.train_step(model, stars, params)[1:]).flatten()


def in_x(params):
    return np.column_stack([params[:, :-2], np.log(params[:, -2:])])


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_sgd_is_that_of_keras(engine, mock, momentum):
    """velocity = momentum * velocity - rate * gradient, and the parameters move by the velocity."""
    batches, rates = mock.batches(16, 4), np.array([1e-8, 3e-8, 2e-8, 1e-8])
    result = train(engine, mock, batches, model_steps=Steps("sgd", rates, momentum))
    model, velocity = mock.model, 0.0
    for rows, rate in zip(batches, rates, strict=True):
        velocity = momentum * velocity - rate * gradient_of(REFERENCE, model, mock.stars[rows], mock.params[rows])
        model = moved(model, velocity)
    assert relative(flat(result.model) - flat(mock.model), flat(model) - flat(mock.model)) < 1e-4
    assert relative(result.moments.first.flatten(), velocity) < 1e-4
    assert not result.moments.second.flatten().any()
    assert result.moments.steps == 4
    np.testing.assert_array_equal(result.params, mock.params)
    assert np.isnan(result.star_loss).all()


def test_adam_is_the_textbooks(engine, mock):
    """Kingma & Ba 2014, algorithm 1, on the engine's own gradients; epsilon is far below them."""
    rate, steps = 1e-5, 6  # parameters that go either way (below) then change no later gradient
    batches = mock.batches(16, steps)
    result = train(engine, mock, batches, model_steps=Steps("adam", np.full(steps, rate)))
    model, mean, square = mock.model, 0.0, 0.0
    for step, rows in enumerate(batches, start=1):
        gradient = gradient_of(engine, model, mock.stars[rows], mock.params[rows])
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        model = moved(model, -rate * (mean / (1 - 0.9**step)) / np.sqrt(square / (1 - 0.999**step)))
    np.testing.assert_allclose(result.moments.first.flatten(), mean, rtol=1e-5, atol=1e-5 * np.abs(mean).max())
    np.testing.assert_allclose(result.moments.second.flatten(), square, rtol=1e-4, atol=1e-7 * square.max())
    # where a gradient is as small as its rounding, Adam steps as far either way
    assert (np.abs(flat(result.model) - flat(model)) < 0.01 * rate * steps).mean() > 0.99


def test_clip_is_of_the_models_whole_norm(engine, mock):
    batches = mock.batches(20, 1)
    norm = np.linalg.norm(gradient_of(REFERENCE, mock.model, mock.stars[batches[0]], mock.params[batches[0]]))
    free, clipped, loose = (
        flat(train(engine, mock, batches, model_steps=Steps("sgd", [1e-9], clip=clip)).model) - flat(mock.model)
        for clip in (np.inf, 0.1 * norm, 1.1 * norm)
    )
    np.testing.assert_array_equal(loose, free)
    np.testing.assert_allclose(clipped, 0.1 * free, rtol=1e-3, atol=1e-5 * np.abs(free).max())


def test_a_gradient_that_would_lead_to_no_model_is_clipped_first(engine, mock):
    batches = mock.batches(20, 3)
    gradient = gradient_of(REFERENCE, mock.model, mock.stars[batches[0]], mock.params[batches[0]])
    rate = 1e6 / np.abs(gradient).max()  # of ln R, too
    steps = Steps("sgd", np.full(3, rate), 0.5, clip=1e-9 * np.linalg.norm(gradient) / rate)
    found, expected = (flat(train(each, mock, batches, model_steps=steps).model) for each in (engine, REFERENCE))
    way = expected - flat(mock.model)
    np.testing.assert_allclose(found - flat(mock.model), way, rtol=1e-3, atol=1e-5 * np.abs(way).max())


def test_star_step_is_the_gradient_of_its_loss(engine, mock):
    """The gradient of the evaluated loss without a prior, scaled to a norm, times the rate."""
    batches, rate = mock.batches(20, 2), 1e-5
    evaluated = REFERENCE.evaluate(mock.model, random_prior(mock.rng), mock.stars, mock.params, TERMS)
    clip = float(np.median(np.linalg.norm(evaluated.gradient, axis=1)))
    batches[1] = np.setdiff1d(np.arange(40), batches[0])
    result = train(engine, mock, batches, star_steps=Steps("sgd", [rate, 2.0 * rate], clip=clip))
    assert result.model is mock.model
    norm = np.linalg.norm(evaluated.gradient, axis=1)
    expected = -evaluated.gradient * np.minimum(1.0, clip / norm)[:, None] * rate
    expected[batches[1]] *= 2.0
    found = in_x(result.params) - in_x(mock.params)
    assert np.abs(found - expected).max() < 1e-4 * clip * rate
    np.testing.assert_allclose(result.star_loss, evaluated.loss, rtol=1e-4, atol=1e-2)
    assert np.isnan(result.model_loss).all()


@pytest.mark.parametrize("terms", [LossTerms(False, False, False), LossTerms(False, True, False)])
def test_terms_of_the_star_loss(engine, mock, terms):
    batches = np.arange(40)[None]
    evaluated = REFERENCE.evaluate(mock.model, random_prior(mock.rng), mock.stars, mock.params, terms)
    result = train(engine, mock, batches, star_steps=Steps("sgd", [1e-7]), terms=terms)
    found = (in_x(mock.params) - in_x(result.params)) / 1e-7
    scale = np.linalg.norm(evaluated.gradient, axis=1, keepdims=True)
    assert (np.abs(found - evaluated.gradient) < 1e-3 * scale).all()
    np.testing.assert_allclose(result.star_loss, evaluated.loss, rtol=1e-4, atol=1e-2)


def test_the_model_goes_first(engine, mock):
    """In every batch: the model's step, then the stars' under the new model."""
    batches = mock.batches(12, 3)
    model_rates, star_rates = np.array([1e-7, 2e-7, 1e-7]), np.array([1e-6, 1e-6, 2e-6])
    together = train(
        engine, mock, batches, model_steps=Steps("sgd", model_rates, 0.5), star_steps=Steps("sgd", star_rates, clip=1e3)
    )
    model, params, moments = mock.model, mock.params, None
    for step in range(3):
        of_step = {"model": model, "params": params}
        one = batches[step : step + 1]
        result = train(
            engine, mock, one, model_steps=Steps("sgd", model_rates[step : step + 1], 0.5), moments=moments, **of_step
        )
        model, moments = result.model, result.moments
        assert_same(engine.name, result.model_loss, together.model_loss[step : step + 1])
        of_step["model"] = model
        result = train(engine, mock, one, star_steps=Steps("sgd", star_rates[step : step + 1], clip=1e3), **of_step)
        params = result.params
    assert_same(engine.name, together.params, params)
    assert_same(engine.name, flat(together.model), flat(model))
    assert_same(engine.name, together.moments.first.flatten(), moments.first.flatten())
    assert not np.array_equal(together.params, mock.params)


@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_a_run_in_parts_has_the_same_bytes(engine, mock, method):
    batches = mock.batches(30, 5)
    rates = np.linspace(1e-7, 2e-7, 5)
    momentum = 0.5 if method == "sgd" else 0.0

    def steps(part):
        return {
            "model_steps": Steps(method, rates[part], momentum, clip=1e3),
            "star_steps": Steps("sgd", rates[part], clip=1e3),
        }

    whole = train(engine, mock, batches, **steps(slice(5)), threads=2)
    first = train(engine, mock, batches[:2], **steps(slice(2)))
    rest = train(
        engine, mock, batches[2:], **steps(slice(2, 5)), model=first.model, params=first.params, moments=first.moments
    )
    assert_same(engine.name, rest.params, whole.params)
    assert_same(engine.name, flat(rest.model), flat(whole.model))
    assert_same(engine.name, np.append(first.model_loss, rest.model_loss), whole.model_loss)
    assert_same(engine.name, rest.moments.second.flatten(), whole.moments.second.flatten())
    assert rest.moments.steps == whole.moments.steps == 5


@pytest.mark.parametrize("size", [1, 15, 16, 17, 63, 64, 65, 150])
def test_any_size_of_batch_and_any_threads(engine, rng, size):
    mock = Mock(rng, 150)
    batches = mock.batches(size, 2)
    steps = {
        "model_steps": Steps("sgd", [1e-7, 1e-7], 0.5),
        "star_steps": Steps("sgd", [1e-6, 1e-6], clip=1e3),
    }
    found = train(engine, mock, batches, **steps)
    expected = train(REFERENCE, mock, batches, **steps)
    change = flat(expected.model) - flat(mock.model)
    assert relative(flat(found.model) - flat(mock.model), change) < 1e-4
    change = in_x(expected.params) - in_x(mock.params)
    assert np.abs(in_x(found.params) - in_x(expected.params)).max() < 1e-4 * np.abs(change).max()
    np.testing.assert_allclose(found.model_loss, expected.model_loss, rtol=1e-5)
    np.testing.assert_allclose(found.star_loss, expected.star_loss, rtol=1e-4, atol=1e-2)
    for threads in (2, 3):
        again = train(engine, mock, batches, **steps, threads=threads)
        assert_same(engine.name, again.params, found.params)
        assert_same(engine.name, flat(again.model), flat(found.model))
        assert_same(engine.name, again.model_loss, found.model_loss)
        assert_same(engine.name, again.star_loss, found.star_loss)


@pytest.mark.parametrize("size", [1, 17, 48, 118])
@pytest.mark.parametrize("drawn", [in_random_groups, lambda rows, rng: rng.permutation(rows)], ids=["groups", "any"])
def test_whiteners_side_by_side(engine, rng, drawn, size):
    """Whole groups, groups that lack stars, a last one that is not full; stars that are left out count for nothing."""
    mock = Mock(rng, 150)
    taken = rng.permutation(np.r_[0:32, 32:150:2, 33:87:2])[:118]  # some groups whole, others by half
    left_out = np.setdiff1d(np.arange(150), taken)
    params = mock.params.copy()
    params[left_out] = np.nan
    mock.stars.whitener[left_out] = np.inf
    grouped = GroupedStars.of(mock.stars)
    batches = np.stack([drawn(np.sort(taken), rng)[:size] for _ in range(3)])
    steps = {
        "model_steps": Steps("sgd", [1e-7] * 3, 0.5),
        "star_steps": Steps("sgd", [1e-6] * 3, clip=1e3),
        "params": params,
    }
    found = train(engine, mock, batches, **steps, stars=grouped)
    expected = train(REFERENCE, mock, batches, **steps)
    change = flat(expected.model) - flat(mock.model)
    assert relative(flat(found.model) - flat(mock.model), change) < 1e-4
    moved_by = np.abs(in_x(expected.params[taken]) - in_x(params[taken]))
    assert np.abs(in_x(found.params[taken]) - in_x(expected.params[taken])).max() < 1e-4 * moved_by.max()
    assert np.isnan(found.params[left_out]).all()
    np.testing.assert_allclose(found.model_loss, expected.model_loss, rtol=1e-5)
    np.testing.assert_allclose(found.star_loss, expected.star_loss, rtol=1e-4, atol=1e-2)
    again = train(engine, mock, batches, **steps, stars=grouped, threads=2)
    assert_same(engine.name, again.params, found.params)
    assert_same(engine.name, flat(again.model), flat(found.model))
    params[batches[1, 0], 4] = 1e200
    with pytest.raises(TrainingDiverged) as caught:
        train(engine, mock, batches[1:2], model_steps=Steps("sgd", [1e-7]), params=params, stars=grouped)
    np.testing.assert_array_equal(caught.value.rows, batches[1, :1])


@pytest.mark.parametrize(
    "sizes",
    [
        {"inputs": 3, "hidden": (), "samples": 66},
        {"inputs": 2, "hidden": (7,), "samples": 20},
        {"inputs": 4, "hidden": (32, 16, 33, 9), "samples": 66},
        {"inputs": 1, "hidden": (8, 8), "samples": 1},
    ],
)
def test_other_networks(engine, rng, sizes):
    mock = Mock(rng, 70, **sizes)
    inputs = sizes["inputs"]
    box = Box(np.append(np.full(inputs, -99.0), [0.0, 1e-9]), np.append(np.full(inputs, 99.0), [99.0, 99.0]))
    steps = {"model_steps": Steps("sgd", [1e-7, 1e-7], 0.5), "star_steps": Steps("sgd", [1e-6, 1e-6], clip=1e3)}
    batches = mock.batches(67, 2)
    found, expected = (train(chosen, mock, batches, **steps, box=box) for chosen in (engine, REFERENCE))
    assert relative(flat(found.model) - flat(mock.model), flat(expected.model) - flat(mock.model)) < 1e-4
    change = np.abs(in_x(expected.params) - in_x(mock.params)).max()
    assert np.abs(in_x(found.params) - in_x(expected.params)).max() < 1e-4 * change


def test_no_steps_and_no_stars(engine, mock):
    steps = {"model_steps": Steps("sgd", []), "star_steps": Steps("sgd", [])}
    result = train(engine, mock, np.zeros((0, 16), np.int64), **steps)
    np.testing.assert_array_equal(flat(result.model), flat(mock.model))
    np.testing.assert_array_equal(result.params, mock.params)
    assert result.model_loss.shape == (0,)
    assert result.moments.steps == 0
    assert np.isnan(result.star_loss).all()
    nobody = mock.stars[:0]
    result = train(engine, mock, np.zeros((0, 0), np.int64), **steps, stars=nobody, params=mock.params[:0])
    assert result.params.shape == (0, 5)


def test_box(engine, mock):
    lower, upper = mock.params.min(axis=0) * 0.9, np.abs(mock.params).max(axis=0) * 1.1
    lower[:3] = np.quantile(mock.params[:, :3], 0.3, axis=0)
    upper[3] = np.quantile(mock.params[:, 3], 0.7)
    params = mock.params.copy()
    params[4, 3] = 0.0  # no dust: no logarithm
    result = train(
        engine, mock, np.arange(40)[None], star_steps=Steps("sgd", [1e-4]), box=Box(lower, upper), params=params
    )
    assert (result.params >= lower).all()
    assert (result.params <= upper).all()
    assert (result.params == lower).any()
    assert np.isfinite(result.star_loss).all()
    nowhere = train(engine, mock, np.arange(40)[None], star_steps=Steps("sgd", [0.0]), box=EVERYWHERE, params=params)
    np.testing.assert_array_equal(np.delete(nowhere.params, 4, axis=0), np.delete(params, 4, axis=0))
    assert 0.0 < nowhere.params[4, 3] < 1e-5


def test_a_star_without_a_finite_gradient_stays(engine, mock):
    params = mock.params.copy()
    params[3, 4] = 1e200  # its flux overflows
    batches = np.stack([np.arange(40), np.arange(40)])
    steps = {"star_steps": Steps("sgd", [1e-6, 1e-6], clip=1e3)}
    result = train(engine, mock, batches, **steps, params=params)
    np.testing.assert_array_equal(result.params[3], params[3])
    others = np.delete(np.arange(40), 3)
    expected = train(engine, mock, batches, **steps)
    assert_same(engine.name, result.params[others], expected.params[others])
    assert not np.isfinite(result.star_loss[3])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_reached(engine, rng, threads):
    mock, bad = Mock(rng, 200), [198, 199]
    batches = np.stack([rng.permutation(198)[:90] for _ in range(4)])
    batches[2, [5, 77]] = bad
    params = mock.params.copy()
    params[bad[0], 4], params[bad[1], 0] = 1e200, np.nan
    steps = {"model_steps": Steps("sgd", np.full(4, 1e-7), 0.5), "star_steps": Steps("sgd", np.full(4, 1e-6), clip=1e3)}
    with pytest.raises(TrainingDiverged, match=r"batch 2: the model's loss .*: rows 198, 199$") as caught:
        train(engine, mock, batches, **steps, params=params, threads=threads)
    error = caught.value
    assert error.batch == 2
    np.testing.assert_array_equal(error.rows, bad)
    two = {name: replace(side, rates=side.rates[:2]) for name, side in steps.items()}
    before = train(engine, mock, batches[:2], **two, params=params)
    assert_same(engine.name, flat(error.reached.model), flat(before.model))
    assert_same(engine.name, error.reached.params, before.params)
    assert_same(engine.name, error.reached.moments.first.flatten(), before.moments.first.flatten())
    assert error.reached.moments.steps == 2
    np.testing.assert_array_equal(np.isnan(error.reached.model_loss), [False, False, True, True])


@pytest.mark.parametrize(("method", "clip"), [("sgd", np.inf), ("adam", np.inf), ("sgd", 1.0)])
def test_a_step_too_far_stops_before_it(engine, mock, method, clip):
    batches = mock.batches(16, 2)
    with pytest.raises(TrainingDiverged, match=r"batch 0: the model after its step is not finite$") as caught:
        train(engine, mock, batches, model_steps=Steps(method, [1e306, 1e306], clip=clip))
    assert len(caught.value.rows) == 0
    np.testing.assert_array_equal(flat(caught.value.reached.model), flat(mock.model))


@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_a_step_too_far_keeps_all_before_it(engine, mock, method):
    batches = mock.batches(16, 4)
    model_rates, star_rates = np.array([1e-6, 1e-6, 1e306, 1e-6]), np.full(4, 1e-6)

    def after(count):
        sides = {"model_steps": Steps(method, model_rates[:count]), "star_steps": Steps("sgd", star_rates[:count])}
        return train(engine, mock, batches[:count], **sides)

    with pytest.raises(TrainingDiverged, match=r"batch 2: the model after its step is not finite$") as caught:
        after(4)
    reached, expected = caught.value.reached, after(2)
    assert_same(engine.name, flat(reached.model), flat(expected.model))
    assert_same(engine.name, reached.params, expected.params)
    for side in ("first", "second"):
        moments = (getattr(result.moments, side).flatten() for result in (reached, expected))
        assert_same(engine.name, *moments)
    assert reached.moments.steps == 2


def test_many_bad_stars_are_counted(engine, mock):
    params = mock.params * [1.0, 1.0, 1.0, 1.0, 1e200]
    with pytest.raises(TrainingDiverged, match=r"rows 0, 1, 2, 3, 4, \.\.\. \(40 in all\)"):
        train(engine, mock, np.arange(40)[None], model_steps=Steps("sgd", [1e-8]), params=params)


def test_the_arguments_stay_as_they_are(engine, mock):
    params, whitener, weights = mock.params.copy(), mock.stars.whitener.copy(), flat(mock.model)
    moments = ModelMoments.zeros(mock.model)
    steps = {"model_steps": Steps("adam", [1e-3] * 2), "star_steps": Steps("sgd", [1e-5] * 2)}
    train(engine, mock, mock.batches(16, 2), **steps, moments=moments)
    np.testing.assert_array_equal(mock.params, params)
    np.testing.assert_array_equal(mock.stars.whitener, whitener)
    np.testing.assert_array_equal(flat(mock.model), weights)
    assert not moments.first.flatten().any()


def test_whiteners_of_a_mapped_file_are_read_in_place(engine, rng, tmp_path):
    """They may be larger than memory; a file that may only be read is enough."""
    mock = Mock(rng, 400)
    mock.stars.whitener.tofile(tmp_path / "whiteners")
    mapped = np.memmap(tmp_path / "whiteners", np.float32, "r", shape=mock.stars.whitener.shape)
    batches = mock.batches(16, 2)
    steps = {"model_steps": Steps("sgd", [1e-7] * 2), "star_steps": Steps("sgd", [1e-6] * 2)}
    expected = train(engine, mock, batches, **steps)
    tracemalloc.start()
    found = train(engine, mock, batches, **steps, stars=replace(mock.stars, whitener=mapped))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_same(engine.name, found.params, expected.params)
    if engine.name == "cpu":
        assert most < 0.5 * mapped.nbytes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "newton"}, "field method: 'newton' is neither adam nor sgd"),
        ({"rates": [[0.1]]}, "field rates: must be a vector of finite numbers >= 0"),
        ({"rates": [np.nan]}, "field rates: must be"),
        ({"rates": [-0.1]}, "field rates: must be"),
        ({"momentum": 1.0}, "field momentum: 1.0 is not within"),
        ({"method": "adam", "momentum": 0.5}, "field momentum: adam has a momentum of its own"),
        ({"clip": np.nan}, "field clip: nan is not a number >= 0"),
    ],
)
def test_steps_that_make_no_sense(wrong, message):
    with pytest.raises(xk.InputError, match=message):
        Steps(**{"method": "sgd", "rates": [0.1], **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"terms": LossTerms()}, "field terms: training has no prior"),
        ({"params": np.ones((3, 5))}, r"field params: shape \(3, 5\), expected \(40, 5\)"),
        ({"batches": np.zeros((1, 3), np.int32)}, "field batches: must be rows of stars"),
        ({"batches": np.zeros((1, 0), np.int64)}, "field batches: a batch without stars"),
        ({"batches": np.array([[1, 2, 40]])}, "field batches: batch 0 has row 40, but there are 40 stars"),
        ({"batches": np.array([[1, 2, -1]])}, "field batches: batch 0 has row -1, but there are 40 stars"),
        ({"batches": np.array([[1, 2, 1]])}, "field batches: batch 0 has row 1 twice"),
        ({"model_steps": Steps("sgd", [0.1, 0.1])}, "field model_steps: 2 rates for 1 batches"),
        ({"star_steps": Steps("sgd", [])}, "field star_steps: 0 rates for 1 batches"),
        ({"star_steps": Steps("adam", [0.1])}, "field star_steps: stars take steps of sgd without momentum"),
        ({"star_steps": Steps("sgd", [0.1], 0.5)}, "field star_steps: stars take steps of sgd without momentum"),
        ({"moments": "of another"}, "field moments: not those of this model"),
    ],
)
def test_arguments_that_do_not_fit(engine, mock, wrong, message):
    given = {"batches": np.array([[1, 2, 3]]), "model_steps": Steps("sgd", [0.1]), "star_steps": Steps("sgd", [0.1])}
    given |= wrong
    if given.get("moments"):
        given["moments"] = ModelMoments.zeros(random_model(mock.rng, hidden=(5,)))
    with pytest.raises(xk.InputError, match=message):
        train(engine, mock, given.pop("batches"), **given)


def test_moments_are_shaped_as_the_model(rng):
    model = random_model(rng, inputs=2, hidden=(5, 7), samples=20)
    moments = ModelMoments.zeros(model)
    assert [array.shape for array in moments.first.weights] == [(2, 5), (5, 7), (7, 20)]
    assert [array.shape for array in moments.second.biases] == [(5,), (7,), (20,)]
    assert moments.first.ln_ext_curve.shape == (20,)
    vector = rng.normal(size=moments.first.flatten().size)
    arrays = ModelArrays.unflatten(vector, model)
    np.testing.assert_array_equal(arrays.flatten(), vector)
    np.testing.assert_array_equal(arrays.weights[0].ravel(), vector[:10])
    np.testing.assert_array_equal(arrays.biases[0], vector[10:15])
