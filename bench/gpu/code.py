"""What a GPU's processors need to bring the code of a long kernel: cycles an instruction, by how much code there is.

The kernels that are measured do nothing but multiply and add, without a branch for as many instructions as fit into so
many kB, over and over. Warps that are in step are always at the same instruction; those that are apart begin an eighth
of the code further on each. Whatever is beyond what a processor holds comes from a cache that several of them share:
that is what a block on each processor shows beside a single one.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

#: kB of code; bytes of an instruction, since Volta.
_SIZES, _INSTRUCTION = (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256), 16

#: Parts of the code that a warp can begin with, and instructions that a warp passes at least.
_PARTS, _PASSED = 8, 200_000

_KERNEL = """
extern "C" __global__ void __launch_bounds__(256)
code_{size}(int rounds, int apart, float factor, float* unused, long long* took) {{
    float a = threadIdx.x, b = a;
    const int warp = threadIdx.x / 32;
    int part = apart ? warp * {parts} / (blockDim.x / 32) % {parts} : 0;
    __syncthreads();
    const long long begin = clock64();
    #pragma unroll 1
    for (int left = rounds; left > 0; --left) {{
        switch (part) {{
{cases}
        }}
        part = 0;
    }}
    if (a + b == -1.25f) unused[0] = a;
    if (threadIdx.x % 32 == 0) took[blockIdx.x * 8 + warp] = clock64() - begin;
}}
"""


def main(arguments: list[str]) -> int:
    """Print the table, and write it as JSON; the exit code is 1 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench code", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results" / "local")
    options = parser.parse_args(arguments)
    from bench.gpu.suite import folder_of, open_engine

    engine = open_engine("code")
    if engine is None:
        return 1
    facts = engine.device.facts
    print(
        f"{facts.name}: cycles of a warp an instruction\n{'blocks, warps; kB of code:':34}",
        *(f"{s:6d}" for s in _SIZES),
    )
    rows = measure_code(facts.processors)
    for name, cycles in rows.items():
        print(f"{name:34}", *(f"{each:6.2f}" for each in cycles), flush=True)
    path = folder_of(engine, options.output) / "code.json"
    path.write_text(json.dumps({"gpu": asdict(facts), "kB": _SIZES, "cycles an instruction": rows}, indent=2) + "\n")
    print(f"written to {path}")
    return 0


def measure_code(processors: int) -> dict[str, list[float]]:
    """Cycles of a warp an instruction, for each of _SIZES."""
    import cupy

    module = cupy.RawModule(code=text_of_kernels(), options=("-std=c++17",), backend="nvrtc")
    unused, took = cupy.zeros(1, np.float32), cupy.zeros((processors, 8), np.int64)
    rows: dict[str, list[float]] = {}
    for blocks in (1, processors):
        for warps in (1, 2, 4, 8):
            for apart in (False, True)[: min(warps, 2)]:
                name = f"{blocks}, {warps}" + (" apart" if apart else " in step" if warps > 1 else "")
                rows[name] = [_measured(module, size, blocks, warps, apart, unused, took) for size in _SIZES]
    return rows


def _measured(module: Any, size: int, blocks: int, warps: int, apart: bool, unused: Any, took: Any) -> float:
    instructions = size * 1024 // _INSTRUCTION
    rounds = max(4, _PASSED // instructions)
    kernel = module.get_function(f"code_{size}")
    for _ in range(2):  # the first one finds no code anywhere
        kernel((blocks,), (32 * warps,), (np.int32(rounds), np.int32(apart), np.float32(0.5), unused, took))
    skipped = np.arange(warps) / warps if apart else np.zeros(warps)  # of the first round
    return float(np.mean(took.get()[:blocks, :warps] / ((rounds - skipped) * instructions)))


def text_of_kernels() -> str:
    """CUDA of a kernel for each size."""
    return "".join(
        _KERNEL.format(size=size, parts=_PARTS, cases="\n".join(_case(part, size) for part in range(_PARTS)))
        for size in _SIZES
    )


def _case(part: int, size: int) -> str:
    # two chains of sums; a few instructions of each part are the loop's own
    count = size * 1024 // _INSTRUCTION // _PARTS - 2
    lines = "".join(f"fma.rn.f32 %{i % 2}, %{i % 2}, %2, %2;\\n" for i in range(count))
    return f'            case {part}: asm volatile("{lines}" : "+f"(a), "+f"(b) : "f"(factor));'


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
