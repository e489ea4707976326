"""Compile the CUDA kernels and every header of ``csrc/core`` with NVRTC; hold what kernels take against a table.

That is what CuPy's RawModule does on a user's machine, minus the driver (``bench/gpu/nvrtc.py``). A warning is a
failure. Of the kernels for the usual sizes registers, stack and spills are printed: they are compiled for a GPU, the
others no further than PTX, in haste.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

#: The benchmarks' module, which imports nothing of xpkern.
NVRTC = runpy.run_path("bench/gpu/nvrtc.py")

#: Kernels that a star passes through most often: no spill at all.
WITHOUT_SPILLS = {
    *("calibrate", "freeze_noise", "predict", "evaluate", "start", "fit_start", "fit_search", "fit_finish", "descend"),
    *("train_stars", "train_products", "train_model", "train_star_steps"),
}

#: Bytes of spills that another kernel may have: they may not grow; one that is not named may have none. Few stars are
#: rescued.
CEILINGS = {"fit_rescue": 372}

#: Largest stack of a thread [bytes], callees included: the GPU reserves as much for every thread that it can hold.
LARGEST_STACK = {"fit_rescue": 34_500}
LARGEST_STACK_OF_OTHERS = 1_300

#: Files of ``csrc/cuda`` that are compiled side by side; what is in no one of them takes little.
PARTS = (
    *("fit_search", "fit_finish", "starts", "stars", "calibrate", "freeze_warp", "train", "descent"),
    *("information", "curvature"),
)


@dataclass(frozen=True)
class Job:
    """A text to be compiled, its name and the flags that are its own."""

    name: str
    text: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Usage:
    """What a kernel takes: registers of a thread, bytes of its stack, bytes of spills to it, callees included."""

    kernel: str
    registers: int
    stack: int
    spills: int

    @property
    def complaint(self) -> str | None:
        """What is wrong with it."""
        allowed = 0 if self.kernel in WITHOUT_SPILLS else CEILINGS.get(self.kernel, 0)
        if self.spills > allowed:
            return f"{self.kernel} spills {self.spills} bytes, {allowed} are allowed"
        most = LARGEST_STACK.get(self.kernel, LARGEST_STACK_OF_OTHERS)
        return f"{self.kernel} has a stack of {self.stack} bytes, {most} are allowed" if self.stack > most else None


def jobs() -> list[Job]:
    """Everything that is compiled, what takes longest first."""
    of_gpu = ("-arch=sm_90", "--ptxas-options=-v")
    usual = [Job(f"kernels for sm_90, {part}", f'#include "cuda/{part}.cuh"\n', of_gpu) for part in PARTS]
    whole, older = '#include "cuda/kernels.cu"\n', ("-arch=compute_80", "--Ofast-compile=max")
    general = Job("general kernels for compute_80", whole, (*older, "-DXPKERN_GENERAL"))
    headers = [path.name for path in sorted(Path("csrc/core").glob("*.hpp"))]
    alone = [Job(f"core/{name}", f'#include "core/{name}"\n', older) for name in headers]
    without_tensor_cores = ("-arch=compute_75", "--Ofast-compile=max")  # for double
    oldest = Job("kernels for compute_75", whole, without_tensor_cores)
    return [general, oldest, *usual[:2], Job("kernels for compute_80", whole, older), *usual[2:], *alone]


def usages(log: str) -> Iterator[Usage]:
    """What ptxas says of each kernel; below a kernel's name it lists the kernel and then what that calls."""
    for section in re.split(r"Compiling entry function '", log)[1:]:
        kernel = section[: section.index("'")]
        of_each = re.findall(r"(\d+) bytes spill stores, (\d+)", section)
        spills = sum(int(stores) + int(loads) for stores, loads in of_each)
        stack = re.search(r"(\d+) bytes cumulative stack size", section) or re.search(r"(\d+) bytes stack", section)
        registers = re.search(r"Used (\d+) registers", section)
        if stack is None or registers is None:
            raise ValueError(f"ptxas said of {kernel} what this script does not understand:\n{section}")
        yield Usage(kernel, int(registers[1]), int(stack[1]), spills)


def main() -> int:
    """Compile everything; return the number of failures."""
    if len(sys.argv) > 1:  # a process of its own for each text: NVRTC compiles one at a time
        job = jobs()[int(sys.argv[1])]
        result, log, _ = NVRTC["compile_text"](NVRTC["load_nvrtc"](), job.text, job.flags)
        print(log)
        return result

    def run(number: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, __file__, str(number)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    todo = jobs()
    failures, found = [], {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for job, done in zip(todo, pool.map(run, range(len(todo))), strict=True):
            if done.returncode != 0 or "warning" in done.stdout:
                failures.append(f"NVRTC failed on {job.name}:\n{done.stdout}{done.stderr}")
            found |= {usage.kernel: usage for usage in usages(done.stdout)}
    print(f"NVRTC compiled {len(todo) - len(failures)} of {len(todo)} texts. On sm_90, of a thread:")
    print("kernel            registers  stack [B]  spills [B]")
    for usage in sorted(found.values(), key=lambda each: each.kernel):
        print(f"{usage.kernel:17} {usage.registers:9} {usage.stack:10} {usage.spills:11}")
        failures += [usage.complaint] if usage.complaint else []
    failures += [f"no kernel {name} was found" for name in sorted((WITHOUT_SPILLS | CEILINGS.keys()) - found.keys())]
    print("\n".join(failures))
    return len(failures)


if __name__ == "__main__":
    sys.exit(main())
