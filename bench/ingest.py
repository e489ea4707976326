"""How fast a bulk file becomes a catalogue, where the time goes, and what memory it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isal import igzip

import xpkern as xk
from bench.coefficients import calibration_of
from bench.fitting import Fitter
from bench.harness import Contestant, compare, measure_once, null_run
from bench.result import Result
from bench.stars import longer_file, model_and_prior, plain_file, survey_files
from xpkern.catalog.output import CatalogOutput
from xpkern.catalog.provenance import provenance_of_fit
from xpkern.catalog.rows import star_rows
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks

#: Rows that GaiaXPy is given: it takes a millisecond for each.
ROWS_OF_GAIAXPY = 256

#: The parts that decide: what the whole should hardly exceed.
DECISIVE = ("gunzip", "parse", "calibrate", "start and fit")

#: Lengths of the files whose memory is compared, in multiples of the benchmark's own. With 16,384 rows the longer one
#: has as many rows as the archive's files.
LENGTHS = (1, 4)

#: What a fresh Python does to tell its own high-water mark [kB]; that of its parent does not count into VmHWM.
CHILD = """
import re, sys
import xpkern as xk
spectra, gaia_source, catalog, engine = sys.argv[1:]
xk.make_catalog([spectra], catalog, gaia_source=gaia_source, engine=engine, threads=1, overwrite=True)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def bench_ingest(n_rows: int, rounds: int, engine_name: str) -> Result:
    """A bulk csv.gz file to a catalogue, against stacks that stop at fluxes and covariances: Python's best, GaiaXPy."""
    files = survey_files(n_rows)
    ours = catalogue_contestant("csv.gz", files.spectra, files.gaia_source, n_rows, engine_name)
    extra: dict[str, Any] = {"rows": n_rows, "compressed size of a row [B]": files.spectra.stat().st_size / n_rows}
    duels = []
    for name, make in (("Python stack", _python_stack), ("GaiaXPy", _gaiaxpy)):
        try:
            duels.append(compare(ours, make(files.spectra, n_rows), rounds=rounds, repeats=1))
        except ImportError as error:
            extra[name] = str(error)
    parts = profile(n_rows, engine_name, files.spectra.with_name("parts.h5"))
    whole = 1e6 / measure_once(ours, 3)
    extra |= {f"{name} alone [us a row]": microseconds for name, microseconds in parts.items()}
    extra |= {
        "sum of the parts alone [us a row]": sum(parts.values()),
        "end to end, best of 3 [us a row]": whole,
        "sum of the parts, share of end to end": sum(parts.values()) / whole,
        f"{' + '.join(DECISIVE)}, share of end to end": sum(parts[name] for name in DECISIVE) / whole,
    }
    for times in LENGTHS:
        spectra = longer_file(files.spectra, times)
        extra[f"peak memory, {times * n_rows:,} rows [MB]"] = peak_memory(spectra, files.gaia_source, engine_name)
        spectra.unlink()
    return Result("ingest", "rows/s", duels, null_run(ours, rounds=rounds, repeats=1), extra)


def catalogue_contestant(name: str, spectra: Path, gaia_source: Path, n_rows: int, engine_name: str) -> Contestant:
    """Return what makes a catalogue of a file, one that is not there yet, with one thread."""
    model, prior = model_and_prior()
    catalog = spectra.with_name("catalog.h5")

    def run() -> None:
        xk.make_catalog(
            spectra, catalog, gaia_source=gaia_source, model=model, prior=prior, engine=engine_name, threads=1
        )

    def clear() -> None:
        for path in catalog.parent.glob("catalog.*h5"):
            path.unlink()

    return Contestant(f"{name} to catalogue, end to end", run, n_rows, clear)


def profile(n_rows: int, engine_name: str, scratch: Path) -> dict[str, float]:
    """Time [us] that each part of the work takes for a row when done alone."""
    spectra = survey_files(n_rows).spectra
    calibration = Calibration.default()
    fitter = Fitter(xk.get_engine(engine_name), n_rows)
    fit = xk.fit(fitter.obs, fitter.model, fitter.prior, engine=fitter.engine, threads=1)
    plain = plain_file(spectra, n_rows)

    def parse() -> None:
        for _ in read_blocks(plain, calibration):
            pass

    def write() -> None:
        with CatalogOutput(scratch, "default", provenance_of_fit(fit, "default")) as output:
            output.append(star_rows(fit))
            output.commit()

    parts: dict[str, Callable[[], object]] = {
        "gunzip": lambda: _gunzip(spectra),
        "parse": parse,
        "calibrate": calibration_of(fitter.engine, n_rows),
        "start and fit": lambda: fitter.fit(fitter.grid),
        "covariance": lambda: fitter.engine.invert_information(fit.fisher),
        "write": write,
    }
    return {name: 1e6 / measure_once(Contestant(name, run, n_rows), 3) for name, run in parts.items()}


def peak_memory(spectra: Path, gaia_source: Path, engine_name: str) -> float:
    """High-water mark of the resident memory [MB] of a process of its own that makes a catalogue of a file."""
    arguments = [str(spectra), str(gaia_source), str(spectra.with_name("memory.h5")), engine_name]
    checkout = str(Path(__file__).parents[1])
    search = os.pathsep.join([checkout, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        env=os.environ | {"PYTHONPATH": search},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(child.stdout.split()[-1]) * 1024e-6


def _python_stack(spectra: Path, n_rows: int) -> Contestant:
    from bench.peers.python_csv import python_calibrate

    calibration, noise = Calibration.default(), model_and_prior()[0].noise

    def run() -> None:
        for _ in python_calibrate(spectra, calibration, noise):
            pass

    return Contestant("igzip, pyarrow, simdjson, NumPy calibration: csv.gz; fits nothing", run, n_rows)


def _gaiaxpy(spectra: Path, n_rows: int) -> Contestant:
    try:
        import gaiaxpy
    except ImportError as error:
        raise ImportError("this peer needs GaiaXPy: pip install 'xpkern[bench]' (or pip install gaiaxpy)") from error

    rows = min(n_rows, ROWS_OF_GAIAXPY)
    plain = plain_file(spectra, rows)
    wavelength = Calibration.default().wavelength

    def run() -> None:
        with silenced():
            gaiaxpy.calibrate(plain, sampling=wavelength, save_file=False)

    return Contestant("GaiaXPy calibrate: plain csv, no correlations; fits nothing", run, rows)


@contextmanager
def silenced() -> Iterator[None]:
    """Send standard output and error nowhere, progress bars of libraries that hold on to them included."""
    kept = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "w") as nowhere:
        try:
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
            yield
        finally:
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def _gunzip(path: Path) -> None:
    with igzip.open(path, "rb") as stream:
        while stream.read(1 << 20):
            pass
