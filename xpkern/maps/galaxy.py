"""Dust per distance, and what it looks like from outside: ZGR23 Eq. 30, slices.

Positions are Galactic and Cartesian around the Sun [kpc]: x towards the Galactic centre, y towards longitude 90 deg, z
north. The mean extinction E of a bin's stars is taken to be that at the bin's middle, so that dE/dr between two middles
is the difference of E over their distance; before the first bin with a number E grows evenly from 0 at the Sun, and
where a bin has none, evenly from the one before to the one behind it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.maps.cube import SkyCube

#: Half the height of the slab that the bird's-eye view averages [kpc] (Eq. 30).
HALF_HEIGHT = 0.4

#: Share of a column through the slab that must be known.
_KNOWN_SHARE = 0.5

#: Steps [kpc] in which the slab is averaged.
_HEIGHT_STEP = 0.025

#: Places that are looked up at once.
_AT_ONCE = 1 << 20

Plane = Literal["xy", "xz", "yz"]


def density(cube: SkyCube) -> Float64:
    """Dust dE/dr (n, bins) [mag/kpc] between the middles of each bin and of the one before it, or the Sun.

    NaN beyond the last bin with a number.
    """
    value, distance = cube.tile.value.astype(np.float64), cube.distance
    slope = np.full(value.shape, np.nan)
    before, place = np.zeros(len(value)), np.zeros(len(value))
    for k in range(value.shape[1]):
        known = np.isfinite(value[:, k])
        slope[known, k] = (value[known, k] - before[known]) / (distance[k] - place[known])
        before[known], place[known] = value[known, k], distance[k]
    for k in range(value.shape[1] - 2, -1, -1):
        gap = np.isnan(slope[:, k])
        slope[gap, k] = slope[gap, k + 1]
    return slope


def at_positions(cube: SkyCube, position: Float64, values: Float64) -> Float64:
    """What the map has at positions.

    Parameters
    ----------
    cube : SkyCube
    position : (..., 3) float64
        [kpc]
    values : (n, bins) float64
        Of the map's pixels: :func:`density`, between the middles of bins, for ext; the map's own values, within the
        edges of bins, for feh.

    Returns
    -------
    (...) float64
        NaN outside of the map.
    """
    flat = position.reshape(-1, 3)
    limits = cube.edges if cube.settings.quantity == "feh" else np.concatenate([[0.0], cube.distance])
    found = np.full(len(flat), np.nan)
    for first in range(0, len(flat), _AT_ONCE):
        x, y, z = flat[first : first + _AT_ONCE].T
        across, longitude = np.hypot(x, y), np.arctan2(y, x) % (2.0 * np.pi)
        own = np.searchsorted(limits, np.hypot(across, z), side="right") - 1
        row = cube.rows(longitude, np.arctan2(z, across))
        inside = (row >= 0) & (own >= 0) & (own < values.shape[1])
        found[first : first + _AT_ONCE][inside] = values[row[inside], own[inside]]
    return found.reshape(position.shape[:-1])


def birdseye(
    cube: SkyCube, *, extent: float | None = None, step: float = 0.025, half_height: float = HALF_HEIGHT
) -> tuple[Float64, Float64]:
    """Average over the height above and below the plane: for ext, dE/dr as in Eq. 30; for feh, the map itself.

    Parameters
    ----------
    cube : SkyCube
    extent : float, optional
        Half the side of the square [kpc]; the farthest edge of the map when not given.
    step : float
        Side of a place [kpc].
    half_height : float
        [kpc]

    Returns
    -------
    middle : (m,) float64
        x, and y, of the places [kpc].
    average : (m, m) float64
        At [y, x]: [mag/kpc] or [dex]; the average over the heights at which the map has a number, NaN where these are
        fewer than half.
    """
    middle = _middles(extent or cube.edges[-1], step)
    heights = _middles(half_height, _HEIGHT_STEP)
    values = _values(cube)
    total, known = np.zeros((len(middle),) * 2), np.zeros((len(middle),) * 2)
    position = np.empty((len(middle), len(middle), 3))
    position[..., 0], position[..., 1] = middle, middle[:, None]
    for height in heights:
        position[..., 2] = height
        found = at_positions(cube, position, values)
        here = np.isfinite(found)
        total[here] += found[here]
        known += here
    with np.errstate(invalid="ignore", divide="ignore"):
        return middle, np.where(known >= _KNOWN_SHARE * len(heights), total / known, np.nan)


def plane_slice(
    cube: SkyCube, plane: Plane, *, extent: float | None = None, half_height: float = 0.6, step: float = 0.01
) -> tuple[Float64, Float64, Float64]:
    """Values in a plane through the Sun: dE/dr [mag/kpc] for ext, the map itself for feh.

    Parameters
    ----------
    cube : SkyCube
    plane : {"xy", "xz", "yz"}
    extent : float, optional
        Half the side along x or y [kpc]; the farthest edge of the map when not given.
    half_height : float
        Of the slice along z [kpc].
    step : float
        [kpc]

    Returns
    -------
    across, up : (m,), (k,) float64
        First and second coordinate of the places [kpc].
    values : (k, m) float64
        At [up, across].
    """
    axes = ["xyz".index(name) for name in plane]
    across = _middles(extent or cube.edges[-1], step)
    up = _middles(half_height, step) if "z" in plane else across
    position = np.zeros((len(up), len(across), 3))
    position[..., axes[0]], position[..., axes[1]] = across, up[:, None]
    return across, up, at_positions(cube, position, _values(cube))


def _values(cube: SkyCube) -> Float64:
    return density(cube) if cube.settings.quantity == "ext" else cube.tile.value.astype(np.float64)


def _middles(extent: float, step: float) -> Float64:
    """Middles of steps from -extent to extent."""
    number = max(round(2.0 * extent / step), 1)
    return extent * ((2.0 * np.arange(number) + 1.0) / number - 1.0)
