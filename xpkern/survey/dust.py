r"""Where the dust is: an analytic field, so that what a map should find is known exactly.

E(B-V) grows along a sightline by the density [mag/kpc] of a layer around the Galactic plane and of clouds,

    rho(x) = rho_0 exp(-|z| / h) + sum_k rho_k exp(-|x - c_k|^2 / (2 s_k^2)),

with x = (x, y, z) [kpc] around the Sun, x towards the Galactic centre. Along a ray of direction n both have an
integral in closed form: the layer's is rho_0 h (1 - exp(-d |n_z| / h)) / |n_z|, a cloud's a difference of error
functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import erf

from xpkern.engine.contract import Float64

#: Clouds: Galactic longitude and latitude [deg], distance, size s [kpc], E(B-V) [mag] through the centre. Where, and
#: about as thick as, well-known complexes: Taurus, Perseus, California, Orion A and B, Ophiuchus, Lupus, Chamaeleon,
#: Aquila, Cygnus, Cepheus, Polaris, Vela, Monoceros, Carina, Serpens beyond the Aquila rift.
_CLOUDS = np.array(
    [
        (171.0, -15.0, 0.145, 0.015, 0.9),
        (159.0, -20.0, 0.30, 0.015, 0.8),
        (162.0, -9.0, 0.47, 0.025, 0.7),
        (211.0, -19.5, 0.43, 0.025, 0.9),
        (205.0, -15.0, 0.42, 0.020, 0.8),
        (354.0, 16.5, 0.14, 0.014, 1.0),
        (338.0, 12.0, 0.16, 0.018, 0.5),
        (300.0, -15.5, 0.19, 0.014, 0.6),
        (28.0, 4.0, 0.25, 0.040, 1.0),
        (80.0, 0.5, 0.85, 0.080, 1.2),
        (108.0, 14.0, 0.35, 0.030, 0.6),
        (123.0, 25.0, 0.35, 0.025, 0.4),
        (265.0, 0.5, 0.90, 0.060, 0.8),
        (215.0, -12.0, 0.85, 0.040, 0.6),
        (287.0, -1.0, 2.3, 0.120, 1.0),
        (17.0, 0.5, 1.9, 0.150, 1.3),
    ]
)


def direction(longitude: Float64, latitude: Float64) -> Float64:
    """Unit vectors (n, 3) of Galactic coordinates [rad]."""
    return np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=-1
    )


@dataclass(frozen=True)
class DustField:
    """The layer and the clouds.

    Attributes
    ----------
    layer_density, layer_height : float
        rho_0 [mag/kpc] and h [kpc].
    centre : (k, 3) float64
        c_k [kpc].
    size : (k,) float64
        s_k [kpc].
    peak : (k,) float64
        rho_k [mag/kpc].
    """

    layer_density: float
    layer_height: float
    centre: Float64
    size: Float64
    peak: Float64

    @classmethod
    def default(cls) -> DustField:
        """The field of every simulated survey."""
        longitude, latitude, distance, size, through = _CLOUDS.T
        centre = direction(np.radians(longitude), np.radians(latitude)) * distance[:, None]
        return cls(0.3, 0.12, centre, size, through / (size * np.sqrt(2.0 * np.pi)))

    def density(self, position: Float64) -> Float64:
        """Density [mag/kpc] (n,) at positions (n, 3) [kpc]."""
        layer = self.layer_density * np.exp(-np.abs(position[:, 2]) / self.layer_height)
        offset = position[:, None, :] - self.centre
        return layer + np.exp(-0.5 * (offset**2).sum(axis=2) / self.size**2) @ self.peak

    def column(self, direction: Float64, distance: Float64) -> Float64:
        """E(B-V) [mag] (n,) up to distances (n,) [kpc] along unit vectors (n, 3)."""
        slope = np.maximum(np.abs(direction[:, 2]) / self.layer_height, 1e-12)
        total = self.layer_density * -np.expm1(-distance * slope) / slope
        along = direction @ self.centre.T
        aside = np.maximum((self.centre**2).sum(axis=1) - along**2, 0.0)
        near, far = (end / (np.sqrt(2.0) * self.size) for end in (-along, distance[:, None] - along))
        share = 0.5 * (erf(far) - erf(near)) * np.exp(-0.5 * aside / self.size**2)
        return total + share @ (self.peak * self.size * np.sqrt(2.0 * np.pi))
