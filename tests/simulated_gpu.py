"""A GPU that is not one: the kernels' own text, compiled for the CPU, behind the interface that the engine knows.

Memory "on the GPU" is the host's, kept apart: arrays there are :class:`GpuArray`, which like CuPy's refuse to become
NumPy's unasked. Streams run at once. What only a real GPU can show, its timing and CuPy itself, is not in here.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np
from cuda_library import kernel_library

from xpkern.engine.cuda.device import DeviceFacts
from xpkern.engine.cuda.sources import is_general
from xpkern.errors import DeviceFailed, DeviceOutOfMemory

FACTS = DeviceFacts(
    name="simulated GPU",
    compute_capability="0.0",
    processors=2,
    memory=1 << 34,
    shared_memory=232_448,
    driver="0.0",
    compiler="host compiler",
    door="simulation",
)


class SimulatedGpu:
    """See :class:`xpkern.engine.cuda.device.Device`.

    Parameters
    ----------
    memory : int
        Bytes that can be allocated.
    says_free : int, optional
        Bytes that it says are free; ``memory`` when not given.
    keeps_arrays : bool
        Whether there are arrays on it, as with CuPy.
    """

    facts = FACTS

    def __init__(self, memory: int = 1 << 34, says_free: int | None = None, keeps_arrays: bool = False) -> None:
        self._memory, self._says_free, self.used = memory, says_free, 0
        self.launches: list[str] = []
        self.copied_from: list[int] = []
        self.bytes_copied = 0
        self.lost_at: str | None = None  # the kernel at which the GPU is lost
        self.pinned: set[int] = set()
        self.keeps_arrays = keeps_arrays

    def load(self, *, general=False):
        kernel_library(general=general)

    def free_memory(self):
        return self._memory - self.used if self._says_free is None else self._says_free

    def allocate(self, size):
        if self.used + size > self._memory:
            raise DeviceOutOfMemory(f"no room for {size} bytes")
        return _Memory(self, size)

    def allocate_host(self, size):
        array = np.full(size, 0xCD, np.uint8)  # nothing that looks like a number
        self.pinned.add(array.ctypes.data)
        return array

    def is_pinned(self, array):
        return array.ctypes.data in self.pinned

    def empty(self, shape, dtype):
        return GpuArray(np.full(shape, -1 if np.dtype(dtype).kind != "u" else 99, dtype))

    @contextmanager
    def keeping(self):
        yield (lambda array: GpuArray(np.array(array))) if self.keeps_arrays else np.asarray

    def pointer_of(self, array):
        return array.data.ptr

    def new_stream(self):
        return SimpleNamespace()

    current_stream = new_stream

    def to_device(self, pointer, array, stream):
        assert array.flags.c_contiguous
        self.copied_from.append(array.ctypes.data)
        self.bytes_copied += array.nbytes
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

    def to_host(self, array, pointer, stream):
        assert array.flags.c_contiguous
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)

    def clear(self, pointer, size, stream):
        ctypes.memset(pointer, 0, size)

    def launch(self, kernel, grid, block, parameters, stream, shared=0):
        self.launches.append(kernel)
        if self.lost_at == kernel:
            raise DeviceFailed("the GPU failed (cudaErrorDeviceUnavailable)")
        values = [np.ascontiguousarray(value) for value in parameters]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        library = kernel_library(general=is_general(kernel))
        assert library.launch(kernel.encode(), grid, block, shared, pointers) == 0, kernel

    def record(self, work):
        return work

    def synchronise(self, stream):
        pass

    def elapsed(self, work, stream):
        work(stream)
        return 1.0


class _Memory:
    def __init__(self, gpu: SimulatedGpu, size: int) -> None:
        self._gpu, self._size = gpu, size
        self._bytes = np.full(size + 64, 0xCD, np.uint8)
        self.pointer = -(-self._bytes.ctypes.data // 64) * 64
        gpu.used += size

    def __del__(self) -> None:
        self._gpu.used -= self._size


class GpuArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that behaves as CuPy's do, as far as xpkern relies on it: it mixes with numbers, not with NumPy's."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        if method != "__call__":
            return NotImplemented
        result = getattr(ufunc, method)(*_open(inputs), **kwargs, **({"out": _open(out)} if out else {}))
        return out[0] if out else GpuArray(result)

    def __array_function__(self, function, types, args, kwargs):
        return _close(function(*_open(args), **_open(kwargs)))

    def __getitem__(self, index):
        return GpuArray(np.asarray(self._array[_open(index)]))

    def __setitem__(self, index, value):
        self._array[_open(index)] = _open(value)

    def __len__(self):
        return len(self._array)

    def __bool__(self):
        return bool(self._array)

    def __int__(self):
        return int(self._array)

    def __float__(self):
        return float(self._array)

    def __matmul__(self, other):
        return GpuArray(self._array @ _open(other))

    def __getattr__(self, name):
        if name in ("shape", "dtype", "ndim", "size", "nbytes", "flags"):
            return getattr(self._array, name)
        if name in ("any", "all", "sum", "min", "max", "copy", "astype", "reshape", "swapaxes", "ravel", "transpose"):
            return lambda *args, **kwargs: _close(getattr(self._array, name)(*_open(args), **_open(kwargs)))
        raise AttributeError(name)

    def set(self, values, stream=None):
        """Copy an array of the host."""
        self._array[:] = values

    @property
    def T(self):  # noqa: N802
        return GpuArray(self._array.T)

    def mean(self):
        return GpuArray(np.asarray(self._array.mean()))

    @property
    def data(self):
        return SimpleNamespace(ptr=self._array.ctypes.data)

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False), "version": 3}


def _open(value):
    """What a function of NumPy can take, arrays of the host refused."""
    if isinstance(value, GpuArray):
        return value._array
    if isinstance(value, np.ndarray) and value.ndim > 0:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (tuple, list)):
        return type(value)(_open(each) for each in value)
    if isinstance(value, dict):
        return {name: _open(each) for name, each in value.items()}
    return value


def _close(value):
    if isinstance(value, tuple):
        return tuple(_close(each) for each in value)
    return GpuArray(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value


def simulated_cupy() -> ModuleType:
    """A module of the name of CuPy that makes such arrays."""

    def on_gpu(function):
        return lambda *args, **kwargs: _close(function(*_open(args), **_open(kwargs)))

    def asarray(values, dtype=None):
        return GpuArray(np.asarray(values._array if isinstance(values, GpuArray) else values, dtype))

    cupy = ModuleType("cupy")
    cupy.ndarray = GpuArray
    cupy.float64 = np.float64
    cupy.asarray, cupy.asnumpy = asarray, lambda array: array._array.copy()
    for name in ("zeros", "ones", "full", "empty", "eye", "arange", "concatenate", "ascontiguousarray"):
        setattr(cupy, name, on_gpu(getattr(np, name)))
    return cupy
