"""The phases of a recipe, one unit of work after the other, from a start to a trained model (ZGR23 section 3.2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from xpkern.engine import Engine, block_stars
from xpkern.engine.arrays import constant
from xpkern.engine.contract import Box, FitOptions, Float64, Int64, LossTerms, Solution, StarData
from xpkern.engine.groups import in_random_groups
from xpkern.engine.packed import sample_variance
from xpkern.engine.training import EpochResult, ModelArrays, Steps
from xpkern.errors import InputError, TrainingDiverged, XpkernError
from xpkern.fit.fit import EXT_BOUNDS, PLX_BOUNDS
from xpkern.grid import PARAMETERS
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior
from xpkern.threads import in_order, number_of_threads
from xpkern.train.adam import Adam
from xpkern.train.curvature import EvenCoordinates
from xpkern.train.cuts import Sieve
from xpkern.train.recipe import Clean, DescendStars, Epochs, NewtonStars, Phase, Recipe, Rounds
from xpkern.train.start import start_model
from xpkern.train.state import Best, Checkpoint, EpochRecord, Snapshot, State
from xpkern.train.surveys import survey_offset
from xpkern.train.training_set import TrainingSet

#: Held-out stars judge by Eqs. 13-14 whatever the recipe trains with, so that recipes can be compared.
JUDGING_TERMS = LossTerms(prior=False)

#: Stars of a unit of work that has no epochs, and stars whose whiteners are gathered at once.
CHUNK_STARS, GATHERED_STARS = 65536, 8192

#: Stars that are brought to their optima together, just before the batches that hold them.
NEWTON_STARS = 4096

#: How far beyond the labels a star's type may go [kK, dex, dex].
_MARGIN = 1.0

#: Least extinction a search may start from.
_SMALLEST_EXT = 1e-6

#: Quantiles of a normal distribution at -1, 0 and +1 standard deviation.
_QUANTILES = (0.158655, 0.5, 0.841345)


class TrainingFailed(XpkernError):
    """The training cannot go on; the last checkpoint is of the time before."""


@dataclass(frozen=True)
class Progress:
    """What is told after each unit of work: where the run is, how long the unit took, and its losses if an epoch."""

    phase: str
    unit: int
    units: int
    seconds: float
    record: EpochRecord | None


class Run:
    """A training run over a set of stars.

    Parameters
    ----------
    recipe : Recipe
    training_set : TrainingSet
    engine : Engine
    threads : int, optional
    checkpoint : Checkpoint, optional
        Where the state is kept, and from where it is taken up.
    checkpoint_seconds : float
        Time between two checkpoints at least; a phase ends with one in any case.
    begin : State, optional
        Where an earlier run has ended, of other phases or with other whiteners of the same stars: its model, its stars'
        parameters, what self-cleaning left and the surveys' offsets are what this one starts from.
    on_progress : callable, optional
        Called with a :class:`Progress` after each unit of work.

    Raises
    ------
    InputError
        If there are no stars to train on, or the checkpoint is of another recipe or of other data.
    """

    def __init__(
        self,
        recipe: Recipe,
        training_set: TrainingSet,
        engine: Engine,
        *,
        threads: int | None = None,
        checkpoint: Checkpoint | None = None,
        checkpoint_seconds: float = 60.0,
        begin: State | None = None,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> None:
        self.recipe, self.set, self.engine, self.threads = recipe, training_set, engine, threads
        self.terms = recipe.loss.terms
        self.checkpoint, self.checkpoint_seconds = checkpoint, checkpoint_seconds
        self.on_progress = on_progress
        self.training = np.flatnonzero(~training_set.held_out)
        if not len(self.training):
            raise InputError(f"all {len(training_set)} stars are held out: none to train on", field="split.held_out")
        held_out = np.flatnonzero(training_set.held_out)
        self.judges = held_out[np.argsort(training_set.source_id[held_out])][: recipe.split.judges]
        types = training_set.start[:, :3]
        self.box = Box(
            lower=np.append(types.min(axis=0) - _MARGIN, [EXT_BOUNDS[0], PLX_BOUNDS[0]]),
            upper=np.append(types.max(axis=0) + _MARGIN, [EXT_BOUNDS[1], PLX_BOUNDS[1]]),
        )
        # engines want one, though no loss of the training has it
        self._unused_prior = TypePrior.from_arrays([1.0], types.mean(axis=0)[None], 100.0 * np.eye(3)[None])
        self.stars = training_set.stars
        resumed = None if checkpoint is None else checkpoint.load()
        self.resumed = resumed is not None
        self.state = self._start(begin) if resumed is None else resumed
        self._take_offsets()

    @property
    def phases(self) -> list[tuple[str, Phase]]:
        """Names and settings of the phases, in order."""
        return list(self.recipe.phase.items())

    def finish(self) -> State:
        """Do what is left; return the final state.

        Raises
        ------
        InputError
            If a phase has no stars.
        TrainingFailed
            If a loss is no longer finite: the message names batch and stars, and the last good state is kept.
        """
        for array in (self.stars.flux, self.stars.whitener.groups, self.stars.mean, self.stars.sigma):
            constant(array)  # what an engine has brought to a GPU then stays there
        saved = time.monotonic()
        phases = self.phases
        while self.state.phase < len(phases):
            name, phase = phases[self.state.phase]
            units = self._units(name, phase)
            unit, before = self.state.unit, self.state
            started = time.perf_counter()
            try:
                self._do(phase, unit)
            except BaseException as error:  # an interruption too: nothing that was finished is lost
                self.state = before
                self._save()
                if not isinstance(error, TrainingDiverged):
                    raise
                where = f"epoch {unit + 1}, batch {error.batch + 1}: {error.what}"
                raise TrainingFailed(self._what_failed(where, error.rows)) from error
            seconds = time.perf_counter() - started
            phase_ends = unit + 1 == units
            if phase_ends:
                self._keep_best(name, phase)
                snapshot = self._snapshot(name)
                snapshots = (*self.state.snapshots, snapshot)
                self.state = replace(self.state, phase=self.state.phase + 1, unit=0, moments=None, snapshots=snapshots)
            else:
                self.state = replace(self.state, unit=unit + 1)
            if phase_ends or time.monotonic() - saved >= self.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
            if self.on_progress is not None:
                record = self.state.history[-1] if len(self.state.history) > len(before.history) else None
                self.on_progress(Progress(name, unit, units, seconds, record))
        return self.state

    def validation_losses(self, rows: NDArray[np.intp]) -> Float64:
        """Eqs. 13-14 of some stars, each at its optimum under the present model, (n,), searched from its labels."""
        losses = [
            self._optima(self.state.model, self.stars[chunk], self.set.start[chunk], JUDGING_TERMS).loss
            for chunk in _chunks(rows)
        ]
        return np.concatenate([np.empty(0), *losses])

    # ---- units of work ----------------------------------------------------------------------------------------

    def _units(self, name: str, phase: Phase) -> int:
        if isinstance(phase, Clean):
            return 1
        stars = len(self._rows(phase.stars, name))
        if isinstance(phase, Epochs):
            return phase.epochs
        return phase.rounds if isinstance(phase, Rounds) else -(-stars // CHUNK_STARS)

    def _do(self, phase: Phase, unit: int) -> None:
        name = self.phases[self.state.phase][0]
        if isinstance(phase, Clean):
            self._clean(phase)
            return
        rows = self._rows(phase.stars, name)
        if isinstance(phase, Epochs):
            self._epoch(phase, unit, rows)
            return
        if isinstance(phase, Rounds):
            self._round(phase, unit, rows)
            return
        rows = rows[unit * CHUNK_STARS : (unit + 1) * CHUNK_STARS]
        if isinstance(phase, NewtonStars):
            self._newton(rows)
        else:
            self._descend(phase, rows)

    def _epoch(self, phase: Epochs, epoch: int, rows: NDArray[np.intp]) -> None:
        """One pass in a new order; stars beyond the last whole batch wait for the next."""
        size = min(phase.batch, len(rows))
        steps = len(rows) // size
        rng = np.random.default_rng([self.recipe.split.seed, self.state.phase, epoch])
        batches = in_random_groups(rows, rng)[: steps * size].reshape(steps, size).astype(np.int64)
        decay = np.array([phase.decay(epoch + step / steps) for step in range(steps)])
        with_newton = phase.newton_every > 0 and epoch % phase.newton_every == 0
        at_once = max(1, NEWTON_STARS // size) if with_newton else steps
        model_losses, star_losses = [], []
        for first in range(0, steps, at_once):
            group = slice(first, first + at_once)
            if with_newton:
                self._newton(np.unique(batches[group]))
            try:
                result = self._steps(phase, batches[group], decay[group])
            except TrainingDiverged as error:
                error.batch += first
                raise
            model_losses.append(result.model_loss)
            star_losses.append(result.star_loss[np.isfinite(result.star_loss)])
            self.state = replace(self.state, model=result.model, params=result.params, moments=result.moments)
        self._record(epoch, float(np.concatenate(model_losses).mean()), _median(np.concatenate(star_losses)))

    def _steps(self, phase: Epochs, batches: Int64, decay: Float64) -> EpochResult:
        """One step for each batch, at the phase's rates times ``decay``."""
        of_model = Steps(phase.optimizer, phase.model_rate * decay, phase.momentum, phase.model_clip)
        of_stars = Steps("sgd", phase.star_rate * decay, clip=phase.star_clip)
        return self.engine.train_epoch(
            self.state.model,
            self.stars,
            self.state.params,
            batches,
            self.terms,
            self.box,
            of_model if phase.model_rate > 0 else None,
            of_stars if phase.star_rate > 0 else None,
            self.state.moments,
            threads=self.threads,
        )

    def _round(self, phase: Rounds, number: int, rows: NDArray[np.intp]) -> None:
        """Steps of Adam down the profile loss of batches of stars, in coordinates that are even where they begin."""
        if len(self.set.surveys) > 1 and self.recipe.surveys.offsets:
            self._solve_offsets(rows)
        rng = np.random.default_rng([self.recipe.split.seed, self.state.phase, number])
        sample = np.sort(in_random_groups(rows, rng)[: phase.metric_stars])
        self._newton(sample)
        begin, params, losses = self.state.model, self.state.params.copy(), []
        with threadpool_limits(1):  # sums are then taken in one order
            even = EvenCoordinates.of(begin, self.stars[sample], params[sample], self.terms, phase.damping)
            adam = Adam.resumed(self.state.moments, even.size)
            coordinates, model = np.zeros(even.size), begin
            for step, batch in enumerate(_batches(rows, phase.batch, phase.steps, rng)):
                loss, gradient = self._profile_loss(model, batch, params, phase.weight_penalty)
                if not np.isfinite(loss):
                    raise TrainingFailed(self._without_finite_loss(model, batch, params, number))
                losses.append(loss)
                rate = phase.rate * phase.decay(number + step / phase.steps)
                coordinates += rate * adam.direction(even.gradient(gradient))
                try:
                    model = even.moved(begin, coordinates)
                except InputError:
                    what = f"round {number + 1}, batch {step + 1}: the model after its step"
                    raise TrainingFailed(self._what_failed(what, batch[:0])) from None
        self.state = replace(self.state, model=model, params=params, moments=adam.moments(model))
        self._record(number, float(np.mean(losses)), np.nan)

    def _solve_offsets(self, rows: NDArray[np.intp]) -> None:
        """Move the surveys' offsets, all at once, to where the profile loss of some stars is lowest.

        The reference survey has one, too, for the model was learned from all of them; then types, the model's zero
        point among them, are counted from where the reference is right. That changes no loss.
        """
        rows = rows[~self.set.is_anchor[rows]]
        self._newton(rows)
        change = np.zeros_like(self.state.offsets)
        for survey in range(len(change)):
            chosen = rows[self.set.survey[rows] == survey]
            if len(chosen):
                solution = self._optima(self.state.model, self.stars[chosen], self.state.params[chosen])
                change[survey] = survey_offset(self.stars[chosen], solution)
        params = self.state.params.copy()
        observed = ~self.set.is_anchor
        params[observed, :3] += change[0]
        model = replace(self.state.model, input_zp=self.state.model.input_zp + change[0])
        offsets = self.state.offsets + change - change[0]
        self.state = replace(self.state, model=model, params=params, offsets=offsets)
        self._take_offsets()

    def _take_offsets(self) -> None:
        """Labels as the reference survey would have them."""
        if len(self.set.surveys) > 1:
            stars = self.set.stars
            mean = stars.mean.copy()
            mean[:, :3] -= self.state.offsets[self.set.survey]
            self.stars = replace(stars, mean=mean)

    def _profile_loss(
        self, model: FluxModel, rows: NDArray[np.intp], params: Float64, penalty: float
    ) -> tuple[float, ModelArrays]:
        """Mean loss of some stars, each at its optimum under ``model``, and its gradient.

        Eq. 12's penalty on the weights counts ``penalty`` times.

        At an optimum the loss does not change with the star's parameters, so that the gradient is that of Eq. 12
        alone. Each search begins where the star's last one ended: ``params``, of all stars, follow.
        """
        stars = self.stars[rows]
        solution = self._optima(model, stars, params[rows])
        found = np.isfinite(solution.params).all(axis=1) & np.isfinite(solution.loss)
        params[rows[found]] = solution.params[found]
        of_flux, weights, biases, ln_ext_curve = self.engine.train_step(
            model, stars, params[rows], threads=self.threads
        )
        of_labels = float((solution.loss - solution.chi2)[found].sum()) / len(rows)
        # the engine's loss has the penalty, sum W^2 / n_W, once
        beyond = (penalty - 1.0) / sum(weight.size for weight in model.weights)
        of_weights = beyond * sum(float((weight**2).sum()) for weight in model.weights)
        weights = [of + 2.0 * beyond * weight for of, weight in zip(weights, model.weights, strict=True)]
        return of_flux + of_labels + of_weights, ModelArrays(weights, biases, ln_ext_curve)

    def _without_finite_loss(self, model: FluxModel, rows: NDArray[np.intp], params: Float64, number: int) -> str:
        """Message that names the stars to blame."""
        at = self.engine.evaluate(
            model, self._unused_prior, self.stars[rows], params[rows], self.terms, threads=self.threads
        )
        return self._what_failed(f"round {number + 1}: the model's loss", rows[~np.isfinite(at.chi2)])

    def _record(self, epoch: int, model_loss: float, star_loss: float) -> None:
        """Judge the model by held-out stars and add a line to the history."""
        validation = self.validation_losses(self.judges)
        validation = validation[np.isfinite(validation)]
        mean = float(validation.mean()) if len(validation) else np.nan
        record = EpochRecord(self.state.phase, epoch, model_loss, star_loss, mean, _median(validation))
        best = self.state.best
        if np.isfinite(mean) and (best is None or mean < best.record.validation_loss):
            best = Best(record, self.state.model, self.state.offsets)
        self.state = replace(self.state, history=(*self.state.history, record), best=best)

    def _keep_best(self, name: str, phase: Phase) -> None:
        """Go back to the best model so far, and bring the phase's stars to their optima, if the recipe says so."""
        best = self.state.best
        if not self.recipe.split.keep_best or best is None or not isinstance(phase, (Epochs, Rounds)):
            return
        if best.model.digest != self.state.model.digest:
            self.state = replace(self.state, model=best.model, offsets=best.offsets)
            self._take_offsets()
            self._newton(self._rows(phase.stars, name))

    def _newton(self, rows: NDArray[np.intp]) -> None:
        params = self.state.params.copy()
        for chunk in _chunks(rows):
            solution = self._optima(self.state.model, self.stars[chunk], params[chunk])
            found = np.isfinite(solution.params).all(axis=1) & np.isfinite(solution.loss)
            params[chunk[found]] = solution.params[found]
        self.state = replace(self.state, params=params)

    def _optima(self, model: FluxModel, stars: StarData, start: Float64, terms: LossTerms | None = None) -> Solution:
        """Optima of the loss of some stars, the recipe's if no terms are given, from linear parameters (n, 5)."""
        terms = self.terms if terms is None else terms
        start = np.clip(start, self.box.lower, self.box.upper)
        start[:, -2] = np.maximum(start[:, -2], _SMALLEST_EXT)
        options = FitOptions(starts=1)
        return self.engine.fit(model, self._unused_prior, stars, start, terms, self.box, options, threads=self.threads)

    def _descend(self, phase: DescendStars, rows: NDArray[np.intp]) -> None:
        params = self.state.params.copy()
        # a GPU is given all at once: a step takes it as long for a tenth as many
        for chunk in _chunks(rows, GATHERED_STARS if block_stars(self.engine) is None else CHUNK_STARS):
            params[chunk] = self.engine.descend(
                self.state.model,
                self._unused_prior,
                self.stars[chunk],
                params[chunk],
                self.terms,
                self.box,
                phase.descent,
                threads=self.threads,
            )
        self.state = replace(self.state, params=params)

    def _clean(self, phase: Clean) -> None:
        """Keep the training stars that agree with their labels, their parallax and their spectrum, and the anchors."""
        rows = self.training[~self.set.is_anchor[self.training]]
        pull = np.abs(self.state.params[rows] - self.stars.mean[rows]) / self.stars.sigma[rows]
        chunks = in_order(_chunks(rows), self._largest_residual, threads=number_of_threads(self.threads))
        residual = np.concatenate([np.empty(0), *chunks])
        sieve = Sieve(len(rows), "training stars before self-cleaning")
        sieve.require(
            f"within {phase.theta:g} sigma of teff, feh, logg", np.less_equal(pull[:, :3].max(axis=1), phase.theta)
        )
        sieve.require(f"within {phase.plx:g} sigma of the parallax", pull[:, -1] <= phase.plx)
        sieve.require(f"every flux within {phase.flux:g} sigma", np.less_equal(residual, phase.flux))
        clean = self.set.is_anchor.copy()
        clean[rows] = sieve.kept
        self.state = replace(self.state, clean=clean, clean_counts=tuple(sieve.counts))

    def _largest_residual(self, rows: NDArray[np.intp]) -> Float64:
        """Largest |predicted - observed| / sigma of each star's flux samples, (n,)."""
        stars = self.stars[rows]
        flux = self.engine.predict(self.state.model, self.state.params[rows], threads=1)
        largest = np.empty(len(rows))
        for first in range(0, len(rows), 512):  # dense triangles are large
            part = slice(first, first + 512)
            sigma = np.sqrt(sample_variance(stars.whitener[part]))
            difference = np.abs(flux[part] - stars.flux[part])
            largest[part] = np.divide(difference, sigma, out=np.zeros_like(sigma), where=sigma > 0).max(axis=1)
        return largest

    # ---- beginning, selections, what is told ------------------------------------------------------------------

    def _start(self, begin: State | None) -> State:
        """Stars as their labels say, and the model that the recipe starts from; or all as a run before has left it."""
        if begin is None:
            with threadpool_limits(1):  # sums are then taken in one order
                model = start_model(self.stars, self.set.start, self.training, self.recipe)
            params, clean, offsets = self.set.start, ~self.set.held_out, np.zeros((len(self.set.surveys), 3))
        else:
            model, params, clean, offsets = begin.model, begin.params, begin.clean, begin.offsets
        first = Snapshot("start", model.ext_curve, np.zeros((len(PARAMETERS), 3)))
        return State(0, 0, model, params.copy(), clean, offsets, snapshots=(first,))

    def _rows(self, selection: str, phase: str) -> NDArray[np.intp]:
        chosen = {
            "all": np.ones(len(self.training), bool),
            "high_quality": self.set.high_quality[self.training],
            "clean": self.state.clean[self.training],
        }[selection]
        if not chosen.any():
            counts = {"high_quality": self.set.high_quality_counts, "clean": self.state.clean_counts}
            lost = "; ".join(str(count).strip() for count in counts.get(selection, ()))
            raise InputError(
                f"no star is left to train on: none of {len(chosen):,} is {selection} ({lost})", field=f"phase.{phase}"
            )
        rows: NDArray[np.intp] = self.training[chosen]
        return rows

    def _snapshot(self, name: str) -> Snapshot:
        rows = self.training[~self.set.is_anchor[self.training]]
        pull = (self.state.params[rows] - self.stars.mean[rows]) / self.stars.sigma[rows]
        labelled = np.isfinite(self.stars.sigma[rows])
        drift = np.full((len(PARAMETERS), 3), np.nan)
        for k in range(len(PARAMETERS)):
            if labelled[:, k].any():
                drift[k] = np.quantile(pull[labelled[:, k], k], _QUANTILES)
        return Snapshot(name, self.state.model.ext_curve, drift)

    def _save(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint.save(self.state)

    def _what_failed(self, what: str, rows: Int64 | NDArray[np.intp]) -> str:
        name = self.phases[self.state.phase][0]
        stars = ", ".join(str(self.set.source_id[row]) for row in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        which = f"; source_id of the stars without a finite loss: {stars}{more}" if len(rows) else ""
        kept = "" if self.checkpoint is None else f"; the state before is kept in {self.checkpoint.path}"
        return f"phase {name}, {what} is not finite{which}{kept}"


def _batches(rows: NDArray[np.intp], size: int, steps: int, rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """So many batches of rows, all of them in a new order before any comes again."""
    size = min(size, len(rows))
    order, first = in_random_groups(rows, rng), 0
    for _ in range(steps):
        if first + size > len(order):
            order, first = in_random_groups(rows, rng), 0
        yield np.sort(order[first : first + size])
        first += size


def _median(values: Float64) -> float:
    return float(np.median(values)) if len(values) else np.nan


def _chunks(rows: NDArray[np.intp], size: int = GATHERED_STARS) -> Iterator[NDArray[np.intp]]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
