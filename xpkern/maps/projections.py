"""The sky on paper: of each place of a picture, where on the sky it is. Longitudes grow to the left."""

from __future__ import annotations

import numpy as np

from xpkern.engine.contract import Float64


def mollweide(width: int) -> tuple[Float64, Float64]:
    """Places of a picture of the whole sky, with longitude 0 in its middle.

    Parameters
    ----------
    width : int
        Places across; half as many up.

    Returns
    -------
    longitude, latitude : (width / 2, width) float64
        [rad]; NaN outside of the sky.
    """
    across, up = (2.0 * (np.arange(size) + 0.5) / size - 1.0 for size in (width, width // 2))
    x, y = np.meshgrid(-2.0 * across, up)
    theta = np.arcsin(y)
    latitude = np.arcsin(np.clip((2.0 * theta + np.sin(2.0 * theta)) / np.pi, -1.0, 1.0))
    longitude = 0.5 * np.pi * x / np.cos(theta)
    outside = np.abs(longitude) > np.pi
    return np.where(outside, np.nan, longitude % (2.0 * np.pi)), np.where(outside, np.nan, latitude)


def on_mollweide(longitude: Float64, latitude: Float64) -> tuple[Float64, Float64]:
    """Where places [rad], longitudes from -pi to pi, are drawn: x, growing with longitude, to 2, and y to 1."""
    theta = np.array(latitude, np.float64)
    for _ in range(60):  # Newton's steps; at the poles, where the slope is 0, theta is the latitude
        slope = 2.0 + 2.0 * np.cos(2.0 * theta)
        excess = 2.0 * theta + np.sin(2.0 * theta) - np.pi * np.sin(latitude)
        theta -= np.divide(excess, slope, where=slope > 1e-9, out=np.zeros_like(theta))
    return 2.0 / np.pi * longitude * np.cos(theta), np.sin(theta)


def azimuthal(width: int, middle: Float64, radius: float) -> tuple[Float64, Float64]:
    """Places of a picture of a part of the sky in Lambert's equal-area projection, north up.

    Parameters
    ----------
    width : int
        Places across, and up.
    middle : (3,) float64
        Unit vector of its middle.
    radius : float
        Angle [deg] between the middle of the picture and those of its sides.

    Returns
    -------
    longitude, latitude : (width, width) float64
        [rad]
    """
    offset = azimuthal_side(radius) * (2.0 * (np.arange(width) + 0.5) / width - 1.0)
    x, y = np.meshgrid(-offset, offset)
    rho = np.hypot(x, y)
    angle = 2.0 * np.arcsin(np.minimum(0.5 * rho, 1.0))
    scale = np.divide(np.sin(angle), rho, out=np.ones_like(rho), where=rho > 0)
    longitude, _ = angles(middle)
    east = np.array([-np.sin(longitude), np.cos(longitude), 0.0])
    north = np.cross(middle, east)
    return angles(np.cos(angle)[..., None] * middle + (scale * x)[..., None] * east + (scale * y)[..., None] * north)


def azimuthal_side(radius: float) -> float:
    """Half the side [rad] of such a picture."""
    return float(2.0 * np.sin(0.5 * np.radians(radius)))


def directions(longitude: Float64, latitude: Float64) -> Float64:
    """Unit vectors (..., 3) of places (...) [rad]."""
    across = np.cos(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], axis=-1)


def angles(direction: Float64) -> tuple[Float64, Float64]:
    """Longitude, from 0 to 2 pi, and latitude (...) [rad] of unit vectors (..., 3)."""
    x, y, z = np.moveaxis(direction, -1, 0)
    return np.arctan2(y, x) % (2.0 * np.pi), np.arcsin(np.clip(z, -1.0, 1.0))
