"""Training runs: each kind of phase, what makes them stop, and that one taken up again ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
from astropy.table import Table
from labelled_stars import ENGINE, LABEL_ERRORS, SMALL, SMALL_ZGR23, LabelledSurvey, recipe_from
from mock_stars import random_model, random_params, random_prior, random_stars

import xpkern as xk
from xpkern.cli import main
from xpkern.engine.training import ModelArrays
from xpkern.errors import InputError
from xpkern.grid import N_FLUX, N_XP, PARAMETERS, WAVELENGTH
from xpkern.train.curvature import EvenCoordinates
from xpkern.train.cuts import CutCount
from xpkern.train.extinction_law import EXT_UNIT, PIVOT, optical_depth
from xpkern.train.figures import draw_figures
from xpkern.train.outcome import LEAST_SEEN, outcome_of
from xpkern.train.phases import Run, TrainingFailed
from xpkern.train.recipe import Clean, Rounds
from xpkern.train.recipe_file import load_recipe
from xpkern.train.run import TrainingFiles, train
from xpkern.train.start import start_model
from xpkern.train.state import Checkpoint
from xpkern.train.type_prior_fit import fit_prior_of_kind

RECIPES = {"ours": SMALL, "zgr23": SMALL_ZGR23}


@pytest.fixture(scope="module")
def survey():
    seed = np.random.default_rng(int(os.environ.get("XPKERN_TEST_SEED", time.time_ns() % (1 << 32))))
    return LabelledSurvey.random(110, seed)


@pytest.fixture(params=sorted(RECIPES))
def recipe(request, tmp_path):
    return recipe_from(tmp_path, RECIPES[request.param])


@pytest.fixture
def ours(tmp_path):
    return recipe_from(tmp_path, SMALL)


def run_of(recipe, data, **options):
    return Run(recipe, data, xk.get_engine(ENGINE), **options)


def assert_states_equal(one, other):
    assert one.model.digest == other.model.digest
    np.testing.assert_array_equal(one.params, other.params)
    np.testing.assert_array_equal(one.clean, other.clean)
    np.testing.assert_array_equal(
        [list(vars(r).values()) for r in one.history], [list(vars(r).values()) for r in other.history]
    )
    for a, b in zip(one.snapshots, other.snapshots, strict=True):
        assert a.phase == b.phase
        np.testing.assert_array_equal(a.ext_curve, b.ext_curve)
        np.testing.assert_array_equal(a.drift, b.drift)
    assert one.clean_counts == other.clean_counts


# ---- phases ----------------------------------------------------------------------------------------------------


def test_held_out_stars_are_never_touched(survey, recipe):
    data = survey.training_set(recipe)
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


def test_the_first_phase_lowers_the_loss_that_it_minimises(survey, recipe):
    """Eq. 12 of all its stars, or the profile loss. An epoch's mean is of other stars each time: it may well rise."""
    data = survey.training_set(recipe)
    run = run_of(replace(recipe, phase={"model": recipe.phase["model"]}), data)
    rows = np.flatnonzero(data.high_quality & ~data.held_out)

    def loss() -> float:
        return run.engine.train_step(run.state.model, data.stars[rows], data.start[rows])[0]

    before = loss()
    losses = [record.model_loss for record in run.finish().history]
    assert losses[-1] < losses[0] if isinstance(recipe.phase["model"], Rounds) else loss() < before


def test_a_run_does_not_read_held_out_spectra(survey, recipe):
    data = survey.training_set(recipe)
    state = run_of(recipe, data).finish()
    data.stars.whitener[data.held_out] *= np.float32(1.5)
    other = run_of(recipe, data).finish()
    assert state.model.digest == other.model.digest
    assert [r.validation_loss for r in state.history] != [r.validation_loss for r in other.history]


def test_self_cleaning_finds_the_stars_that_were_spoilt(survey, ours, rng):
    data = survey.training_set(ours)
    truth, _ = xk.load_model()
    run = run_of(ours, data)
    rows = np.searchsorted(survey.survey.source_id, data.source_id)
    true_params = survey.survey.truth[rows]
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
    data.stars.flux[spoilt[2], 0] += (limit + 50.0) / data.stars.whitener[spoilt[2], 0]  # C_00 = G_00^2
    run._clean(Clean(theta=np.inf, plx=np.inf, flux=limit))
    assert set(np.flatnonzero(~run.state.clean & ~data.held_out)) == {spoilt[2]}


def test_an_empty_phase_says_what_emptied_it(survey, tmp_path):
    recipe = recipe_from(tmp_path, SMALL + "[high_quality]\nteff_err = 0.01\n")
    with pytest.raises(InputError, match=r"phase\.model.*none of .* is high_quality.*teff_err < 0.01 kK"):
        run_of(recipe, survey.training_set(recipe)).finish()


def test_no_training_stars(survey, ours):
    data = survey.training_set(ours)
    data.held_out[:] = True
    with pytest.raises(InputError, match="held out"):
        run_of(ours, data)


def test_no_held_out_stars_give_no_validation(survey, ours):
    data = survey.training_set(ours)
    data.held_out[:] = False
    state = run_of(ours, data).finish()
    assert np.isnan([record.validation_loss for record in state.history]).all()


def test_a_loss_that_turns_nan_stops_and_names_the_star(survey, recipe, tmp_path):
    data = survey.training_set(recipe)
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


def test_a_model_that_runs_away_stops_the_run(survey, tmp_path):
    recipe = recipe_from(tmp_path, SMALL_ZGR23.replace("model_clip = 2.0", "model_rate = 1e300\nmodel_clip = inf", 1))
    with pytest.raises(TrainingFailed, match=r"phase model, epoch \d, batch \d+: the model.* is not finite"):
        run_of(recipe, survey.training_set(recipe)).finish()


# ---- checkpoints -----------------------------------------------------------------------------------------------


def test_taken_up_after_any_unit_it_ends_the_same(survey, recipe, tmp_path):
    data = survey.training_set(recipe)
    whole = run_of(recipe, data).finish()
    units = []
    run_of(recipe, data, on_progress=units.append).finish()

    class Stop(Exception):
        pass

    checkpoint = Checkpoint(tmp_path / "checkpoint.npz", recipe.name, recipe.digest, data.digest)
    done = 0
    while done < len(units):
        run = run_of(recipe, data, checkpoint=checkpoint, checkpoint_seconds=0.0, on_progress=lambda _: stop())
        assert run.resumed == (done > 0)

        def stop():
            raise Stop

        with pytest.raises(Stop):
            run.finish()
        done += 1
    run = run_of(recipe, data, checkpoint=checkpoint)
    assert run.resumed
    assert_states_equal(run.finish(), whole)


def test_an_interruption_keeps_what_was_finished(survey, recipe, tmp_path, monkeypatch):
    data = survey.training_set(recipe)
    whole = run_of(recipe, data).finish()
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz", recipe.name, recipe.digest, data.digest)
    run = run_of(recipe, data, checkpoint=checkpoint, checkpoint_seconds=np.inf)
    record, judged = run._record, []

    def interrupted(*losses):
        judged.append(losses)
        if len(judged) == 2:  # the model has been moved already
            raise KeyboardInterrupt
        record(*losses)

    monkeypatch.setattr(run, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    run = run_of(recipe, data, checkpoint=checkpoint)
    assert (run.state.phase, run.state.unit) == (0, 1)
    assert_states_equal(run.finish(), whole)


def test_a_checkpoint_of_another_recipe_or_other_stars_is_refused(survey, ours, tmp_path):
    data = survey.training_set(ours)
    path = tmp_path / "checkpoint.npz"
    Checkpoint(path, ours.name, ours.digest, data.digest).save(run_of(ours, data).state)
    for name, recipe_digest, data_digest, message in (
        (ours.name, "0", data.digest, "another recipe of the same name"),
        ("zgr23", "0", data.digest, "'small', not 'zgr23'"),
        (ours.name, ours.digest, "0", "other stars"),
    ):
        with pytest.raises(InputError, match=message):
            run_of(ours, data, checkpoint=Checkpoint(path, name, recipe_digest, data_digest))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        Checkpoint(path, ours.name, ours.digest, data.digest).load()


# ---- coordinates, start ----------------------------------------------------------------------------------------


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

    rank = len(even.ln_ext_curve)  # types are all the same: one direction of the inputs for each output
    for _ in range(3):
        u = np.zeros(even.size)
        u[-rank:] = 1e-4 * rng.standard_normal(rank)
        assert chi2(even.moved(model, u)) == pytest.approx(u @ u, rel=0.02)


def test_a_regression_starts_closer_than_the_median(survey, ours):
    data = survey.training_set(ours)
    rows = np.flatnonzero(~data.held_out)
    losses = {}
    for output in ("median", "regression"):
        recipe = replace(ours, start=replace(ours.start, output=output, hidden=(16, 16)))
        model = start_model(data.stars, data.start, rows, recipe)
        ln_flux = model.ln_flux(data.start[rows])[:, 10:N_XP]
        observed = np.log(np.maximum(data.stars.flux[rows, 10:N_XP], 1e-3))
        losses[output] = np.median(np.abs(ln_flux - observed))
    assert losses["regression"] < 0.5 * losses["median"]


def test_a_sample_that_nobody_has_starts_as_its_neighbour(survey, ours):
    data = survey.training_set(ours)  # 2MASS only: W1 and W2 are missing
    model = start_model(data.stars, data.start, np.flatnonzero(~data.held_out), ours)
    assert model.biases[-1][-1] == model.biases[-1][-2]
    assert np.isfinite(model.biases[-1]).all()


# ---- the prior -------------------------------------------------------------------------------------------------


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


# ---- files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(survey, tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    written = survey.survey.write(folder)
    Table(survey.columns).write(folder / "labels.fits")
    return folder / "labels.fits", written.spectra, written.gaia_source


def arguments(files, output, recipe_file, *more):
    labels, spectra, source = files
    return ["train", str(labels), "--spectra", str(spectra), "--source", str(source), "--recipe", str(recipe_file),
            "-o", str(output), "--engine", ENGINE, *more]  # fmt: skip


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.toml").write_text(SMALL)
    assert main(arguments(files, folder / "model.h5", folder / "recipe.toml")) == 0
    return folder


def test_the_command_writes_a_model_its_stars_and_figures(survey, finished, capsys):
    names = sorted(path.name for path in finished.iterdir())
    assert names == ["model.drift.png", "model.extinction.png", "model.h5", "model.loss.png", "model.prior.png",
                     "model.stars.h5", "recipe.toml"]  # fmt: skip
    model, prior = xk.load_model(finished / "model.h5")
    assert prior.n_components == 3
    assert model.scale_sigma == 0.0
    assert model.provenance["recipe"] == "small"
    assert "snr_g > 20" in model.provenance["cuts"]
    assert "NOT APPLIED" in model.card
    assert str(finished) not in (finished / "model.h5").read_bytes().decode("latin1")
    assert model.provenance["not_learned"] == "W1 W2"
    assert list(np.flatnonzero(model.theoretical)) == [N_FLUX - 2, N_FLUX - 1]
    assert (model.noise.independent[-2:] > 10).all()
    with h5py.File(finished / "model.stars.h5") as file:
        source_id = file["stars/source_id"][:]
        assert np.isin(source_id, survey.survey.source_id).all()
        assert set(PARAMETERS) < set(file["stars"])
        assert len(file["history/validation_loss"]) == 5
        assert file["phases/ext_curve"].shape == (6, N_FLUX)
        np.testing.assert_allclose(file["phases/ext_curve"][-1], model.ext_curve)


def test_the_model_can_be_used(survey, finished):
    model, prior = xk.load_model(finished / "model.h5")
    fit = xk.fit(survey.observations(load_recipe("default")), model, prior, engine=ENGINE)
    assert fit.fitted.mean() > 0.9


def test_equal_arguments_give_equal_bytes_whatever_the_threads(files, finished, tmp_path):
    assert main(arguments(files, tmp_path / "model.h5", finished / "recipe.toml", "--threads", "2")) == 0
    for path in finished.iterdir():
        if path.suffix in (".h5", ".png"):
            assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


@pytest.mark.parametrize("moments", [2])
def test_killed_at_any_moment_and_taken_up_it_gives_the_same_bytes(files, finished, tmp_path, rng, moments):
    command = [sys.executable, "-m", "xpkern", *arguments(files, tmp_path / "model.h5", finished / "recipe.toml",
               "--checkpoint-every", "0", "--no-figures")]  # fmt: skip
    work = tmp_path / "model.work"
    for delay in rng.uniform(0.0, 1.0, moments):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not work.exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "model.h5").exists() == (process.returncode == 0)
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    for path in finished.glob("model*.h5"):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    assert not work.exists()


def test_work_of_another_recipe_is_refused_until_told_to_begin_anew(files, finished, tmp_path, capsys):
    output = tmp_path / "model.h5"
    (tmp_path / "bad.toml").write_text(SMALL + "[high_quality]\nteff_err = 0.0\n")
    assert main(arguments(files, output, tmp_path / "bad.toml")) == 1  # stops in its first phase
    assert "phase.model" in capsys.readouterr().err
    assert not output.exists()
    assert (tmp_path / "model.work").is_dir()
    assert main(arguments(files, output, finished / "recipe.toml")) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "work of another recipe of the same name" in said
    assert main(arguments(files, output, finished / "recipe.toml", "--restart", "--no-figures")) == 0
    assert output.read_bytes() == (finished / "model.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.toml", "model.h5", "model.stars.h5"]


def test_work_of_other_data_is_refused(files, finished, tmp_path):
    labels, spectra, source = files
    bad = recipe_from(tmp_path, SMALL + "[high_quality]\nteff_err = 0.0\n")
    options = {"gaia_source": source, "engine": ENGINE, "figures": False}
    with pytest.raises(InputError, match="high_quality"):
        train(labels, spectra, tmp_path / "model.h5", recipe=bad, **options)
    table = Table.read(labels)
    table["teff"][0] += 1e-3
    table.write(tmp_path / "other.fits")
    with pytest.raises(InputError, match="other labels, tables or spectra"):
        train(tmp_path / "other.fits", spectra, tmp_path / "model.h5", recipe=bad, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spectra": "absent.csv.gz"}, "absent.csv.gz: no such file"),
        ({"output": "absent/model.h5"}, "its folder does not exist"),
        ({"output": "model.fits"}, "must end in .h5"),
        ({"recipe": "zgr32"}, "did you mean zgr23"),
        ({"labels": "absent.fits"}, "absent.fits"),
    ],
)
def test_what_a_user_gets_wrong_is_said_before_anything_is_written(files, tmp_path, change, message):
    given = dict(zip(("labels", "spectra", "gaia_source"), files, strict=True)) | {
        "output": "model.h5",
        "recipe": "zgr23",
    }
    given |= change
    given["output"] = tmp_path / given["output"]
    with pytest.raises(InputError, match=message):
        train(engine=ENGINE, **given)
    assert not list(tmp_path.glob("*.h5"))
    assert not list(tmp_path.glob("*.work"))


def test_labels_of_other_stars_leave_nothing_behind(files, tmp_path):
    labels, spectra, source = files
    table = Table.read(labels)
    table["source_id"] += 1
    with pytest.raises(InputError, match="no star of the labels is in gaia_source"):
        train(table, spectra, tmp_path / "model.h5", gaia_source=source, engine=ENGINE)
    assert list(tmp_path.iterdir()) == []


def test_figures_of_a_run_without_labels_of_extinction(survey, ours, tmp_path):
    survey = LabelledSurvey(survey.survey, {n: v for n, v in survey.columns.items() if not n.startswith("ext")})
    run = run_of(ours, survey.training_set(ours))
    trained = run.finish()
    outcome = outcome_of(run)
    assert outcome.model.ext_unit == EXT_UNIT
    np.testing.assert_allclose(outcome.model.ext_curve[WAVELENGTH == PIVOT], optical_depth(PIVOT))
    optical_depths = run.state.params[:, 3, None] * outcome.model.ext_curve
    np.testing.assert_allclose(optical_depths, trained.params[:, 3, None] * trained.model.ext_curve, rtol=1e-12)
    paths = draw_figures(TrainingFiles(tmp_path / "m.h5").figure, run, outcome)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert len(paths) == 4


def test_counts_read_well():
    assert str(CutCount("snr_g > 20", 1234, 5678)) == "       5,678  snr_g > 20  (−1,234)"
    assert str(CutCount("stars", 0, 5)) == "           5  stars"
    assert 0 < LEAST_SEEN < 0.5
