"""Bayestar19 (Green et al. 2019) put into the pixels and bins of a map, to stand beside it as in ZGR23 Fig. 24."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.maps.cube import SkyCube, Tile
from xpkern.maps.sky import centres

#: Places asked for at once.
_AT_ONCE = 1 << 16

#: Finest nside at which Bayestar19 is asked.
_FINEST = 64


class Bayestar(Protocol):
    """What is needed of :class:`xpkern.observe.reddening.DustMaps`."""

    def bayestar_samples(self, coordinates: object) -> Float64:
        """Samples of E (n, samples) at places with distances; NaN outside the map."""
        ...


def bayestar_cube(cube: SkyCube, maps: Bayestar) -> SkyCube:
    """Bayestar19 at the centres of a map's pixels, of nside 64 at most, and the middles of its bins.

    Parameters
    ----------
    cube : SkyCube
        A map of ext.
    maps : DustMaps

    Returns
    -------
    SkyCube
        Mean of the samples, as ``value``; NaN outside Bayestar19.
    """
    from astropy import units
    from astropy.coordinates import SkyCoord

    nside = min(_FINEST, cube.settings.nsides[0])
    order = nside.bit_length() - 1
    pixel = np.unique(cube.tile.pixel >> 2 * (cube.order - order))
    longitude, latitude = centres(pixel, order)
    bins = cube.settings.bins
    value = np.empty(len(pixel) * bins, np.float32)
    along, up = np.repeat(longitude, bins), np.repeat(latitude, bins)
    distance = np.tile(cube.distance, len(pixel))
    for first in range(0, len(value), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        place = SkyCoord(along[part] * units.rad, up[part] * units.rad, distance[part] * units.kpc, frame="galactic")
        value[part] = maps.bayestar_samples(place).mean(axis=1)
    shape = (len(pixel), bins)
    value = value.reshape(shape)
    nothing = np.zeros(shape, np.int32), np.where(np.isfinite(value), nside, 0).astype(np.int16)
    tile = Tile(pixel, value, np.full(shape, np.nan, np.float32), *nothing)
    return SkyCube(replace(cube.settings, nsides=(nside,)), tile, attributes={"name": "Bayestar19"})
