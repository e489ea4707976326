"""Build the C++ tests of csrc with sanitizers and run them.

Every ``*_test.cpp`` in this folder is one program, built with the flags of the real build but for the
optimisation level: for the baseline and for the widest instruction set that this processor has. Those of
:data:`CUDA_TESTS` are built with the text of the CUDA kernels, in one or both of its forms. With ``--aarch64`` all
others are cross-compiled for NEON (Debian's package g++-aarch64-linux-gnu), without sanitizers, and run by
qemu-aarch64. Needs nothing of PyPI.
Usage: ``python tests/cpp/run.py [--every-isa | --aarch64] [name ...]``.
"""

from __future__ import annotations

import os
import platform
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "cpp_tests"

#: Where the compiler flags are stated.
BUILT_WITH = runpy.run_path(str(ROOT / "csrc" / "compiler_flags.py"))

#: Not optimised: the programs run for seconds, but optimising code full of checks takes twice as long.
CHECKED = ["-O0", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-Werror"]

#: A call for each access in place of code: less to compile; as GCC spells it.
CHECK_BY_CALLS = ["--param", "asan-instrumentation-with-call-threshold=0"]

#: Sanitizers of the baseline, and of everything else: those that watch indices. The rest more than double the time to
#: compile, for mathematics that the baseline has in common with all others.
EVERY_CHECK, INDEX_CHECKS = "-fsanitize=address,undefined", "-fsanitize=address,signed-integer-overflow,bounds,shift"

#: Processor flags (as /proc/cpuinfo names them) that an instruction set needs.
NEEDED = {"scalar": set(), "neon": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512dq", "avx512vl"}}


@dataclass(frozen=True)
class Machine:
    """How programs are built for a machine and run."""

    name: str
    compiler: str
    flags: list[str]
    sanitized: bool
    runner: list[str]
    isas: list[str]


def this_machine() -> Machine:
    """Return this one, with the instruction sets that are built for it and that its processor has."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    isas = [isa for isa in BUILT_WITH["ISAS"].get(platform.machine().lower(), ["scalar"]) if words >= NEEDED[isa]]
    compiler = os.environ.get("CXX", "g++")
    flags = CHECKED if "clang" in compiler else [*CHECKED, *CHECK_BY_CALLS]
    return Machine(platform.machine(), compiler, flags, True, [], isas)


def emulated_aarch64() -> Machine:
    """Return an aarch64 machine that this one emulates."""
    flags = ["-O0", "-g0", "-static"]  # a static program needs no aarch64 libraries to be run
    return Machine("aarch64", "aarch64-linux-gnu-g++", flags, False, ["qemu-aarch64"], ["neon"])


#: Tests of code without vectors: the baseline's is enough.
OF_NO_ISA = ("parquet_test",)

#: Tests of code that is soon optimised: a minute or two of running becomes seconds.
SOON_OPTIMISED = ("csv_test", "parquet_test")

#: What a test of kernels for GPUs is built with in place of an instruction set, by the name of its form; and the forms
#: of each such test.
CUDA_FORMS = {"cuda": [], "cuda_general": ["-DXPKERN_GENERAL"]}
CUDA_TESTS = {"cuda_test": ["cuda", "cuda_general"], "cuda_freeze_test": ["cuda"], "cuda_round_test": ["cuda"]}


def build_and_run(machine: Machine, source: Path, isa: str) -> tuple[str, int, str]:
    """Build one program for one instruction set and run it; return its name, exit code and output."""
    program = BUILD / f"{source.stem}-{machine.name}-{isa}"
    of_isa = BUILT_WITH["ISA_FLAGS"].get(isa, [])
    flags = [flag for flag in [*BUILT_WITH["COMMON_FLAGS"], *of_isa] if not flag.startswith(("-O", "-g"))]
    if isa in CUDA_FORMS:
        defines = ["-DXPKERN_ISA=cuda", *CUDA_FORMS[isa]]
    else:
        # functions are called instead of inlined, which takes a sixth of the time to compile
        defines = [f"-DXPKERN_ISA={isa}", "-DXPKERN_CALLS"]
        defines += ["-DXPKERN_SCALAR_LANES"] * (isa == "scalar")  # as isa_scalar.cpp does
    optimised = ["-O1"] * (source.stem in SOON_OPTIMISED)  # the last one counts
    checks = [EVERY_CHECK if isa == "scalar" else INDEX_CHECKS] * machine.sanitized
    command = [machine.compiler, *flags, *machine.flags, *optimised, *checks, *defines, str(source), "-o", str(program)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        return program.name, built.returncode, built.stderr
    ran = subprocess.run([*machine.runner, program], cwd=ROOT, capture_output=True, text=True, check=False)
    return program.name, ran.returncode, ran.stdout + ran.stderr


def main(arguments: list[str]) -> int:
    """Build and run the programs named (all of them by default); return the number that failed."""
    names = [argument for argument in arguments if not argument.startswith("--")]
    machine = emulated_aarch64() if "--aarch64" in arguments else this_machine()
    isas = machine.isas
    if "--every-isa" not in arguments:
        isas = sorted({isas[0], isas[-1]})
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = [path for path in sorted(HERE.glob("*_test.cpp")) if not names or path.stem in names]
    jobs = [
        (source, isa)
        for source in sources
        for isa in (machine.isas[:1] if source.stem in OF_NO_ISA else isas)
        if source.stem not in CUDA_TESTS
    ]
    if "--aarch64" not in arguments:  # what takes longest first
        of_gpu = [source for source in reversed(sources) if source.stem in CUDA_TESTS]
        jobs = [(source, form) for source in of_gpu for form in CUDA_TESTS[source.stem]] + jobs
    failures = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, code, output in pool.map(lambda job: build_and_run(machine, *job), jobs):
            failures += code != 0
            print(f"{name}: {'passed' if code == 0 else f'FAILED (exit code {code})'}")
            if output:
                print("    " + output.strip().replace("\n", "\n    "))
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
