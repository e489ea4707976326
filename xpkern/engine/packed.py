"""Packed whiteners: how the Cholesky factor G of C = G G^T is stored, and how it is applied.

Stored is the lower triangle, row-major, float32, with 1 / G_jj on the diagonal. A missing sample was deleted from C
before factorising; its row, column and reciprocal diagonal are 0, so that forward substitution gives exactly 0.
"""

from __future__ import annotations

import math

import numpy as np

from xpkern.engine.arrays import namespace_of
from xpkern.engine.contract import Float32, Float64


def packed_size(samples: int) -> int:
    """Length m (m + 1) / 2 of the packed triangle of ``samples`` samples."""
    return samples * (samples + 1) // 2


def sample_count(size: int) -> int:
    """Number of samples whose packed triangle has length ``size``; inverse of :func:`packed_size`."""
    return (math.isqrt(8 * size + 1) - 1) // 2


def diagonal_positions(samples: int) -> np.ndarray:
    """Where the reciprocal diagonal stands in the packed triangle, (m,)."""
    index = np.arange(samples)
    return index * (index + 3) // 2


def present_samples(whitener: Float32) -> np.ndarray:
    """Which samples are not missing, (n, m) bool, from packed whiteners (n, p)."""
    positions = diagonal_positions(sample_count(whitener.shape[1]))
    return np.greater(whitener[:, namespace_of(whitener).asarray(positions)], 0)


def pack_factor(factor: Float64, present: np.ndarray) -> Float32:
    """Packed whiteners (n, p) float32 from factors G.

    Parameters
    ----------
    factor : (n, m, m) float64
        Lower triangular; rows and columns of missing samples hold anything.
    present : (n, m) bool
        False for a missing sample.
    """
    samples = factor.shape[1]
    stored = np.where(present[:, :, None] & present[:, None, :], factor, 0.0)
    diagonal = np.einsum("njj->nj", stored)
    diagonal[present] = 1.0 / diagonal[present]
    return np.ascontiguousarray(stored[(slice(None), *np.tril_indices(samples))], dtype=np.float32)


def unpack_factor(whitener: Float32) -> Float64:
    """Stored factors as (n, m, m) float64 lower triangles, the reciprocal diagonal kept as it is stored."""
    samples = sample_count(whitener.shape[1])
    factor = np.zeros((len(whitener), samples, samples))
    factor[(slice(None), *np.tril_indices(samples))] = whitener
    return factor


def sample_variance(whitener: Float32) -> Float64:
    """Diagonal of C, (n, m): C_ii = sum_j G_ij^2; 0 where missing."""
    factor = unpack_factor(whitener)
    diagonal = np.einsum("njj->nj", factor)
    np.divide(1.0, diagonal, out=diagonal, where=diagonal > 0)
    return np.einsum("nij,nij->ni", factor, factor)


def forward_substitute(factor: Float64, rhs: Float64) -> Float64:
    """Whitened columns G^-1 rhs.

    ::

        y_j = (rhs_j - sum_{i<j} G_ji y_i) / G_jj

    Parameters
    ----------
    factor : (n, m, m) float64
        As :func:`unpack_factor` returns it.
    rhs : (n, m, q) float64

    Returns
    -------
    (n, m, q) float64
    """
    whitened = namespace_of(rhs).zeros(rhs.shape)
    for j in range(factor.shape[1]):
        known = np.einsum("ni,niq->nq", factor[:, j, :j], whitened[:, :j]) if j else 0.0
        whitened[:, j] = (rhs[:, j] - known) * factor[:, j, j, None]
    return whitened
