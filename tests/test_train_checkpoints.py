"""A training run that is taken up again, after any unit of work, ends as one that was left alone."""

from __future__ import annotations

import numpy as np
import pytest
from labelled_stars import run_of

from xpkern.errors import InputError
from xpkern.train.state import Checkpoint


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
    assert repr(one.best.record) == repr(other.best.record)  # it may hold NaN
    assert one.best.model.digest == other.best.model.digest


def test_taken_up_after_any_unit_it_ends_the_same(labelled, recipe, tmp_path):
    data = labelled.training_set(recipe)
    units = []
    whole = run_of(recipe, data, on_progress=units.append).finish()

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


def test_an_interruption_keeps_what_was_finished(labelled, recipe, tmp_path, monkeypatch):
    data = labelled.training_set(recipe)
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


def test_a_checkpoint_of_another_recipe_or_other_stars_is_refused(labelled, ours, tmp_path):
    data = labelled.training_set(ours)
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
