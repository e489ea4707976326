"""The stages of a fit on the GPU. All of them are queued at once: what is left to do is counted there, not here."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpkern.engine.contract import Box, FitOptions, LossTerms
from xpkern.engine.cuda.arguments import (
    MAX_PARAMETERS,
    EvaluationArrays,
    FitArguments,
    FitView,
    KernelScratch,
    LossView,
    ModelView,
    PriorView,
    SearchQueue,
    SolutionArrays,
    StarArrays,
)
from xpkern.engine.cuda.lanes import Batch, Row
from xpkern.engine.cuda.launching import Launcher, form

#: Evaluations after which the searches that go on are gathered again, so that no thread of a warp waits for long.
_GATHERED_AFTER = (4, 8, 16)

#: Most threads of the last resort, in double precision: few stars need it.
_MOST_RESCUERS = 4096

#: What each array of an evaluation and of a solution holds of one star.
_SCALARS = ("loss", "chi2", "ln_prior")
EVALUATION = (*_SCALARS, "gradient", "hessian", "fisher")


def evaluation_rows(parameters: int) -> dict[str, Row]:
    """Outputs of an evaluation."""
    k = parameters
    shapes: dict[str, tuple[int, ...]] = {"gradient": (k,), "hessian": (k, k), "fisher": (k, k)}
    return {name: (shapes.get(name, ()), np.float64) for name in EVALUATION}


def solution_rows(parameters: int, samples: int) -> dict[str, Row]:
    """Outputs of a fit."""
    return evaluation_rows(parameters) | {
        "params": ((parameters,), np.float64),
        "decrement": ((), np.float64),
        "residual": ((samples,), np.float32),
        "iterations": ((), np.int32),
        "status": ((), np.uint32),
        "minima": ((), np.int32),
        "second_params": ((parameters,), np.float64),
        "second_gap": ((), np.float64),
    }


def evaluation_arrays(batch: Batch) -> EvaluationArrays:
    """Where a batch's evaluation goes."""
    return EvaluationArrays(**{name: batch[name] for name in EVALUATION})


def star_arrays(batch: Batch) -> StarArrays:
    """Where a batch's stars are."""
    return StarArrays(**{name: batch[name] for name in ("flux", "whitener", "mean", "sigma")})


def loss_view(terms: LossTerms) -> LossView:
    """Optional terms as kernels are told."""
    return LossView(terms.prior, terms.jacobian_ext, terms.jacobian_plx)


def fit_view(model: ModelView, prior: PriorView, terms: LossTerms, box: Box) -> FitView:
    """A fit without its start and options."""
    view = FitView(model=model, prior=prior, terms=loss_view(terms))
    fill(view.lower, box.lower)
    fill(view.upper, box.upper)
    return view


def fill(array: Any, values: np.ndarray) -> None:
    """Write values to the beginning of an array of a structure."""
    if len(values) > MAX_PARAMETERS:
        raise ValueError(f"{len(values)} parameters, at most {MAX_PARAMETERS}")
    array[: len(values)] = [float(value) for value in values]


class Fitter:
    """A fit of some stars after others.

    Parameters
    ----------
    launcher : Launcher
    view : FitView
        With its grid, if the start is one.
    options : FitOptions
    needed : KernelScratch
        Bytes of the kernels' threads.
    """

    def __init__(self, launcher: Launcher, view: FitView, options: FitOptions, needed: KernelScratch) -> None:
        self._launcher, self._needed = launcher, needed
        self._from_grid = view.grid.n_types > 0
        self._starts = options.starts if self._from_grid else 1
        view.max_iterations, view.tolerance = options.max_iterations, options.tolerance
        view.starts, view.gate = self._starts, options.gate
        self._view = view
        earlier = [number for number in _GATHERED_AFTER if number < options.max_iterations]
        self._limits = [*earlier, options.max_iterations]

    def scratch(self, stars: int) -> dict[str, int]:
        """Bytes that a batch needs besides stars and solutions."""
        searches, needed = stars * self._starts, self._needed
        launches = 6 + 3 * (len(self._limits) + 1)  # that count something, at most
        rescuers = min(stars, _MOST_RESCUERS)
        memory = max(
            self._launcher.memory(searches, needed.fit),
            self._launcher.memory(rescuers, needed.rescue),
        )
        return {
            "progress": searches * self._launcher.sizes["SearchProgress"],
            "queue 0": 8 * searches,
            "queue 1": 8 * searches,
            "counters": 8 * launches,
            "memory": memory,
        }

    def queue(self, batch: Batch) -> None:
        """Queue all stages."""
        stars, searches = batch.size, batch.size * self._starts
        needed = self._needed
        if not self._from_grid:
            self._view.start_params = batch["start"]
        names = [name for name in solution_rows(1, 1) if name not in EVALUATION]
        arguments = FitArguments(
            fit=self._view,
            stars=star_arrays(batch),
            out=SolutionArrays(at=evaluation_arrays(batch), **{name: batch[name] for name in names}),
            n=stars,
            progress=batch["progress"],
        )
        counters = self.scratch(stars)["counters"]
        self._launcher.device.clear(batch["counters"], counters, batch.stream)
        queues = _Queues(batch)

        def stage(kernel: str, items: int, *, fills: bool, takes: bool, evaluations: int = 0, memory: int = 0) -> None:
            arguments.taken = queues.last if takes else SearchQueue()
            arguments.left = queues.next() if fills else SearchQueue()
            arguments.evaluations = evaluations
            self._launcher.launch(form(kernel, memory), items, arguments, batch.stream, memory, batch["memory"])

        def search(kernel: str) -> None:
            for limit in self._limits:
                stage(kernel, searches, fills=True, takes=True, evaluations=limit, memory=needed.fit)

        if needed.fit:
            stage("fit_start", stars, fills=True, takes=False, memory=needed.fit)
            search("fit_rough")
            if self._starts > 1:
                stage("fit_others", stars, fills=True, takes=False)
                stage("fit_scout", searches, fills=True, takes=True, memory=needed.fit)
                search("fit_rough")
            stage("fit_compare", stars, fills=True, takes=False)
            stage("fit_sharp", searches, fills=True, takes=True, memory=needed.fit)
            search("fit_fine")
        else:
            launch = self._launcher.launch_fits
            if self._from_grid:
                launch("fit_start", "start", stars, arguments, batch.stream)
            else:
                launch("fit_begin", "start", stars, arguments, batch.stream)
            arguments.begun = queues.counter()
            launch("fit_search", "search", stars, arguments, batch.stream)
        stage("fit_select", stars, fills=True, takes=False)
        arguments.taken, arguments.left = queues.last, SearchQueue()
        rescuers = min(stars, _MOST_RESCUERS)
        memory = needed.rescue
        self._launcher.launch(form("fit_rescue", memory), rescuers, arguments, batch.stream, memory, batch["memory"])
        if needed.fit:
            stage("fit_finish", stars, fills=False, takes=False, memory=needed.fit)
        else:
            self._launcher.launch_fits("fit_finish", "finish", stars, arguments, batch.stream)


class _Queues:
    """Two queues in turn, each filling with a counter of its own."""

    def __init__(self, batch: Batch) -> None:
        self._batch, self._filled, self._counters = batch, 0, 0
        self.last = SearchQueue()

    def next(self) -> SearchQueue:
        """The queue that the next launch fills."""
        searches = self._batch[f"queue {self._filled % 2}"]
        self.last = SearchQueue(searches, self.counter())
        self._filled += 1
        return self.last

    def counter(self) -> int:
        """Address of one more number that is 0 yet."""
        self._counters += 1
        return self._batch["counters"] + 8 * (self._counters - 1)
