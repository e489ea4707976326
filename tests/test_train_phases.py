"""Phases of a training run: what each kind does, what makes a run stop, and which of its models it keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from labelled_stars import SMALL, SMALL_ZGR23, recipe_from, run_of

import xpkern as xk
from xpkern.errors import InputError
from xpkern.train.outcome import outcome_of
from xpkern.train.phases import TrainingFailed
from xpkern.train.recipe import Clean, Rounds
from xpkern.train.state import Checkpoint


def test_held_out_stars_are_never_touched(labelled, recipe):
    data = labelled.training_set(recipe)
    seen = []
    run = run_of(recipe, data, on_progress=seen.append)
    before = run.state
    state = run.finish()
    held_out = data.held_out
    assert held_out.any()
    np.testing.assert_array_equal(state.params[held_out], before.params[held_out])
    assert not state.clean[held_out].any()
    assert (state.params[~held_out] != before.params[~held_out]).any(axis=0).all()
    losses = [record.validation_loss for record in state.history]
    assert np.isfinite(losses).all()
    assert [snapshot.phase for snapshot in state.snapshots] == ["start", *recipe.phase]
    assert len(seen) >= len(state.history)
    assert all(progress.unit < progress.units for progress in seen)


def test_the_first_phase_lowers_the_loss_that_it_minimises(labelled, recipe):
    """Eq. 12, or the profile loss, of all its stars: the mean over a round's or an epoch's batches may well rise."""
    data = labelled.training_set(recipe)
    phase = recipe.phase["model"]
    run = run_of(replace(recipe, phase={"model": phase}), data)
    rows = np.flatnonzero(data.high_quality & ~data.held_out)

    def loss() -> float:
        if isinstance(phase, Rounds):
            return run._profile_loss(run.state.model, rows, data.start.copy(), phase.weight_penalty)[0]
        return run.engine.train_step(run.state.model, data.stars[rows], data.start[rows])[0]

    before = loss()
    run.finish()
    assert loss() < before


def test_the_penalty_on_the_weights_counts_as_often_as_the_recipe_says(labelled, ours):
    data = labelled.training_set(ours)
    run = run_of(ours, data)
    rows, model = run.training[:20], run.state.model
    (once, by_once), (often, by_often) = (run._profile_loss(model, rows, data.start.copy(), n) for n in (1.0, 8.5))
    number = sum(weight.size for weight in model.weights)
    assert often - once == pytest.approx(7.5 * sum((weight**2).sum() for weight in model.weights) / number, rel=1e-6)
    for before, after, weight in zip(by_once.weights, by_often.weights, model.weights, strict=True):
        np.testing.assert_allclose(after - before, 15.0 * weight / number, rtol=1e-6, atol=1e-12 * np.abs(after).max())
    for before, after in zip(by_once.biases, by_often.biases, strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(by_once.ln_ext_curve, by_often.ln_ext_curve)


def test_steps_do_not_read_held_out_spectra(labelled, recipe):
    """They only tell which of the models is kept."""
    recipe = replace(recipe, split=replace(recipe.split, keep_best=False))
    data = labelled.training_set(recipe)
    state = run_of(recipe, data).finish()
    data = data.with_whiteners(np.where(data.held_out[:, None], 1.5, 1.0) * data.stars.whitener[:])
    other = run_of(recipe, data).finish()
    assert state.model.digest == other.model.digest
    assert [r.validation_loss for r in state.history] != [r.validation_loss for r in other.history]


def test_self_cleaning_finds_the_stars_that_were_spoilt(labelled, ours, rng):
    data = labelled.training_set(ours)
    truth, _ = xk.load_model()
    run = run_of(ours, data)
    rows = np.searchsorted(labelled.survey.source_id, data.source_id)
    true_params = labelled.survey.truth[rows]
    data.stars.mean[:, :] = true_params
    run.state = replace(run.state, model=replace(truth, scale_sigma=0.0), params=true_params.copy())
    run._clean(Clean(theta=4.0, plx=4.0, flux=np.inf))
    assert run.state.clean[~data.held_out].all()
    spoilt = rng.permutation(run.training)[:3]
    run.state.params[spoilt[0], 1] += 5.0 * data.stars.sigma[spoilt[0], 1]
    run.state.params[spoilt[1], 4] += 5.0 * data.stars.sigma[spoilt[1], 4]
    run._clean(Clean(theta=4.0, plx=4.0, flux=np.inf))
    assert set(np.flatnonzero(~run.state.clean & ~data.held_out)) == set(spoilt[:2])
    assert [count.removed for count in run.state.clean_counts] == [0, 1, 1, 0]
    # one flux sample 50 sigma off
    residual = run._largest_residual(run.training)
    limit = residual.max() + 5.0
    data.stars.flux[spoilt[2], 0] += (limit + 50.0) / data.stars[spoilt[2:]].whitener[0, 0]  # C_00 = G_00^2
    run._clean(Clean(theta=np.inf, plx=np.inf, flux=limit))
    assert set(np.flatnonzero(~run.state.clean & ~data.held_out)) == {spoilt[2]}


@pytest.mark.parametrize(
    ("judgements", "best", "kept"),
    [
        (
            (5.0, 3.0, 4.0, 6.0, 3.5),
            1,
            "phase model, epoch 2, the best by held-out stars: 3.00, where the last had 3.50",
        ),
        (
            (5.0, 3.0, 4.0, 2.0, 2.5),
            3,
            "phase joint, epoch 1, the best by held-out stars: 2.00, where the last had 2.50",
        ),
        ((5.0, np.nan, 4.0, 3.0, 2.5), 4, "phase polish, epoch 1, the best by held-out stars: 2.50"),
    ],
)
def test_a_run_keeps_its_best_model(labelled, ours, monkeypatch, judgements, best, kept):
    run = run_of(ours, labelled.training_set(ours))
    models, pending = [], list(judgements)

    def judged(rows):
        models.append(run.state.model)
        return np.full(len(rows), pending.pop(0))

    monkeypatch.setattr(run, "validation_losses", judged)
    state = run.finish()
    assert len(models) == len(judgements)
    assert state.model.digest == models[best].digest
    assert len({model.digest for model in models}) == len(models)
    assert state.snapshots[1].ext_curve == pytest.approx(models[2 if np.isnan(judgements[1]) else 1].ext_curve, abs=0)
    # every star is at its optimum under that model, not under the last
    optima = run._optima(state.model, run.set.stars[run.training], state.params[run.training])
    np.testing.assert_allclose(state.params[run.training], optima.params, rtol=1e-3, atol=1e-3)
    monkeypatch.undo()
    assert outcome_of(run).model.provenance["kept_model"] == f"that of {kept}"


def test_the_paper_keeps_the_last_model(labelled, tmp_path, monkeypatch):
    recipe = recipe_from(tmp_path, SMALL_ZGR23)
    run = run_of(recipe, labelled.training_set(recipe))
    rising = iter(range(100))
    monkeypatch.setattr(run, "validation_losses", lambda rows: np.full(len(rows), float(next(rising))))
    moved = [record for record in run.finish().history if np.isfinite(record.model_loss)]
    assert run.state.best.record == run.state.history[0]
    assert run.state.model.digest != run.state.best.model.digest
    monkeypatch.undo()
    assert f"epoch {moved[-1].epoch + 1}, the last: " in outcome_of(run).model.provenance["kept_model"]


def test_a_run_begins_where_another_has_ended(labelled, ours):
    data = labelled.training_set(ours)
    first = run_of(ours, data)
    ended = first.finish()
    diagonal = np.cumsum(np.arange(1, data.stars.flux.shape[1] + 1)) - 1
    twice = 2.0 * data.stars.whitener[:]
    twice[:, diagonal] /= 4.0  # its reciprocal is what is stored
    data = data.with_whiteners(twice)
    assert data.digest != first.set.digest
    run = run_of(replace(ours, phase={"joint": ours.phase["joint"]}), data, begin=ended)
    assert run.state.model.digest == ended.model.digest
    np.testing.assert_array_equal(run.state.params, ended.params)
    np.testing.assert_array_equal(run.state.clean, ended.clean)
    assert (run.state.phase, run.state.unit, run.state.best) == (0, 0, None)
    # errors twice as large: a quarter of chi2 at the same parameters
    before, after = (
        one.engine.evaluate(ended.model, one._unused_prior, one.stars[:], ended.params, one.terms)
        for one in (first, run)
    )
    np.testing.assert_allclose(after.chi2, 0.25 * before.chi2, rtol=1e-4)
    state = run.finish()
    assert state.model.digest != ended.model.digest
    assert [snapshot.phase for snapshot in state.snapshots] == ["start", "joint"]


def test_an_empty_phase_says_what_emptied_it(labelled, tmp_path):
    recipe = recipe_from(tmp_path, SMALL + "[high_quality]\nteff_err = 0.01\n")
    with pytest.raises(InputError, match=r"phase\.model.*none of .* is high_quality.*teff_err < 0.01 kK"):
        run_of(recipe, labelled.training_set(recipe)).finish()


def test_no_training_stars(labelled, ours):
    data = labelled.training_set(ours)
    data.held_out[:] = True
    with pytest.raises(InputError, match="held out"):
        run_of(ours, data)


def test_no_held_out_stars_give_no_validation(labelled, ours):
    data = labelled.training_set(ours)
    data.held_out[:] = False
    state = run_of(ours, data).finish()
    assert np.isnan([record.validation_loss for record in state.history]).all()


def test_a_loss_that_turns_nan_stops_and_names_the_star(labelled, recipe, tmp_path):
    data = labelled.training_set(recipe)
    run = run_of(recipe, data)
    bad = run.training[data.high_quality[run.training]][3]
    data.stars.flux[bad, 5] = np.nan
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz", recipe.name, recipe.digest, data.digest)
    run = run_of(recipe, data, checkpoint=checkpoint)
    with pytest.raises(TrainingFailed, match=rf"phase model, .*not finite.*{data.source_id[bad]}.*kept in"):
        run.finish()
    kept = checkpoint.load()
    assert kept is not None
    assert kept.phase == 0
    assert all(np.isfinite(weight).all() for weight in kept.model.weights)
    assert np.isfinite(kept.params).all()


@pytest.mark.parametrize(
    "text",
    [
        SMALL_ZGR23.replace("model_clip = 2.0", "model_rate = 1e300\nmodel_clip = inf", 1),
        SMALL.replace("batch = 32", "batch = 32\nrate = 1e300", 1),
    ],
    ids=["epochs", "rounds"],
)
def test_a_model_that_runs_away_stops_the_run(labelled, tmp_path, text):
    recipe = recipe_from(tmp_path, text)
    with pytest.raises(TrainingFailed, match=r"phase model, (epoch|round) \d, batch \d+: the model.* is not finite"):
        run_of(recipe, labelled.training_set(recipe)).finish()
