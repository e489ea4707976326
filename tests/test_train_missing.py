"""Training on what real stars lack: parallaxes, reddenings, bands, and one survey for all labels."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from labelled_stars import ENGINE, SMALL, LabelledSurvey, recipe_from, run_of
from mock_atmospheres import black_bodies

import xpkern as xk
from xpkern.engine.packed import present_samples
from xpkern.errors import InputError
from xpkern.grid import BANDS, N_XP, PARAMETERS, WAVELENGTH, in_scale_window
from xpkern.observe.whiteners import drop_samples
from xpkern.train import run as train_run
from xpkern.train.anchors import COOLEST_KNOWN, anchor_stars
from xpkern.train.curvature import EvenCoordinates
from xpkern.train.extinction_law import PIVOT, optical_depth
from xpkern.train.flux_scale import SCALE_SIGMA, THEORETICAL_ERROR, ln_flux_at_1kpc
from xpkern.train.outcome import outcome_of
from xpkern.train.packages import default_cache
from xpkern.train.recipe_file import load_recipe
from xpkern.train.start import start_params
from xpkern.train.state import Checkpoint
from xpkern.train.training_set import candidates, gather

EXT, PLX = PARAMETERS.index("ext"), PARAMETERS.index("plx")
KS, W1, W2 = (N_XP + BANDS.index(band) for band in ("Ks", "W1", "W2"))

#: Enough for a model that is good to a tenth: from all that a survey of 900 stars has, it comes out at 0.05 to 0.1.
MEDIUM = """
base = "default"
name = "medium"
[split]
held_out = 0.1
[start]
hidden = [8, 8]
[prior]
components = 3
[phase.model]
stars = "all"
rounds = 4
steps = 24
batch = 128
metric_stars = 128
[phase.clean]
theta = inf
plx = inf
flux = inf
[phase.joint]
rounds = 4
steps = 24
batch = 128
metric_stars = 128
[phase.polish]
rounds = 1
steps = 1
batch = 128
metric_stars = 64
"""


@pytest.fixture(scope="module")
def stars():
    return LabelledSurvey.random(900, np.random.default_rng([7, 11]))


@pytest.fixture
def medium(tmp_path):
    return recipe_from(tmp_path, MEDIUM)


def true_params(survey, data):
    observed = data.source_id[~data.is_anchor]
    return survey.survey.truth[np.searchsorted(survey.survey.source_id, observed)]


def intrinsic_error(model, theta):
    """Logarithm of a model's flux over that of the truth, of stellar types (n, 3)."""
    params = np.column_stack([theta, np.zeros(len(theta)), np.ones(len(theta))])
    return (model.ln_flux(params) - xk.load_model()[0].ln_flux(params))[:, : KS + 1]  # the survey has no W1, W2


def shape_of(error):
    """Without what is common to all samples of a star."""
    return error - error[:, in_scale_window(WAVELENGTH)[: KS + 1]].mean(axis=1, keepdims=True)


def test_a_star_may_lack_anything_that_others_have(stars, tmp_path, rng):
    """Half of the parallaxes, extinctions, infrared bands and blue halves of spectra, each at random."""
    # the scale of a star without a parallax is that of its neighbours: it takes a network that can tell them apart,
    # and so many rounds, for the slopes of its spectra have settled then whatever the draw has left out
    medium = recipe_from(
        tmp_path, MEDIUM.replace("hidden = [8, 8]", "hidden = [24, 24]").replace("rounds = 4", "rounds = 24")
    )
    data = stars.training_set(medium)
    n = len(data)
    no_plx, no_ext, no_bands, no_blue = rng.random((4, n)) < 0.5
    data.stars.sigma[no_plx, PLX] = data.stars.sigma[no_ext, EXT] = np.inf
    data.stars.mean[no_plx, PLX] = data.stars.mean[no_ext, EXT] = 0.0
    dropped = np.zeros((n, len(WAVELENGTH)), bool)
    dropped[no_bands, N_XP:] = True
    dropped[no_blue, :26] = True
    data = data.with_whiteners(drop_samples(data.stars.whitener[:], dropped))
    data.stars.flux[dropped] = 0.0
    data.start[:] = start_params(data.stars.mean, data.stars.sigma, data.stars.flux, medium)
    run = run_of(medium, data)
    state = run.finish()
    truth = true_params(stars, data)
    training = ~data.held_out
    error = intrinsic_error(state.model, truth[training, :3])
    assert np.median(np.abs(shape_of(error))) < 0.12
    assert np.median(np.abs(error)) < 0.35
    alone = training & no_plx & no_ext
    assert np.abs(np.median(state.params[alone, EXT] - truth[alone, EXT])) < 0.05
    assert np.abs(np.median(np.log(state.params[alone, PLX] / truth[alone, PLX]))) < 0.15
    model = outcome_of(run).model
    assert model.scale_sigma == 0.0


def without_parallaxes(stars, medium):
    """The set and its recipe, with anchors made of black bodies; the stars' W1 and W2 are missing."""
    anchored = load_recipe("no_parallax")
    recipe = replace(medium, cuts=anchored.cuts, high_quality=anchored.high_quality)
    recipe = replace(recipe, anchors=replace(anchored.anchors, stars=200))
    table = {"source_id": stars.survey.source_id}
    observations = stars.observations(recipe)
    observations.plx_err[:] = np.inf
    dropped = np.zeros((len(observations), len(WAVELENGTH)), bool)
    dropped[:, [W1, W2]] = True
    observations.whitener[:] = drop_samples(observations.whitener, dropped)
    observations.flux[:, [W1, W2]] = 0.0
    sources = type(stars.sources)(table, "gaia_source")
    return gather(candidates(stars.labels, sources, recipe), [observations], recipe, atmospheres=black_bodies()), recipe


def test_without_parallaxes_the_shape_is_learned_and_theory_gives_the_scale(stars, medium):
    data, recipe = without_parallaxes(stars, medium)
    assert data.is_anchor.sum() == 200
    assert not data.has_parallax.any()
    assert not data.held_out[data.is_anchor].any()
    run = run_of(recipe, data)
    run.finish()
    before = run.engine.predict(run.state.model, run.state.params)
    outcome = outcome_of(run)
    model = outcome.model
    # what parallaxes would tell of dust is the law's, and no flux has changed for that
    law, curve = optical_depth(WAVELENGTH), model.ext_curve
    pivot = np.flatnonzero(WAVELENGTH == PIVOT)[0]
    np.testing.assert_allclose(curve[KS:] / curve[pivot], law[KS:] / law[pivot])
    observed = ~data.is_anchor
    after = run.engine.predict(run.state.model, run.state.params)
    np.testing.assert_allclose(after[observed, : KS + 1], before[observed, : KS + 1], rtol=1e-5)
    assert model.scale_sigma == SCALE_SIGMA
    assert list(np.flatnonzero(model.theoretical)) == [W1, W2]
    assert (model.noise.independent[[W1, W2]] == THEORETICAL_ERROR).all()
    assert outcome.stars["training"] == (~data.held_out & ~data.is_anchor).sum()
    theta = true_params(stars, data)[~data.held_out[~data.is_anchor], :3]
    assert np.median(np.abs(shape_of(intrinsic_error(model, theta)))) < 0.12
    params = np.column_stack([theta, np.zeros(len(theta)), np.ones(len(theta))])
    theory, learned = ln_flux_at_1kpc(black_bodies(), theta), model.ln_flux(params)
    # the scale is as good as the model says of itself
    assert np.abs(np.median((learned - theory)[:, N_XP : KS + 1])) < SCALE_SIGMA
    assert np.median(np.abs((learned - theory)[:, N_XP : KS + 1].mean(axis=1))) < 0.25
    known = theta[:, 0] > COOLEST_KNOWN
    beyond = (learned - theory)[:, [W1, W2]] - (learned - theory)[:, [KS]]
    assert np.median(np.abs(beyond[known])) < 0.05


def test_a_flat_curve_without_parallaxes_or_extinctions(stars, medium):
    """Dust and distance are then one: the coordinates of the steps exist all the same."""
    data = stars.training_set(medium)
    data.stars.sigma[:, [EXT, PLX]] = np.inf
    model, _ = xk.load_model()
    flat = replace(model, ext_curve=np.ones(len(WAVELENGTH)))
    rows = np.arange(40)
    even = EvenCoordinates.of(flat, data.stars[rows], data.start[rows], medium.loss.terms, 1e-4)
    assert all(np.isfinite(triangle).all() for layer in even.layers for triangle in layer)
    assert np.isfinite(even.ln_ext_curve).all()


def test_anchors_are_what_theory_says_and_as_sure(rng):
    types = np.column_stack([rng.uniform(3.5, 7.0, 50), rng.uniform(-2.0, 0.5, 50), rng.uniform(0.5, 5.0, 50)])
    settings = replace(load_recipe("no_parallax").anchors, stars=40)
    anchors = anchor_stars(types, settings, black_bodies(), 3)
    assert len(anchors) == 40
    np.testing.assert_allclose(np.log(anchors.flux), ln_flux_at_1kpc(black_bodies(), anchors.mean[:, :3]), atol=1e-5)
    assert present_samples(anchors.whitener).all()
    factor = np.linalg.inv(xk.Observations.from_arrays(
        flux=anchors.flux, packed_factor=anchors.whitener).whitener_dense(0))  # fmt: skip
    relative = factor @ factor.T / np.outer(anchors.flux[0], anchors.flux[0])
    of_ratio = relative[W1, W1] + relative[KS, KS] - 2.0 * relative[W1, KS]
    expected = settings.infrared if anchors.mean[0, 0] > COOLEST_KNOWN else settings.infrared_cool
    assert np.sqrt(of_ratio) == pytest.approx(expected, rel=1e-3)
    assert np.sqrt(relative[KS, KS]) == pytest.approx(settings.scale, rel=1e-4)
    assert np.sqrt(relative[5, 5]) == pytest.approx(settings.optical, rel=1e-4)
    assert relative[5, KS] == pytest.approx(0.0, abs=1e-9)
    again = anchor_stars(types, settings, black_bodies(), 3)
    np.testing.assert_array_equal(again.flux, anchors.flux)


def test_neither_parallaxes_nor_anchors(stars, medium):
    sources = type(stars.sources)({"source_id": stars.survey.source_id}, "gaia_source")
    with pytest.raises(InputError, match="nor has the recipe anchors"):
        candidates(stars.labels, sources, medium)


def test_anchors_without_atmospheres(stars, medium):
    recipe = replace(medium, anchors=replace(medium.anchors, stars=5))
    with pytest.raises(InputError, match="need model atmospheres"):
        gather(candidates(stars.labels, stars.sources, recipe), [stars.observations(recipe)], recipe)


def test_files_without_parallaxes_become_a_model(labelled, tmp_path, monkeypatch):
    """Two surveys, too, whose offsets are printed."""
    written = labelled.survey.write(tmp_path)
    columns = dict(labelled.columns) | {"survey": np.where(np.arange(len(labelled.survey)) % 3 == 0, "few", "many")}
    sources = {"source_id": labelled.survey.source_id} | labelled.survey.gaia_source
    sources = {name: values for name, values in sources.items() if "parallax" not in name}
    small = SMALL.replace('base = "default"', 'base = "no_parallax"')
    recipe = recipe_from(tmp_path, small + "[anchors]\nstars = 30\n")
    asked = []
    monkeypatch.setattr(train_run, "load_atmospheres", lambda cache: asked.append(cache) or black_bodies())
    said = []
    outcome = train_run.train(
        columns, written.spectra, tmp_path / "model.h5", gaia_source=sources, recipe=recipe, engine=ENGINE,
        figures=False, log=said.append,
    )  # fmt: skip
    assert asked == [default_cache()]
    model, _ = xk.load_model(tmp_path / "model.h5")
    assert model.scale_sigma == SCALE_SIGMA
    assert "30 stars made of theory" in model.card
    assert outcome.stars["training"] + outcome.stars["held_out"] == len(labelled.survey)
    assert any("| many |" in text and "| few |" in text for text in said)
    with h5py.File(tmp_path / "model.stars.h5") as file:
        assert set(file["stars/source_id"][:]) <= set(labelled.survey.source_id)


OFFSET = np.array([0.15, -0.3, 0.25])


def of_two_surveys(stars, recipe, rng, share=0.7):
    """Labels of which a share is of a second survey, which is off by OFFSET."""
    second = rng.random(len(stars.survey)) < share
    columns = dict(stars.columns)
    for k, name in enumerate(("teff", "feh", "logg")):
        columns[name] = columns[name] + OFFSET[k] * second
    columns["survey"] = np.where(second, "second", "first")
    recipe = replace(recipe, surveys=replace(recipe.surveys, reference="first"))
    surveyed = LabelledSurvey(stars.survey, columns)
    return surveyed.training_set(recipe), recipe


def test_offsets_between_surveys_are_found(stars, medium, rng, tmp_path):
    data, recipe = of_two_surveys(stars, medium, rng)
    assert data.surveys == ("first", "second")
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz", recipe.name, recipe.digest, data.digest)
    run = run_of(recipe, data, checkpoint=checkpoint)
    state = run.finish()
    np.testing.assert_array_equal(state.offsets[0], 0.0)
    # four times what a model of so few stars scatters by
    assert (np.abs(state.offsets[1] - OFFSET) < [0.07, 0.12, 0.06]).all()
    truth = true_params(stars, data)
    training = ~data.held_out
    # in the frame of the reference, not in that of all labels, seven tenths of the offset away
    error = np.abs(np.median(state.params[training, :3] - truth[training, :3], axis=0))
    assert error[0] < 0.07
    assert error[2] < 0.07
    np.testing.assert_array_equal(checkpoint.load().offsets, state.offsets)
    model = outcome_of(run).model
    assert "second" in model.card
    assert "second" in model.provenance["survey_offsets"]
    # the same stars as if there were one survey
    blind = run_of(replace(recipe, surveys=replace(recipe.surveys, offsets=False)), data).finish()
    np.testing.assert_array_equal(blind.offsets, 0.0)
    assert np.median(blind.params[training, 2] - truth[training, 2]) > 0.1


def test_one_survey_has_no_offset(stars, medium):
    data = stars.training_set(medium)
    assert data.surveys == ("",)
    run = run_of(medium, data)
    assert run.stars is data.stars
    assert not outcome_of(run).model.provenance["survey_offsets"]


def test_the_reference_survey_must_be_there(stars, medium):
    recipe = replace(medium, surveys=replace(medium.surveys, reference="third"))
    columns = dict(stars.columns) | {"survey": np.where(np.arange(len(stars.survey)) % 2 == 0, "first", "second")}
    surveyed = LabelledSurvey(stars.survey, columns)
    with pytest.raises(InputError, match=r"reference survey 'third' \(first, second\)"):
        surveyed.training_set(recipe)


def test_every_star_names_its_survey(stars):
    columns = dict(stars.columns)
    columns["survey"] = np.where(np.arange(len(stars.survey)) == 3, "", "first")
    with pytest.raises(InputError, match="row 4, field survey: no name of a survey"):
        _ = LabelledSurvey(stars.survey, columns).labels


def test_a_cut_of_the_base_can_be_left_out(tmp_path):
    recipe = recipe_from(tmp_path, SMALL + "[cuts]\nparallax_over_error = false\n")
    assert "parallax_over_error" not in recipe.cuts
    assert "snr_g" in recipe.cuts
    with pytest.raises(InputError, match=r"cuts\.snr_g"):
        recipe_from(tmp_path, SMALL + "[cuts]\nsnr_g = true\n")
