"""What the CUDA engine asks of a GPU, whichever library stands between them.

Two libraries do: CuPy (:mod:`xpkern.engine.cuda.cupy_device`), and the extension module of xpkern itself
(:mod:`xpkern.engine.cuda.extension_device`) where it was built. Pointers are numbers; whoever allocates memory keeps
the object that owns it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xpkern.errors import DeviceFailed, DeviceUnavailable

#: Environment variable: which library to use, by its name below (for tests, and where one of them is broken).
DOOR_VARIABLE = "XPKERN_CUDA_DOOR"

#: Oldest CUDA driver API that can run what CUDA 12 and 13 compile.
_OLDEST_DRIVER = 12000


def failure(what: str) -> DeviceFailed:
    """The error that says that the GPU is of no further use to this process."""
    return DeviceFailed(f"the GPU failed ({what}); nothing of this call is kept: run it again, in a new process")


@dataclass(frozen=True)
class DeviceFacts:
    """What is said of a GPU in reports and in the files that it computes.

    Attributes
    ----------
    name : str
        Of the GPU, such as "NVIDIA H100 80GB HBM3".
    compute_capability : str
        Such as "9.0".
    processors : int
        Streaming multiprocessors.
    memory : int
        Bytes in all.
    shared_memory : int
        Bytes that a block may ask for.
    driver : str
        Newest CUDA version that the driver supports.
    compiler : str
        What compiled the kernels, with its version.
    door : str
        The library in between, with its version.
    """

    name: str
    compute_capability: str
    processors: int
    memory: int
    shared_memory: int
    driver: str
    compiler: str
    door: str


class Memory(Protocol):
    """Bytes on the GPU, or of the host where the GPU can reach them; freed with the last reference to it."""

    @property
    def pointer(self) -> int:
        """Address of the first byte."""
        ...


class Device(Protocol):
    """One GPU. Copies and kernels are queued in a stream and return at once.

    Every operation raises :class:`DeviceFailed` where the GPU reports an error, of its own or of an earlier one.
    """

    @property
    def facts(self) -> DeviceFacts:
        """What is known of the GPU and of what stands between."""
        ...

    def load(self, *, general: bool = False) -> None:
        """Load the kernels now, compiling them if need be, instead of when one of them is first launched.

        Parameters
        ----------
        general : bool
            Those for models of any size instead of the usual one.
        """
        ...

    def free_memory(self) -> int:
        """Bytes that can be allocated now."""
        ...

    def allocate(self, size: int) -> Memory:
        """So many bytes on the GPU.

        Raises
        ------
        DeviceOutOfMemory
        """
        ...

    def allocate_host(self, size: int) -> NDArray[np.uint8]:
        """So many bytes of the host, pinned: copies from and to them run beside everything else.

        Raises
        ------
        DeviceOutOfMemory
        """
        ...

    def is_pinned(self, array: np.ndarray) -> bool:
        """Whether an array of the host is pinned, so that the GPU can copy it as it is."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array on the GPU, as whoever gives such arrays expects to get them back: CuPy's.

        Raises
        ------
        DeviceOutOfMemory
        DeviceUnavailable
            If this is a library without arrays.
        """
        ...

    def keeping(self) -> AbstractContextManager[Callable[[np.ndarray], Any]]:
        """A context in which arrays stay on the GPU: what it yields brings them there.

        What this thread queues goes to a stream of its own. Without CuPy nothing is brought anywhere.
        """
        ...

    def pointer_of(self, array: Any) -> int:
        """Address of an array on the GPU."""
        ...

    def new_stream(self) -> Any:
        """A queue; what is in different ones may run side by side."""
        ...

    def current_stream(self) -> Any:
        """The queue in which whoever gave arrays on the GPU has made them."""
        ...

    def to_device(self, pointer: int, array: np.ndarray, stream: Any) -> None:
        """Copy a contiguous array to an address of the GPU."""
        ...

    def to_host(self, array: np.ndarray, pointer: int, stream: Any) -> None:
        """Copy to a contiguous array from an address of the GPU."""
        ...

    def clear(self, pointer: int, size: int, stream: Any) -> None:
        """Set so many bytes of the GPU to 0."""
        ...

    def launch(
        self, kernel: str, grid: int, block: int, parameters: Sequence[np.ndarray], stream: Any, shared: int = 0
    ) -> None:
        """Run a kernel: so many blocks of so many threads, with so many bytes of shared memory a block.

        Each parameter is a vector of bytes (uint8), which are its value.
        """
        ...

    def record(self, work: Callable[[Any], None]) -> Callable[[Any], None]:
        """What a function queues in the stream it is given, as one unit: the returned one queues all of it at once."""
        ...

    def synchronise(self, stream: Any) -> None:
        """Wait until everything in a stream is done."""
        ...

    def elapsed(self, work: Callable[[Any], None], stream: Any) -> float:
        """Seconds that what a function queues takes, by the GPU's own clock."""
        ...


def open_device() -> Device:
    """The GPU of this process, through the first library that can reach it.

    Raises
    ------
    DeviceUnavailable
        The message names every library and why it cannot.
    """
    found = gpu_names()
    doors = {"cupy": _open_by_cupy, "extension": _open_by_extension}
    wanted = os.environ.get(DOOR_VARIABLE, "").strip()
    if wanted and wanted not in doors:
        raise DeviceUnavailable(f"{DOOR_VARIABLE}={wanted!r} is neither of {', '.join(doors)}")
    reasons = []
    for name in [wanted] if wanted else doors:
        try:
            return doors[name]()
        except DeviceUnavailable as error:
            reasons.append(str(error))
    raise DeviceUnavailable(f"{', '.join(found)} found, but " + "; ".join(reasons))


def _open_by_cupy() -> Device:
    from xpkern.engine.cuda.cupy_device import open_by_cupy

    return open_by_cupy()


def _open_by_extension() -> Device:
    if importlib.util.find_spec("xpkern.engine._cuda") is None:
        raise DeviceUnavailable("xpkern was installed without its CUDA extension (XPKERN_CUDA=1 builds it)")
    from xpkern.engine.cuda.extension_device import open_by_extension

    return open_by_extension()


def gpu_names() -> list[str]:
    """The GPUs that this process may use, by asking the driver itself.

    Raises
    ------
    DeviceUnavailable
        If there is no driver, it is too old, or it finds none.
    """
    try:
        driver = _load_driver()
    except OSError:
        raise DeviceUnavailable("no NVIDIA driver (libcuda.so.1 not found)") from None
    version, count = ctypes.c_int(), ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value < _OLDEST_DRIVER:
        raise DeviceUnavailable(
            f"the NVIDIA driver is too old: for CUDA {version_text(version.value)}, not 12.0 or later"
        )
    code = driver.cuInit(0)
    if code != 0:
        raise DeviceUnavailable(f"the NVIDIA driver found no usable GPU (cuInit returned {code})")
    driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        raise DeviceUnavailable("the NVIDIA driver found no GPU")
    names = []
    for index in range(count.value):
        name = ctypes.create_string_buffer(128)
        driver.cuDeviceGetName(name, len(name), index)
        names.append(name.value.decode(errors="replace"))
    return names


def _load_driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def version_text(number: int) -> str:
    """A version of CUDA as people write it: 13020 is 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"
