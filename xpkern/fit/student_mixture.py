"""A mixture of Student's t distributions whose first coordinate is cut off: what importance samples are drawn from.

Its tails are heavier than those of any posterior that comes near a Gaussian, so that no weight is unbounded. The first
coordinate is the extinction, which cannot be negative: where a posterior is cut off there, so is each component, and
none of its draws is wasted. With E = c_0 + r t_0 first and the others given it, t_0 comes from a t distribution cut off
and the others from one of one more degree of freedom, scaled by sqrt((nu + t_0^2) / (nu + 1)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import gammaln, stdtr, stdtrit

from xpkern.engine.contract import Float64

#: Degrees of freedom: tails heavy enough for posteriors that are no Gaussians, and a small loss where they are.
DEGREES_OF_FREEDOM = 5.0

#: What a component was counts as so many points per coordinate of what it becomes: no covariance of a few is singular.
_OLD_DRAWS = 1.0

#: Points that coincide have no spread: least variance of a coordinate, and least eigenvalue at unit diagonal.
_SMALLEST_VARIANCE, _SMALLEST_EIGENVALUE = 1e-18, 1e-9

#: Steps of expectation and maximisation.
_STEPS = 12


@dataclass(frozen=True)
class StudentMixture:
    """Mixture of K components in d coordinates.

    Attributes
    ----------
    weight : (K,) float64
        Adding up to 1.
    centre : (K, d) float64
    root : (K, d, d) float64
        Lower triangular; root @ root.T is the matrix of scales.
    lower, upper : float
        Where the first coordinate is cut off.
    """

    weight: Float64
    centre: Float64
    root: Float64
    lower: float
    upper: float

    @classmethod
    def fitted(
        cls, points: Float64, components: int, lower: float, upper: float, rng: np.random.Generator
    ) -> StudentMixture:
        """A mixture that points (n, d) may have been drawn from, by expectation and maximisation from random ones."""
        size = points.shape[1]
        root = root_of(np.cov(points.T)[None] * components ** (-2.0 / size))[0]
        mixture = cls(
            np.full(components, 1.0 / components),
            points[rng.choice(len(points), components, replace=False)],
            np.repeat(root[None], components, axis=0),
            lower,
            upper,
        )
        for _ in range(_STEPS):
            mixture = mixture.moved_to(points)
        return mixture

    def __len__(self) -> int:
        return len(self.weight)

    def sample(self, n: int, rng: np.random.Generator) -> Float64:
        """Draw points, (n, d) float64: as many of each component as its weight says, to within one."""
        edges = np.floor(n * np.append(self.weight.cumsum()[:-1], 1.0) + rng.random())
        component = np.repeat(np.arange(len(self)), np.diff(edges, prepend=0.0).astype(np.intp))
        size, nu = self.centre.shape[1], DEGREES_OF_FREEDOM
        low, high, flip = self._cuts()
        share = low[component] + (high - low)[component] * rng.random(n)
        first = stdtrit(nu, np.clip(share, 1e-300, 1.0 - 1e-16)) * flip[component]
        spread = np.sqrt((nu + first**2) / rng.chisquare(nu + 1.0, n))
        standard = np.column_stack([first, spread[:, None] * rng.standard_normal((n, size - 1))])
        drawn = self.centre[component] + np.einsum("nij,nj->ni", self.root[component], standard)
        drawn[:, 0] = np.clip(drawn[:, 0], self.lower, self.upper)
        return drawn

    def ln_components(self, points: Float64) -> tuple[Float64, Float64]:
        """Logarithm of weight times density of each component, and squared distances from it in scales, (n, K)."""
        size, nu = self.centre.shape[1], DEGREES_OF_FREEDOM
        inverse = np.linalg.inv(self.root)
        standard = points @ inverse.reshape(-1, size).T - np.einsum("kij,kj->ki", inverse, self.centre).ravel()
        distance = np.square(standard).reshape(len(points), len(self), size).sum(axis=2)
        low, high, _ = self._cuts()
        ln_norm = gammaln(0.5 * (nu + size)) - gammaln(0.5 * nu) - 0.5 * size * math.log(nu * math.pi)
        ln_norm = ln_norm - np.log(np.einsum("kii->ki", self.root)).sum(axis=1) - np.log(np.maximum(high - low, 1e-300))
        inside = (points[:, 0] >= self.lower) & (points[:, 0] <= self.upper)
        ln_density = np.log(self.weight) + ln_norm - 0.5 * (nu + size) * np.log1p(distance / nu)
        return np.where(inside[:, None], ln_density, -np.inf), distance

    def ln_density(self, points: Float64) -> Float64:
        """Logarithm of the density at points (n, d), (n,)."""
        return np.logaddexp.reduce(self.ln_components(points)[0], axis=1)

    def moved_to(self, points: Float64) -> StudentMixture:
        """One step of expectation and maximisation: what points (n, d) are more likely drawn from."""
        ln_components, distance = self.ln_components(points)
        share = np.exp(ln_components - np.logaddexp.reduce(ln_components, axis=1)[:, None])
        size, nu = points.shape[1], DEGREES_OF_FREEDOM
        tail = share * (nu + size) / (nu + distance)
        old = _OLD_DRAWS * size
        centre = (tail.T @ points + self.centre) / (tail.sum(axis=0) + 1.0)[:, None]
        offset = points[:, None, :] - centre
        scatter = np.einsum("nk,nki,nkj->kij", tail, offset, offset, optimize=True)
        scatter += old * self.root @ self.root.swapaxes(1, 2)
        root = root_of(scatter / (share.sum(axis=0) + old)[:, None, None])
        weight = share.sum(axis=0) + 1.0
        return replace(self, weight=weight / weight.sum(), centre=centre, root=root)

    def joined(self, other: StudentMixture, share: float) -> StudentMixture:
        """Both mixtures in one, the other with that share of the weight."""
        return replace(
            self,
            weight=np.append((1.0 - share) * self.weight, share * other.weight),
            centre=np.concatenate([self.centre, other.centre]),
            root=np.concatenate([self.root, other.root]),
        )

    def _cuts(self) -> tuple[Float64, Float64, Float64]:
        """Shares (K,) of the standard t distribution below the cuts, in its lower half where both lie in the upper one.

        The upper tail of a distribution function has no digits left; there it is mirrored, and the sign is -1.
        """
        scale = self.root[:, 0, 0]
        low, high = (self.lower - self.centre[:, 0]) / scale, (self.upper - self.centre[:, 0]) / scale
        flip = np.where(low > 0, -1.0, 1.0)
        low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
        return stdtr(DEGREES_OF_FREEDOM, low), stdtr(DEGREES_OF_FREEDOM, high), flip


def root_of(covariance: Float64) -> Float64:
    """Cholesky factors (n, d, d) of covariances, eigenvalues at unit diagonal raised where too small."""
    scale = np.sqrt(np.maximum(np.einsum("nii->ni", covariance), _SMALLEST_VARIANCE))
    outer = scale[:, :, None] * scale[:, None, :]
    values, vectors = np.linalg.eigh(covariance / outer)
    raised = np.einsum("nij,nj,nkj->nik", vectors, np.maximum(values, _SMALLEST_EIGENVALUE), vectors)
    return scale[:, :, None] * np.linalg.cholesky(raised)
