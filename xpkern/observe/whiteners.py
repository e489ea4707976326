"""From any square root of an inverse covariance to the stored whitener, and back."""

from __future__ import annotations

import numpy as np

from xpkern.engine.arrays import namespace_of, on_device, to_host
from xpkern.engine.contract import Float32, Float64
from xpkern.engine.packed import forward_substitute, pack_factor, packed_size, present_samples, unpack_factor

#: Stars converted at a time: some tens of megabytes of dense matrices.
_BLOCK = 512


def pack_whitener(whitener: np.ndarray) -> tuple[Float32, np.ndarray]:
    """Stored form of whiteners L with L^T L = C^-1.

    A QL factorisation, L = Q T with T lower triangular, gives T^T T = C^-1 and so C = G G^T with G = T^-1. Zero
    columns are missing samples; they are taken out before.

    Parameters
    ----------
    whitener : (n, m, m) float
        Any such L.

    Returns
    -------
    packed : (n, p) float32
        Zeros where no factor exists.
    usable : (n,) bool
        False where L has a number that is not finite, or lacks rank on its non-zero columns.
    """
    stars, samples = len(whitener), whitener.shape[2]
    packed, usable = np.zeros((stars, packed_size(samples)), np.float32), np.zeros(stars, bool)
    for first in range(0, stars, _BLOCK):
        block = whitener[first : first + _BLOCK]
        finite = np.isfinite(block).all(axis=(1, 2))
        usable[first : first + _BLOCK] = finite
        present = (block != 0).any(axis=1) & finite[:, None]
        patterns, pattern_of_star = np.unique(present, axis=0, return_inverse=True)
        for index, pattern in enumerate(patterns):
            rows = np.flatnonzero(pattern_of_star.reshape(-1) == index)
            if pattern.any():
                factor, full_rank = _factors(block[rows][:, :, pattern])
                usable[first + rows[~full_rank]] = False
                rows, factor = rows[full_rank], factor[full_rank]
                spread = np.zeros((len(rows), samples, samples))
                spread[np.ix_(np.arange(len(rows)), pattern, pattern)] = factor
                packed[first + rows] = pack_factor(spread, np.broadcast_to(pattern, (len(rows), samples)))
    return packed, usable


def _factors(columns: np.ndarray) -> tuple[Float64, np.ndarray]:
    """Cholesky factors G (n, q, q) of C = (L^T L)^-1 from the q non-zero columns of L (n, m, q), and which exist."""
    # what is left of a dependent column is rounding of the input, about eps times its length
    tolerance = 4.0 * np.finfo(np.result_type(columns.dtype, np.float32)).eps
    columns = columns.astype(np.float64)
    # QL is QR of the columns in reverse order
    triangle = np.linalg.qr(columns[:, :, ::-1])[1][:, ::-1, ::-1]
    diagonal = np.einsum("njj->nj", triangle)
    length = np.sqrt(np.einsum("nij,nij->nj", columns, columns))
    full_rank = (np.abs(diagonal) > tolerance * length).all(axis=1)
    triangle = np.where(full_rank[:, None, None], triangle * np.sign(diagonal)[:, :, None], np.eye(columns.shape[2]))
    np.einsum("njj->nj", triangle)[:] = 1.0 / np.einsum("njj->nj", triangle)
    return forward_substitute(triangle, np.broadcast_to(np.eye(columns.shape[2]), triangle.shape)), full_rank


def drop_samples(packed: Float32, dropped: np.ndarray) -> Float32:
    """Whiteners of the same stars with some samples deleted from C.

    Without the dropped rows G is no longer triangular, but H H^T is still what remains of C; an orthogonal
    transformation, H = G' Q, makes it triangular again. C itself is never formed.

    Parameters
    ----------
    packed : (n, p) float32
    dropped : (n, m) bool

    Returns
    -------
    (n, p) float32
        The given array where nothing is to be deleted, a new one otherwise. Stars on a GPU pass through the host.
    """
    present = present_samples(packed)
    stars = to_host((dropped & present).any(axis=1)).nonzero()[0]
    if len(stars) == 0:
        return packed
    result = packed.copy()
    if on_device(packed):
        xp, rows = namespace_of(packed), namespace_of(packed).asarray(stars)
        result[rows] = xp.asarray(drop_samples(to_host(packed[rows]), to_host(dropped[rows])))
        return result
    for star in stars:
        stored = unpack_factor(packed[star : star + 1])[0]
        diagonal = np.einsum("jj->j", stored)
        diagonal[present[star]] = 1.0 / diagonal[present[star]]
        kept = present[star] & ~dropped[star]
        triangle = np.linalg.qr(stored[kept].T)[1].T
        triangle = triangle * np.sign(np.diagonal(triangle))
        factor = np.zeros_like(stored)
        factor[np.ix_(kept, kept)] = triangle[:, : kept.sum()]
        result[star] = pack_factor(factor[None], kept[None])[0]
    return result


def dense_whitener(packed: Float32) -> Float64:
    """Lower-triangular T = G^-1 with T^T T = C^-1, (n, m, m) float64; zero rows and columns where missing."""
    factor = unpack_factor(packed)
    identity = np.zeros_like(factor)
    np.einsum("njj->nj", identity)[:] = present_samples(packed)
    return forward_substitute(factor, identity)
