"""The GPU through xpkern's own extension module, whose kernels nvcc compiled when xpkern was installed."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.cuda.device import Device, DeviceFacts, Memory, failure, version_text
from xpkern.engine.cuda.sources import is_general
from xpkern.errors import DeviceOutOfMemory, DeviceUnavailable

#: What the build leaves beside this file: kernels for the usual model, and for models of any size.
FATBINS = ("kernels.fatbin", "kernels_general.fatbin")


def open_by_extension() -> Device:
    """The current GPU.

    Raises
    ------
    DeviceUnavailable
        If the extension or its kernels are not there or cannot be loaded, or there is no GPU.
    """
    try:
        from xpkern.engine import _cuda
    except ImportError as error:
        raise DeviceUnavailable(f"xpkern's CUDA extension cannot be used ({error}); XPKERN_CUDA=1 builds it") from None
    images = [importlib.resources.files("xpkern.engine.cuda") / name for name in FATBINS]
    for image in images:
        if not image.is_file():
            raise DeviceUnavailable(f"xpkern's CUDA extension lacks its kernels ({image.name}): install xpkern again")
    try:
        count = _cuda.device_count()
    except _cuda.Failure as error:
        raise DeviceUnavailable(f"xpkern's CUDA extension finds no GPU ({error})") from None
    if count == 0:
        raise DeviceUnavailable("xpkern's CUDA extension finds no GPU")
    return ExtensionDevice(_cuda, [image.read_bytes() for image in images])


class ExtensionDevice:
    """See :class:`xpkern.engine.cuda.device.Device`.

    Parameters
    ----------
    cuda : module
        ``xpkern.engine._cuda``.
    images : sequence of bytes
        Kernels, compiled, of :data:`FATBINS`.
    """

    def __init__(self, cuda: Any, images: Sequence[bytes]) -> None:
        self._cuda, self._images = cuda, images

    @cached_property
    def facts(self) -> DeviceFacts:
        """What is known of the GPU and of what stands between."""
        with self._failures():
            found = self._cuda.facts()
        toolkit = version_text(self._cuda.toolkit)
        found["driver"] = version_text(found["driver"])
        return DeviceFacts(**found, compiler=f"nvcc {toolkit}", door=f"xpkern's extension, CUDA {toolkit}")

    def load(self, *, general: bool = False) -> None:
        """Load the kernels that nvcc compiled."""
        with self._failures():
            _ = self._general if general else self._usual

    def free_memory(self) -> int:
        """Bytes that can be allocated now."""
        with self._failures():
            return int(self._cuda.free_memory())

    def allocate(self, size: int) -> Memory:
        """So many bytes on the GPU."""
        with self._failures():
            return self._cuda.Memory(max(size, 1))

    def allocate_host(self, size: int) -> NDArray[np.uint8]:
        """So many pinned bytes of the host."""
        with self._failures():
            return np.frombuffer(self._cuda.HostMemory(max(size, 1)), np.uint8, size)

    def is_pinned(self, array: np.ndarray) -> bool:
        """Whether the GPU can copy an array of the host as it is."""
        with self._failures():
            return bool(self._cuda.is_pinned(array.ctypes.data))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """There are no arrays without CuPy."""
        raise DeviceUnavailable("arrays on the GPU need CuPy: pip install 'xpkern[cuda13]' (or [cuda12])")

    @contextmanager
    def keeping(self) -> Iterator[Callable[[np.ndarray], Any]]:
        """Arrays of the host, which every call brings to the GPU anew."""
        yield np.asarray

    def pointer_of(self, array: Any) -> int:
        """Address of anything with ``__cuda_array_interface__``."""
        return int(array.__cuda_array_interface__["data"][0])

    def new_stream(self) -> Any:
        """A queue that waits for no other."""
        with self._failures():
            return self._cuda.Stream()

    def current_stream(self) -> Any:
        """The one queue for work on arrays that are on the GPU already."""
        return self._own_stream

    @cached_property
    def _own_stream(self) -> Any:
        return self.new_stream()

    def to_device(self, pointer: int, array: np.ndarray, stream: Any) -> None:
        """Copy a contiguous array to an address of the GPU."""
        with self._failures():
            self._cuda.to_device(pointer, array, stream)

    def to_host(self, array: np.ndarray, pointer: int, stream: Any) -> None:
        """Copy to a contiguous array from an address of the GPU."""
        with self._failures():
            self._cuda.to_host(array, pointer, stream)

    def clear(self, pointer: int, size: int, stream: Any) -> None:
        """Set so many bytes of the GPU to 0."""
        with self._failures():
            self._cuda.clear(pointer, size, stream)

    def launch(
        self, kernel: str, grid: int, block: int, parameters: Sequence[np.ndarray], stream: Any, shared: int = 0
    ) -> None:
        """Run a kernel."""
        with self._failures():
            kernels = self._general if is_general(kernel) else self._usual
            kernels.launch(kernel, grid, block, list(parameters), stream, shared)

    def record(self, work: Callable[[Any], None]) -> Callable[[Any], None]:
        """A CUDA graph of what a function queues."""
        with self._failures():
            graph = self._cuda.record(work, self._cuda.Stream())

        def replay(stream: Any) -> None:
            with self._failures():
                graph.launch(stream)

        return replay

    def synchronise(self, stream: Any) -> None:
        """Wait until everything in a stream is done."""
        with self._failures():
            stream.synchronise()

    def elapsed(self, work: Callable[[Any], None], stream: Any) -> float:
        """Seconds that what a function queues takes."""
        with self._failures():
            begin, end = self._cuda.Event(), self._cuda.Event()
            begin.record(stream)
            work(stream)
            end.record(stream)
            return float(end.seconds_since(begin))

    @cached_property
    def _usual(self) -> Any:
        return self._cuda.Kernels(self._images[0])

    @cached_property
    def _general(self) -> Any:
        return self._cuda.Kernels(self._images[1])

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what the module raises into our own errors."""
        try:
            yield
        except self._cuda.OutOfMemory as error:
            raise DeviceOutOfMemory(str(error)) from error
        except self._cuda.Failure as error:
            raise failure(str(error)) from error
