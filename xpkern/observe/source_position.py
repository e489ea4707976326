"""Where on the sky a source is, by its identifier alone: Gaia numbers sources by HEALPix pixels of level 12, nested.

The centre of the pixel, 0.86 arcmin wide, is where the source was taken to be when it got its number. The formulae are
those of Gorski et al. (2005, ApJ 622, 759), section 4.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.observe.population import ICRS_TO_GALACTIC

#: Level of the pixels, and how many bits of a source_id stand below the number of its pixel.
PIXEL_LEVEL, BITS_BELOW_PIXEL = 12, 35

#: Of each of the 12 base pixels: ring of its southern corner, in units of nside, and its longitude, in units of pi / 4.
_CORNER_RING = np.array([2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4])
_CORNER_LONGITUDE = np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7])


def bits_below(level: int) -> int:
    """How many bits of a source_id stand below the number of its pixel of a lower level, nested."""
    return BITS_BELOW_PIXEL + 2 * (PIXEL_LEVEL - level)


def position(source_id: NDArray[np.int64]) -> tuple[Float64, Float64]:
    """Right ascension and declination (n,) [deg], ICRS, of the centres of the sources' pixels."""
    longitude, sin_latitude = pixel_centre(np.asarray(source_id, np.int64) >> BITS_BELOW_PIXEL, PIXEL_LEVEL)
    return np.degrees(longitude), np.degrees(np.arcsin(sin_latitude))


def galactic_latitude(source_id: NDArray[np.int64]) -> Float64:
    """Galactic latitude (n,) [deg] of the centres of the sources' pixels."""
    longitude, sin_latitude = pixel_centre(np.asarray(source_id, np.int64) >> BITS_BELOW_PIXEL, PIXEL_LEVEL)
    cos_latitude = np.sqrt(1.0 - sin_latitude**2)
    direction = np.stack([cos_latitude * np.cos(longitude), cos_latitude * np.sin(longitude), sin_latitude])
    return np.degrees(np.arcsin(np.clip(ICRS_TO_GALACTIC[2] @ direction, -1.0, 1.0)))


def pixel_of(source_id: NDArray[np.int64], level: int) -> NDArray[np.int64]:
    """Number (n,) of the pixel of a lower level, nested, in which the sources lie."""
    return np.asarray(source_id, np.int64) >> bits_below(level)


def pixel_centre(pixel: NDArray[np.int64], level: int) -> tuple[Float64, Float64]:
    """Longitude [rad] and sine of the latitude, each (n,), of the centres of nested pixels."""
    nside = 1 << level
    base, within = pixel // nside**2, pixel % nside**2
    x, y = _even_bits(within), _even_bits(within >> 1)
    ring = _CORNER_RING[base] * nside - x - y - 1  # from 1, at the north pole
    north, south = ring < nside, ring > 3 * nside
    polar = north | south
    of_ring = np.where(north, ring, np.where(south, 4 * nside - ring, nside))  # a quarter of its pixels
    from_pole = of_ring**2 / (3.0 * nside**2)
    sin_latitude = np.where(polar, 1.0 - from_pole, (2 * nside - ring) * 2.0 / (3.0 * nside))
    shifted = np.where(polar, 0, (ring - nside) & 1)
    number = (_CORNER_LONGITUDE[base] * of_ring + x - y + 1 + shifted) // 2
    longitude = (number - 0.5 * (shifted + 1)) * (0.5 * np.pi / of_ring)
    return longitude % (2.0 * np.pi), np.where(south, -sin_latitude, sin_latitude)


def _even_bits(number: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number that every second bit of another makes, from its lowest on."""
    packed = number & 0x5555555555555555
    for shift, mask in (
        (1, 0x3333333333333333),
        (2, 0x0F0F0F0F0F0F0F0F),
        (4, 0x00FF00FF00FF00FF),
        (8, 0x0000FFFF0000FFFF),
        (16, 0x00000000FFFFFFFF),
    ):
        packed = (packed | (packed >> shift)) & mask
    return packed
