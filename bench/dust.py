"""Maps of dust: how fast stars are binned, and how well a known field of clouds is found again, bin by bin."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np

from bench.harness import Contestant, compare, measure_once, null_run
from bench.peers.numpy_bins import NumpyBins
from bench.result import Result
from bench.stars import SEED
from xpkern.maps.binning import CELL, COARSE_CELL, StarBins, accumulate
from xpkern.maps.cube import SkyCube
from xpkern.maps.make import make_map, map_of_blocks
from xpkern.maps.settings import ESTIMATES, MapSettings
from xpkern.maps.sky import centres, pixels_of_stars
from xpkern.observe.population import to_equatorial
from xpkern.survey.dust import DustField, direction

#: Pixels of nside 256 in which the stars lie whose binning is timed: as many to a pixel as Gaia's 220 million on the
#: whole sky, and the stars in the order of their pixels, as in a catalogue by source_id; or in none.
_STARS_OF_A_PIXEL = 280

#: Rows of a block, as a catalogue is read.
_BLOCK = 1 << 18

#: What a fresh Python does to tell its own high-water mark [kB].
_CHILD = """
import re, sys
from xpkern.maps.make import make_map
make_map([sys.argv[1]], sys.argv[1] + ".fits")
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""

#: Map that is held against the truth: the stars are a hundredth of Gaia's, and fewer than so many make no map.
MAP = MapSettings(nsides=(64, 32, 16))
FEWEST = 50_000

#: Shares of the stars of which memory is compared.
MEMORY_SHARES = (0.25, 1.0)

#: Cells of the map that are held against the truth, and points in each over which the truth is averaged.
_CELLS, _POINTS_ORDER = 20000, 3


def bench_dust(n_stars: int, rounds: int, engine_name: str) -> Result:
    """Maps of a simulated survey against its field of clouds, bin by bin, and what makes them differ."""
    return Result("dust", extra=_recovery(n_stars))


def bench_dust_speed(n_stars: int, rounds: int, engine_name: str) -> Result:
    """Binning of stars for a map beside NumPy; from catalogue to map."""
    return Result("dust_speed", "stars/s", *_speed(n_stars, rounds))


# -- speed ----------------------------------------------------------------------------------------------------------


def _speed(n: int, rounds: int) -> tuple[list[Any], Any, dict[str, Any]]:
    rng = np.random.default_rng(SEED)
    settings = MapSettings()
    columns = _columns(rng, n)
    blocks = [tuple(values[first : first + _BLOCK] for values in columns) for first in range(0, n, _BLOCK)]
    shuffle = rng.permutation(n)
    shuffled = tuple(values[shuffle] for values in columns)
    bins, other = StarBins(settings), StarBins(settings)

    def ours() -> None:
        for block in blocks:
            bins.add(*block)

    def in_no_order() -> None:
        for first in range(0, n, _BLOCK):
            other.add(*(values[first : first + _BLOCK] for values in shuffled))

    pixels = int(columns[0].max()) + 1
    found = np.concatenate([bins.add(*block) for block in blocks])
    peer = NumpyBins(settings, pixels, bins.coarse_shift)
    _check(bins, peer, blocks)

    def numpy_bins() -> None:
        for block in blocks:
            peer.add(*block)

    mine = Contestant("cuts, bins, sums and biases, in the order of a catalogue", ours, n)
    duels = [
        compare(mine, Contestant("NumPy, the same, by searchsorted and add.at", numpy_bins, n), rounds=rounds),
        compare(mine, Contestant("ours in no order", in_no_order, n), rounds=rounds),
    ]
    cells = np.zeros((pixels, settings.bins), CELL)
    parts = [
        (*block[:3], found[first : first + _BLOCK]) for first, block in zip(range(0, n, _BLOCK), blocks, strict=True)
    ]

    def sums_only() -> None:
        for pixel, value, error, k in parts:
            accumulate(pixel, k, value, error, True, cells)

    duels.append(compare(Contestant("sums alone", sums_only, n), Contestant("the whole", ours, n), rounds=rounds))
    extra = _floor(columns, n) | _chain(rng, columns, n, duels[0].ours.median)
    return duels, null_run(mine, rounds=rounds), extra


def _check(bins: StarBins, peer: NumpyBins, blocks: list[tuple[np.ndarray, ...]]) -> None:
    """Both must have found the same."""
    for block in blocks:
        peer.add(*block)
    np.testing.assert_array_equal(bins.outcomes, peer.outcomes)
    size = peer.cells.shape[1] // bins.settings.bins
    for name, total in zip(CELL.names or (), peer.cells, strict=True):
        np.testing.assert_allclose(bins.cells[name][:size].ravel(), total, rtol=1e-9)
    size = peer.coarse.shape[1] // bins.settings.bins
    for name, total in zip(COARSE_CELL.names or (), peer.coarse, strict=True):
        np.testing.assert_allclose(bins.coarse[name][:size].ravel(), total, rtol=1e-9)


def _columns(rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
    """What StarBins.add takes: a third of the stars do not pass the cuts."""
    pixel = np.sort(rng.integers(0, max(n // _STARS_OF_A_PIXEL, 1), n))
    distance = 4.5 * np.sqrt(rng.uniform(0.0, 1.0, n))
    error = rng.uniform(0.005, 0.05, n)
    parallax_error = 0.1 * rng.uniform(0.2, 1.5, n) / distance
    misfit = rng.uniform(0.0, 5.2, n)
    value = np.abs(rng.normal(0.3, 0.1, n))
    return pixel, value, error, 1.0 / distance, parallax_error, misfit, np.zeros(n), np.ones(n)


def _floor(columns: tuple[np.ndarray, ...], n: int) -> dict[str, Any]:
    """The rate at which memory gives what a star's binning reads, and no more."""
    total = sum(values.nbytes for values in columns)
    words = np.concatenate([values.view(np.int64) for values in columns])
    reads = measure_once(Contestant("reading", lambda: words.max(), n), 5)
    return {"bytes of columns a star": total / n, "reading these bytes alone, stars/s": reads}


def _chain(rng: np.random.Generator, columns: tuple[np.ndarray, ...], n: int, binned: float) -> dict[str, Any]:
    """Places to pixels, and all of it from a file."""
    longitude, latitude = centres(columns[0], 8)
    ra, dec = to_equatorial(longitude, np.sin(latitude))
    ra += rng.uniform(-0.02, 0.02, n)

    def place() -> None:
        for first in range(0, n, _BLOCK):
            pixels_of_stars(ra[first : first + _BLOCK], dec[first : first + _BLOCK], None, 8)

    place()
    placed = measure_once(Contestant("pixels", place, n), 3)
    with TemporaryDirectory() as folder:
        catalog = _write(Path(folder) / "catalog.h5", ra, dec, columns)
        whole = Contestant("file", lambda: make_map([catalog], Path(folder) / "map.fits", overwrite=True), n)
        from_file = measure_once(whole, 2)
        sizes = [round(share * n) for share in MEMORY_SHARES]
        memory = {size: _memory(rng, Path(folder), columns, size) for size in sizes}
    return {
        "ra and dec to Galactic pixels (cdshealpix), stars/s": placed,
        "pixels and binning, stars/s": 1.0 / (1.0 / placed + 1.0 / binned),
        "HDF5 catalogue to FITS map (nside 256, 40 bins), digests and all, stars/s": from_file,
        "memory at most, stars all over the sky [MB]": memory,
    }


def _memory(rng: np.random.Generator, folder: Path, columns: tuple[np.ndarray, ...], n: int) -> int:
    """High-water mark [MB] of a process that maps n stars all over the sky."""
    ra, dec = rng.uniform(0.0, 360.0, n), np.degrees(np.arcsin(rng.uniform(-1.0, 1.0, n)))
    path = _write(folder / f"sky{n}.h5", ra, dec, tuple(values[:n] for values in columns))
    told = subprocess.run([sys.executable, "-c", _CHILD, str(path)], capture_output=True, text=True, check=True)
    return int(told.stdout) // 1024


def _write(path: Path, ra: np.ndarray, dec: np.ndarray, columns: tuple[np.ndarray, ...]) -> Path:
    """A catalogue of these stars."""
    names = "ext", "ext_error", "parallax_est", "parallax_est_error", "loss"
    with h5py.File(path, "w") as file:
        file["source_id"] = np.arange(1, len(ra) + 1) << 35
        file["ra"], file["dec"] = ra, dec
        for name, values in zip(names, columns[1:6], strict=True):
            file[name] = (values * (61 if name == "loss" else 1)).astype(np.float32)
        file["chi2_dof"] = np.full(len(ra), 61, np.int16)
    return path


# -- a known truth --------------------------------------------------------------------------------------------------


def _survey(n: int, seed: int) -> dict[str, np.ndarray]:
    """Stars of a disc in the field of clouds that G < 17.65 lets through, true and observed.

    The estimate of E is the mode that Eq. 19 has for a Gaussian measurement: e -> (e + sqrt(e^2 + 4 sigma^2)) / 2.
    """
    rng = np.random.default_rng(seed)
    drawn = 2 * n
    longitude, distance = rng.uniform(0.0, 2.0 * np.pi, drawn), 5.5 * rng.uniform(0.0, 1.0, drawn) ** 0.6
    height = rng.exponential(0.25, drawn) * rng.choice([-1.0, 1.0], drawn)
    sine = height / np.hypot(height, distance)
    distance = np.hypot(height, distance)
    ext = DustField.default().column(direction(longitude, np.arcsin(sine)), distance)
    g = 5.0 * np.log10(100.0 * distance) + 2.7 * ext + rng.uniform(-1.0, 7.5, drawn)
    rows = np.flatnonzero(g < 17.65)[:n]
    longitude, sine, distance, ext, g = (values[rows] for values in (longitude, sine, distance, ext, g))
    error = 0.008 + 0.028 * 10 ** (0.25 * (g - 17.65)) * rng.lognormal(0.0, 0.3, len(g))
    parallax_error = 0.015 + 0.075 * 10 ** (0.2 * (g - 17.65))
    measured = ext + error * rng.normal(size=len(g))
    ra, dec = to_equatorial(longitude, sine)
    return {
        "ra": ra,
        "dec": dec,
        "distance": distance,
        "true_ext": ext,
        "ext": 0.5 * (measured + np.sqrt(measured**2 + 4.0 * error**2)),
        "ext_error": error,
        "parallax_est": 1.0 / distance + parallax_error * rng.normal(size=len(g)),
        "parallax_est_error": parallax_error,
    }


def _recovery(n: int) -> dict[str, Any]:
    stars = _survey(max(n, FEWEST), SEED)
    settings = MAP
    cubes = {estimate: _map(stars, replace(settings, estimate=estimate)) for estimate in ESTIMATES}
    chosen = _cells(cubes["weighted"], np.random.default_rng(SEED))
    truth = _truth(cubes["weighted"], *chosen)
    extra: dict[str, Any] = {
        "stars simulated": len(stars["ra"]),
        "what became of them": {name: number for name, number in cubes["weighted"].outcomes.items() if number},
        "cells compared": len(truth),
    }
    groups = _groups(settings, chosen[1])
    for estimate, cube in cubes.items():
        found = cube.tile.value[chosen].astype(float)
        extra[f"{estimate}: correlation"] = float(np.corrcoef(found, truth)[0, 1])
        extra[f"{estimate}: found - true, mean and width [mag]"] = _mean_and_width(found - truth)
        for name, rows in groups.items():
            extra[f"{estimate}, {name}: correlation, mean and width of found - true [mag]"] = [
                round(float(np.corrcoef(found[rows], truth[rows])[0, 1]), 4),
                *_mean_and_width(found[rows] - truth[rows]),
            ]
        extra |= {f"{estimate}, {name}": value for name, value in _differential(cube, chosen, truth).items()}
    return extra | _steps(stars, settings, chosen, truth, groups) | _scatter_told(stars, settings)


def _map(stars: dict[str, np.ndarray], settings: MapSettings, **changes: np.ndarray) -> SkyCube:
    return map_of_blocks([{**stars, **changes}], settings)


def _cells(cube: SkyCube, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and bins of cells with a number."""
    rows, bins = np.nonzero(np.isfinite(cube.tile.value))
    chosen = np.sort(rng.permutation(len(rows))[:_CELLS])
    return rows[chosen], bins[chosen]


def _truth(cube: SkyCube, rows: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """E averaged over the volume of cells: of the pixel that a number is from, and of its bin's distances."""
    field, edges = DustField.default(), cube.edges
    order = np.round(np.log2(cube.tile.nside[rows, bins])).astype(int)
    pixel = cube.tile.pixel[rows] >> 2 * (cube.order - order)
    children = 1 << 2 * _POINTS_ORDER
    total = np.zeros(len(rows))
    for child in range(children):
        share = ((child * 37) % children + 0.5) / children  # another distance for each of the children
        distance = edges[bins] + share * (edges[bins + 1] - edges[bins])
        for each in np.unique(order):
            mine = order == each
            place = centres((pixel[mine] << 2 * _POINTS_ORDER) + child, int(each) + _POINTS_ORDER)
            total[mine] += field.column(direction(*place), distance[mine])
    return total / children


def _differential(cube: SkyCube, chosen: tuple[np.ndarray, np.ndarray], truth: np.ndarray) -> dict[str, Any]:
    """How well the dust between a bin and the fourth before it is found: less by the layer, more by the clouds."""
    rows, bins = chosen
    before = np.maximum(bins - 4, 0)
    same = (bins >= 4) & (cube.tile.nside[rows, before] == cube.tile.nside[rows, bins])
    rows, bins, before = rows[same], bins[same], before[same]
    found = (cube.tile.value[rows, bins] - cube.tile.value[rows, before]).astype(float)
    real = truth[same] - _truth(cube, rows, before)
    groups = _groups(cube.settings, bins)
    return {
        f"{name}: correlation of E less that four bins before, slope": [
            round(float(np.corrcoef(found[group], real[group])[0, 1]), 3),
            round(float(np.polyfit(real[group], found[group], 1)[0]), 3),
        ]
        for name, group in groups.items()
    }


def _steps(
    stars: dict[str, np.ndarray],
    settings: MapSettings,
    chosen: tuple[np.ndarray, np.ndarray],
    truth: np.ndarray,
    groups: dict[str, np.ndarray],
) -> dict[str, Any]:
    """What each step from the truth to the map changes, over the cells that have a number in all of them."""
    exact = {"ext": stars["true_ext"], "parallax_est": 1.0 / stars["distance"]}
    plain = replace(settings, estimate="mean")
    steps = {
        "which stars are bright enough": _map(
            stars, replace(plain, cuts=settings.limits.changed(["error=off"])), **exact
        ),
        "the cut on the error": _map(stars, plain, **exact),
        "errors of E, and its mode": _map(stars, plain, parallax_est=exact["parallax_est"]),
        "scatter of 1 / parallax": _map(stars, plain),
        "weights 1 / error^2": _map(stars, settings),
    }
    values = [truth, *(cube.tile.value[chosen].astype(float) for cube in steps.values())]
    shared = np.isfinite(values).all(axis=0)
    found: dict[str, Any] = {}
    for number, name in enumerate(steps, 1):
        change = values[number] - values[number - 1]
        found[f"changed by {name} [mag]"] = {
            group: round(float(change[rows & shared].mean()), 5)
            for group, rows in groups.items()
            if (rows & shared).any()
        }
    return found


def _scatter_told(stars: dict[str, np.ndarray], settings: MapSettings) -> dict[str, Any]:
    """What the map says of its scatter's bias, beside what the scatter has done, for each fifth bin."""
    plain = replace(settings, estimate="mean", nsides=settings.nsides[-1:])
    noisy, exact = _map(stars, plain), _map(stars, plain, parallax_est=1.0 / stars["distance"])
    told = noisy.per_bin["scatter"]
    with np.errstate(invalid="ignore"):
        change = noisy.tile.value - exact.tile.value
    real = [column[np.isfinite(column)].mean() if np.isfinite(column).any() else np.nan for column in change.T]
    return {
        "scatter of 1 / parallax: told, and real, by distance [mag]": {
            f"{noisy.distance[k]:.2f} kpc": [round(float(told[k]), 4), round(float(real[k]), 4)]
            for k in range(4, settings.bins, 5)
            if np.isfinite(told[k] + real[k])
        }
    }


def _groups(settings: MapSettings, bins: np.ndarray) -> dict[str, np.ndarray]:
    """Cells by distance."""
    middle = 0.5 * (np.array(settings.edges)[bins] + np.array(settings.edges)[bins + 1])
    limits = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
    groups = {f"{a:g}-{b:g} kpc": (middle >= a) & (middle < b) for a, b in pairwise(limits)}
    return {name: rows for name, rows in groups.items() if rows.sum() >= 20}


def _mean_and_width(values: np.ndarray) -> list[float]:
    """Mean, and half the width of the central 68 per cent."""
    low, high = np.quantile(values, [0.158655, 0.841345])
    return [round(float(values.mean()), 4), round(float(0.5 * (high - low)), 4)]
