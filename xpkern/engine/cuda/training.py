"""Training on the GPU: stars that stay there, and a batch's kernels as one graph that is replayed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xpkern.engine.arrays import namespace_of, on_device
from xpkern.engine.contract import Box, Float64, Int64, LossTerms, StarData
from xpkern.engine.cuda.arguments import (
    KernelScratch,
    ModelStepView,
    ParameterCounts,
    StarArrays,
    ThreadScratch,
    TrainArguments,
    TrainingState,
    WhitenerArguments,
    parameter,
)
from xpkern.engine.cuda.fitting import fill, loss_view
from xpkern.engine.cuda.launching import WARP, Launcher, form
from xpkern.engine.cuda.residents import Kept, Residents
from xpkern.engine.cuda.tables import model_sizes, point_model
from xpkern.engine.groups import GroupedStars
from xpkern.engine.training import EpochResult, ModelArrays, ModelMoments, Steps
from xpkern.errors import DeviceOutOfMemory, TrainingDiverged
from xpkern.model.flux_model import FluxModel

#: Chunks of stars, whose gradients are added up in single precision, that a batch should be cut into, and stars that a
#: chunk may have beyond that: many blocks have work, but few sums go through memory. No sum depends on the GPU.
_CHUNKS, _MOST_STARS_OF_CHUNK = 512, 64

#: Parameters of a block of the model's step, its threads, and its sums, as in csrc/cuda/train.cuh.
_TILE, _TOTAL_THREADS, _TILE_SUMS = 32, 512, 4

#: Batches of a graph: its launch from Python must take less than its batches. Beyond the last batch kernels do nothing.
_REPLAYED = 8

#: Arrays of a number for each parameter.
_OF_PARAMETERS = ("parameters", "first", "second", "parameters_before", "first_before", "second_before", "gradient")

#: Ends of a run, as in csrc/cuda/arguments.cuh.
_LOSS_NOT_FINITE, _MODEL_NOT_FINITE = 1, 2


@dataclass(frozen=True)
class Course:
    """What an epoch is told, but for its stars and batches.

    Attributes
    ----------
    terms : LossTerms
    box : Box
    model_steps : Steps, optional
        Without rates where its gradient is all that is asked for.
    star_steps : Steps, optional
    """

    terms: LossTerms
    box: Box
    model_steps: Steps | None
    star_steps: Steps | None

    @property
    def moves_model(self) -> bool:
        """Whether the model goes steps."""
        return self.model_steps is not None and len(self.model_steps.rates) > 0


class Trainer:
    """A model in training.

    Parameters
    ----------
    launcher : Launcher
    model : FluxModel
    moments : ModelMoments
        Of its optimiser.
    stream : object
        Where all of it is queued: the one in which stars that are on the GPU were made.
    kept : Kept
        Arrays that stay on the GPU from call to call.
    """

    def __init__(self, launcher: Launcher, model: FluxModel, moments: ModelMoments, stream: Any, kept: Kept) -> None:
        self._launcher, self._device, self._kept = launcher, launcher.device, kept
        self._model, self._moments, self._stream = model, moments, stream
        self._view = model_sizes(model)
        self._needed: KernelScratch = launcher.scratch(model=self._view)
        numbers = ModelArrays(list(model.weights), list(model.biases), model.ext_curve).flatten()
        self._size = numbers.size
        n_weights = sum(weights.size for weights in model.weights)
        self._counts = ParameterCounts(self._size, self._size - model.ext_curve.size, n_weights)
        self._memory: dict[str, Any] = {}
        for name in _OF_PARAMETERS:
            self._allocate(name, 8 * self._size)
        self._tiles = -(-self._size // _TILE)
        self._allocate("tile_sums", 8 * _TILE_SUMS * self._tiles)
        self._allocate("floats", 4 * self._size)
        self._allocate("state", ctypes.sizeof(TrainingState))
        self._put("parameters", numbers)
        self._put("floats", numbers.astype(np.float32))
        self._put("first", moments.first.flatten())
        self._put("second", moments.second.flatten())
        self._count = moments.steps
        point_model(self._view, self._at("floats"), self._at("parameters"))

    def epoch(self, stars: StarData | GroupedStars, params: Any, batches: Int64, course: Course) -> EpochResult:
        """All batches; see :meth:`xpkern.engine.contract.Engine.train_epoch`.

        Stars of the host are brought to the GPU once, or in parts if they do not fit.
        """
        model_loss = np.full(len(batches), np.nan)
        if on_device(stars.flux):
            params, star_loss = params.copy(), namespace_of(params).full(len(stars), np.nan)
            end = self._run(stars, params, star_loss, batches, course, slice(0, len(batches)), model_loss)
            return self._result(params, star_loss, model_loss, end, batches)
        params, star_loss = params.copy(), np.full(len(stars), np.nan)
        group, done, end = max(len(batches), 1), 0, None
        while done < len(batches) and end is None:
            steps = slice(done, min(done + group, len(batches)))
            try:
                some = self._bring(stars, params, star_loss, batches[steps])
            except DeviceOutOfMemory:
                if group == 1:
                    raise
                group = max(1, group // 2)
                continue
            end = self._run(some, some.params, some.star_loss, some.batches, course, steps, model_loss)
            some.fetch(params, star_loss)
            done = steps.stop
        return self._result(params, star_loss, model_loss, end, batches)

    def gradient(self, stars: StarData, params: Any) -> tuple[float, ModelArrays]:
        """Eq. 12 averaged over all stars, and its gradient."""
        batch = np.arange(len(stars), dtype=np.int64)[None]
        course = Course(LossTerms(prior=False), _no_box(params.shape[1]), Steps("sgd", np.empty(0)), None)
        some: Any = stars
        if not on_device(stars.flux):
            some = self._bring(stars, params, np.empty(len(stars)), batch)
            params, batch = some.params, some.batches
        loss = np.full(1, np.nan)
        self._run(some, params, None, batch, course, slice(0, 1), loss)
        return float(loss[0]), ModelArrays.unflatten(self._get("gradient", np.empty(self._size)), self._model)

    def _bring(self, stars: StarData | GroupedStars, params: Float64, star_loss: Float64, batches: Int64) -> Residents:
        """Stars of the host on the GPU, their whiteners inverted where the kernels' usual form serves."""

        def invert(pointer: int, stars: int) -> None:
            self._launcher.launch("invert_whiteners", WARP * stars, WhitenerArguments(pointer, stars), self._stream)

        usual = self._needed.train == 0
        return Residents(
            self._device, self._kept, stars, params, star_loss, batches, self._stream, invert if usual else None
        )

    def _run(
        self,
        stars: Any,
        params: Any,
        star_loss: Any,
        batches: Int64,
        course: Course,
        steps: slice,
        model_loss: Float64,
    ) -> _End | None:
        """Some batches, one after the other; how they ended, if not as they should."""
        count, size = batches.shape
        if count == 0:
            return None
        chunk = self._stars_of_chunk(size)
        self._allocate("batches", batches.nbytes)
        self._allocate("tape", 4 * max(self._needed.tape, 1) * size)
        sums = 4 * -(-size // chunk) * self._tiles * _TILE
        self._allocate("chunk_sums", sums)
        self._device.clear(self._at("chunk_sums"), sums, self._stream)  # also where rows end before the tile does
        self._allocate("chi2", 8 * size)
        self._allocate("model_loss", 8 * count)
        self._put("batches", np.ascontiguousarray(batches, np.int64))
        self._allocate("next_rows", 8 * size)
        self._put("next_rows", np.ascontiguousarray(batches[0], np.int64))
        memory = max(self._launcher.memory(size, self._needed.train), 1)
        self._allocate("memory", memory)
        for name, way in (("model_rates", course.model_steps), ("star_rates", course.star_steps)):
            if way is not None and len(way.rates):
                self._allocate(name, 8 * count)
                self._put(name, np.ascontiguousarray(way.rates[steps], np.float64))
        self._put("state", parameter(TrainingState(0, -1)))
        arguments = self._arguments(stars, params, star_loss, count, size, course)

        def queue(batches: int, stream: Any) -> None:
            for _ in range(batches):
                self._queue(arguments, course, stream)

        if count <= _REPLAYED:
            queue(count, self._stream)
        else:
            queue(1, self._stream)  # kernels are loaded by their first launch, which a recording does not allow
            some = self._device.record(lambda stream: queue(_REPLAYED, stream))
            for _ in range(1, count, _REPLAYED):
                some(self._stream)
        found = self._get("state", np.empty(ctypes.sizeof(TrainingState), np.uint8))
        state = TrainingState.from_buffer_copy(found.tobytes())
        reached = int(state.step)
        if course.model_steps is not None:
            self._get("model_loss", model_loss[steps][:reached] if reached else np.empty(0))
        if course.moves_model:
            self._count += reached
        if state.end == 0:
            return None
        chi2 = self._get("chi2", np.empty(size))
        return _End(int(state.end), steps.start + reached, chi2)

    def _queue(self, arguments: TrainArguments, course: Course, stream: Any) -> None:
        """Kernels of one batch; the state on the GPU says which."""
        launcher = self._launcher
        if course.model_steps is None:
            launcher.one("train_advance", arguments, stream)
        else:
            self._queue_stars("train_stars", arguments, stream)
            if self._needed.train:
                launcher.launch("train_products", self._size * int(arguments.chunks), arguments, stream)
            launcher.launch_blocks("train_model", self._tiles, _TOTAL_THREADS, arguments, stream)
        if course.star_steps is not None:
            self._queue_stars("train_star_steps", arguments, stream)

    def _queue_stars(self, kernel: str, arguments: TrainArguments, stream: Any) -> None:
        """A kernel over the stars of a batch: a warp each, but in its general form a thread each."""
        size, needed = int(arguments.size), self._needed.train
        if needed:
            memory = int(arguments.scratch.memory)
            self._launcher.launch(form(kernel, needed), size, arguments, stream, needed, memory)
        else:
            self._launcher.launch_warps(kernel, size, arguments, stream)

    def _arguments(
        self, stars: Any, params: Any, star_loss: Any, count: int, size: int, course: Course
    ) -> TrainArguments:
        chunk = self._stars_of_chunk(size)
        how = Steps("sgd", np.empty(0)) if course.model_steps is None else course.model_steps
        arguments = TrainArguments(
            model=self._view,
            counts=self._counts,
            stars=StarArrays(*(self._pointer(getattr(stars, name)) for name in ("flux", "whitener", "mean", "sigma"))),
            inverted=isinstance(stars, Residents) and stars.inverted,
            params=self._pointer(params),
            batches=self._at("batches"),
            next_rows=self._at("next_rows"),
            steps=count,
            size=size,
            chunk_stars=chunk,
            chunks=-(-size // chunk),
            model_rates=self._at("model_rates") if course.moves_model else None,
            how=ModelStepView(how.method == "adam", how.momentum, how.clip),
            count=self._count,
            star_rates=None if course.star_steps is None else self._at("star_rates"),
            star_clip=np.inf if course.star_steps is None else course.star_steps.clip,
            terms=loss_view(course.terms),
            star_loss=None if star_loss is None else self._pointer(star_loss),
            scratch=ThreadScratch(self._at("memory"), self._needed.train),
            **{
                name: self._at(name)
                for name in (
                    *_OF_PARAMETERS,
                    "floats",
                    "tape",
                    "chunk_sums",
                    "tile_sums",
                    "chi2",
                    "model_loss",
                    "state",
                )
            },
        )
        fill(arguments.lower, course.box.lower)
        fill(arguments.upper, course.box.upper)
        return arguments

    def _result(
        self, params: Any, star_loss: Any, model_loss: Float64, end: _End | None, batches: Int64
    ) -> EpochResult:
        """Where it has led; raises TrainingDiverged where that is not all the way."""
        model, moments = self._model, self._moments
        if self._count > moments.steps:
            now, first, second = (
                ModelArrays.unflatten(self._get(name, np.empty(self._size)), model)
                for name in ("parameters", "first", "second")
            )
            model = replace(model, weights=now.weights, biases=now.biases, ext_curve=now.ln_ext_curve)
            moments = ModelMoments(first, second, self._count)
        result = EpochResult(model, params, moments, model_loss, star_loss)
        if end is None:
            return result
        if end.why == _LOSS_NOT_FINITE:
            rows = batches[end.batch][~np.isfinite(end.chi2)]
            raise TrainingDiverged("the model's loss", end.batch, rows, result)
        raise TrainingDiverged("the model after its step", end.batch, batches[end.batch][:0], result)

    def _stars_of_chunk(self, size: int) -> int:
        """Stars of a chunk of a batch of so many: whole blocks of a warp each."""
        warps = self._launcher.sizes["train_warps"]
        return min(warps * max(1, -(-size // (warps * _CHUNKS))), _MOST_STARS_OF_CHUNK)

    def _pointer(self, array: Any) -> int:
        return int(array) if isinstance(array, int) else self._device.pointer_of(array)

    def _allocate(self, name: str, size: int) -> None:
        self._memory.pop(name, None)
        self._memory[name] = self._device.allocate(max(size, 1))

    def _at(self, name: str) -> int:
        return int(self._memory[name].pointer)

    def _put(self, name: str, values: np.ndarray) -> None:
        self._device.to_device(self._at(name), np.ascontiguousarray(values), self._stream)
        self._device.synchronise(self._stream)

    def _get(self, name: str, values: np.ndarray) -> np.ndarray:
        self._device.to_host(values, self._at(name), self._stream)
        self._device.synchronise(self._stream)
        return values


@dataclass(frozen=True)
class _End:
    """A run that broke off: why, at which batch of the epoch, and chi^2 of that batch's stars."""

    why: int
    batch: int
    chi2: Float64


def _no_box(parameters: int) -> Box:
    return Box(np.zeros(parameters), np.ones(parameters))
