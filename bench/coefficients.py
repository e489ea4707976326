"""How fast coefficients become fluxes and whiteners, and finished stars."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import xpkern as xk
from bench.fitting import Fitter
from bench.harness import Contestant, compare, measure_once, null_run
from bench.peers.numpy_calibration import numpy_calibrate, numpy_covariance
from bench.result import Result
from bench.stars import infrared, model_and_prior, survey
from xpkern.engine import Engine
from xpkern.engine.contract import Calibrated, Coefficients, Solution, StarData
from xpkern.observe.calibration import Calibration

#: Stars of a batch of the NumPy peer: what is made of them stays in the cache.
FEW_STARS = 256


def bench_calibrate(n_stars: int, rounds: int, engine_name: str) -> Result:
    """Coefficients with their covariance to flux and whitener, against the same by batched NumPy and LAPACK."""
    ours = Contestant("flux and whitener", calibration_of(xk.get_engine(engine_name), n_stars), n_stars)
    duel = compare(ours, numpy_contestant(n_stars), rounds=rounds)
    extra = {
        "stars": n_stars,
        "NumPy's batched Cholesky alone, covariances ready [stars/s]": _cholesky_rate(n_stars),
    }
    return Result("calibrate", "stars/s", [duel], null_run(ours, rounds=rounds), extra)


def bench_finish(n_stars: int, rounds: int, engine_name: str) -> Result:
    """Coefficient arrays to finished stars (calibration, start, optimum, Fisher), against NumPy's calibration alone."""
    fitter = Fitter(xk.get_engine(engine_name), n_stars)
    calibrate = calibration_of(fitter.engine, n_stars)

    def finish() -> Solution:
        calibrated = calibrate()
        stars = StarData(calibrated.flux, calibrated.whitener, fitter.stars.mean, fitter.stars.sigma)
        return fitter.fit(fitter.grid, stars=stars)

    ours = Contestant("coefficients to finished star", finish, n_stars)
    duel = compare(ours, numpy_contestant(n_stars), rounds=rounds)
    alone = Contestant("calibration", calibrate, n_stars)
    fit = Contestant("fit", lambda: fitter.fit(fitter.grid), n_stars)
    parts = {name: 1e6 / measure_once(part, 3) for name, part in (("calibration", alone), ("start + fit", fit))}
    extra = {
        "stars": n_stars,
        "NumPy's batched Cholesky alone, covariances ready [stars/s]": _cholesky_rate(n_stars),
        **{f"ours: {name} alone [us a star]": microseconds for name, microseconds in parts.items()},
        "sum of ours alone, share of the whole": sum(parts.values()) * 1e-6 * duel.ours.median,
    }
    return Result("finish", "stars/s", [duel], null_run(ours, rounds=rounds), extra)


def calibration_of(engine: Engine, n_stars: int) -> Callable[..., Calibrated]:
    """Return what calibrates the survey's coefficients, its infrared bands included, with one thread or ``threads``."""
    calibration, noise = Calibration.default(), model_and_prior()[0].noise
    coefficients, (flux, error) = survey(n_stars).coefficients, infrared(survey(n_stars))

    def calibrate(threads: int = 1) -> Calibrated:
        return engine.calibrate(calibration, coefficients, noise, flux, error, threads=threads)

    return calibrate


def numpy_contestant(n_stars: int) -> Contestant:
    """Return the peer: the survey's first stars to flux and Cholesky factor of the 61 XP samples."""
    part = first_coefficients(n_stars)
    calibration, noise = Calibration.default(), model_and_prior()[0].noise
    return Contestant(
        "NumPy: A Sigma A^T, Eq. 2, Cholesky by LAPACK, batched; fits nothing",
        lambda: numpy_calibrate(calibration, part, noise),
        len(part),
    )


def first_coefficients(n_stars: int) -> Coefficients:
    """Return the coefficients of the survey's first stars."""
    coefficients = survey(n_stars).coefficients
    return Coefficients(**{name: values[:FEW_STARS] for name, values in vars(coefficients).items()})


def _cholesky_rate(n_stars: int) -> float:
    part = first_coefficients(n_stars)
    _, covariance = numpy_covariance(Calibration.default(), part, model_and_prior()[0].noise)
    return measure_once(Contestant("cholesky", lambda: np.linalg.cholesky(covariance), len(part)), 3)
