"""``xpkern doctor``: what this installation can do on this machine."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from xpkern.version import __version__

#: What pyproject.toml requires; a test holds the two together.
LIBRARIES = (
    "numpy",
    "scipy",
    "scikit-learn",
    "h5py",
    "astropy",
    "cramjam",
    "isal",
    "pyarrow",
    "tqdm",
    "matplotlib",
    "numba",
    "threadpoolctl",
    *(() if sys.version_info >= (3, 11) else ("tomli",)),
)

EPILOG = """\
examples
  xpkern doctor
  XPKERN_ISA=avx2 XPKERN_NUM_THREADS=4 xpkern doctor
  xpkern doctor || echo "not usable, it says why"

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
    for name, check in (
        ("machine", machine),
        ("cpu", cpu_engine),
        ("reference", reference_engine),
        ("reader", reader),
        ("writers", writers),
        ("model", model),
        ("fit", self_test),
    ):
        try:
            finding = check()
        except Exception as error:
            # a broken installation can fail in any way; saying how is what this command is for
            finding = f"NOT USABLE: {type(error).__name__}: {error}"
            healthy = False
        print(f"{name:<10} {finding}")
    print(f"{'gpu':<10} {gpu()}")
    found = versions()
    print(f"{'libraries':<10} {', '.join(found)}")
    return 0 if healthy and not any(library.endswith("MISSING") for library in found) else 1


def machine() -> str:
    """Return what this process may use of the machine."""
    from xpkern.threads import number_of_threads

    page = os.sysconf("SC_PAGE_SIZE")
    memory, free = (os.sysconf(name) * page / 1e9 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    return f"{number_of_threads()} threads, {free:.1f} of {memory:.1f} GB of memory unused; a catalogue takes 0.3 GB"


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
    """Return whether the compiled readers and gunzip are there."""
    importlib.import_module("xpkern.observe._csv")
    importlib.import_module("xpkern.observe._parquet")
    importlib.import_module("isal.igzip")
    return "ready: compiled csv parser, isa-l gunzip"


def writers() -> str:
    """Return which formats can be written: a table without rows is, in each of them."""
    from xpkern.catalog.schema import DEFAULT
    from xpkern.catalog.writers import WRITERS

    with tempfile.TemporaryDirectory() as folder:
        for suffix, writer in WRITERS.items():
            writer(Path(folder) / f"catalog{suffix}", DEFAULT, {}).close()
    return f"ready: {', '.join(WRITERS)}"


def model() -> str:
    """Return which model comes with the package."""
    from xpkern.model import load_model

    flux_model, _ = load_model()
    scale = "theoretical" if flux_model.scale_sigma > 0 else "calibrated by parallaxes"
    return f"default model {flux_model.digest[:12]}, {flux_model.n_samples} samples, flux scale {scale}"


def self_test() -> str:
    """Return whether the Sun's parameters are found in the spectrum that the model predicts for them."""
    import numpy as np

    from xpkern.fit.fit import fit
    from xpkern.grid import PARAMETERS
    from xpkern.model import load_model
    from xpkern.observe.observations import Observations

    flux_model, prior = load_model()
    sun = np.array([5.77, 0.0, 4.44, 0.1, 10.0])
    flux = flux_model.predict(**dict(zip(PARAMETERS, sun, strict=True)))
    errors = np.where(flux > 0, 0.01 * flux, np.inf)
    observations = Observations.from_arrays(
        flux=flux, whitener=np.einsum("ni,ij->nij", 1.0 / errors, np.eye(flux.shape[1])), plx=sun[-1:], plx_err=[0.01]
    )
    found = fit(observations, flux_model, prior).params[0]
    # the prior and the logarithms move it by less than its error, some tens of K
    if not abs(found - sun)[:3].max() < 0.1:
        raise ArithmeticError(f"the Sun's spectrum gives teff, feh, logg = {found[:3].round(3).tolist()}")
    return f"works: the model's spectrum of the Sun gives {1000.0 * found[0]:.0f} K, log g {found[2]:.2f}"


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
    from importlib import metadata

    found = []
    for library in LIBRARIES:
        try:
            found.append(f"{library} {metadata.version(library)}")
        except metadata.PackageNotFoundError:
            found.append(f"{library} MISSING")
    return found
