"""What the readers do with anything: the compiled csv parser under sanitizers, damaged files of the other formats."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from bench.result import Result
from bench.spectrum_formats import FEW, FILES, some_columns
from xpkern.errors import InputError
from xpkern.observe.spectra import read_blocks

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "tests" / "cpp" / "csv_fuzz_test.cpp"

#: How it is built: optimised a little, as ten million inputs take minutes.
FLAGS = ["-std=c++17", "-O1", "-g1", "-fno-omit-frame-pointer", "-Wno-psabi", "-Icsrc", "-DXPKERN_ISA=scalar"]
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

#: Formats whose files are damaged, and how many of them for each input of the csv parser.
FORMATS = (
    *("csv.gz", "ecsv", "h5", "fits", "tabledata.xml", "binary2.xml", "avro"),
    *("parquet", "large.parquet", "fixed.parquet"),
)
FILES_PER_INPUT = 1 / 5000


def bench_fuzz(n_inputs: int, _rounds: int, _engine: str) -> Result:
    """Inputs that the csv parser survives under AddressSanitizer and UBSan, and damaged files of the other formats."""
    extra: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="xpkern-bench-") as name:
        folder = Path(name)
        program, how, arguments = _built(folder, n_inputs)
        started = time.perf_counter()
        run = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        extra |= {
            "csv parser, built by": how,
            "csv parser, inputs": n_inputs,
            "csv parser, inputs/s": n_inputs / seconds,
            "csv parser, findings": "none" if run.returncode == 0 else (run.stdout + run.stderr)[-2000:],
        }
        rng = np.random.default_rng()
        for form in FORMATS:
            count = max(1, int(n_inputs * FILES_PER_INPUT))
            refused, marked, sound = _damaged_files(form, count, folder, rng)
            extra[f"{form}, damaged files"] = count
            extra[f"{form}, refused / with bad rows / unharmed"] = f"{refused} / {marked} / {sound}"
    return Result("fuzz", "inputs/s", extra=extra)


def _built(folder: Path, n_inputs: int) -> tuple[str, str, list[str]]:
    """Build the target, with libFuzzer where clang is; return the program, how it was built, its arguments."""
    program = str(folder / "csv_fuzz")
    clang = shutil.which("clang++")
    if clang is not None:
        command = [clang, *FLAGS, *CHECKS, "-DXPKERN_LIBFUZZER", "-fsanitize=fuzzer", str(TARGET), "-o", program]
        if subprocess.run(command, cwd=ROOT, check=False).returncode == 0:
            return program, "clang++ with libFuzzer", [f"-runs={n_inputs}", "-max_len=4000"]
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, *FLAGS, *CHECKS, str(TARGET), "-o", program]
    subprocess.run(command, cwd=ROOT, check=True)
    return (
        program,
        f"{compiler} with a mutator of its own",
        [str(n_inputs), str(np.random.default_rng().integers(1 << 30))],
    )


def _damaged_files(form: str, count: int, folder: Path, rng: np.random.Generator) -> tuple[int, int, int]:
    """Files that were refused, that had bad rows, and that had none; anything but an InputError is raised."""
    path = folder / f"spectra.{form}"
    FILES[form](path, some_columns(rng, 6))
    whole = path.read_bytes()
    outcomes = [0, 0, 0]
    for _ in range(count):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 8)):
            place = int(rng.integers(len(content)))
            kind, size = rng.integers(5), int(rng.integers(1, 9))
            if kind == 0:
                content[place] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                content[place : place + size] = rng.bytes(size)
            elif kind == 2:
                content[place : place + size] = (b"\xff" if rng.integers(2) else b"\0") * size
            elif kind == 3:
                del content[place : place + size]
            else:
                other = int(rng.integers(len(content)))
                content[place : place + 4 * size] = content[other : other + 4 * size]
        path.write_bytes(content)
        outcomes[_outcome(path)] += 1
    return outcomes[0], outcomes[1], outcomes[2]


def _outcome(path: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reasons = [reason for block in read_blocks(path, FEW, rows=4) for reason in block.reasons]
        except InputError:
            return 0
        except BaseException:
            shutil.copy(path, Path(tempfile.gettempdir()) / f"xpkern-found.{path.name}")  # to be looked at
            raise
    return 1 if reasons else 2
