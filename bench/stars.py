"""Stars for the benchmarks: a survey from xpkern's own simulator, so that anyone can repeat a figure."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import xpkern as xk
from xpkern.observe.simulate import Survey, SurveyFiles, simulate

SEED = 20230524


@cache
def model_and_prior() -> tuple[xk.FluxModel, xk.TypePrior]:
    """Return the shipped model and prior."""
    return xk.load_model()


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
    """Return the same survey as fluxes and whiteners, as the reader makes them."""
    files = survey_files(n_stars)
    return xk.read_xp(files.spectra, gaia_source=files.gaia_source)


def dense_whiteners(obs: xk.Observations) -> np.ndarray:
    """Return every whitener as a full triangle, (n, 66, 66) float32: what a NumPy peer works with."""
    return np.stack([obs.whitener_dense(star) for star in range(len(obs))]).astype(np.float32)
