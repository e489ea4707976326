"""Recipes: what they may say, and what a user is told about a mistake in one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xpkern.engine.contract import LossTerms
from xpkern.errors import InputError
from xpkern.train.recipe import Clean, DescendStars, Epochs, NewtonStars, Rounds
from xpkern.train.recipe_file import SHIPPED, load_recipe


def test_zgr23_is_table_1_of_the_paper():
    recipe = load_recipe("zgr23")
    phases = dict(recipe.phase)
    assert list(phases) == ["model", "joint", "refine", "clean", "joint_clean", "final"]
    for name, stars, model_rate, star_rate in (
        ("model", "high_quality", 1e-3, 0.0),
        ("joint", "high_quality", 1e-5, 1e-4),
        ("joint_clean", "clean", 1e-7, 1e-5),
    ):
        phase = phases[name]
        assert isinstance(phase, Epochs)
        assert (phase.stars, phase.model_rate, phase.star_rate) == (stars, model_rate, star_rate)
        assert (phase.epochs, phase.batch, phase.optimizer, phase.momentum) == (128, 512, "sgd", 0.5)
        rates = [phase.model_rate * phase.decay(epoch) for epoch in (0, 31.99, 32, 63.9, 64, 95.9, 96, 127.9)]
        expected = model_rate * np.repeat([1.0, 0.1, 0.01, 0.001], 2)
        np.testing.assert_allclose(rates, expected, rtol=1e-12)
    refine, final = phases["refine"], phases["final"]
    assert isinstance(refine, DescendStars)
    assert isinstance(final, DescendStars)
    assert (refine.method, refine.steps, refine.rate, refine.decay, refine.decay_every) == ("sgd", 128, 1e-4, 0.1, 32)
    assert (final.method, final.steps, final.rate, final.decay, final.decay_every) == ("adam", 4096, 1e-2, 0.5, 512)
    assert phases["clean"] == Clean(theta=4.0, plx=4.0, flux=4.0)


def test_zgr23_has_the_cuts_of_the_paper():
    recipe = load_recipe("zgr23")
    assert dict(recipe.cuts) == {
        "snr_g": 20,
        "snr_r": 20,
        "snr_i": 20,
        "teff_err": 0.5,
        "feh_err": 0.5,
        "logg_err": 0.5,
        "parallax_over_error": 3,
        "fidelity_v2": 0.5,
        "bp_rp_flux_excess": 1.3,
    }
    assert dict(recipe.high_quality) == {
        "teff_err": 0.2,
        "feh_err": 0.2,
        "logg_err": 0.2,
        "parallax_over_error": 10,
        "ext_err": 0.1,
    }
    assert recipe.split.held_out == 0.2
    assert recipe.noise.sigma == "zgr23"
    assert recipe.loss.terms == LossTerms(prior=False)
    assert load_recipe("default").loss.terms == LossTerms(prior=False, jacobian_ext=False, jacobian_plx=False)


def test_a_cosine_falls_from_one_to_zero():
    phase = dict(load_recipe("zgr23").phase)["model"]
    cosine = Epochs(**(vars(phase) | {"schedule": "cosine"}))
    decay = [cosine.decay(epoch) for epoch in np.linspace(0, 128, 50)]
    assert decay[0] == 1.0
    assert decay[-1] == pytest.approx(0.0, abs=1e-12)
    assert (np.diff(decay) < 0).all()


def write(tmp_path, text):
    path = tmp_path / "my.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_with_a_base_differs_in_what_it_says(tmp_path, name):
    base = load_recipe(name)
    mine = load_recipe(write(tmp_path, f'base = "{name}"\n[cuts]\nsnr_g = 35\nruwe = 1.4\n[phase.clean]\nflux = inf\n'))
    assert dict(mine.cuts) == dict(base.cuts) | {"snr_g": 35.0, "ruwe": 1.4}
    assert mine.phase["clean"].flux == math.inf
    assert mine.phase["clean"].plx == base.phase["clean"].plx
    assert list(mine.phase) == list(base.phase)
    assert (mine.split, mine.noise, mine.high_quality) == (base.split, base.noise, base.high_quality)
    assert mine.digest != base.digest
    assert load_recipe(write(tmp_path, f'base = "{name}"')).digest == base.digest


def test_a_phase_of_another_kind_replaces_the_one_of_its_name(tmp_path):
    phase = "kind = 'descend'\nstars = 'all'\nmethod = 'adam'\nsteps = 9\nrate = 0.1\n"
    phase += "decay = 0.5\ndecay_every = 3\nclip = inf"
    mine = load_recipe(write(tmp_path, f'base = "default"\n[phase.refine]\n{phase}\n'))
    assert list(mine.phase) == list(load_recipe("default").phase)
    assert isinstance(mine.phase["refine"], DescendStars)
    assert isinstance(mine.phase["model"], Rounds)


def test_phases_beyond_those_of_the_base_come_after_them():
    base, large = load_recipe("default"), load_recipe("large")
    assert list(large.phase) == [*base.phase, "clean_again", "settle", "final_again"]
    assert large.phase["clean_again"] == base.phase["clean"]
    # `final` has brought all stars to their optima, those too that the first cleaning took away
    assert large.phase["final"] == large.phase["final_again"] == NewtonStars("all")


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("[cuts]\nsnr_gg = 20", "cuts.snr_gg", "did you mean snr_g"),
        ("[phase.model]\nround = 3", "phase.model.round", "did you mean rounds"),
        ("[phase.extra]\nkind = 'newtom'\nstars = 'all'", "phase.extra.kind", "did you mean newton"),
        ("[phase.extra]\nkind = 'newton'\nstars = 'hq'", "phase.extra.stars", "one of all, high_quality, clean"),
        ("[splitt]\nseed = 1", "splitt", "did you mean split"),
        ("xyzzy = 1", "xyzzy", "known are"),
        ("[split]\nseed = 1.5", "split.seed", "not a whole number"),
        ("[split]\nseed = true", "split.seed", "not a whole number"),
        ("[split]\nheld_out = 1.0", "split.held_out", "below 1"),
        ("[cuts]\nsnr_g = 'high'", "cuts.snr_g", "not a number"),
        ("[cuts]\nsnr_g = nan", "cuts.snr_g", "not a number"),
        ("cuts = 3", "cuts", "table"),
        ("phase = 3", "phase", "table"),
        ("[start]\nhidden = [32, 0.5]", "start.hidden", "list of whole numbers"),
        ("[loss]\njacobian_ext = 1", "loss.jacobian_ext", "not true or false"),
        ("[noise]\nsigma = 'mine'", "noise.sigma", "archive, zgr23"),
        ("[phase.model]\ndamping = 0", "phase.model.damping", "positive"),
        ("[phase.joint]\nweight_penalty = -1", "phase.joint.weight_penalty", "a number >= 0"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(tmp_path, text, field, message):
    path = write(tmp_path, f'base = "default"\n{text}\n')
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert caught.value.file == str(path)
    assert caught.value.field == field
    assert message in caught.value.message


def test_without_a_base_every_key_is_needed(tmp_path):
    with pytest.raises(InputError, match="field split: missing"):
        load_recipe(write(tmp_path, 'name = "mine"'))


@pytest.mark.parametrize(
    ("text", "message"), [("a = = 1", "not valid TOML"), ('base = "zgr24"', "none of default, large, zgr23")]
)
def test_what_is_no_recipe_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load_recipe(write(tmp_path, text))


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(InputError, match=r"zrg23.*did you mean zgr23"):
        load_recipe("zrg23")


def test_settings_are_plain_and_complete():
    for name in SHIPPED:
        settings = load_recipe(name).settings()
        assert settings["phase"]["final"]["kind"] in ("newton", "descend")
        assert settings["start"]["hidden"] == [64 if name == "large" else 32] * 3
