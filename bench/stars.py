"""Stars for the benchmarks: a survey from xpkern's own simulator, so that anyone can repeat a figure."""

from __future__ import annotations

import gzip
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np

import xpkern as xk
from xpkern.engine import Engine
from xpkern.engine.contract import Coefficients, Float64, StarData
from xpkern.engine.packed import pack_factor
from xpkern.model.noise import Noise
from xpkern.observe.calibration import Calibration
from xpkern.observe.gaia_source import SourceTable
from xpkern.observe.photometry import COLUMN_NAMES, infrared_flux
from xpkern.observe.simulate import Survey, SurveyFiles, simulate

SEED = 20230524


@cache
def model_and_prior() -> tuple[xk.FluxModel, xk.TypePrior]:
    """Return the shipped model and prior, with the noise of Eq. 2 alone: that of the simulated stars."""
    model, prior = xk.load_model()
    return replace(model, noise=model.noise.without_model_error()), prior


@cache
def survey(n_stars: int) -> Survey:
    """Return a simulated survey: magnitudes, errors and correlations as in Gaia DR3, with 2MASS photometry."""
    return simulate(*model_and_prior(), n_stars, seed=SEED)


_folder = TemporaryDirectory(prefix="xpkern-bench-")


@cache
def survey_files(n_stars: int) -> SurveyFiles:
    """Return the same survey in files, in the archive's bulk format; they vanish when Python ends."""
    return survey(n_stars).write(Path(_folder.name) / str(n_stars))


@cache
def observations(n_stars: int) -> xk.Observations:
    """Return the same survey as fluxes and whiteners."""
    return observed(survey(n_stars))


class Observed(Protocol):
    """What fluxes and whiteners are made of: of a survey, or of the like."""

    source_id: np.ndarray
    coefficients: Coefficients
    gaia_source: dict[str, np.ndarray]
    calibration: Calibration


def observed(stars: Observed, noise: Noise | None = None, engine: str | Engine = "auto") -> xk.Observations:
    """Return a survey as fluxes and whiteners: what the reader makes of its files, without the files.

    The noise is that of the shipped model when not given.
    """
    flux, error = infrared(stars)
    noise = model_and_prior()[0].noise if noise is None else noise
    calibrated = xk.get_engine(engine).calibrate(stars.calibration, stars.coefficients, noise, flux, error)
    return xk.Observations.from_arrays(
        source_id=stars.source_id,
        flux=calibrated.flux,
        packed_factor=calibrated.whitener,
        plx=stars.gaia_source["parallax"],
        plx_err=stars.gaia_source["parallax_error"],
        noise=noise,
    )


def infrared(stars: Observed) -> tuple[np.ndarray, np.ndarray]:
    """Return a survey's infrared fluxes and errors, each (n, 5), as the reader makes them."""
    table = SourceTable.of({"source_id": stars.source_id} | stars.gaia_source, "gaia_source", COLUMN_NAMES)
    return infrared_flux(table, table.rows_of(stars.source_id))


def dense_whiteners(obs: xk.Observations) -> np.ndarray:
    """Return every whitener as a full triangle, (n, 66, 66) float32: what a NumPy peer works with."""
    return np.stack([obs.whitener_dense(star) for star in range(len(obs))]).astype(np.float32)


def longer_file(path: Path, times: int) -> Path:
    """Write a bulk file whose rows are those of another one, ``times`` over; return its path."""
    text = gzip.decompress(path.read_bytes())
    header = _end_of_header(text)
    target = path.with_name(f"times-{times}-{path.name}")
    rows = gzip.compress(text[header:], 1)
    with open(target, "wb") as sink:
        sink.write(gzip.compress(text[:header], 1))
        for _ in range(times):
            sink.write(rows)
    return target


def plain_file(path: Path, rows: int) -> Path:
    """Write the first rows of a bulk file as plain csv without the ECSV header; return its path."""
    target = path.with_name(f"plain-{rows}.csv")
    with gzip.open(path, "rt") as source, open(target, "w") as sink:
        lines = (line for line in source if not line.startswith("#"))
        for _, line in zip(range(rows + 1), lines, strict=False):
            sink.write(line)
    return target


def _end_of_header(text: bytes) -> int:
    """Where the first row begins."""
    line = 0
    while text.startswith(b"#", line):
        line = text.index(b"\n", line) + 1
    return text.index(b"\n", line) + 1


def conditioned_stars(n_stars: int, largest_snr: float, largest_condition: float) -> tuple[StarData, StarData, Float64]:
    """Stars with generated covariances, as stored and before rounding, and their true parameters (n, 5).

    The signal-to-noise ratio of a star's samples is about the same, between 10 and ``largest_snr``; the correlation
    matrix has random eigenvectors and a condition number between 1 and ``largest_condition``. Both are log-uniform.
    """
    model, prior = model_and_prior()
    rng = np.random.default_rng(SEED)
    params = np.column_stack(
        [prior.sample(n_stars, rng), np.exp(rng.uniform(-3, 0, n_stars)), np.exp(rng.uniform(-1, 2, n_stars))]
    )
    flux = np.exp(model.ln_flux(params))
    samples = flux.shape[1]
    condition = np.exp(rng.uniform(0, np.log(largest_condition), n_stars))
    eigenvalues = condition[:, None] ** -np.linspace(0, 1, samples)
    vectors, _ = np.linalg.qr(rng.standard_normal((n_stars, samples, samples)))
    correlation = np.einsum("nij,nj,nkj->nik", vectors, eigenvalues, vectors, optimize=True)
    sigma = flux / np.exp(rng.uniform(np.log(10), np.log(largest_snr), n_stars))[:, None]
    sigma *= rng.uniform(0.7, 1, flux.shape) / np.sqrt(np.einsum("nii->ni", correlation))
    factor = np.linalg.cholesky(sigma[:, :, None] * correlation * sigma[:, None, :])
    flux = flux + np.einsum("nij,nj->ni", factor, rng.standard_normal(flux.shape))
    plx_error = 0.02 * params[:, -1]
    mean, error = np.zeros(params.shape), np.full(params.shape, np.inf)
    mean[:, -1] = params[:, -1] + plx_error * rng.standard_normal(n_stars)
    error[:, -1] = plx_error
    stored = StarData(flux.astype(np.float32), pack_factor(factor, np.ones(flux.shape, bool)), mean, error)
    diagonal = np.einsum("nii->ni", factor)
    diagonal[:] = 1 / diagonal
    packed = factor[(slice(None), *np.tril_indices(samples))]
    return stored, replace(stored, flux=flux, whitener=packed), params
