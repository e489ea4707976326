"""A device without a GPU: the CUDA engine's own orchestration, and the kernels' own text on this processor."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cuda_library import kernel_library
from numpy.typing import NDArray

from xpkern.engine.cuda.device import DeviceFacts


class _Memory:
    """Bytes; filled with what is no number, so that a kernel that reads what nobody wrote is noticed."""

    def __init__(self, size: int) -> None:
        self._bytes = np.full(size + 256, 0xFF, np.uint8)

    @property
    def pointer(self) -> int:
        address = self._bytes.ctypes.data
        return address + (-address) % 256


class ShimDevice:
    """See :class:`xpkern.engine.cuda.device.Device`. Everything is done when a call returns."""

    facts = DeviceFacts("none", "9.0", 2, 1 << 30, "13.0", "the C++ compiler", "shim")

    def __init__(self) -> None:
        self.launches: list[str] = []

    def free_memory(self) -> int:
        return 1 << 30

    def allocate(self, size: int) -> _Memory:
        return _Memory(size)

    def allocate_host(self, size: int) -> NDArray[np.uint8]:
        return np.empty(size, np.uint8)

    def is_pinned(self, array: np.ndarray) -> bool:
        return True

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)

    def pointer_of(self, array: np.ndarray) -> int:
        return array.ctypes.data

    def new_stream(self) -> None:
        return None

    def current_stream(self) -> None:
        return None

    def to_device(self, pointer: int, array: np.ndarray, stream: Any) -> None:
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

    def to_host(self, array: np.ndarray, pointer: int, stream: Any) -> None:
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)

    def clear(self, pointer: int, size: int, stream: Any) -> None:
        ctypes.memset(pointer, 0, size)

    def launch(
        self, kernel: str, grid: int, block: int, parameters: Sequence[np.ndarray], stream: Any, shared: int = 0
    ) -> None:
        self.launches.append(kernel)
        pointers = (ctypes.c_void_p * len(parameters))(*(value.ctypes.data for value in parameters))
        library = kernel_library(general=kernel.endswith("_any"))
        if library.launch(kernel.encode(), grid, block, shared, pointers) != 0:
            raise LookupError(f"no kernel {kernel}")

    def record(self, work: Callable[[Any], None]) -> Callable[[Any], None]:
        return work

    def synchronise(self, stream: Any) -> None:
        pass

    def elapsed(self, work: Callable[[Any], None], stream: Any) -> float:
        began = time.perf_counter()
        work(stream)
        return time.perf_counter() - began
