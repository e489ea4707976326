"""How wrong a flux model is, by stellar type: a covariance of ln f that is learned from residuals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.model.arrays import constant, digest

#: Groups that a noise may have at most.
MAX_GROUPS = 32

#: A group with less than this of the nearest one's weight has no share.
LEAST_WEIGHT = 1e-4


@dataclass(frozen=True, eq=False)
class ModelError:
    """Covariance of a model's fractional errors, S(Theta), and a factor of the archive's covariance.

    ::

        C = (f f^T) o S(Theta) + archive_factor C_gaia
        S(Theta) = sum_g share_g(Theta) covariance_g
        share_g(Theta) = w_g / sum_h w_h,  w_g = exp(-d_g^2 / 2),  d_g^2 = sum_k ((Theta_k - centre_gk) / scale_k)^2

    (o: element by element; f the flux that the model predicts.) Each group of stellar types has a covariance of its
    own. A star near the centre of a group has that one; between centres they blend, so that S is smooth in Theta and
    a covariance everywhere. Far from all of them it is that of the nearest group; one whose w is below
    :data:`LEAST_WEIGHT` of the nearest one's has no share.

    Attributes
    ----------
    centre : (g, k) float64
        Stellar types (teff [kK], feh, logg) of the groups.
    scale : (k,) float64
        Over which types blend; > 0.
    covariance : (g, m, m) float64
        Of the fractional errors of the m samples, each positive definite.
    archive_factor : float
        How much larger than the archive says the covariance of a measured flux is; > 0.
    """

    centre: Float64
    scale: Float64
    covariance: Float64
    archive_factor: float = 1.0

    def __post_init__(self) -> None:
        centre = constant(self.centre, "centre", (None, None))
        groups, inputs = centre.shape
        if groups > MAX_GROUPS:
            raise InputError(f"{groups} groups, at most {MAX_GROUPS} are possible", field="centre")
        scale = constant(self.scale, "scale", (inputs,))
        if (scale <= 0).any():
            raise InputError("must be positive", field="scale")
        covariance = constant(self.covariance, "covariance", (groups, None, None))
        if covariance.shape[1] != covariance.shape[2]:
            raise InputError(f"shape {covariance.shape} of matrices that are not square", field="covariance")
        for group, matrix in enumerate(covariance):
            if not _is_covariance(matrix):
                raise InputError(f"that of group {group} is not symmetric and positive definite", field="covariance")
        factor = float(self.archive_factor)
        if not (np.isfinite(factor) and factor > 0):
            raise InputError(f"{factor} is not a finite number > 0", field="archive_factor")
        for name, value in (("centre", centre), ("scale", scale), ("covariance", covariance)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "archive_factor", factor)

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.centre)

    @property
    def n_samples(self) -> int:
        """Number of samples m."""
        return self.covariance.shape[1]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that enters C."""
        return digest([self.centre, self.scale, self.covariance, self.archive_factor])

    def shares(self, theta: ArrayLike) -> Float64:
        """Share of each group in S of stellar types (n, k), (n, g); each row adds up to 1."""
        return blend(theta, self.centre, self.scale)

    def at(self, theta: ArrayLike) -> Float64:
        """S of stellar types (n, k), (n, m, m)."""
        return np.einsum("ng,gij->nij", self.shares(theta), self.covariance)


def blend(theta: ArrayLike, centre: Float64, scale: Float64) -> Float64:
    """share_g(Theta) of :class:`ModelError` for types (n, k), (n, g)."""
    distance = (np.asarray(theta, dtype=np.float64)[:, None, :] - centre) / scale
    exponent = -0.5 * (distance**2).sum(axis=2)
    share = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    share[share < LEAST_WEIGHT] = 0.0
    return share / share.sum(axis=1, keepdims=True)


def _is_covariance(matrix: NDArray[np.float64]) -> bool:
    if not np.array_equal(matrix, matrix.T):
        return False
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True
