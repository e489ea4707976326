"""Real stars of APOGEE with XP spectra: stellar types against labels, extinctions over the sky, the curve, confusion.

By default the validation stars (source_id % 5 == 1), by which every setting was chosen. The test stars are opened once,
by the command that makes the shipped model's card.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

import xpkern as xk
from bench.result import Result
from xpkern.engine.contract import Float64, LossTerms
from xpkern.observe.gaia_source import SourceTable
from xpkern.observe.observations import Observations
from xpkern.observe.photometry import COLUMN_NAMES, infrared_flux
from xpkern.observe.source_position import galactic_latitude, pixel_of
from xpkern.survey.planted import Planted
from xpkern.survey.simulator import SurveySimulator
from xpkern.survey.truth import AtmosphereTruth
from xpkern.train.apogee_library import (
    EXT_OF_AK,
    LIBRARY_WAVELENGTH,
    POLAR_LATITUDE,
    VALIDATION,
    Library,
    error_correlation,
    read_library,
)
from xpkern.train.atmospheres import load_atmospheres, read_g_passband
from xpkern.train.default_model import train_on_library
from xpkern.train.ext_zero_point import COLOUR_LATITUDE, MAP_LATITUDE
from xpkern.train.extinction_comparison import curve_shape, published_curves
from xpkern.train.held_out import GIANT_LOGG, Residuals, residuals, robust_scatter, subsets
from xpkern.train.packages import APOGEE_LIBRARY, ATMOSPHERES, default_cache
from xpkern.train.recipe_file import load_recipe

#: What the fits minimise: Eq. 19, and the same without what favours large E and parallax.
LOSSES = {
    "Eq. 19": LossTerms(),
    "without Jacobian terms": LossTerms(jacobian_ext=False, jacobian_plx=False),
}

#: Edges of teff [kK], feh and log g between which E is compared near the poles; bins with fewer stars are left out.
_EDGES = {
    "teff": (3.0, 4.0, 4.5, 5.0, 5.5, 7.0),
    "feh": (-2.5, -1.0, -0.5, 0.0, 0.6),
    "logg": (-0.5, 1.5, 2.5, 3.8, 5.5),
}
_LEAST_STARS = 30

#: Patches of the sky over which E and A_K are averaged: HEALPix level, and stars they have at least.
_PATCH_LEVEL, _PATCH_STARS = 4, 5

#: Draws of the bootstrap.
_DRAWS = 1000

#: Trainings that tell how stable the curve is: seed and starting law.
_TRAININGS = ((1, "law"), (2, "law"), (3, "law"), (1, "flat"), (2, "flat"))

#: Magnitudes G of the sample of dwarfs and giants.
_MAGNITUDES = (12.0, 17.0)


def real_stars() -> Library:
    """All usable stars of the library, fetched once."""
    cache = default_cache()
    sdist = ATMOSPHERES.fetch(cache)
    return read_library(APOGEE_LIBRARY.fetch(cache), read_g_passband(sdist, LIBRARY_WAVELENGTH))[0]


def bench_real(n_stars: int, _rounds: int, engine_name: str) -> Result:
    """Validation stars of APOGEE without parallaxes: bias, scatter and pulls of their types; E over the sky."""
    model, prior = xk.load_model()
    library = real_stars().part(VALIDATION)
    library = library.select(np.arange(min(n_stars, len(library))))
    extra: dict[str, Any] = {"stars": len(library)}
    for loss, terms in LOSSES.items():
        found = residuals(library, model, prior, engine_name, terms=terms, correlation=error_correlation(), threads=1)
        extra |= {f"{loss}: {name}": value for name, value in _types(found).items()}
        extra |= {f"{loss}: {name}": value for name, value in _extinctions(found, library).items()}
    return Result("real", extra=extra)


def bench_curve(_n_stars: int, _rounds: int, engine_name: str) -> Result:
    """E(lambda - Ks) / E(552 nm - Ks) over seeds and starting laws, rms in mag; against published laws."""
    library, atmospheres, recipe = real_stars(), load_atmospheres(default_cache()), load_recipe("apogee")
    shapes = []
    for seed, law in _TRAININGS:
        tried = replace(recipe, split=replace(recipe.split, seed=seed), start=replace(recipe.start, ext_curve=law))
        _, outcome = train_on_library(library, atmospheres, tried, engine=engine_name, log=lambda text: None)
        shapes.append(curve_shape(outcome.model.ext_curve))
    curves = np.array(shapes)
    extra: dict[str, Any] = {"trainings": len(curves)}
    for (seed, law), curve in zip(_TRAININGS, curves - curves.mean(axis=0), strict=True):
        extra[f"seed {seed}, start {law}: rms difference from the mean"] = float(np.sqrt((curve**2).mean()))
    extra["rms over trainings and wavelengths"] = float(curves.std(axis=0, ddof=1).mean())
    extra["largest standard deviation at a wavelength"] = float(curves.std(axis=0, ddof=1).max())
    for name, law_curve in published_curves().items():
        extra[f"mean curve against {name}: rms"] = float(
            np.sqrt(((curves.mean(axis=0) - curve_shape(law_curve)) ** 2).mean())
        )
    return Result("curve", extra=extra)


def bench_confusion(n_stars: int, _rounds: int, engine_name: str) -> Result:
    """Giants taken for dwarfs and the reverse, in a simulated sample of mostly dwarfs, with and without parallaxes."""
    model, prior = xk.load_model()
    obs, truth = _mostly_dwarfs(n_stars, engine_name, model.noise)
    blind = replace(obs, plx=np.zeros(len(obs)), plx_err=np.full(len(obs), np.inf))
    giant = truth[:, 2] < GIANT_LOGG
    extra: dict[str, Any] = {"stars": len(obs), "share of dwarfs": float(np.mean(~giant))}
    for name, sample in {"without a parallax": blind, "with its parallax": obs}.items():
        found = xk.fit(sample, model, prior, engine=engine_name, threads=1)
        taken = found.params[:, 2] < GIANT_LOGG
        far = np.abs(found.params[:, 2] - truth[:, 2]) > 1.0
        for kind, members in {"dwarfs": ~giant, "giants": giant}.items():
            members = members & found.fitted
            extra[f"{name}: {kind} taken for the other, share"] = float((taken != giant)[members].mean())
            extra[f"{name}: {kind} with log g off by more than 1, share"] = float(far[members].mean())
    return Result("confusion", extra=extra)


def _mostly_dwarfs(n_stars: int, engine_name: str, noise: Any) -> tuple[Observations, Float64]:
    """Simulated stars within the model's range, as Gaia would see them, and their true types (n, 3)."""
    simulator = SurveySimulator(
        AtmosphereTruth(load_atmospheres(default_cache())), seed=5, planted=Planted.none(), magnitudes=_MAGNITUDES
    )
    engine = xk.get_engine(engine_name)
    parts, types = [], []
    for number in range(-(-n_stars // 4096)):
        block = simulator.block(number)
        table = block.tables["gaia_source"]
        rows = np.arange(len(block))
        flux, error = infrared_flux(SourceTable.of(table, "gaia_source", COLUMN_NAMES), rows)
        calibrated = engine.calibrate(simulator.calibration, block.coefficients, noise, flux, error, threads=1)
        truth = block.tables["truth"]
        theta = np.column_stack([truth[name] for name in ("teff", "feh", "logg")])
        theta[:, 0] /= 1000.0 if np.median(theta[:, 0]) > 100.0 else 1.0
        parts.append((calibrated.flux, calibrated.whitener, table["parallax"], table["parallax_error"]))
        types.append(theta)
    flux, whitener, plx, plx_err = (np.concatenate(arrays)[:n_stars] for arrays in zip(*parts, strict=True))
    obs = Observations.from_arrays(flux=flux, packed_factor=whitener, plx=plx, plx_err=plx_err)
    return obs, np.concatenate(types)[:n_stars]


def _types(found: Residuals) -> dict[str, float]:
    """Bias, scatter and width of the pulls by kind of star; for all of them with the bootstrap's standard errors."""
    rng = np.random.default_rng(0)
    extra: dict[str, float] = {}
    names, units = ("Teff [K]", "[Fe/H]", "log g"), np.array([1000.0, 1.0, 1.0])
    for kind, members in list(subsets(found.theta, found.g).items())[:6]:
        difference, pull = found.difference[members] * units, found.pull[members]
        extra[f"{kind}: stars"] = float(members.sum())
        bias, scatter, width = np.median(difference, axis=0), robust_scatter(difference), robust_scatter(pull)
        outside = (np.abs(pull) > 3.0).mean(axis=0)
        for k, name in enumerate(names):
            extra[f"{kind}: {name} bias"] = float(bias[k])
            extra[f"{kind}: {name} scatter"] = float(scatter[k])
            extra[f"{kind}: {name} width of the pulls"] = float(width[k])
            extra[f"{kind}: {name} share beyond 3 sigma"] = float(outside[k])
    draws = [rng.integers(len(found.theta), size=len(found.theta)) for _ in range(200)]
    errors = np.std([robust_scatter(found.difference[rows] * units) for rows in draws], axis=0)
    extra |= {f"all: {name} scatter, standard error": float(error) for name, error in zip(names, errors, strict=True)}
    extra["log g off by more than 1 dex, share"] = float((np.abs(found.difference[:, 2]) > 1.0).mean())
    return extra


def _extinctions(found: Residuals, library: Library) -> dict[str, float]:
    """E near the galactic poles, how it depends there on the stellar type, and its slope against A_K over the sky."""
    polar = np.abs(galactic_latitude(found.source_id)) > POLAR_LATITUDE
    extra = {
        "E at |b| > 50 deg: stars": float(polar.sum()),
        "E at |b| > 50 deg: median": float(np.median(found.ext[polar])),
    }
    for k, (label, edges) in enumerate(_EDGES.items()):
        medians = []
        for low, high in pairwise(edges):
            members = polar & (found.theta[:, k] >= low) & (found.theta[:, k] < high)
            if members.sum() >= _LEAST_STARS:
                medians.append(float(np.median(found.ext[members])))
                extra[f"E at |b| > 50 deg, {label} {low:g} to {high:g}: median"] = medians[-1]
        extra[f"E at |b| > 50 deg: range over {label}"] = max(medians) - min(medians) if medians else float("nan")
    rows = np.searchsorted(library.source_id, found.source_id)
    by_ak = library.ak[rows] * EXT_OF_AK
    known = np.isfinite(by_ak)
    latitude = np.abs(galactic_latitude(found.source_id))
    for kind, of_kind in {"colours": latitude < COLOUR_LATITUDE, "maps": latitude >= MAP_LATITUDE}.items():
        for low, high in pairwise(_EDGES["logg"]):
            members = known & of_kind & (found.theta[:, 2] >= low) & (found.theta[:, 2] < high)
            if members.sum() >= _LEAST_STARS:
                name = f"E less that of A_K by {kind}, logg {low:g} to {high:g}: median"
                extra[name] = float(np.median((found.ext - by_ak)[members]))
    patch = pixel_of(found.source_id, _PATCH_LEVEL)
    ours, theirs = [], []
    for one in np.unique(patch[known]):
        members = known & (patch == one)
        if members.sum() >= _PATCH_STARS:
            ours.append(np.median(found.ext[members]))
            theirs.append(np.median(by_ak[members]))
    slope, error = _slope(np.array(theirs), np.array(ours))
    return extra | {
        "E against A_K by patches of the sky: patches": float(len(ours)),
        "E against A_K by patches of the sky: slope": slope,
        "E against A_K by patches of the sky: slope, standard error": error,
        "E less that of A_K, median": float(np.median(found.ext[known] - by_ak[known])),
        "E less that of A_K, scatter": float(robust_scatter((found.ext - by_ak)[known][:, None])[0]),
    }


def _slope(x: Float64, y: Float64) -> tuple[float, float]:
    """Slope of the line that is closest to points with equal errors in both, and its standard error by bootstrap."""
    rng = np.random.default_rng(0)

    def of(rows: np.ndarray) -> float:
        (xx, xy), (_, yy) = np.cov(x[rows], y[rows])
        return float((yy - xx + np.hypot(yy - xx, 2.0 * xy)) / (2.0 * xy))

    everything = np.arange(len(x))
    draws = [of(rng.integers(len(x), size=len(x))) for _ in range(_DRAWS)]
    return of(everything), float(np.std(draws))
