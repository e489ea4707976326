"""Stars of the host on the GPU while a model is trained on them, and arrays that stay there from call to call."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from xpkern.engine.arrays import is_constant
from xpkern.engine.contract import Float64, Int64, StarData
from xpkern.engine.cuda.device import Device, Memory
from xpkern.engine.groups import GroupedStars, WhitenerGroups
from xpkern.errors import DeviceOutOfMemory

#: Share of the free memory for stars, and for what stays.
_SHARE, _KEPT_SHARE = 0.8, 0.6

#: Pinned bytes that arrays pass through on their way to the GPU.
_STAGED = 1 << 26


class Kept:
    """Arrays of the host that are on the GPU as long as they live: those that nobody can write to.

    Those of a training set are such ones, the whiteners, a mapped file, before all: 8.8 of the 9.3 kB of a star.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._memory: dict[tuple[int, bool], Memory] = {}

    def find(self, array: np.ndarray | WhitenerGroups, prepared: bool) -> Memory | None:
        """Where an array is, or what has been made of it, if it is there."""
        with self._lock:
            return self._memory.get((id(array), prepared))

    def keep(self, array: np.ndarray | WhitenerGroups, prepared: bool, memory: Memory) -> None:
        """Remember where an array is, if it is one to be kept and leaves room for others."""
        values = array.groups if isinstance(array, WhitenerGroups) else array
        if not is_constant(values) or array.nbytes > _KEPT_SHARE * (self._device.free_memory() + array.nbytes):
            return
        with self._lock:
            self._memory[id(array), prepared] = memory
        weakref.finalize(array, self._forget, (id(array), prepared))

    def _forget(self, key: tuple[int, bool]) -> None:
        with self._lock:
            self._memory.pop(key, None)


def _distinct(rows: Int64, stars: int) -> int:
    """How many of the stars are among rows: without sorting them, which takes longer than to train on them."""
    among = np.zeros(stars, bool)
    among[rows] = True
    return int(np.count_nonzero(among))


class Residents:
    """The stars of some batches on the GPU; addresses under the names of :class:`StarData`.

    All stars where they fit and most are wanted: then nothing has to be gathered, and what is kept serves. Otherwise
    those of the batches alone.

    Parameters
    ----------
    device : Device
    kept : Kept
    stars : StarData or GroupedStars
    params : (n, k) float64
    star_loss : (n,) float64
    batches : (steps, size) int64
        Rows of the stars.
    stream : object
    invert : callable, optional
        ``invert(pointer, stars)`` queues in that stream what makes inverses of so many whiteners, in their place.

    Attributes
    ----------
    inverted : bool
        Whether the whiteners are inverses.

    Raises
    ------
    DeviceOutOfMemory
        If there is no room for them.
    """

    def __init__(
        self,
        device: Device,
        kept: Kept,
        stars: StarData | GroupedStars,
        params: Float64,
        star_loss: Float64,
        batches: Int64,
        stream: Any,
        invert: Callable[[int, int], None] | None,
    ) -> None:
        self._device, self._stream = device, stream
        self.inverted = invert is not None
        arrays: dict[str, np.ndarray | WhitenerGroups] = {**vars(stars), "params": params, "star_loss": star_loss}
        row_bytes = {name: array.nbytes // max(len(array), 1) for name, array in arrays.items()}
        prepared = {name: self.inverted and name == "whitener" for name in arrays}
        there = {
            name: memory for name, array in arrays.items() if (memory := kept.find(array, prepared[name])) is not None
        }
        needed = len(stars) * sum(size for name, size in row_bytes.items() if name not in there)
        room = _SHARE * device.free_memory()
        if needed <= room and (there or 2 * _distinct(batches, len(stars)) >= len(stars)):
            self._rows: Int64 | None = None
            self.batches = batches
            self._memory = dict(there)
        else:
            rows, local = np.unique(batches, return_inverse=True)
            needed = len(rows) * sum(row_bytes.values())
            if needed > room:
                raise DeviceOutOfMemory(f"{len(rows)} stars of a batch or more need {needed} bytes")
            self._rows, self.batches, self._memory = rows, local.reshape(batches.shape), {}
        staged = device.allocate_host(_STAGED)
        for name, array in arrays.items():
            if name in self._memory:
                continue
            size = len(stars) if self._rows is None else len(self._rows)
            self._memory[name] = device.allocate(max(row_bytes[name] * size, 1))
            pointer = self._memory[name].pointer
            self._bring(array, pointer, staged)
            if prepared[name] and invert is not None:
                invert(pointer, size)
            if self._rows is None:
                kept.keep(array, prepared[name], self._memory[name])
        self.flux, self.whitener, self.mean, self.sigma, self.params, self.star_loss = (
            int(self._memory[name].pointer) for name in arrays
        )

    def fetch(self, params: Float64, star_loss: Float64) -> None:
        """Bring back what the stars' steps have changed."""
        for array, pointer in ((params, self.params), (star_loss, self.star_loss)):
            found = array if self._rows is None else np.empty((len(self._rows), *array.shape[1:]))
            self._device.to_host(found, pointer, self._stream)
            self._device.synchronise(self._stream)
            if self._rows is not None:
                array[self._rows] = found

    def _bring(self, array: np.ndarray | WhitenerGroups, pointer: int, staged: np.ndarray) -> None:
        """Copy the rows, in order, through pinned memory."""
        row = array.nbytes // max(len(array), 1)
        total = len(array) if self._rows is None else len(self._rows)
        at_once = max(1, staged.size // max(row, 1))
        for first in range(0, total, at_once):
            part = slice(first, min(first + at_once, total))
            place = staged[: row * (part.stop - first)].view(array.dtype).reshape(part.stop - first, *array.shape[1:])
            np.copyto(place, array[part if self._rows is None else self._rows[part]])
            self._device.to_device(pointer + row * first, place, self._stream)
            self._device.synchronise(self._stream)
