"""From a Fisher matrix, and what the prior adds to it, to a covariance that is always positive definite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xpkern.engine.arrays import namespace_of, to_host
from xpkern.engine.contract import Float64
from xpkern.engine.packed import forward_substitute

if TYPE_CHECKING:
    from xpkern.engine.contract import Engine

#: Smallest eigenvalue allowed to a Fisher matrix scaled to a unit diagonal. The scaling makes it a statement about
#: degeneracy, whatever the units; below it, what is left is rounding of the float32 products the matrix is made of.
EIGENVALUE_FLOOR = 1e-6


def invert_information(information: Float64) -> tuple[Float64, Float64, np.ndarray]:
    """Covariance of the parameters, and its inverse.

    With D the square root of the diagonal, F = D S D, the eigenvalues of S are raised to at least
    :data:`EIGENVALUE_FLOOR` before inverting.

    Parameters
    ----------
    information : (n, k, k) float64
        Such as Fisher's matrix; NaN for a star without a fit.

    Returns
    -------
    covariance, inverse : (n, k, k) float64
        Symmetric positive definite; the inverse is ``information`` itself where the floor did not act. NaN where
        ``information`` is.
    floored : (n,) bool
        Where the floor acted.
    """
    diagonal = np.einsum("njj->nj", information)
    # a parameter nothing depends on has an empty row: any scale will do, the floor then makes it very uncertain
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    outer = scale[:, :, None] * scale[:, None, :]
    scaled = information / outer
    scaled_inverse, certain = _inverse_with_certificate(scaled)
    covariance, inverse = scaled_inverse / outer, information.copy()
    floored = np.zeros(len(information), bool)
    finite = np.isfinite(information).all(axis=(1, 2))
    covariance[~finite] = np.nan
    for star in np.flatnonzero(finite & ~certain):
        values, vectors = np.linalg.eigh(scaled[star])
        below, values = bool(values[0] < EIGENVALUE_FLOOR), np.maximum(values, EIGENVALUE_FLOOR)
        floored[star] = below
        covariance[star] = _symmetric((vectors / values) @ vectors.T) / outer[star]
        if below:
            inverse[star] = _symmetric((vectors * values) @ vectors.T) * outer[star]
    return covariance, inverse, floored


def invert_held(
    engine: Engine, fisher: Float64, prior_curvature: Float64 | None, *, threads: int | None = None
) -> tuple[Float64, Float64, np.ndarray]:
    """Covariance of parameters that a prior holds, too.

    The information is Fisher's matrix plus the prior's curvature. Where a prior bends so much the other way that no
    covariance comes of the sum, as between its components, only the directions in which it holds a star count.

    Parameters
    ----------
    engine : Engine
    fisher : (n, k, k) float64
    prior_curvature : (n, d, d) float64, optional
        Minus the Hessian of the logarithm of a prior on the first d parameters.
    threads : int, optional

    Returns
    -------
    covariance, inverse : (n, k, k) float64
    floored : (n,) bool
        As :func:`invert_information` returns them.
    """
    if prior_curvature is None:
        return engine.invert_information(fisher, threads=threads)
    d = prior_curvature.shape[1]
    information = fisher.copy()
    information[:, :d, :d] += prior_curvature
    covariance, inverse, floored = engine.invert_information(information, threads=threads)
    xp = namespace_of(fisher)
    again = xp.asarray(np.flatnonzero(to_host(floored)))
    if len(again):
        information = fisher[again]
        information[:, :d, :d] += xp.asarray(positive_part(to_host(prior_curvature[again])))
        found = engine.invert_information(information, threads=threads)
        covariance[again], inverse[again], floored[again] = found
    return covariance, inverse, floored


def positive_part(matrix: Float64) -> Float64:
    """Symmetric matrices (n, d, d) without what of them is negative."""
    values, vectors = np.linalg.eigh(matrix)
    return _symmetric((vectors * np.maximum(values, 0.0)[:, None, :]) @ vectors.swapaxes(1, 2))


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
        As :func:`invert_information` returns them.
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
