"""From a Fisher matrix to a covariance that is always positive definite."""

from __future__ import annotations

import numpy as np

from xpkern.engine.contract import Float64

#: Smallest eigenvalue allowed to a Fisher matrix scaled to a unit diagonal. The scaling makes it a statement about
#: degeneracy, whatever the units; below it, what is left is rounding of the float32 products the matrix is made of.
EIGENVALUE_FLOOR = 1e-6


def invert_fisher(fisher: Float64) -> tuple[Float64, Float64, np.ndarray]:
    """Covariance of the parameters, and its inverse.

    With D the square root of the diagonal, F = D S D, the eigenvalues of S are raised to at least
    :data:`EIGENVALUE_FLOOR` before inverting.

    Parameters
    ----------
    fisher : (n, k, k) float64
        NaN for a star without a fit.

    Returns
    -------
    covariance, inverse : (n, k, k) float64
        Symmetric positive definite; the inverse is ``fisher`` itself where the floor did not act. NaN where
        ``fisher`` is.
    floored : (n,) bool
        Where the floor acted.
    """
    covariance = np.full_like(fisher, np.nan)
    inverse = fisher.copy()
    floored = np.zeros(len(fisher), bool)
    finite = np.isfinite(fisher).all(axis=(1, 2))
    diagonal = np.einsum("njj->nj", fisher[finite])
    # a parameter nothing depends on has an empty row: any scale will do, the floor then makes it very uncertain
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    outer = scale[:, :, None] * scale[:, None, :]
    symmetric = 0.5 * (fisher[finite] + fisher[finite].swapaxes(1, 2))
    values, vectors = np.linalg.eigh(symmetric / outer)
    low = values.min(axis=1, initial=np.inf) < EIGENVALUE_FLOOR
    values = np.maximum(values, EIGENVALUE_FLOOR)
    covariance[finite] = _symmetric((vectors / values[:, None, :]) @ vectors.swapaxes(1, 2)) / outer
    rebuilt = _symmetric((vectors * values[:, None, :]) @ vectors.swapaxes(1, 2)) * outer
    inverse[finite] = np.where(low[:, None, None], rebuilt, inverse[finite])
    floored[finite] = low
    return covariance, inverse, floored


def _symmetric(matrix: Float64) -> Float64:
    return 0.5 * (matrix + matrix.swapaxes(1, 2))
