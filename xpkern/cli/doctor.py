"""``xpkern doctor``: what this installation can do on this machine."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
from typing import Any

from xpkern.version import __version__

LIBRARIES = ("numpy", "scipy", "scikit-learn", "h5py", "astropy", "isal", "pyarrow", "tqdm", "matplotlib")

EPILOG = """\
The exit code is 1 if something is missing that xpkern needs; a GPU is not.
The environment variable XPKERN_ISA chooses an instruction set, XPKERN_NUM_THREADS the number of threads,
CUDA_VISIBLE_DEVICES the GPU, XPKERN_CUDA_DOOR (cupy, extension) what stands between; CuPy keeps compiled kernels in
CUPY_CACHE_DIR.
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor",
        help="engines, instruction set, threads, GPU, versions",
        description="Say what this installation of xpkern can do on this machine, and why not more.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; return 1 if something is missing that xpkern needs."""
    print(f"xpkern     {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    healthy = True
    for name, check in (("cpu", cpu_engine), ("reference", reference_engine), ("reader", reader), ("model", model)):
        try:
            finding = check()
        except Exception as error:
            # a broken installation can fail in any way; saying how is what this command is for
            finding = f"NOT USABLE: {type(error).__name__}: {error}"
            healthy = False
        print(f"{name:<10} {finding}")
    print(f"{'gpu':<10} {gpu()}")
    print(f"{'libraries':<10} {', '.join(versions())}")
    return 0 if healthy else 1


def cpu_engine() -> str:
    """Return what the compiled engine found."""
    from xpkern.engine.cpu import CpuEngine, instruction_sets
    from xpkern.threads import number_of_threads

    used = CpuEngine().instruction_set
    others = ", ".join(name for name in instruction_sets() if name != used)
    also = f" (this machine can also run {others})" if others else ""
    return f"engine ready: {used}{also}, {number_of_threads()} threads"


def reference_engine() -> str:
    """Return what the reference engine is."""
    from xpkern.engine.reference import ReferenceEngine

    return f"engine ready: {ReferenceEngine.__name__}, NumPy in float64, slow on purpose"


def reader() -> str:
    """Return whether the compiled reader of bulk files and its gunzip are there."""
    importlib.import_module("xpkern.observe._csv")
    importlib.import_module("isal.igzip")
    return "ready: compiled csv parser, isa-l gunzip"


def model() -> str:
    """Return which model comes with the package."""
    from xpkern.model import load_model

    flux_model, _ = load_model()
    scale = "theoretical" if flux_model.scale_sigma > 0 else "calibrated by parallaxes"
    return f"default model {flux_model.digest[:12]}, {flux_model.n_samples} samples, flux scale {scale}"


def gpu() -> str:
    """Return which GPU xpkern would use and through what, or exactly why none."""
    from xpkern.engine.cuda.device import open_device
    from xpkern.errors import XpkernError

    try:
        device = open_device()
        facts, free = device.facts, device.free_memory()
    except XpkernError as error:
        return f"not used: {error}"
    return (
        f"engine ready: {facts.name}, compute capability {facts.compute_capability}, "
        f"{free / 1e9:.1f} of {facts.memory / 1e9:.1f} GB free, driver for CUDA {facts.driver}; "
        f"through {facts.door}, kernels by {facts.compiler}"
    )


def versions() -> list[str]:
    """Return name and version of the libraries that xpkern needs."""
    found = []
    for library in LIBRARIES:
        try:
            found.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{library} MISSING")
    return found
