"""A small population of stars: types from the prior, apparent magnitudes, distances that agree, dust on the way.

It is not a model of the Galaxy. It covers what XP spectra show: dwarfs nearby, giants far away, many more faint
stars than bright ones, and more dust the farther and the closer to the plane.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.grid import N_XP
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior

#: Apparent magnitudes G of a simulated survey: where Gaia DR3 published almost every XP spectrum.
G_RANGE = (10.0, 17.6)

#: Stars per magnitude grow as 10^(slope G): flatter than the sky, so that bright stars are not too few.
COUNTS_SLOPE = 0.12

#: Distances [kpc] a simulated star may have.
DISTANCE_RANGE = (0.02, 15.0)

#: Share of the prior's draws with the lowest density that is left out: the edge of what the model has learned.
EDGE_SHARE = 0.05

#: Dust: mean E(B-V) per kpc in the plane, scale height [kpc], shape of the gamma distribution of the sightlines'
#: patchiness around that mean, and the largest extinction kept.
DUST_DENSITY, DUST_HEIGHT, DUST_SHAPE, LARGEST_EXT = 0.25, 0.12, 2.0, 4.0

#: Response of Gaia's G, BP and RP to energy flux, read off the published DR3 passbands to about 0.02, and the Vega
#: zero points [mag for 1e-18 W m-2 nm-1] that this crude integral over the XP samples needs: fitted to real stars,
#: which it reproduces to 0.02 mag.
_PASSBANDS = {
    "g": (
        [392, 420, 460, 500, 550, 600, 650, 700, 750, 800, 850, 900, 950, 992],
        [0.30, 0.50, 0.58, 0.65, 0.68, 0.70, 0.70, 0.69, 0.66, 0.58, 0.48, 0.36, 0.22, 0.11],
        18.48,
    ),
    "bp": (
        [392, 420, 450, 500, 550, 600, 640, 665, 680],
        [0.47, 0.58, 0.60, 0.64, 0.66, 0.67, 0.68, 0.60, 0.00],
        19.04,
    ),
    "rp": (
        [620, 640, 660, 700, 750, 800, 850, 900, 950, 992],
        [0.00, 0.62, 0.69, 0.72, 0.75, 0.76, 0.74, 0.66, 0.45, 0.25],
        17.75,
    ),
}

#: Rotation from ICRS to Galactic Cartesian coordinates (Hipparcos catalogue, vol. 1, section 1.5.3).
ICRS_TO_GALACTIC = np.array(
    [
        [-0.0548755604, -0.8734370902, -0.4838350155],
        [+0.4941094279, -0.4448296300, +0.7469822445],
        [-0.8676661490, -0.1980763734, +0.4559837762],
    ]
)


@dataclass(frozen=True)
class Population:
    """True stars.

    Attributes
    ----------
    params : (n, 5) float64
        teff [kK], feh, logg, ext, plx [mas].
    flux : (n, m) float64
        The model's flux [1e-18 W m-2 nm-1].
    g, bp, rp : (n,) float64
        Synthetic Gaia magnitudes.
    ra, dec : (n,) float64
        Position, ICRS [deg].
    """

    params: Float64
    flux: Float64
    g: Float64
    bp: Float64
    rp: Float64
    ra: Float64
    dec: Float64


def synthetic_magnitude(band: str, wavelength: Float64, flux: Float64) -> Float64:
    """Gaia magnitude "g", "bp" or "rp" (n,) of XP samples (n, 61): a photon-weighted mean, good to 0.02 mag."""
    nodes, response, zero_point = _PASSBANDS[band]
    photons = np.interp(wavelength, nodes, response, left=0.0, right=0.0) * wavelength
    return zero_point - 2.5 * np.log10(flux @ (photons / photons.sum()))


def draw_population(model: FluxModel, prior: TypePrior, n_stars: int, rng: np.random.Generator) -> Population:
    """Draw stars until ``n_stars`` of them lie within the ranges above.

    Parameters
    ----------
    model : FluxModel
    prior : TypePrior
    n_stars : int
    rng : numpy.random.Generator

    Returns
    -------
    Population

    Raises
    ------
    InputError
        If hardly any star of this model has a magnitude and a distance within the ranges: its flux scale is off.
    """
    batches: list[tuple[Float64, Float64, Float64]] = []
    found, drawn = 0, 0
    while found < n_stars:
        if drawn > 50 * n_stars + 10_000:
            raise InputError(
                f"of {drawn} stars drawn, {found} have G in {G_RANGE} at {DISTANCE_RANGE} kpc: check the model's scale"
            )
        size = 2 * (n_stars - found) + 256
        batches.append(_draw_batch(model, prior, size, rng))
        found, drawn = found + len(batches[-1][0]), drawn + size
    params, longitude, sin_latitude = (np.concatenate(columns)[:n_stars] for columns in zip(*batches, strict=True))

    flux = np.exp(model.ln_flux(params))
    magnitudes = {band: synthetic_magnitude(band, model.wavelength[:N_XP], flux[:, :N_XP]) for band in _PASSBANDS}
    ra, dec = to_equatorial(longitude, sin_latitude)
    return Population(params=params, flux=flux, ra=ra, dec=dec, **magnitudes)


def _draw_batch(
    model: FluxModel, prior: TypePrior, size: int, rng: np.random.Generator
) -> tuple[Float64, Float64, Float64]:
    """Those of ``size`` draws that are acceptable: parameters, Galactic longitude [rad], sine of the latitude."""
    theta = prior.sample(size, rng)
    g = _draw_magnitudes(size, rng)
    longitude = rng.uniform(0.0, 2.0 * np.pi, size)
    sin_latitude = rng.uniform(-1.0, 1.0, size) ** 3
    patchiness = rng.gamma(DUST_SHAPE, 1.0 / DUST_SHAPE, size)

    ln_density = prior.ln_density(theta)
    usual = ln_density > max(np.quantile(ln_density, EDGE_SHARE), prior.ln_prior_threshold)

    def ext_at(distance: Float64) -> Float64:
        height = np.abs(sin_latitude) / DUST_HEIGHT
        return patchiness * DUST_DENSITY * -np.expm1(-distance * height) / np.maximum(height, 1e-12)

    # G grows with distance, through dust and the inverse square: bisect in ln d.
    wavelength, ext_curve = model.wavelength[:N_XP], model.ext_curve[:N_XP]
    clear = np.exp(model.ln_flux(np.column_stack([theta, np.zeros(size), np.ones(size)])))[:, :N_XP]
    low, high = (np.full(size, np.log(limit)) for limit in (0.5 * DISTANCE_RANGE[0], 2.0 * DISTANCE_RANGE[1]))
    for _ in range(32):
        middle = 0.5 * (low + high)
        distance = np.exp(middle)
        flux = clear * np.exp(-ext_at(distance)[:, None] * ext_curve) / distance[:, None] ** 2
        too_bright = synthetic_magnitude("g", wavelength, flux) < g
        low, high = np.where(too_bright, middle, low), np.where(too_bright, high, middle)
    distance = np.exp(0.5 * (low + high))
    ext = ext_at(distance)

    keep = usual & (distance > DISTANCE_RANGE[0]) & (distance < DISTANCE_RANGE[1]) & (ext < LARGEST_EXT)
    params = np.column_stack([theta, ext, 1.0 / distance])
    return params[keep], longitude[keep], sin_latitude[keep]


def _draw_magnitudes(size: int, rng: np.random.Generator) -> Float64:
    """G with counts growing as 10^(COUNTS_SLOPE G), by inverting their cumulative distribution."""
    growth = np.log(10.0) * COUNTS_SLOPE
    span = G_RANGE[1] - G_RANGE[0]
    return G_RANGE[0] + np.log1p(rng.uniform(size=size) * np.expm1(growth * span)) / growth


def to_equatorial(longitude: Float64, sin_latitude: Float64) -> tuple[Float64, Float64]:
    """ICRS position [deg] of Galactic longitude [rad] and sine of the latitude."""
    cos_latitude = np.sqrt(1.0 - sin_latitude**2)
    galactic = np.stack([cos_latitude * np.cos(longitude), cos_latitude * np.sin(longitude), sin_latitude], axis=1)
    x, y, z = (galactic @ ICRS_TO_GALACTIC).T
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arcsin(np.clip(z, -1.0, 1.0)))
