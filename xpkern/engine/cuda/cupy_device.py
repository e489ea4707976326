"""The GPU through CuPy, which compiles the kernels with NVRTC when they are first needed and keeps them on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.cuda.device import Device, DeviceFacts, Memory, failure, version_text
from xpkern.engine.cuda.sources import UNIT, is_general, nvrtc_options, source_folder
from xpkern.errors import DeviceFailed, DeviceOutOfMemory, DeviceUnavailable

#: The first release whose kernel cache and NVRTC handling are what this module was written against.
OLDEST_CUPY = (14, 2)

#: Dynamic shared memory [bytes] that a kernel may have without asking.
_SHARED_WITHOUT_ASKING = 48 * 1024


def open_by_cupy() -> Device:
    """The current GPU of CuPy.

    Raises
    ------
    DeviceUnavailable
        If there is no CuPy, or it is too old, or finds no GPU.
    """
    try:
        import cupy
    except ImportError as error:
        missing = getattr(error, "name", None) == "cupy"
        why = "CuPy is not installed" if missing else f"CuPy cannot be imported ({error})"
        raise DeviceUnavailable(f"{why}: pip install 'xpkern[cuda13]' (or [cuda12])") from None
    version = tuple(int(part) for part in cupy.__version__.split(".")[:2])
    if version < OLDEST_CUPY:
        wanted = ".".join(str(part) for part in OLDEST_CUPY)
        raise DeviceUnavailable(f"CuPy {cupy.__version__} is too old: {wanted} is needed")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceUnavailable(f"CuPy {cupy.__version__} finds no GPU ({error})") from None
    if count == 0:
        raise DeviceUnavailable(f"CuPy {cupy.__version__} finds no GPU")
    try:
        cupy.cuda.nvrtc.getVersion()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DeviceUnavailable(f"CuPy {cupy.__version__} finds no NVRTC ({reason}): xpkern[cuda13] has it") from None
    return CupyDevice(cupy)


class CupyDevice:
    """See :class:`xpkern.engine.cuda.device.Device`.

    Parameters
    ----------
    cupy : module
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._modules: dict[bool, Any] = {}
        self._kernels: dict[str, Any] = {}

    @cached_property
    def facts(self) -> DeviceFacts:
        """What is known of the GPU and of what stands between."""
        cuda = self._cupy.cuda
        with self._failures():
            properties = cuda.runtime.getDeviceProperties(cuda.Device().id)
            capability = f"{properties['major']}.{properties['minor']}"
            compiler = ".".join(str(part) for part in cuda.nvrtc.getVersion())
            return DeviceFacts(
                name=properties["name"].decode(),
                compute_capability=capability,
                processors=int(properties["multiProcessorCount"]),
                memory=int(properties["totalGlobalMem"]),
                shared_memory=int(properties["sharedMemPerBlockOptin"]),
                driver=version_text(cuda.runtime.driverGetVersion()),
                compiler=f"NVRTC {compiler}",
                door=f"CuPy {self._cupy.__version__}",
            )

    def load(self, *, general: bool = False) -> None:
        """Compile the kernels, or find them in CuPy's cache."""
        with self._failures(), self._lock:
            self._module(general).compile()

    def free_memory(self) -> int:
        """Bytes that can be allocated now, those that CuPy keeps in stock included."""
        with self._failures():
            free, _ = self._cupy.cuda.runtime.memGetInfo()
            return int(free) + int(self._cupy.get_default_memory_pool().free_bytes())

    def allocate(self, size: int) -> Memory:
        """So many bytes on the GPU."""
        with self._failures():
            return _CupyMemory(self._cupy.cuda.alloc(size))

    def allocate_host(self, size: int) -> NDArray[np.uint8]:
        """So many pinned bytes of the host."""
        with self._failures():
            return np.frombuffer(self._cupy.cuda.alloc_pinned_memory(size), np.uint8, size)

    def is_pinned(self, array: np.ndarray) -> bool:
        """Whether the GPU can copy an array of the host as it is."""
        with self._failures():
            kind = self._cupy.cuda.runtime.pointerGetAttributes(array.ctypes.data).type
        return bool(kind == self._cupy.cuda.runtime.memoryTypeHost)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """One of CuPy's arrays."""
        with self._failures():
            return self._cupy.empty(shape, dtype)

    @contextmanager
    def keeping(self) -> Iterator[Callable[[np.ndarray], Any]]:
        """CuPy's arrays, in a stream of this thread: always the same, as CuPy keeps memory for each stream."""
        with self._failures():
            if not hasattr(self._of_thread, "stream"):
                self._of_thread.stream = self.new_stream()
            with self._of_thread.stream:
                yield self._cupy.asarray

    def pointer_of(self, array: Any) -> int:
        """Address of one of CuPy's arrays."""
        return int(array.data.ptr)

    def new_stream(self) -> Any:
        """A queue that waits for no other."""
        with self._failures():
            return self._cupy.cuda.Stream(non_blocking=True)

    def current_stream(self) -> Any:
        """CuPy's own for this thread."""
        return self._cupy.cuda.get_current_stream()

    def to_device(self, pointer: int, array: np.ndarray, stream: Any) -> None:
        """Copy a contiguous array to an address of the GPU."""
        runtime = self._cupy.cuda.runtime
        with self._failures():
            runtime.memcpyAsync(pointer, array.ctypes.data, array.nbytes, runtime.memcpyHostToDevice, stream.ptr)

    def to_host(self, array: np.ndarray, pointer: int, stream: Any) -> None:
        """Copy to a contiguous array from an address of the GPU."""
        runtime = self._cupy.cuda.runtime
        with self._failures():
            runtime.memcpyAsync(array.ctypes.data, pointer, array.nbytes, runtime.memcpyDeviceToHost, stream.ptr)

    def clear(self, pointer: int, size: int, stream: Any) -> None:
        """Set so many bytes of the GPU to 0."""
        with self._failures():
            self._cupy.cuda.runtime.memsetAsync(pointer, 0, size, stream.ptr)

    def launch(
        self, kernel: str, grid: int, block: int, parameters: Sequence[np.ndarray], stream: Any, shared: int = 0
    ) -> None:
        """Run a kernel; CuPy passes a NumPy array of one element by value, whatever the size of that."""
        with self._failures(), stream:
            values = tuple(value.view(np.dtype((np.void, value.nbytes))) for value in parameters)
            self._kernel(kernel, shared)((grid,), (block,), values, shared_mem=shared)

    def record(self, work: Callable[[Any], None]) -> Callable[[Any], None]:
        """A CUDA graph of what a function queues."""
        with self._failures():
            stream = self._cupy.cuda.Stream(non_blocking=True)
            stream.begin_capture()
            try:
                work(stream)
            finally:
                graph = stream.end_capture()

        def replay(stream: Any) -> None:
            with self._failures():
                graph.launch(stream)

        return replay

    def synchronise(self, stream: Any) -> None:
        """Wait until everything in a stream is done."""
        with self._failures():
            stream.synchronize()

    def elapsed(self, work: Callable[[Any], None], stream: Any) -> float:
        """Seconds that what a function queues takes."""
        cuda = self._cupy.cuda
        with self._failures():
            begin, end = cuda.Event(), cuda.Event()
            begin.record(stream)
            work(stream)
            end.record(stream)
            end.synchronize()
            return 1e-3 * float(cuda.get_elapsed_time(begin, end))

    def _module(self, general: bool) -> Any:
        if general not in self._modules:
            code, options = (source_folder() / UNIT).read_text(), nvrtc_options(general)
            self._modules[general] = self._cupy.RawModule(code=code, options=options, backend="nvrtc")
        return self._modules[general]

    def _kernel(self, name: str, shared: int) -> Any:
        with self._lock:
            if name not in self._kernels:
                self._kernels[name] = self._module(is_general(name)).get_function(name)
        kernel = self._kernels[name]
        if shared > _SHARED_WITHOUT_ASKING and kernel.max_dynamic_shared_size_bytes < shared:
            kernel.max_dynamic_shared_size_bytes = shared
        return kernel

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what CuPy raises into our own errors."""
        cuda = self._cupy.cuda
        try:
            yield
        except cuda.memory.OutOfMemoryError as error:
            raise DeviceOutOfMemory(str(error)) from error
        except cuda.compiler.CompileException as error:
            raise DeviceFailed(f"NVRTC cannot compile {UNIT}: {error}") from error
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
            if "MemoryAllocation" in str(error) or "OUT_OF_MEMORY" in str(error):
                raise DeviceOutOfMemory(str(error)) from error
            raise failure(str(error)) from error


class _CupyMemory:
    """Bytes of CuPy's pool."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.pointer = int(memory.ptr)
