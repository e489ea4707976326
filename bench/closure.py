"""Training on simulated labels: what recipes cost and reach, and whether the model they make gives honest errors."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import xpkern as xk
from bench.accuracy import LARGEST_PRIOR_SHARE, SIGNIFICANT, prior_share
from bench.result import Result
from bench.stars import model_and_prior, observed
from xpkern.engine.contract import Coefficients, Float64
from xpkern.engine.training import ModelMoments
from xpkern.grid import PARAMETERS
from xpkern.model.noise import Noise
from xpkern.observe.calibration import Calibration
from xpkern.observe.gaia_source import SourceTable
from xpkern.observe.photometry import COLUMN_NAMES
from xpkern.observe.simulate import simulate
from xpkern.survey.planted import Planted
from xpkern.survey.run import load_truth
from xpkern.survey.simulator import BLOCK_ROWS, SurveySimulator
from xpkern.train.held_out import is_giant
from xpkern.train.labels import read_labels
from xpkern.train.noise_fit import learn_model_error
from xpkern.train.outcome import Outcome, outcome_of
from xpkern.train.packages import default_cache
from xpkern.train.phases import Progress, Run
from xpkern.train.recipe import LabelFloors, Recipe
from xpkern.train.recipe_file import load_recipe
from xpkern.train.run import training_noise
from xpkern.train.state import EpochRecord
from xpkern.train.training_set import TrainingSet, candidates, gather

#: Standard errors of the simulated labels: teff [kK], feh, logg [dex], ext [mag]. ZGR23's labels have 40 K, 0.04, 0.06.
LABEL_ERRORS = (0.05, 0.05, 0.05, 0.02)

#: Stars of a simulated survey; each has a seed of its own.
AT_ONCE = 8192

#: First seeds of the training stars and of the stars that are inferred.
TRAINING_SEED, INFERENCE_SEED = 1000, 5000

#: Stars that are inferred at most where the truth is model atmospheres, and in a closure: of so many, those that are
#: significant tell a median to 0.012 and a width to 0.009.
MOST_INFERRED, MOST_OF_CLOSURE = 16384, 65536

#: Magnitudes of simulated stars whose spectra are those of model atmospheres, as of those of the flux model.
MAGNITUDES = (10.0, 17.6)

#: Edges [kK] of the groups of dwarfs that are told apart where the model is not the truth.
TEFF_EDGES = (4.0, 5.0, 6.5, 8.0)

#: Stars of the paper's training set.
PAPER_STARS = 2_060_000

#: Bytes of the outputs are compared after so many kills.
KILLS = 20

#: Recipe of the runs that are killed: every kind of unit is in it, and few stars do not leave a phase empty.
KILLED_RECIPE = """
base = "default"
name = "killed"
[start]
hidden = [8, 8]
[prior]
components = 3
[phase.model]
steps = 10
batch = 64
[phase.clean]
theta = inf
plx = inf
flux = inf
[phase.joint]
rounds = 6
steps = 10
batch = 64
[phase.polish]
rounds = 2
steps = 10
batch = 64
"""


@dataclass(frozen=True)
class Simulated:
    """Simulated stars: identifiers, true parameters (n, 5) and what is observed of them."""

    source_id: np.ndarray
    truth: Float64
    coefficients: Coefficients
    gaia_source: dict[str, np.ndarray]
    calibration: Calibration

    def __len__(self) -> int:
        return len(self.source_id)


def bench_recipes(n_stars: int, _rounds: int, engine_name: str) -> Result:
    """Time [s of one core] of the zgr23 recipe, and of the default one to the same validation loss and to its own."""
    data = training_set(n_stars)
    judges = np.flatnonzero(data.held_out)
    extra: dict[str, Any] = {"stars with labels": n_stars, "training stars": int((~data.held_out).sum())}
    extra |= {"high-quality training stars": int((data.high_quality & ~data.held_out).sum())}
    for name in ("zgr23", "default"):
        run, course = trained(name, n_stars, engine_name)
        losses = run.validation_losses(judges)
        extra[f"{name}: validation loss, mean"] = float(losses.mean())
        extra[f"{name}: validation loss, median"] = float(np.median(losses))
        extra[f"{name}: whole recipe [s]"] = course.total
        for phase, seconds in course.phases.items():
            extra[f"{name}: phase {phase} [s]"] = seconds
        projected = course.total * PAPER_STARS / len(run.training) / 2.0 / 3600.0
        extra[f"{name}: the same for {PAPER_STARS:,} stars on two cores, if in proportion [h]"] = projected
        extra[f"{name}: clean stars"] = int(run.state.clean.sum())
        extra[f"{name}: time [s], validation loss, its median after each epoch"] = json.dumps(course.losses())
    lowest = min(record.validation_loss for _, record in trained("zgr23", n_stars, engine_name)[1].epochs)
    ours = trained("default", n_stars, engine_name)[1].epochs
    first = [seconds for seconds, record in ours if record.validation_loss <= lowest]
    extra["zgr23: lowest validation loss after any epoch"] = lowest
    extra["default: time to that loss [s]"] = first[0] if first else float("nan")
    losses = _losses_by_truth(trained("default", n_stars, engine_name)[0], judges)
    extra["true model: validation loss, mean"] = float(losses.mean())
    extra["true model: validation loss, median"] = float(np.median(losses))
    return Result("recipes", extra=extra)


def _losses_by_truth(run: Run, rows: np.ndarray) -> Float64:
    """Return Eqs. 13-14 of a run's stars under the true model."""
    by_truth = Run(run.recipe, run.set, run.engine, threads=1)
    by_truth.state = replace(by_truth.state, model=truth_model())
    return by_truth.validation_losses(rows)


def _beside_the_truth(run: Run, course: Course) -> dict[str, Any]:
    """Return what the trained model adds to the true one's loss of held-out stars, in the end and on the way there."""
    of_truth = _losses_by_truth(run, np.flatnonzero(run.set.held_out))
    added = run.validation_losses(np.flatnonzero(run.set.held_out)) - of_truth
    judges = float(_losses_by_truth(run, run.judges).mean())
    return {
        "true model: validation loss, mean": float(of_truth.mean()),
        "added to it by the trained model, mean": float(added.mean()),
        "added, median": float(np.median(added)),
        "added, share of it by the 5 % of the stars with most": float(
            np.sort(added)[-max(1, len(added) // 20) :].sum() / added.sum()
        ),
        "parameters of the model / training stars": ModelMoments.zeros(run.state.model).first.flatten().size
        / len(run.training),
        "whole recipe [s]": course.total,
        "kept": outcome_of(run).kept,
        "time [s], loss added, after each epoch": json.dumps(
            [(seconds, round(mean - judges, 3)) for seconds, mean, _ in course.losses()]
        ),
    }


def bench_closure(n_stars: int, _rounds: int, engine_name: str) -> Result:
    """Train on simulated labels by the recipe for many, infer others without labels: pulls against the truth."""
    run, course = trained("large", n_stars, engine_name)
    outcome = outcome_of(run)
    extra = _training(outcome, n_stars)
    extra |= _beside_the_truth(run, course)
    learned, noise_seconds = _with_learned_noise(run, outcome)
    extra["learning of the noise [s]"] = noise_seconds
    models = {
        "trained": (outcome.model, outcome.prior),
        "trained, learned noise": (learned, outcome.prior),
        "true": (truth_model(), model_and_prior()[1]),
    }
    parts: dict[str, list[tuple[Float64, ...]]] = {name: [] for name in models}
    for survey in surveys(min(n_stars, MOST_OF_CLOSURE), INFERENCE_SEED):
        for name, (model, prior) in models.items():
            parts[name].append(_pulls(survey, model, prior))
    for name, of_surveys in parts.items():
        pulls, usable, significant, free, *_ = (np.concatenate(part) for part in zip(*of_surveys, strict=True))
        groups = {"E and plx > 10 sigma, prior < 5 %": free, "E and plx > 10 sigma": significant, "all": usable}
        for group, members in groups.items():
            extra[f"{name} model, {group}: stars"] = number = int(members.sum())
            for index, parameter in enumerate(PARAMETERS if number else ()):
                low, median, high = np.quantile(pulls[members, index], [0.15866, 0.5, 0.84134])
                extra[f"{name} model, {group}: {parameter}, median pull"] = float(median)
                extra[f"{name} model, {group}: {parameter}, width"] = float(0.5 * (high - low))
    return Result("closure", extra=extra)


def bench_atmospheres(n_stars: int, _rounds: int, engine_name: str) -> Result:
    """The same where the truth is model atmospheres, not a network: residuals and pulls by kind of star."""
    outcome = outcome_of(trained("default", n_stars, engine_name, "kurucz")[0])
    extra = _training(outcome, n_stars)
    of_surveys = [
        _pulls(survey, outcome.model, outcome.prior)
        for survey in surveys(min(n_stars, MOST_INFERRED), INFERENCE_SEED, "kurucz")
    ]
    pulls, usable, _, _, residuals, truth, chi2 = (np.concatenate(part) for part in zip(*of_surveys, strict=True))
    inside = usable & (outcome.prior.ln_density(truth[:, :3]) > outcome.prior.ln_prior_threshold)
    extra["inferred stars"] = int(usable.sum())
    extra["of which the true type is one that the prior covers"] = int(inside.sum())
    giant = is_giant(truth[:, :3])
    groups = {"giants": inside & giant}
    for low, high in pairwise(TEFF_EDGES):
        groups[f"dwarfs, {low:g} to {high:g} kK"] = inside & ~giant & (truth[:, 0] >= low) & (truth[:, 0] < high)
    for group, members in groups.items():
        extra[f"{group}: stars"] = number = int(members.sum())
        if not number:
            continue
        extra[f"{group}: median chi2 / 66"] = float(np.median(chi2[members]) / 66)
        for index, parameter in enumerate(PARAMETERS):
            for what, values in (("residual", residuals), ("pull", pulls)):
                low, median, high = np.quantile(values[members, index], [0.15866, 0.5, 0.84134])
                extra[f"{group}: {parameter}, median {what}"] = float(median)
                extra[f"{group}: {parameter}, width of the {what}"] = float(0.5 * (high - low))
    return Result("atmospheres", extra=extra)


def _with_learned_noise(run: Run, outcome: Outcome) -> tuple[xk.FluxModel, float]:
    """Return the trained model with the noise that residuals of the run's held-out stars teach, and its time [s]."""
    started = time.process_time()
    held_out = run.set.stars[np.flatnonzero(run.set.held_out)]
    error = learn_model_error(outcome.model, outcome.prior, held_out, default_noise(), engine=run.engine, threads=1)
    noise = replace(outcome.model.noise, model_error=error)
    return replace(outcome.model, noise=noise), time.process_time() - started


def _training(outcome: Outcome, n_stars: int) -> dict[str, Any]:
    return {
        "stars with labels": n_stars,
        "training stars": outcome.stars["training"],
        "validation loss, mean": outcome.validation_loss,
        "validation loss, median": outcome.validation_median,
    }


def bench_resume(n_stars: int, _rounds: int, engine_name: str) -> Result:
    """Whether a run killed at 20 random moments and taken up again ends with the bytes of an undisturbed one."""
    rng = np.random.default_rng(TRAINING_SEED)
    with tempfile.TemporaryDirectory(prefix="xpkern-bench-") as name:
        folder = Path(name)
        survey = simulate(truth_model(), model_and_prior()[1], n_stars, seed=TRAINING_SEED)
        files = survey.write(folder)
        from astropy.table import Table

        Table(labels_of(survey, rng)).write(folder / "labels.fits")
        (folder / "recipe.toml").write_text(KILLED_RECIPE)

        def command(output: str) -> list[str]:
            return [sys.executable, "-m", "xpkern", "train", str(folder / "labels.fits"), "-o", str(folder / output),
                    "--spectra", str(files.spectra), "--source", str(files.gaia_source), "--engine", engine_name,
                    "--recipe", str(folder / "recipe.toml"), "--checkpoint-every", "0", "--no-figures"]  # fmt: skip

        started = time.perf_counter()
        subprocess.run(command("whole.h5"), check=True, capture_output=True)
        seconds = time.perf_counter() - started
        kills = 0
        while kills < KILLS:
            with subprocess.Popen(
                command("killed.h5"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as process:
                try:
                    process.wait(rng.uniform(0.0, seconds))
                except subprocess.TimeoutExpired:
                    process.kill()
                    kills += 1
                else:  # it finished: the next one begins anew
                    if process.returncode != 0:
                        raise RuntimeError("the run failed by itself")
                    if kills < KILLS:
                        _unlink(folder, "killed")
        subprocess.run(command("killed.h5"), check=True, capture_output=True)
        outputs = sorted(path.name.removeprefix("whole") for path in folder.glob("whole*"))
        same = {end: (folder / f"whole{end}").read_bytes() == (folder / f"killed{end}").read_bytes() for end in outputs}
    return Result("resume", extra={"stars": n_stars, "kills": kills, "same bytes": json.dumps(same)})


def _unlink(folder: Path, stem: str) -> None:
    for path in folder.glob(f"{stem}.*"):
        path.unlink()


class Course:
    """Processor time [s] of a run: in all, of each phase, and after each epoch; judging the model is part of it."""

    def __init__(self) -> None:
        self.started = time.process_time()
        self.total = 0.0
        self.phases: dict[str, float] = {}
        self.epochs: list[tuple[float, EpochRecord]] = []

    def add(self, progress: Progress) -> None:
        """Take the time after a unit of work."""
        now = time.process_time() - self.started
        self.phases[progress.phase] = self.phases.get(progress.phase, 0.0) + now - self.total
        self.total = now
        if progress.record is not None:
            self.epochs.append((now, progress.record))

    def losses(self) -> list[tuple[float, float, float]]:
        """Return time [s], validation loss and its median after each epoch."""
        return [
            (round(seconds, 2), round(record.validation_loss, 3), round(record.validation_median, 3))
            for seconds, record in self.epochs
        ]


@cache
def trained(recipe_name: str, n_stars: int, engine_name: str, truth: str = "model") -> tuple[Run, Course]:
    """Return a finished run of a shipped recipe on one core, with the errors that the stars have, and its course."""
    course = Course()
    recipe = _with_equal_noise(load_recipe(recipe_name))
    run = Run(recipe, training_set(n_stars, truth), xk.get_engine(engine_name), threads=1, on_progress=course.add)
    run.finish()
    return run, course


@cache
def truth_model() -> xk.FluxModel:
    """Return the shipped model as if its scale had been calibrated: what the simulated stars are made of."""
    return replace(model_and_prior()[0], scale_sigma=0.0)


def _with_equal_noise(recipe: Recipe) -> Recipe:
    """Return the recipe with the errors that the simulated stars have: the same loss, whoever minimises it.

    Those of the labels, too: floors stand for what real surveys do not say of their errors, and these say all.
    """
    equal = replace(recipe.noise, sigma="archive", photometry_in_training=0.01, photometry=0.01)
    return replace(recipe, noise=equal, label_floors=LabelFloors(0.0, 0.0, 0.0, 0.0, 0.0))


def surveys(n_stars: int, seed: int, truth: str = "model") -> Iterator[Simulated]:
    """Yield simulated surveys with ``n_stars`` in all, whole blocks of them where the truth is model atmospheres."""
    if truth == "model":
        for number, first in enumerate(range(0, n_stars, AT_ONCE)):
            survey = simulate(truth_model(), model_and_prior()[1], min(AT_ONCE, n_stars - first), seed=seed + number)
            yield Simulated(survey.source_id, survey.truth, survey.coefficients, survey.gaia_source, survey.calibration)
        return
    simulator = SurveySimulator(
        load_truth(truth, default_cache()), seed=seed, planted=Planted.none(), magnitudes=MAGNITUDES
    )
    made = 0
    while made < n_stars:
        block = simulator.block(made // BLOCK_ROWS)
        columns = block.tables["truth"]
        truth_of_block = np.column_stack([columns[name] for name in PARAMETERS])
        truth_of_block[:, 0] /= 1000.0  # K in the table
        yield Simulated(
            block.source_id, truth_of_block, block.coefficients, block.tables["gaia_source"], simulator.calibration
        )
        made += len(block)


def labels_of(survey: Simulated, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return labels of a survey's stars: the truth with errors."""
    columns: dict[str, np.ndarray] = {"source_id": survey.source_id}
    for k, name in enumerate(("teff", "feh", "logg", "ext")):
        columns[name] = survey.truth[:, k] + LABEL_ERRORS[k] * rng.standard_normal(len(survey))
        columns[f"{name}_err"] = np.full(len(survey), LABEL_ERRORS[k])
    return columns


def default_noise() -> Noise:
    """Return the noise that the default recipe trains with."""
    return training_noise(load_recipe("default"))


@cache
def training_set(n_stars: int, truth: str = "model") -> TrainingSet:
    """Return simulated stars with labels that pass the cuts, which are the same in both recipes."""
    recipe = _with_equal_noise(load_recipe("default"))
    rng = np.random.default_rng(TRAINING_SEED)
    labels: list[dict[str, np.ndarray]] = []
    sources: list[dict[str, np.ndarray]] = []
    blocks = []
    for survey in surveys(n_stars, TRAINING_SEED, truth):
        labels.append(labels_of(survey, rng))
        sources.append({"source_id": survey.source_id} | survey.gaia_source)
        blocks.append(observed(survey, default_noise()))
    given_up = (blocks.pop(0) for _ in range(len(blocks)))  # as they are taken in: there is never a second copy of all

    def joined(tables: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}

    table = SourceTable.of(joined(sources), "gaia_source", COLUMN_NAMES)
    return gather(candidates(read_labels(joined(labels)), table, recipe), given_up, recipe)


def _pulls(survey: Simulated, model: xk.FluxModel, prior: xk.TypePrior) -> tuple[Float64, ...]:
    """Pulls (n, 5) of a survey; which stars have a fit, significant E and plx, and a prior that does not matter; then
    residuals (n, 5), truth (n, 5), chi^2 (n,).
    """
    fit = xk.fit(observed(survey, default_noise()), model, prior, threads=1)
    sigma = np.sqrt(np.einsum("naa->na", fit.cov))
    significant = fit.fitted & (fit.params[:, 3:] > SIGNIFICANT * sigma[:, 3:]).all(axis=1)
    free = significant.copy()
    theta, covariance = fit.params[significant, :3], fit.cov[significant, :3, :3]
    free[significant] = prior_share(prior, theta, covariance) < LARGEST_PRIOR_SHARE
    residual = fit.params - survey.truth
    return residual / sigma, fit.fitted, significant, free, residual, survey.truth, fit.chi2
