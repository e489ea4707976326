"""Stars in batches through the GPU: copies to it, kernels and copies from it side by side, in a few lanes.

A lane is a stream with memory of its own on the GPU, and pinned memory of the host that copies pass through. While one
lane's kernels run, the batch of another is on its way; what is in a lane keeps its order. Arrays that are on the GPU
already stay there: their batches only bound what kernels need besides.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from xpkern.engine.arrays import on_device
from xpkern.engine.cuda.device import Device, Memory
from xpkern.errors import DeviceFailed, DeviceOutOfMemory, InputError

#: Lanes of a device: one copies in, one computes, one copies out.
LANES = 3

#: Stars of a batch: twice as many as an H100 holds threads of the fit, few enough to overlap; and at least.
MOST_STARS, FEWEST_STARS = 65536, 32

#: Stars of a batch of arrays that are on the GPU already: nothing overlaps, and the last stars of each are waited for.
MOST_RESIDENT = 4 * MOST_STARS

#: Share of the free memory that all lanes together take: others may be using the GPU, too.
_SHARE = 0.8

#: Arrays begin at multiples of this [bytes], as coalesced loads like them.
_ALIGNMENT = 256

#: Shape of a star's row, and dtype.
Row = tuple[tuple[int, ...], Any]


@dataclass(frozen=True)
class Batch:
    """Some of a call's stars, on the GPU.

    Attributes
    ----------
    size : int
        Stars.
    stream : object
        Where their kernels are queued.
    """

    size: int
    stream: Any
    _pointers: Mapping[str, int]

    def __getitem__(self, name: str) -> int:
        """Address of an input, an output or of scratch memory, by its name."""
        return self._pointers[name]


class Lanes:
    """The lanes of one device, shared by all threads.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._changed = threading.Condition()  # guards all below
        self._idle: list[_Lane] = []
        self._made = 0
        self._warned = False
        self._allocated = 0  # bytes of scratch for arrays on the GPU that there has been room for

    def run(
        self,
        stars: int,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Row],
        scratch: Callable[[int], Mapping[str, int]],
        queue: Callable[[Batch], None],
    ) -> dict[str, Any]:
        """Do something with every star.

        Parameters
        ----------
        stars : int
        inputs : dict of str to (n, ...) array
            Contiguous; all of them on the host, or all on the GPU.
        outputs : dict of str to (shape, dtype)
            Of one star.
        scratch : callable
            Bytes, by name, that the kernels of a batch of so many stars need besides.
        queue : callable
            Queues the kernels of a batch. It may be called again for the same stars if memory runs out.

        Returns
        -------
        dict of str to (n, ...) array
            The outputs, where the inputs are.

        Raises
        ------
        InputError
            If an input is not contiguous, or some are on the GPU and some are not.
        DeviceOutOfMemory
            If there is no room for :data:`FEWEST_STARS` stars.
        DeviceFailed
        """
        where = {on_device(array) for array in inputs.values()}
        if len(where) == 2:
            there = ", ".join(name for name, array in inputs.items() if on_device(array))
            raise InputError(f"on the GPU: {there}; the others are not", field="arrays")
        for name, array in inputs.items():
            if not array.flags.c_contiguous:
                raise InputError("must be contiguous", field=name)
        call = _Call(stars, inputs, outputs, scratch, queue)
        return self._run_on_device(call) if where == {True} else self._run_from_host(call)

    def _run_from_host(self, call: _Call) -> dict[str, np.ndarray]:
        results = {name: np.empty((call.stars, *shape), dtype) for name, (shape, dtype) in call.outputs.items()}
        done = 0
        size = min(call.stars, MOST_STARS)
        with self._borrowed(math.ceil(call.stars / max(size, 1))) as lanes:
            free = self._device.free_memory() + sum(lane.reserved for lane in lanes)
            size = _fitting(size, _SHARE * free / LANES, lambda stars: call.bytes_of(stars, everything=True))
            waiting: deque[_Passage] = deque()
            while done < call.stars:
                if len(waiting) == len(lanes):
                    waiting.popleft().finish()
                lane = next(lane for lane in lanes if all(lane is not passage.lane for passage in waiting))
                passage = _Passage(lane, call, results, done, min(size, call.stars - done))
                try:
                    passage.begin()
                except DeviceOutOfMemory as error:
                    while waiting:
                        waiting.popleft().finish()
                    for each in lanes:
                        each.settle()
                        each.release()
                    size = self._halved(passage.size, error)
                    continue
                waiting.append(passage)
                done += passage.size
            for passage in waiting:
                passage.finish()
        return results

    def _run_on_device(self, call: _Call) -> dict[str, Any]:
        device, stream = self._device, self._device.current_stream()
        results = {name: device.empty((call.stars, *shape), dtype) for name, (shape, dtype) in call.outputs.items()}
        size = min(call.stars, MOST_RESIDENT)
        if call.bytes_of(size, everything=False) > self._allocated:  # asking takes the driver's lock, and others wait
            room = _SHARE * device.free_memory()
            size = _fitting(size, room, lambda stars: call.bytes_of(stars, everything=False))
        done = 0
        while done < call.stars:
            stars = min(size, call.stars - done)
            offsets, total = _stacked(call.scratch(stars))
            try:
                memory = device.allocate(total)
                self._allocated = max(self._allocated, total)
                pointers = {name: memory.pointer + offset for name, offset in offsets.items()}
                for name, array in (*call.inputs.items(), *results.items()):
                    pointers[name] = device.pointer_of(array) + done * _row_bytes(array.shape[1:], array.dtype)
                call.queue(Batch(stars, stream, pointers))
            except DeviceOutOfMemory as error:
                size = self._halved(stars, error)
                continue
            done += stars
        return results

    def _halved(self, stars: int, error: DeviceOutOfMemory) -> int:
        """Half of a batch that was too large; say so the first time."""
        if stars <= FEWEST_STARS:
            raise DeviceOutOfMemory(f"no room on the GPU even for {stars} stars at a time ({error})") from error
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the GPU has no room for {stars} stars at a time: going on with half as many, and fewer if need be",
                RuntimeWarning,
                stacklevel=6,
            )
        return max(FEWEST_STARS, stars // 2)

    @contextmanager
    def _borrowed(self, wanted: int) -> Iterator[list[_Lane]]:
        """Up to so many lanes, at least one; waits for one while other threads have them all."""
        with self._changed:
            while not self._idle and self._made == LANES:
                self._changed.wait()
            while len(self._idle) < wanted and self._made < LANES:
                self._idle.append(_Lane(self._device))
                self._made += 1
            taken = [self._idle.pop() for _ in range(min(max(wanted, 1), len(self._idle)))]
        try:
            yield taken
        finally:
            for lane in taken:
                lane.settle()
            with self._changed:
                self._idle += taken
                self._changed.notify_all()


@dataclass(frozen=True)
class _Call:
    """What :meth:`Lanes.run` was asked."""

    stars: int
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Row]
    scratch: Callable[[int], Mapping[str, int]]
    queue: Callable[[Batch], None]

    def sizes(self, stars: int) -> dict[str, int]:
        """Bytes of the inputs and outputs of so many stars."""
        rows = {name: (array.shape[1:], array.dtype) for name, array in self.inputs.items()} | dict(self.outputs)
        return {name: stars * _row_bytes(*row) for name, row in rows.items()}

    def bytes_of(self, stars: int, *, everything: bool) -> int:
        """Bytes on the GPU of so many stars: of everything, or of scratch alone."""
        return _stacked({**(self.sizes(stars) if everything else {}), **self.scratch(stars)})[1]


class _Lane:
    """A stream, its memory on the GPU and pinned memory of the host, which grow as needed."""

    def __init__(self, device: Device) -> None:
        self.device, self.stream = device, device.new_stream()
        self.reserved = 0
        self._memory: Memory | None = None
        self._pinned = np.empty(0, np.uint8)

    def reserve(self, size: int) -> int:
        """Address of so many bytes on the GPU."""
        if self._memory is None or size > self.reserved:
            self.release()
            self._memory = self.device.allocate(size)
            self.reserved = size
        return self._memory.pointer

    def pinned(self, size: int) -> np.ndarray:
        """So many bytes of the host."""
        if size > self._pinned.size:
            self._pinned = np.empty(0, np.uint8)
            self._pinned = self.device.allocate_host(size)
        return self._pinned

    def release(self) -> None:
        """Give the memory on the GPU back."""
        self._memory, self.reserved = None, 0

    def settle(self) -> None:
        """Let nothing be on its way to or from this lane's memory any more."""
        with suppress(DeviceFailed):  # if it fails here, it has failed before: that error is the one to tell
            self.device.synchronise(self.stream)


class _Passage:
    """One batch on its way through a lane."""

    def __init__(self, lane: _Lane, call: _Call, results: dict[str, np.ndarray], first: int, size: int) -> None:
        self.lane, self.size = lane, size
        self._call, self._results = call, results
        self._rows = slice(first, first + size)
        self._staged: dict[str, np.ndarray] = {}

    def begin(self) -> None:
        """Queue the copies to the GPU, the kernels and the copies back."""
        lane, call, device, rows = self.lane, self._call, self.lane.device, self._rows
        sizes = call.sizes(self.size)
        offsets, total = _stacked({**sizes, **call.scratch(self.size)})
        memory = lane.reserve(total)
        pointers = {name: memory + offset for name, offset in offsets.items()}
        through = [name for name, array in call.inputs.items() if not device.is_pinned(array)]
        places, staged = _stacked({name: sizes[name] for name in (*through, *call.outputs)})
        pinned = lane.pinned(staged)
        for name, array in call.inputs.items():
            source = array[rows]
            if name in through:
                place = pinned[places[name] :][: sizes[name]].view(array.dtype).reshape(source.shape)
                _copy(place, source)
                source = place
            device.to_device(pointers[name], source, lane.stream)
        call.queue(Batch(self.size, lane.stream, pointers))
        for name, array in self._results.items():
            place = pinned[places[name] :][: sizes[name]].view(array.dtype).reshape(self.size, *array.shape[1:])
            device.to_host(place, pointers[name], lane.stream)
            self._staged[name] = place

    def finish(self) -> None:
        """Wait for the batch and take its results."""
        self.lane.device.synchronise(self.lane.stream)
        for name, array in self._results.items():
            _copy(array[self._rows], self._staged[name])


#: Threads that copy arrays of the host, of more bytes than it takes to wake them: one moves 10 to 20 GB/s.
_COPIERS, _WORTH_SHARING = 4, 1 << 23


@cache
def _copiers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_COPIERS, thread_name_prefix="xpkern-copy")


def _copy(to: np.ndarray, source: np.ndarray) -> None:
    """Copy an array of the host, by several threads if it is large."""
    if source.nbytes < _WORTH_SHARING:
        np.copyto(to, source)
        return
    rows = -(-len(source) // _COPIERS)
    parts = [slice(first, first + rows) for first in range(0, len(source), rows)]
    for _ in _copiers().map(lambda part: np.copyto(to[part], source[part]), parts):
        pass


def _row_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _stacked(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where arrays of so many bytes begin, one behind the other, and the bytes of all."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, max(end, _ALIGNMENT)


def _fitting(stars: int, room: float, bytes_of: Callable[[int], int]) -> int:
    """So many stars, or half, or a quarter of them, as there is room for."""
    while stars > FEWEST_STARS and bytes_of(stars) > room:
        stars = max(FEWEST_STARS, stars // 2)
    return stars
