"""What the GPU and the link to it could do, measured with the kernels of ``csrc/cuda/roof.cuh`` and plain copies."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xpkern.engine.cuda.arguments import parameter
from xpkern.engine.cuda.device import Device

#: Chains of multiply-adds in each thread (ROOF_CHAINS), and rounds: some 10 ms.
_CHAINS, _ROUNDS = 8, 1 << 17

#: Multiply-adds of a thread in a product of tiles, and rounds of as many products as there are chains.
_IN_TILES, _TILE_ROUNDS = 16, 1 << 13

#: Threads of a block, and blocks of a processor: enough for every scheduler to find a warp that is ready.
_BLOCK, _BLOCKS_A_PROCESSOR = 256, 8

#: Bytes copied in memory and over the link.
_COPIED, _SENT = 1 << 30, 1 << 28

#: Runs of which the median counts.
_RUNS = 7


class _RoofArguments(ctypes.Structure):
    _fields_ = (
        ("from_", ctypes.c_void_p),
        ("to", ctypes.c_void_p),
        ("sink", ctypes.c_void_p),
        ("n", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Roof:
    """Limits of one GPU.

    Attributes
    ----------
    float32, float64, tiles64 : float
        Multiply-adds [FLOP/s, two each]; the last ones in double in products of tiles, by tensor cores where there are.
    memory : float
        Read and written [B/s].
    to_device, to_host : float
        Over the link, from and to pinned memory [B/s].
    """

    float32: float
    float64: float
    tiles64: float
    memory: float
    to_device: float
    to_host: float

    def as_dict(self) -> dict[str, float]:
        """By names with units."""
        units = dict.fromkeys(("float32", "float64", "tiles64"), "GFLOP/s")
        return {f"{name} [{units.get(name, 'GB/s')}]": 1e-9 * value for name, value in asdict(self).items()}


def measure_roof(device: Device) -> Roof:
    """Measure all of them; a few seconds."""
    stream = device.new_stream()
    blocks = _BLOCKS_A_PROCESSOR * device.facts.processors
    copied = min(_COPIED, device.free_memory() // 8)
    sink, memory = device.allocate(8 * blocks * _BLOCK), device.allocate(2 * copied)
    pinned = device.allocate_host(min(_SENT, copied))

    def kernel(name: str, n: int) -> float:
        arguments = _RoofArguments(memory.pointer, memory.pointer + copied, sink.pointer, n)
        values = [parameter(arguments)]
        return _median(device, stream, lambda queue: device.launch(name, blocks, _BLOCK, values, queue))

    operations = 2.0 * blocks * _BLOCK * _CHAINS * _ROUNDS
    in_tiles = 2.0 * blocks * _BLOCK * _CHAINS * _IN_TILES * _TILE_ROUNDS
    return Roof(
        float32=operations / kernel("roof_float", _ROUNDS),
        float64=operations / kernel("roof_double", _ROUNDS),
        tiles64=in_tiles / kernel("roof_tiles", _TILE_ROUNDS),
        memory=2.0 * copied / kernel("roof_copy", copied // 16),
        to_device=pinned.size / _median(device, stream, lambda queue: device.to_device(memory.pointer, pinned, queue)),
        to_host=pinned.size / _median(device, stream, lambda queue: device.to_host(pinned, memory.pointer, queue)),
    )


def seconds(device: Device, work: Callable[[Any], None], stream: Any, runs: int = _RUNS) -> list[float]:
    """Times [s] of what a function queues, by the GPU's clock, after one run to warm up."""
    device.elapsed(work, stream)
    return [device.elapsed(work, stream) for _ in range(runs)]


def _median(device: Device, stream: Any, work: Callable[[Any], None]) -> float:
    return statistics.median(seconds(device, work, stream))


def host_copy_rate(size: int = 1 << 28) -> float:
    """How fast one thread copies in the host's memory [B/s]: a bound of whatever passes through pinned buffers."""
    import time

    source, target = np.zeros(size, np.uint8), np.ones(size, np.uint8)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return size / best
