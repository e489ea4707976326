"""From a file of spectra to a catalogue, all that lies between included: by the GPU, and by every core of its host."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import xpkern as xk
from bench.gpu.checks import Sample
from bench.gpu.roof import Roof
from xpkern.engine.contract import Coefficients
from xpkern.threads import number_of_threads

#: How often each engine makes the catalogue; the fastest time counts, as a first one compiles and fills caches.
_ROUNDS = 3


def measure_catalogues(engine: Any, roof: Roof, n_stars: int) -> dict[str, Any]:
    """An HDF5 file to a catalogue, under the learned noise of the shipped model."""
    import astropy  # noqa: F401 (catalogues need it)

    sample = Sample(min(n_stars, 8192))
    rows = np.arange(n_stars) % len(sample.truth)
    sources = {name: array[rows] for name, array in sample.survey.gaia_source.items()}
    sources["source_id"] = np.arange(1, n_stars + 1)
    model, prior = xk.load_model()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="xpkern-bench-") as folder:
        spectra = Path(folder) / "spectra.h5"
        _write(spectra, sources["source_id"], sample.survey.coefficients, rows)
        for name, by in (("GPU", engine), (f"{number_of_threads()} threads of its host", "cpu")):
            took = []
            for _ in range(_ROUNDS):
                begin = time.perf_counter()
                xk.make_catalog(
                    spectra,
                    Path(folder) / "catalog.h5",
                    gaia_source=sources,
                    model=model,
                    prior=prior,
                    engine=by,
                    overwrite=True,
                )
                took.append(time.perf_counter() - begin)
            figures[f"HDF5 to catalogue, {name} [stars/s]"] = n_stars / min(took)
    return figures


def _write(path: Path, source_id: np.ndarray, coefficients: Coefficients, rows: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["source_id"] = source_id
        for band in ("bp", "rp"):
            file[f"{band}_n_parameters"] = np.full(len(rows), getattr(coefficients, band).shape[1], np.int16)
            for name, of_band in (
                ("coefficients", band),
                ("coefficient_errors", f"{band}_error"),
                ("coefficient_correlations", f"{band}_correlation"),
                ("standard_deviation", f"{band}_standard_deviation"),
            ):
                file[f"{band}_{name}"] = getattr(coefficients, of_band)[rows]
