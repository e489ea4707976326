"""What is said where a GPU cannot be used, and errors of one that can: with libraries that only pretend."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import xpkern as xk
from xpkern.engine.cuda import device as door
from xpkern.engine.cuda.cupy_device import CupyDevice
from xpkern.engine.cuda.extension_device import ExtensionDevice


class Driver:
    """The NVIDIA driver, as ctypes sees it."""

    def __init__(self, names=(b"NVIDIA H100",), version=13000, code=0):
        self.names, self.version, self.code = names, version, code

    def cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = self.version
        return 0

    def cuInit(self, flags):  # noqa: N802
        return self.code

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = len(self.names)

    def cuDeviceGetName(self, name, size, index):  # noqa: N802
        name.value = self.names[index]


class CudaError(RuntimeError):
    pass


class OutOfMemory(MemoryError):
    pass


class CompileError(Exception):
    pass


def pretend_cupy(version="14.2.0", devices=1, nvrtc=(13, 2)):
    """A module with as much of CuPy as the engine asks before the first kernel."""

    def device_count():
        if isinstance(devices, Exception):
            raise devices
        return devices

    def nvrtc_version():
        if isinstance(nvrtc, Exception):
            raise nvrtc
        return nvrtc

    cupy = ModuleType("cupy")
    cupy.__version__ = version
    cupy.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            getDeviceCount=device_count,
            CUDARuntimeError=CudaError,
            getDeviceProperties=lambda index: {
                "name": b"NVIDIA H100",
                "major": 9,
                "minor": 0,
                "multiProcessorCount": 132,
                "totalGlobalMem": 85_000_000_000,
                "sharedMemPerBlockOptin": 232_448,
            },
            driverGetVersion=lambda: 13010,
        ),
        driver=SimpleNamespace(CUDADriverError=CudaError),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemory),
        compiler=SimpleNamespace(CompileException=CompileError),
        nvrtc=SimpleNamespace(getVersion=nvrtc_version),
        Device=lambda: SimpleNamespace(id=0),
    )
    return cupy


@pytest.fixture
def driver(monkeypatch):
    """A driver that finds one GPU."""
    monkeypatch.setattr(door, "_load_driver", Driver)
    monkeypatch.delenv(door.DOOR_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (Driver(version=11040), r"too old: for CUDA 11\.4, not 12\.0 or later"),
        (Driver(code=100), r"no usable GPU \(cuInit returned 100\)"),
        (Driver(names=()), "the NVIDIA driver found no GPU"),
        (OSError("libcuda.so.1"), r"no NVIDIA driver \(libcuda\.so\.1 not found\)"),
    ],
)
def test_what_the_driver_says(monkeypatch, driver, message):
    def load():
        if isinstance(driver, OSError):
            raise driver
        return driver

    monkeypatch.setattr(door, "_load_driver", load)
    with pytest.raises(xk.DeviceUnavailable, match=message):
        door.open_device()


def test_every_gpu_has_a_name(monkeypatch):
    monkeypatch.setattr(door, "_load_driver", lambda: Driver(names=(b"NVIDIA H100", b"NVIDIA H200")))
    assert door.gpu_names() == ["NVIDIA H100", "NVIDIA H200"]


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (None, r"NVIDIA H100 found, but CuPy .*pip install 'xpkern\[cuda13\]'"),
        (pretend_cupy(version="13.6.0"), r"CuPy 13\.6\.0 is too old: 14\.2 is needed"),
        (pretend_cupy(devices=CudaError("cudaErrorInsufficientDriver")), "finds no GPU .cudaErrorInsufficientDriver"),
        (pretend_cupy(devices=0), r"CuPy 14\.2\.0 finds no GPU"),
        (pretend_cupy(nvrtc=RuntimeError("libnvrtc.so.13 not found")), "finds no NVRTC .libnvrtc.so.13 not found"),
    ],
)
def test_why_cupy_does_not_serve(monkeypatch, cupy, message):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "xpkern.engine._cuda", None)
    with pytest.raises(xk.DeviceUnavailable, match=message) as caught:
        door.open_device()
    assert "XPKERN_CUDA=1" in str(caught.value)  # the other way is named, too


@pytest.mark.usefixtures("driver")
def test_a_library_can_be_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", pretend_cupy())
    assert isinstance(door.open_device(), CupyDevice)
    monkeypatch.setenv(door.DOOR_VARIABLE, "extension")
    with pytest.raises(xk.DeviceUnavailable, match=r"XPKERN_CUDA=1"):
        door.open_device()
    monkeypatch.setenv(door.DOOR_VARIABLE, "window")
    with pytest.raises(xk.DeviceUnavailable, match="XPKERN_CUDA_DOOR='window' is neither of cupy, extension"):
        door.open_device()


def test_an_engine_by_name_or_the_next_best(monkeypatch):
    monkeypatch.setattr(door, "_load_driver", lambda: Driver(names=()))
    assert xk.get_engine("auto").name == "cpu"
    assert xk.available_engines()["cuda"] == "the NVIDIA driver found no GPU"
    with pytest.raises(xk.InputError, match=r"cuda: the NVIDIA driver found no GPU.*'reference' always is"):
        xk.get_engine("cuda")


def test_facts_are_those_of_the_gpu():
    facts = CupyDevice(pretend_cupy()).facts
    assert (facts.name, facts.compute_capability, facts.processors) == ("NVIDIA H100", "9.0", 132)
    assert (facts.driver, facts.compiler, facts.door) == ("13.1", "NVRTC 13.2", "CuPy 14.2.0")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OutOfMemory("no room for 4 bytes"), xk.DeviceOutOfMemory),
        (CudaError("cudaErrorMemoryAllocation: out of memory"), xk.DeviceOutOfMemory),
        (CudaError("cudaErrorIllegalAddress: an illegal memory access was encountered"), xk.DeviceFailed),
        (CompileError("kernels.cu(3): error"), xk.DeviceFailed),
    ],
)
def test_errors_of_cupy_become_ours(raised, expected):
    def alloc(size):
        raise raised

    cupy = pretend_cupy()
    cupy.cuda.alloc = alloc
    with pytest.raises(expected) as caught:
        CupyDevice(cupy).allocate(4)
    assert type(caught.value) is expected
    assert str(raised) in str(caught.value)


def test_errors_of_the_extension_become_ours():
    class Failure(RuntimeError):
        pass

    def memory(size):
        raise OutOfMemory("cudaErrorMemoryAllocation") if size > 10 else Failure("cudaErrorDeviceUnavailable")

    extension = SimpleNamespace(OutOfMemory=OutOfMemory, Failure=Failure, Memory=memory)
    device = ExtensionDevice(extension, [b"", b""])
    with pytest.raises(xk.DeviceOutOfMemory):
        device.allocate(11)
    with pytest.raises(xk.DeviceFailed, match="run it again, in a new process"):
        device.allocate(1)
    with pytest.raises(xk.DeviceUnavailable, match="need CuPy"):
        device.empty((1,), np.float32)


def test_arguments_pass_by_value_as_cupy_does_it(rng):
    """It takes an array of one element for a value, whatever the size of that, and refuses longer ones."""
    taken = []

    def kernel(grid, block, values, shared_mem):
        assert all(value.size == 1 for value in values)
        taken.append((grid, block, [value.tobytes() for value in values], shared_mem))

    cupy = pretend_cupy()
    cupy.RawModule = lambda **_: SimpleNamespace(get_function=lambda name: kernel)
    arguments = rng.integers(0, 256, 832, dtype=np.uint8)
    CupyDevice(cupy).launch("fit_start", 3, 128, [arguments], nullcontext(), 64)
    assert taken == [((3,), (128,), [arguments.tobytes()], 64)]
