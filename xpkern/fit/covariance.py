"""From a Fisher matrix to a covariance that is always positive definite."""

from __future__ import annotations

import numpy as np

from xpkern.engine.arrays import namespace_of, to_host
from xpkern.engine.contract import Float64
from xpkern.engine.packed import forward_substitute

#: Smallest eigenvalue allowed to a Fisher matrix scaled to a unit diagonal. The scaling makes it a statement about
#: degeneracy, whatever the units; below it, what is left is rounding of the float32 products the matrix is made of.
EIGENVALUE_FLOOR = 1e-6


def invert_fisher(fisher: Float64, *, compiled: bool = False) -> tuple[Float64, Float64, np.ndarray]:
    """Covariance of the parameters, and its inverse.

    With D the square root of the diagonal, F = D S D, the eigenvalues of S are raised to at least
    :data:`EIGENVALUE_FLOOR` before inverting.

    Parameters
    ----------
    fisher : (n, k, k) float64
        NaN for a star without a fit.
    compiled : bool
        Whether in C++ (``csrc/cpu/covariance.hpp``), for NumPy arrays: the same but for rounding, in a tenth of the
        time.

    Returns
    -------
    covariance, inverse : (n, k, k) float64
        Symmetric positive definite; the inverse is ``fisher`` itself where the floor did not act. NaN where
        ``fisher`` is.
    floored : (n,) bool
        Where the floor acted.
    """
    xp = namespace_of(fisher)
    if compiled:
        from xpkern.engine import _cpu

        covariance, certain = _cpu.invert_fisher(np.ascontiguousarray(fisher), EIGENVALUE_FLOOR)
    else:
        outer = _outer_scale(fisher)
        scaled_inverse, certain = _inverse_with_certificate(fisher / outer)
        covariance = scaled_inverse / outer
    inverse, floored = fisher.copy(), xp.zeros(len(fisher), bool)
    # few enough for the host, wherever the others are
    uncertain = xp.asarray(np.flatnonzero(to_host(~certain)))
    finite = np.isfinite(fisher[uncertain]).all(axis=(1, 2))
    covariance[uncertain[~finite]] = np.nan
    for star in to_host(uncertain[finite]):
        unit = to_host(_outer_scale(fisher[star][None])[0])
        values, vectors = np.linalg.eigh(to_host(fisher[star]) / unit)
        below, values = bool(values[0] < EIGENVALUE_FLOOR), np.maximum(values, EIGENVALUE_FLOOR)
        floored[star] = below
        covariance[star] = xp.asarray(_symmetric((vectors / values) @ vectors.T) / unit)
        if below:
            inverse[star] = xp.asarray(_symmetric((vectors * values) @ vectors.T) * unit)
    return covariance, inverse, floored


def _outer_scale(fisher: Float64) -> Float64:
    """Products (n, k, k) of the square roots of the diagonals of matrices (n, k, k)."""
    diagonal = np.einsum("njj->nj", fisher)
    # a parameter nothing depends on has an empty row: any scale will do, the floor then makes it very uncertain
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    outer: Float64 = scale[:, :, None] * scale[:, None, :]
    return outer


def invert_fisher_absolute(fisher: Float64, floor: float) -> tuple[Float64, Float64, np.ndarray]:
    """The same as ZGR23 do it: eigenvalues of the matrix as it is, whatever the units, raised to at least ``floor``.

    Parameters
    ----------
    fisher : (n, k, k) float64
        NaN for a star without a fit.
    floor : float

    Returns
    -------
    covariance, inverse : (n, k, k) float64
    floored : (n,) bool
        As :func:`invert_fisher` returns them.
    """
    finite = np.isfinite(fisher).all(axis=(1, 2))
    covariance, inverse, floored = np.full_like(fisher, np.nan), fisher.copy(), np.zeros(len(fisher), bool)
    values, vectors = np.linalg.eigh(fisher[finite])
    floored[finite] = values[:, 0] < floor
    values = np.maximum(values, floor)[:, None, :]
    covariance[finite] = _symmetric((vectors / values) @ vectors.swapaxes(1, 2))
    raised = np.full_like(fisher, np.nan)
    raised[finite] = _symmetric((vectors * values) @ vectors.swapaxes(1, 2))
    inverse[floored] = raised[floored]
    return covariance, inverse, floored


def _inverse_with_certificate(matrix: Float64) -> tuple[Float64, np.ndarray]:
    """Inverses of symmetric matrices, and which of them certainly have no eigenvalue below the floor.

    With S = L L^T and S^-1 = L^-T L^-1, the smallest eigenvalue is at least 1 / |L^-1|_F^2: as good as an
    eigendecomposition for almost every star, at a tenth of its cost. Loops run over parameters, not over stars.
    """
    stars, size = matrix.shape[:2]
    xp = namespace_of(matrix)
    root = np.zeros_like(matrix)  # reciprocal on the diagonal, as in packed whiteners
    certain = xp.ones(stars, bool)
    for j in range(size):
        known = root[:, j, :j]
        pivot = matrix[:, j, j] - (np.einsum("ni,ni->n", known, known) if j else 0.0)
        certain &= pivot > EIGENVALUE_FLOOR  # a pivot is never below the smallest eigenvalue; NaN is not certain
        root[:, j, j] = 1.0 / np.sqrt(np.where(pivot > EIGENVALUE_FLOOR, pivot, 1.0))
        below = matrix[:, j + 1 :, j] - (np.einsum("nai,ni->na", root[:, j + 1 :, :j], known) if j else 0.0)
        root[:, j + 1 :, j] = below * root[:, j, j, None]
    root_inverse = forward_substitute(root, np.broadcast_to(xp.eye(size), matrix.shape))
    certain &= np.einsum("nij,nij->n", root_inverse, root_inverse) * EIGENVALUE_FLOOR < 1.0
    return _symmetric(root_inverse.swapaxes(1, 2) @ root_inverse), certain


def _symmetric(matrix: Float64) -> Float64:
    return 0.5 * (matrix + matrix.swapaxes(-2, -1))
