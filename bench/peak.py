"""The roof: the measured FMA rate of one core, by a few lines of C++ that do nothing else."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "fma_peak.cpp"


class FmaPeak:
    """The microbenchmark, compiled once; calling it measures now, on the CPU that this process is pinned to.

    The clock of a core changes with load and temperature: measure the roof in the same minute as what is under it.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._program = Path(self._folder.name) / "fma_peak"
        command = [os.environ.get("CXX", "g++"), "-std=c++17", "-O3", "-ffp-contract=fast", str(SOURCE)]
        subprocess.run([*command, "-o", str(self._program)], check=True)

    def __call__(self) -> dict[str, float]:
        """Return the peak [GFLOP/s, float32, one core] of each instruction set that this processor has."""
        output = subprocess.run([self._program], capture_output=True, text=True, check=True).stdout
        return {name: float(value) for name, value in (line.split() for line in output.splitlines())}
