"""The paper's training, all six phases on as many stars as it had, with a share of their epochs and steps.

``python -m bench gpu --paper`` takes a minute or two, 20 GB of the host's memory and as much of the GPU's. The stars
are some thousand simulated ones over and over: how long a step takes does not depend on what they are.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from bench.gpu.checks import Sample
from xpkern.engine.groups import STARS_OF_GROUP, GroupedStars, WhitenerGroups
from xpkern.threads import number_of_threads
from xpkern.train.phases import Progress, Run
from xpkern.train.recipe import Clean, DescendStars, Epochs, Recipe
from xpkern.train.recipe_file import load_recipe
from xpkern.train.training_set import TrainingSet

#: Stars of the paper's training, and which share of its epochs and steps is made.
PAPERS_STARS, SHARE = 2_066_000, 16

#: Stars that are simulated, and those that judge after each epoch.
_SIMULATED, _JUDGES = 8192, 4096


def measure_paper(engine: Any, n_stars: int = PAPERS_STARS, share: int = SHARE) -> dict[str, Any]:
    """Time each phase, and all of them were none cut short."""
    training_set, recipe = _training_set(n_stars), _shortened(share)
    took: dict[str, float] = {}
    epochs = 0

    def told(progress: Progress) -> None:
        nonlocal epochs
        took[progress.phase] = took.get(progress.phase, 0.0) + progress.seconds
        epochs += progress.record is not None

    begin = time.perf_counter()
    run = Run(recipe, training_set, engine, on_progress=told)
    started = time.perf_counter() - begin
    run.finish()
    figures: dict[str, Any] = {
        f"the paper's phase {name}, 1/{share} of it, {n_stars:,} stars [s]": seconds for name, seconds in took.items()
    }
    short = {name: not isinstance(phase, (Epochs, DescendStars)) for name, phase in recipe.phase.items()}
    whole = sum(seconds * (1 if short[name] else share) for name, seconds in took.items())
    figures["the paper's phases: start of the model [s]"] = started
    figures[f"the paper's six phases on {n_stars:,} stars, from 1/{share} of them [min]"] = (started + whole) / 60
    figures["the paper's phases: seconds of an epoch"] = (
        sum(seconds for name, seconds in took.items() if isinstance(recipe.phase[name], Epochs)) / epochs
    )
    return figures


def _shortened(share: int) -> Recipe:
    recipe = load_recipe("zgr23")
    phases: dict[str, Any] = {}
    for name, phase in recipe.phase.items():
        if isinstance(phase, Epochs):
            phases[name] = replace(phase, epochs=phase.epochs // share, drops=tuple(d // share for d in phase.drops))
        elif isinstance(phase, DescendStars):
            phases[name] = replace(phase, steps=phase.steps // share, decay_every=max(1, phase.decay_every // share))
        elif isinstance(phase, Clean):  # a model that is hardly trained agrees with few stars: all are kept
            phases[name] = replace(phase, theta=np.inf, plx=np.inf, flux=np.inf)
        else:
            raise TypeError(f"phase {name} of the paper's recipe is of a kind that it had not")
    return replace(recipe, phase=phases)


def _training_set(n_stars: int) -> TrainingSet:
    """The same stars over and over, by whole groups."""
    sample = Sample(min(_SIMULATED, n_stars // STARS_OF_GROUP * STARS_OF_GROUP))
    some = WhitenerGroups.of(sample.labelled.whitener).groups
    count = -(-n_stars // STARS_OF_GROUP)
    groups = np.empty((count, *some.shape[1:]), np.float32)

    def fill(first: int) -> None:
        part = groups[first : first + len(some)]
        part[:] = some[: len(part)]

    with ThreadPoolExecutor(number_of_threads()) as pool:
        list(pool.map(fill, range(0, count, len(some))))
    rows = np.arange(n_stars) % len(sample.truth)
    rng = np.random.default_rng(1)
    labels = sample.truth[rows]
    sigma = sample.labelled.sigma[rows]
    mean = labels + 0.1 * sigma * rng.normal(size=labels.shape)
    stars = GroupedStars(sample.labelled.flux[rows], WhitenerGroups(groups, n_stars), mean, sigma)
    held_out = np.zeros(n_stars, bool)
    held_out[: min(_JUDGES, n_stars // 8)] = True
    return TrainingSet(
        source_id=np.arange(1, n_stars + 1),
        stars=stars,
        start=labels.copy(),
        held_out=held_out,
        high_quality=np.ones(n_stars, bool),
        survey=np.zeros(n_stars, np.int64),
        surveys=("",),
        counts=[],
        high_quality_counts=[],
        digest="of a benchmark",
    )
