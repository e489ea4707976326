"""Training from files to files: the command, what it writes, runs that were killed, what a user gets wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
from astropy.table import Table
from labelled_stars import ENGINE, SMALL, LabelledSurvey, recipe_from, run_of

import xpkern as xk
from bench.spectrum_formats import columns_of, make
from xpkern.cli import main
from xpkern.errors import InputError
from xpkern.grid import N_FLUX, PARAMETERS, WAVELENGTH
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks
from xpkern.train.cuts import CutCount
from xpkern.train.extinction_law import EXT_UNIT, PIVOT, optical_depth
from xpkern.train.figures import draw_figures
from xpkern.train.outcome import LEAST_SEEN, outcome_of
from xpkern.train.recipe_file import load_recipe
from xpkern.train.run import TrainingFiles, train


@pytest.fixture(scope="module")
def files(labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    written = labelled.survey.write(folder)
    Table(labelled.columns).write(folder / "labels.fits")
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


def test_the_command_writes_a_model_its_stars_and_figures(labelled, finished, capsys):
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
        assert np.isin(source_id, labelled.survey.source_id).all()
        assert set(PARAMETERS) < set(file["stars"])
        assert len(file["history/validation_loss"]) == 5
        assert file["phases/ext_curve"].shape == (7, N_FLUX)
        np.testing.assert_allclose(file["phases/ext_curve"][-1], model.ext_curve)


def test_the_model_can_be_used(labelled, finished):
    model, prior = xk.load_model(finished / "model.h5")
    fit = xk.fit(labelled.observations(load_recipe("default")), model, prior, engine=ENGINE)
    assert fit.fitted.mean() > 0.9


def test_equal_arguments_give_equal_bytes_whatever_the_threads(files, finished, tmp_path):
    assert main(arguments(files, tmp_path / "model.h5", finished / "recipe.toml", "--threads", "2")) == 0
    for path in finished.iterdir():
        if path.suffix in (".h5", ".png"):
            assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_spectra_of_another_release(files, finished, tmp_path, capsys):
    """The designs of DR3 under other basis functions: the same model, once their calibration is given."""
    labels, spectra, source = files
    (block,) = read_blocks(spectra, Calibration.default())
    columns = columns_of(block.source_id, block.coefficients)
    columns |= {
        name: [number] * len(block) for name, number in (("bp_basis_function_id", 101), ("rp_basis_function_id", 102))
    }
    release = replace(Calibration.default(), release="Gaia DR4", bp_basis_function_id=101, rp_basis_function_id=102)
    release.save(tmp_path / "dr4.npz")
    other = arguments(
        (labels, make("h5", columns, tmp_path), source), tmp_path / "model.h5", finished / "recipe.toml", "--no-figures"
    )
    assert main(other) == 1
    assert "give the calibration of their release" in capsys.readouterr().err
    assert main([*other, "--calibration", str(tmp_path / "dr4.npz")]) == 0
    with h5py.File(finished / "model.h5") as expected, h5py.File(tmp_path / "model.h5") as found:
        for name, values in expected["flux"].items():
            np.testing.assert_array_equal(found["flux"][name], values, err_msg=name)


def test_killed_at_any_moment_and_taken_up_it_gives_the_same_bytes(files, finished, tmp_path, rng):
    """At one moment, a new one in every run of the tests; ``python -m bench resume`` takes 20."""
    command = [sys.executable, "-m", "xpkern", *arguments(files, tmp_path / "model.h5", finished / "recipe.toml",
               "--checkpoint-every", "0", "--no-figures")]  # fmt: skip
    work = tmp_path / "model.work"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not work.exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(rng.uniform(0.0, 1.0))
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.returncode == 0:  # a model may be there without that: the end of a process takes a moment
        assert (tmp_path / "model.h5").exists()
    # the rest in this process: what a run takes up is in files alone
    assert main([*command[3:]]) == 0
    for path in finished.glob("model*.h5"):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    assert not work.exists()


def test_killed_while_its_work_is_removed_it_can_be_run_again(files, finished, tmp_path, monkeypatch):
    command = arguments(files, tmp_path / "model.h5", finished / "recipe.toml", "--no-figures")
    with monkeypatch.context() as killed:
        killed.setattr("xpkern.train.run.shutil.rmtree", lambda work, **_: (work / "whiteners.f32").unlink())
        assert main(command) == 0
    assert (tmp_path / "model.work").exists()
    assert main(command) == 0
    assert (tmp_path / "model.h5").read_bytes() == (finished / "model.h5").read_bytes()
    assert not (tmp_path / "model.work").exists()


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
    identity = tmp_path / "model.work" / "identity.json"
    facts = json.loads(identity.read_text())
    del facts["whiteners"]  # as before they lay side by side
    identity.write_text(json.dumps(facts))
    with pytest.raises(InputError, match="work of another version of xpkern"):
        train(labels, spectra, tmp_path / "model.h5", recipe=bad, **options)


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


def test_figures_of_a_run_without_labels_of_extinction(labelled, ours, tmp_path):
    without_ext = {name: values for name, values in labelled.columns.items() if not name.startswith("ext")}
    run = run_of(ours, LabelledSurvey(labelled.survey, without_ext).training_set(ours))
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
