"""How kernels are launched: grids, the memory of their threads, and which of two forms of a kernel serves."""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

import numpy as np

from xpkern.engine.cuda.arguments import (
    SIZES,
    CalibrationView,
    KernelScratch,
    ModelView,
    PriorView,
    ScratchArguments,
    SizesArguments,
    ThreadScratch,
    parameter,
)
from xpkern.engine.cuda.device import Device
from xpkern.errors import DeviceFailed

#: Threads of a block: any multiple of a warp works; this many leave each 255 registers and two blocks a processor.
BLOCK = 128

#: Threads of a warp, and of a block where there are too few to give every processor one of the above: each warp then
#: has a processor, and its caches, to itself.
WARP = 32

#: Most warps of a block that have a spectrum each: MOST_SPECTRA of csrc/cuda/spectrum_memory.cuh.
_MOST_SPECTRA = 8

#: Blocks of a processor where more would not help: where each block prepares something, or each thread has memory of
#: its own; and most bytes of the latter in all. Kernels of that kind are for models of unusual sizes: they may be
#: slower, but no larger than the GPU.
_BLOCKS_A_PROCESSOR, _MOST_MEMORY = 8, 1 << 30


class Launcher:
    """Launches of one device.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._scratch: dict[bytes, KernelScratch] = {}

    def threads(self, items: int, bytes_a_thread: int = 0) -> int:
        """Threads of a grid for so many items: one each, or as many as their memory lets there be."""
        blocks = max(1, -(-items // BLOCK))
        if bytes_a_thread:
            most = _MOST_MEMORY // (BLOCK * bytes_a_thread)
            blocks = min(blocks, _BLOCKS_A_PROCESSOR * self.device.facts.processors, max(most, 1))
        return blocks * BLOCK

    def memory(self, items: int, bytes_a_thread: int) -> int:
        """Bytes of all threads of a grid for so many items."""
        return self.threads(items, bytes_a_thread) * bytes_a_thread if bytes_a_thread else 0

    def launch(
        self, kernel: str, items: int, arguments: Any, stream: Any, bytes_a_thread: int = 0, memory: int = 0
    ) -> None:
        """Queue a kernel over so many items.

        Parameters
        ----------
        kernel : str
            Its name; of two forms, that of the one that needs no memory.
        items : int
        arguments : ctypes.Structure
            Its ``scratch``, if it has one, is filled in.
        stream : object
        bytes_a_thread, memory : int
            What each thread needs, and the address of as many bytes as :meth:`memory` says. 0 where threads need none.
        """
        if bytes_a_thread:
            arguments.scratch = ThreadScratch(memory, bytes_a_thread)
        threads = self.threads(items, bytes_a_thread)
        block = BLOCK if threads >= BLOCK * self.device.facts.processors else WARP
        self.device.launch(kernel, threads // block, block, [parameter(arguments)], stream)

    def launch_warps(self, kernel: str, items: int, arguments: Any, stream: Any) -> None:
        """Queue a kernel of training that gives every star a warp, or where they are many one after the other.

        Each block copies the network for itself: more blocks than a processor has at a time only copy it more often.
        """
        warps, shared = self.sizes["train_warps"], self.sizes["train_shared"]
        blocks = min(max(1, -(-items // warps)), _BLOCKS_A_PROCESSOR * self.device.facts.processors)
        self.device.launch(kernel, blocks, warps * WARP, [parameter(arguments)], stream, shared)

    def launch_fits(self, kernel: str, stage: str, fits: int, arguments: Any, stream: Any) -> None:
        """Queue a kernel whose warps have a star each: a block a processor, with as many as its shared memory holds.

        ``stage`` is that of :attr:`sizes`: "freeze", "start", "search" or "finish".
        """
        facts, sizes = self.device.facts, self.sizes
        most, common, star = (sizes[f"{stage}_{name}"] for name in ("warps", "common", "star"))
        warps = max(1, min(most, (facts.shared_memory - common) // star, -(-fits // facts.processors)))
        blocks = min(max(1, -(-fits // warps)), facts.processors)
        self.device.launch(kernel, blocks, warps * WARP, [parameter(arguments)], stream, common + warps * star)

    def launch_blocks(self, kernel: str, blocks: int, threads: int, arguments: Any, stream: Any) -> None:
        """Queue a kernel of so many blocks of so many threads."""
        self.device.launch(kernel, blocks, threads, [parameter(arguments)], stream)

    def one(self, kernel: str, arguments: Any, stream: Any) -> None:
        """Queue a kernel of a single thread."""
        self.launch_blocks(kernel, 1, 1, arguments, stream)

    def launch_spectra(self, kernel: str, spectra: int, arguments: Any, stream: Any, needed: KernelScratch) -> None:
        """Queue a kernel that gives every spectrum a warp, as many at a time as fit into shared memory."""
        facts = self.device.facts
        room = (facts.shared_memory - needed.design) // needed.spectrum
        warps = max(1, min(room, _MOST_SPECTRA, -(-spectra // facts.processors)))
        blocks = max(1, min(-(-spectra // warps), facts.processors))
        shared = needed.design + warps * needed.spectrum
        self.device.launch(kernel, blocks, warps * WARP, [parameter(arguments)], stream, shared)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each structure, as the kernels take them.

        Raises
        ------
        DeviceFailed
            If one of ours is not as large: the kernels are of another version than this file.
        """
        found = np.zeros(len(SIZES), np.int64)
        self._ask("argument_sizes", found, lambda pointer: SizesArguments(pointer))
        sizes = dict(zip(SIZES, found.tolist(), strict=True))
        for name, ours in SIZES.items():
            if ours is not None and sizes[name] != ctypes.sizeof(ours):
                raise DeviceFailed(
                    f"{name} has {sizes[name]} bytes in the kernels and {ctypes.sizeof(ours)} here: they are of "
                    "different versions of xpkern"
                )
        return sizes

    def scratch(
        self,
        *,
        model: ModelView | None = None,
        prior: PriorView | None = None,
        calibration: CalibrationView | None = None,
        **sizes: Any,
    ) -> KernelScratch:
        """Bytes that each thread of the kernels needs for a model, prior, calibration or grid of such sizes."""
        _ = self.sizes  # before the first structure is handed over
        arguments = ScratchArguments(
            model=model or ModelView(),
            prior=prior or PriorView(),
            calibration=calibration or CalibrationView(),
            **sizes,
        )
        key = bytes(arguments)
        if key not in self._scratch:
            found = np.zeros(len(KernelScratch._fields_), np.int64)
            self._ask("scratch_bytes", found, lambda pointer: _with_bytes(arguments, pointer))
            self._scratch[key] = KernelScratch(*found.tolist())
        return self._scratch[key]

    def _ask(self, kernel: str, answer: np.ndarray, arguments: Any) -> None:
        """Run a kernel of one thread and wait for what it writes."""
        memory, stream = self.device.allocate(answer.nbytes), self.device.new_stream()
        self.device.clear(memory.pointer, answer.nbytes, stream)
        self.one(kernel, arguments(memory.pointer), stream)
        self.device.to_host(answer, memory.pointer, stream)
        self.device.synchronise(stream)


def _with_bytes(arguments: ScratchArguments, pointer: int) -> ScratchArguments:
    arguments.bytes = pointer
    return arguments


def form(kernel: str, bytes_a_thread: int) -> str:
    """Name of the form of a kernel that serves: the usual one, or the general one whose threads need memory."""
    return f"{kernel}_any" if bytes_a_thread else kernel
