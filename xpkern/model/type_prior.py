"""The prior on stellar type: a Gaussian mixture in (teff, feh, logg)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.model.arrays import constant, digest

#: Share of the prior's mass whose density lies below ``ln_prior_threshold`` (flag bit 4 of the catalogue).
THRESHOLD_QUANTILE = 0.001

#: Stellar types drawn for that quantile: its own sampling error is then 0.05 in ln p.
_THRESHOLD_DRAWS = 1 << 16

#: How far the support reaches beyond the mean of each component, in standard deviations.
_SUPPORT_SIGMAS = 5.0


@dataclass(frozen=True, eq=False)
class TypePrior:
    """Mixture of K normal densities of the stellar type Theta = (teff [kK], feh, logg), normalised to one.

    Attributes
    ----------
    weights : (K,) float64
        Positive, adding up to 1.
    means : (K, d) float64
    covariances : (K, d, d) float64
    ln_prior_threshold : float
        Natural logarithm of the density below which 0.1 % of the mixture's own mass lies; NaN on construction means:
        find it by sampling, with a fixed seed.
    """

    weights: Float64
    means: Float64
    covariances: Float64
    ln_prior_threshold: float = math.nan

    def __post_init__(self) -> None:
        means = constant(self.means, "means", (None, None))
        components, dimensions = means.shape
        weights = constant(self.weights, "weights", (components,))
        covariances = constant(self.covariances, "covariances", (components, dimensions, dimensions))
        total = float(weights.sum())
        if (weights <= 0).any() or not math.isclose(total, 1.0, abs_tol=1e-5):
            raise InputError("must be positive and add up to 1", field="weights")
        if not math.isclose(total, 1.0, abs_tol=1e-12):  # rounded to float32 on the way here
            weights = constant(weights / total, "weights", (components,))
        asymmetry = np.abs(covariances - covariances.swapaxes(1, 2)).max()
        if asymmetry > 1e-8 * np.abs(covariances).max() or np.linalg.eigvalsh(covariances).min() <= 0:
            raise InputError("must be symmetric and positive definite", field="covariances")
        for name, value in (("weights", weights), ("means", means), ("covariances", covariances)):
            object.__setattr__(self, name, value)
        if math.isnan(self.ln_prior_threshold):
            drawn = self.sample(_THRESHOLD_DRAWS, np.random.default_rng(20230301))
            threshold = float(np.quantile(self.ln_density(drawn), THRESHOLD_QUANTILE))
            object.__setattr__(self, "ln_prior_threshold", threshold)

    @classmethod
    def from_arrays(cls, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike) -> TypePrior:
        """A prior from plain arrays, shaped as the class's attributes of the same names.

        Raises
        ------
        InputError
            If shapes do not fit together, weights do not add up to 1, or a covariance is not positive definite.
        """
        as_given: list = [weights, means, covariances]
        return cls(*as_given)

    def __repr__(self) -> str:
        return f"TypePrior({self.n_components} components in {self.means.shape[1]} dimensions)"

    @property
    def n_components(self) -> int:
        """Number of components K."""
        return len(self.weights)

    @cached_property
    def precisions(self) -> Float64:
        """Inverse covariances, (K, d, d) float64."""
        inverse = np.linalg.inv(self.covariances)
        return 0.5 * (inverse + inverse.swapaxes(1, 2))

    @cached_property
    def ln_norms(self) -> Float64:
        """Logarithm of weight times normalisation of each component, (K,): ln w - (d ln 2 pi + ln det Cov) / 2."""
        ln_det = np.linalg.slogdet(self.covariances)[1]
        return np.log(self.weights) - 0.5 * (self.means.shape[1] * math.log(2.0 * math.pi) + ln_det)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of every number in the prior."""
        return digest([self.weights, self.means, self.covariances, self.ln_prior_threshold])

    def ln_components(self, theta: Float64) -> Float64:
        """Logarithm of weight times density of each component, (n, K), at ``theta`` (n, d) float64."""
        offset = theta[:, None, :] - self.means
        distance = np.einsum("nki,kij,nkj->nk", offset, self.precisions, offset)
        return self.ln_norms - 0.5 * distance

    def ln_density(self, theta: ArrayLike) -> Float64:
        """Natural logarithm of the normalised density [1 / (kK dex^2)].

        Parameters
        ----------
        theta : (n, d) array_like
            Stellar types.

        Returns
        -------
        (n,) float64
        """
        ln_components = self.ln_components(np.asarray(theta, dtype=np.float64))
        largest = ln_components.max(axis=1)
        return largest + np.log(np.exp(ln_components - largest[:, None]).sum(axis=1))

    def sample(self, n: int, rng: np.random.Generator) -> Float64:
        """Draw ``n`` stellar types, (n, d) float64."""
        component = rng.choice(self.n_components, size=n, p=self.weights)
        roots = np.linalg.cholesky(self.covariances)
        normal = rng.standard_normal((n, self.means.shape[1]))
        return self.means[component] + np.einsum("nij,nj->ni", roots[component], normal)

    def support(self) -> tuple[Float64, Float64]:
        """Lower and upper corner, each (d,), of the box that holds every component out to 5 standard deviations."""
        reach = _SUPPORT_SIGMAS * np.sqrt(np.diagonal(self.covariances, axis1=1, axis2=2))
        return (self.means - reach).min(axis=0), (self.means + reach).max(axis=0)
