"""Proper priors on what lies between a star and us: its extinction and its parallax.

Eq. 19 has the terms - 2 ln E - 2 ln plx. They are no prior: exp(-loss / 2) is a density in (Theta, ln E, ln plx), and
with dE = E d ln E, dplx = plx d ln plx it is the same probability as

    exp(-chi^2 / 2) p_GMM(Theta) dTheta dE dplx

which is that of priors uniform in E > 0 and plx > 0. Over all E and plx these cannot be normalised, and the loss has no
lower bound; inside the box of the search they can. That is the default here, and others may take their place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import gammainc, gammaincinv

from xpkern.engine.contract import Box, Float64
from xpkern.errors import InputError


@dataclass(frozen=True)
class SightlinePrior:
    """Densities of extinction and parallax, independent of the stellar type, each normalised inside the box.

    Attributes
    ----------
    ext_scale : float
        p(E) is proportional to exp(-E / ext_scale) [mag]; uniform if it is infinite.
    distance_scale : float, optional
        Scale L [kpc] of an exponentially decreasing space density of stars (Bailer-Jones 2015): p(plx) is proportional
        to plx^-4 exp(-1 / (L plx)). Uniform in plx when not given.

    Raises
    ------
    InputError
        If a scale is not positive.
    """

    ext_scale: float = math.inf
    distance_scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("ext_scale", "distance_scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{value} is not a positive number", field=name)
        if self.distance_scale is not None and not math.isfinite(self.distance_scale):
            raise InputError("must be finite; None is uniform in parallax", field="distance_scale")

    def ln_density(self, ext: Float64, plx: Float64, box: Box) -> Float64:
        """Logarithm of p(E) p(plx) [1 / (mag mas)], (n,), at values inside the box; others are not looked at."""
        (ext_low, plx_low), (ext_high, plx_high) = box.lower[-2:], box.upper[-2:]
        if math.isinf(self.ext_scale):
            ln_ext = np.full_like(ext, -math.log(ext_high - ext_low))
        else:
            mass = -math.expm1(-(ext_high - ext_low) / self.ext_scale)
            ln_ext = -(ext - ext_low) / self.ext_scale - math.log(self.ext_scale * mass)
        if self.distance_scale is None:
            return ln_ext - math.log(plx_high - plx_low)
        # in the distance r = 1 / plx [kpc]: r^2 exp(-r / L) / (2 L^3) dr, and dr = r^2 dplx
        near, far = self._cumulative(plx_high), self._cumulative(plx_low)
        ln_mass = math.log(2.0 * self.distance_scale**3 * (far - near))
        return ln_ext - 4.0 * np.log(plx) - 1.0 / (self.distance_scale * plx) - ln_mass

    def slopes(self, plx: Float64) -> tuple[float, Float64, Float64]:
        """D ln p / dE, and the first and second derivative of ln p by ln plx, each (n,)."""
        if self.distance_scale is None:
            return -1.0 / self.ext_scale, np.zeros_like(plx), np.zeros_like(plx)
        ratio = 1.0 / (self.distance_scale * plx)
        return -1.0 / self.ext_scale, ratio - 4.0, -ratio

    def sample(self, n: int, box: Box, rng: np.random.Generator) -> Float64:
        """Draw extinctions and parallaxes, (n, 2) float64, inside the box."""
        (ext_low, plx_low), (ext_high, plx_high) = box.lower[-2:], box.upper[-2:]
        share = rng.random((n, 2))
        if math.isinf(self.ext_scale):
            ext = ext_low + (ext_high - ext_low) * share[:, 0]
        else:
            mass = -math.expm1(-(ext_high - ext_low) / self.ext_scale)
            ext = ext_low - self.ext_scale * np.log1p(-mass * share[:, 0])
        if self.distance_scale is None:
            plx = plx_low + (plx_high - plx_low) * share[:, 1]
        else:
            near, far = self._cumulative(plx_high), self._cumulative(plx_low)
            distance = self.distance_scale * gammaincinv(3.0, near + (far - near) * share[:, 1])
            plx = np.clip(1.0 / distance, plx_low, plx_high)
        return np.column_stack([ext, plx])

    def _cumulative(self, plx: float) -> float:
        """Share of the stars of all distances that are nearer than 1 / plx [kpc]."""
        assert self.distance_scale is not None
        return float(gammainc(3.0, 1.0 / (self.distance_scale * plx)))
