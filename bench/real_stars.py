"""How well stellar types of real stars come out, beside what others do with the same spectra.

``python -m bench real_stars``: every method learns from, and is judged by, the same stars of one published library
(:mod:`xpkern.train.apogee_library`), split by ``source_id % 5``: 2-4 training, 1 validation, 0 test. No parallax, no
extinction, no cut but the library's. The figure is half the range from 16 to 84 % of estimate - label; ratios of these
have intervals from resampled stars, the same ones for both methods.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import xpkern as xk
from bench.harness import machine, pinned
from xpkern.engine.contract import Float64
from xpkern.grid import N_XP, WAVELENGTH, in_scale_window
from xpkern.status import UNFITTED
from xpkern.train.apogee_library import (
    LIBRARY_WAVELENGTH,
    N_OBSERVED,
    TEST,
    TRAINING,
    VALIDATION,
    Library,
    error_correlation,
    read_library,
)
from xpkern.train.atmospheres import read_g_passband
from xpkern.train.held_out import is_giant, observations
from xpkern.train.packages import APOGEE_LIBRARY, ATMOSPHERES, default_cache

PARTS = {"validation": VALIDATION, "test": TEST}

#: Labels in the order of the library, the unit they are told in, and how much of it one of ours is.
LABELS = ("teff", "feh", "logg")
UNITS = np.array([1000.0, 1.0, 1.0])

#: An estimate further from its label than this is an outlier [K, dex, dex].
OUTLIER = np.array([300.0, 0.5, 0.7])

#: Limits of the groups by G.
MAGNITUDES = (0.0, 12.0, 13.0, 14.0, 99.0)

#: Resampled sets of stars behind an interval.
RESAMPLED = 1000

#: One training star in so many tells which setting of a peer is best.
_INNER = 7

#: Passes of the networks over the training stars.
EPOCHS = 100


@dataclass
class Stars:
    """Stars of the library as the peers take them.

    Attributes
    ----------
    library : Library
    fluxes, errors : (n, 64) float64
        Over each star's mean at 592-782 nm.
    observed : (n, 8) float64
        What a survey may know besides: logarithms of that mean and of seven of the errors.
    """

    library: Library
    fluxes: Float64
    errors: Float64
    observed: Float64

    def __len__(self) -> int:
        return len(self.library)

    def select(self, rows: np.ndarray) -> Stars:
        """Some of them, by a mask or by indices."""
        rest = (values[rows] for values in (self.fluxes, self.errors, self.observed))
        return Stars(self.library.select(rows), *rest)


def stars_of(library: Library) -> Stars:
    """Normalise a library."""
    scale = library.flux[:, in_scale_window(WAVELENGTH[:N_OBSERVED])].mean(axis=1, keepdims=True)
    errors = library.error / scale
    observed = np.column_stack([np.log(scale[:, 0]), np.log(errors[:, 5:N_XP:8])])
    return Stars(library, library.flux / scale, errors, observed)


def read_stars(cache: Path) -> Stars:
    """All stars of the library, fetched if need be."""
    wheel, sdist = APOGEE_LIBRARY.fetch(cache), ATMOSPHERES.fetch(cache)
    library, _, _ = read_library(wheel, read_g_passband(sdist, LIBRARY_WAVELENGTH))
    return stars_of(library)


Method = Callable[[Stars, Stars], Float64]


def ours(model: xk.FluxModel, prior: xk.TypePrior, engine: str) -> Method:
    """The forward model fitted to the spectra; NaN for stars that cannot be fitted."""

    def estimate(_training: Stars, stars: Stars) -> Float64:
        observed = observations(stars.library, model.noise, correlation=error_correlation())
        found = xk.fit(observed, model, prior, engine=engine)
        unfitted = (found.status & np.uint32(UNFITTED)) != 0
        return np.where(unfitted[:, None], np.nan, found.params[:, :3])

    return estimate


def networks(nets: int, with_observed: bool, epochs: int) -> Method:
    """Multilayer perceptrons, averaged; with the brightness and the errors as inputs or without."""

    def estimate(training: Stars, stars: Stars) -> Float64:
        from bench.peers.jax_mlp import JaxMlp

        def features(given: Stars) -> Float64:
            return np.hstack([given.fluxes, given.observed]) if with_observed else given.fluxes

        errors = np.pad(training.errors, ((0, 0), (0, features(training).shape[1] - training.errors.shape[1])))
        return JaxMlp(nets, epochs).fit(features(training), errors, training.library.theta).predict(features(stars))

    return estimate


def boosted_trees(iterations: int = 400) -> Method:
    """scikit-learn's histogram gradient boosting, one for each label."""

    def estimate(training: Stars, stars: Stars) -> Float64:
        from sklearn.ensemble import HistGradientBoostingRegressor

        def column(label: int) -> Float64:
            trees = HistGradientBoostingRegressor(max_iter=iterations, learning_rate=0.08, random_state=0)
            return trees.fit(training.fluxes, training.library.theta[:, label]).predict(stars.fluxes)

        return np.column_stack([column(label) for label in range(len(LABELS))])

    return estimate


def neighbours(training: Stars, stars: Stars) -> Float64:
    """The mean label of the nearest training stars; how many is chosen on a seventh of these."""
    from sklearn.neighbors import KNeighborsRegressor

    low, center, high = np.quantile(training.fluxes, [0.16, 0.5, 0.84], axis=0)

    def scaled(given: Stars) -> Float64:
        return (given.fluxes - center) / (high - low)

    inner = (training.library.source_id // 5) % _INNER == 0
    x, y = scaled(training), training.library.theta

    def scatter_with(number: int) -> float:
        tree = KNeighborsRegressor(number, weights="distance").fit(x[~inner], y[~inner])
        return float(np.sum(half_range(tree.predict(x[inner]) - y[inner]) / half_range(y)))

    best = min((number for number in (1, 4, 16) if number <= (~inner).sum()), key=scatter_with)
    return KNeighborsRegressor(best, weights="distance").fit(x, y).predict(scaled(stars))


def half_range(values: Float64) -> Float64:
    """Half the range from 16 to 84 % of each column."""
    low, high = np.quantile(values, [0.16, 0.84], axis=0)
    return np.asarray(0.5 * (high - low))


def groups(stars: Stars) -> dict[str, np.ndarray]:
    """Masks of the stars that figures are told for."""
    giant = is_giant(stars.library.theta)
    found = {"all": np.ones(len(stars), bool), "giants": giant, "dwarfs": ~giant}
    for brightest, faintest in pairwise(MAGNITUDES):
        found[f"G {brightest:g}-{faintest:g}"] = (stars.library.g >= brightest) & (stars.library.g < faintest)
    return found


def figures(off: Float64) -> dict[str, list[float]]:
    """Scatter, bias and share of outliers of some estimates - labels (n, 3), in K, dex, dex."""
    return {
        "scatter": half_range(off).tolist(),
        "bias": np.median(off, axis=0).tolist(),
        "outliers": np.mean(np.abs(off) > OUTLIER, axis=0).tolist(),
    }


def ratio_interval(off: Float64, peer_off: Float64, seed: int = 0) -> dict[str, list[float]]:
    """Ratio of the scatters of two methods on the same stars, and where it lies with 95 % confidence."""
    rng = np.random.default_rng(seed)
    ratios = np.empty((RESAMPLED, off.shape[1]))
    for number in range(RESAMPLED):
        rows = rng.integers(len(off), size=len(off))
        ratios[number] = half_range(off[rows]) / half_range(peer_off[rows])
    low, high = np.quantile(ratios, [0.025, 0.975], axis=0)
    return {
        "ratio": (half_range(off) / half_range(peer_off)).tolist(),
        "lower": low.tolist(),
        "upper": high.tolist(),
    }


def compare_methods(training: Stars, judges: Stars, methods: dict[str, Method], log: Callable[[str], Any]) -> dict:
    """Let every method learn and estimate; the first one is compared with each of the others.

    Stars for which some method has no estimate are left out for all of them, and counted.
    """
    off, seconds = {}, {}
    for name, method in methods.items():
        started = time.process_time()
        off[name] = (method(training, judges) - judges.library.theta) * UNITS
        seconds[name] = time.process_time() - started
        log(f"{name}: {seconds[name]:.0f} s of processor time")
    done = np.all([np.isfinite(values).all(axis=1) for values in off.values()], axis=0)
    kept = judges.select(done)
    off = {name: values[done] for name, values in off.items()}
    first, *peers = off
    result: dict[str, Any] = {
        "stars": {"training": len(training), "judged by": len(kept), "without an estimate": int((~done).sum())},
        "processor seconds": seconds,
        "figures": {},
        "ratios": {},
    }
    for group, members in groups(kept).items():
        if members.sum() < 2:
            continue
        result["figures"][group] = {"stars": int(members.sum())}
        result["figures"][group] |= {name: figures(values[members]) for name, values in off.items()}
        result["ratios"][group] = {name: ratio_interval(off[first][members], off[name][members]) for name in peers}
    return result


def lines(result: dict) -> list[str]:
    """The result as text."""
    stars = result["stars"]
    text = [f"{name}: {number:,} stars" for name, number in stars.items()]
    text.append("half the 16-84 % range (bias, outliers) of teff [K], feh, logg; ratio of ours to it (95 %)")
    for group, found in result["figures"].items():
        text.append(f"{group}, {found['stars']:,} stars")
        for name, values in found.items():
            if name == "stars":
                continue
            columns = [
                f"{scatter:6.{digits}f} ({bias:+.{digits}f}, {100 * outliers:.1f} %)"
                for scatter, bias, outliers, digits in zip(
                    values["scatter"], values["bias"], values["outliers"], (1, 3, 3), strict=True
                )
            ]
            ratio = result["ratios"][group].get(name)
            told = (
                "  ".join(
                    f"{middle:.2f} ({low:.2f}-{high:.2f})"
                    for middle, low, high in zip(ratio["ratio"], ratio["lower"], ratio["upper"], strict=True)
                )
                if ratio
                else ""
            )
            text.append(f"  {name:40s} {'  '.join(columns)}  {told}")
    return text


def main(arguments: list[str]) -> int:
    """Run and write ``real_stars.json``."""
    parser = argparse.ArgumentParser(prog="python -m bench real_stars", description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, default="validation", help="stars to judge by; default: %(default)s")
    parser.add_argument(
        "--model", type=Path, help="model file; default: the shipped one, learned from the training stars"
    )
    parser.add_argument("--stars", type=int, help="use no more than so many training stars, and judges")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the networks; default: %(default)s")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="of downloads; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "local")
    options = parser.parse_args(arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    options.output.mkdir(parents=True, exist_ok=True)
    model, prior = xk.load_model(options.model)
    stars = read_stars(options.cache)
    remainder = stars.library.source_id % 5
    shuffled = np.random.default_rng(0).permutation(len(stars))
    training, judges = (
        stars.select(np.sort(shuffled[np.isin(remainder[shuffled], part)][: options.stars]))
        for part in (TRAINING, PARTS[options.part])
    )
    methods: dict[str, Method] = {
        "xpkern": ours(model, prior, options.engine),
        "3 networks, fluxes, errors, brightness": networks(3, True, options.epochs),
        "1 network, fluxes": networks(1, False, options.epochs),
        "boosted trees, fluxes": boosted_trees(),
        "nearest neighbours, fluxes": neighbours,
    }
    with pinned(), threadpool_limits(1):
        result = compare_methods(training, judges, methods, lambda text: print(text, flush=True))
    facts = machine() | {"part": options.part, "model": model.digest[:12], "noise": model.noise.digest[:12]}
    print(*lines(result), sep="\n")
    (options.output / "real_stars.json").write_text(json.dumps({"machine": facts} | result, indent=2) + "\n")
    return 0
