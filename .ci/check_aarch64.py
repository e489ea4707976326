"""Cross-compile every translation unit of the extension modules for aarch64 with the clang of the ziglang wheel.

Not optimised, and functions called instead of inlined, which takes a quarter of the time: what a compiler makes of them
is run by the C++ tests (tests/cpp/run.py --aarch64).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

specification = importlib.util.spec_from_file_location("setup", "setup.py")
setup = importlib.util.module_from_spec(specification)
specification.loader.exec_module(setup)


def compile_for_aarch64(source: str, folder: str) -> int:
    """Compile one source; return the exit code."""
    target = Path(folder, Path(source).with_suffix(".o").name)
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu", "-fPIC", "-c"]
    command = [*compiler, *setup.flags_of_source(source), "-O0", "-DXPKERN_CALLS", *includes, source, "-o", target]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        print(result.stderr)
    return result.returncode


def main() -> int:
    """Compile everything; return the number of failures."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        sources = [*setup.sources_of_cpu_engine("aarch64"), *setup.sources_of_csv("aarch64"), *setup.PARQUET_SOURCES]
        codes = list(pool.map(lambda source: compile_for_aarch64(source, folder), sources))
    failed = [source for source, code in zip(sources, codes, strict=True) if code != 0]
    print(f"aarch64: {len(sources) - len(failed)} of {len(sources)} sources compiled", *failed)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
