"""Where stars and pixels are on the Galactic sky. HEALPix is that of the package cdshealpix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.errors import XpkernError
from xpkern.observe.population import ICRS_TO_GALACTIC
from xpkern.observe.source_position import position


def pixels(longitude: Float64, latitude: Float64, order: int) -> NDArray[np.int64]:
    """Nested pixels of places.

    Parameters
    ----------
    longitude, latitude : (n,) float64
        [rad], all finite.
    order : int
        nside = 2^order.

    Returns
    -------
    (n,) int64

    Raises
    ------
    XpkernError
        If cdshealpix is not installed.
    """
    lonlat_to_healpix = _cdshealpix("lonlat_to_healpix")
    from astropy import units
    from astropy.coordinates import Latitude, Longitude

    if not len(longitude):
        return np.empty(0, np.int64)
    lon, lat = Longitude(longitude, units.rad, copy=False), Latitude(latitude, units.rad, copy=False)
    found: NDArray[np.int64] = lonlat_to_healpix(lon, lat, order, num_threads=1).astype(np.int64)
    return found


def centres(pixel: NDArray[np.int64], order: int) -> tuple[Float64, Float64]:
    """Longitude and latitude (n,) [rad] of the centres of nested pixels."""
    lon, lat = _cdshealpix("healpix_to_lonlat")(pixel.astype(np.uint64), order, num_threads=1)
    return np.asarray(lon.rad), np.asarray(lat.rad)


def _cdshealpix(name: str) -> Any:
    try:
        from cdshealpix import nested
    except ImportError as error:
        raise XpkernError(f"maps need the package cdshealpix ({error}): pip install 'xpkern[dust]'") from None
    return getattr(nested, name)


def pixels_of_stars(
    ra: NDArray[Any] | None, dec: NDArray[Any] | None, source_id: NDArray[np.int64] | None, order: int
) -> tuple[NDArray[np.int64], int]:
    """Nested pixels of stars on the Galactic sky.

    A star without coordinates is taken to be in the middle of the pixel that its source_id names, within 0.6 arcmin.

    Parameters
    ----------
    ra, dec : (n,) array, optional
        ICRS [deg].
    source_id : (n,) int64, optional
        Gaia's; one of the three must be given. One that is not positive names no pixel.
    order : int

    Returns
    -------
    pixel : (n,) int64
        -1 where nothing is known of the place.
    by_source_id : int
        Stars placed by their source_id.
    """
    n = len(next(values for values in (ra, dec, source_id) if values is not None))
    right_ascension, declination = np.full(n, np.nan), np.full(n, np.nan)
    if ra is not None and dec is not None:
        right_ascension[:], declination[:] = ra, dec
    known = np.isfinite(right_ascension) & (np.abs(declination) <= 90.0)
    named = 0
    if source_id is not None and not known.all():
        by_name = ~known & (source_id > 0)
        right_ascension[by_name], declination[by_name] = position(source_id[by_name])
        known, named = known | by_name, int(by_name.sum())
    pixel = np.full(n, -1, np.int64)
    pixel[known] = pixels(*to_galactic(right_ascension[known], declination[known]), order)
    return pixel, named


def to_galactic(ra: Float64, dec: Float64) -> tuple[Float64, Float64]:
    """Galactic longitude, from 0 to 2 pi, and latitude (n,) [rad] of ICRS positions [deg]."""
    longitude, latitude = np.empty_like(ra), np.empty_like(dec)
    _rotate(ra, dec, ICRS_TO_GALACTIC, longitude, latitude)
    return longitude, latitude


@njit(nogil=True)
def _rotate(ra: Any, dec: Any, matrix: Any, longitude: Any, latitude: Any) -> None:
    for i in range(len(ra)):
        alpha, delta = math.radians(ra[i]), math.radians(dec[i])
        across = math.cos(delta)
        x, y, z = across * math.cos(alpha), across * math.sin(alpha), math.sin(delta)
        gx = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z
        gy = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z
        gz = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z
        around = math.atan2(gy, gx)
        longitude[i] = around if around >= 0 else around + 2 * math.pi
        latitude[i] = math.atan2(gz, math.hypot(gx, gy))
