"""Checks that every learned array passes, and the digest that identifies a set of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from xpkern.engine.contract import Float64
from xpkern.errors import InputError


def constant(values: ArrayLike, name: str, shape: tuple[int | None, ...]) -> Float64:
    """A read-only, C-contiguous float64 copy of ``values``.

    Parameters
    ----------
    values : array_like
        Finite numbers.
    name : str
        What the error message calls them.
    shape : tuple
        Expected shape; None where any length of at least 1 will do.

    Raises
    ------
    InputError
        If they are no numbers, not finite, or of another shape.
    """
    try:
        array = np.array(values, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise InputError(f"not an array of numbers: {error}", field=name) from None
    matches = array.ndim == len(shape) and all(
        have > 0 and want in (None, have) for have, want in zip(array.shape, shape, strict=True)
    )
    if not matches:
        raise InputError(f"shape {array.shape}, expected {shape_text(shape, 'any')}", field=name)
    if not np.isfinite(array).all():
        raise InputError("holds numbers that are not finite", field=name)
    array.setflags(write=False)
    return array


def shape_text(shape: tuple[int | None, ...], free: str) -> str:
    """A shape for an error message, with ``free`` where any length will do."""
    lengths = ", ".join(free if length is None else str(length) for length in shape)
    return f"({lengths},)" if len(shape) == 1 else f"({lengths})"


def digest(parts: Iterable[object]) -> str:
    """SHA-256 (hex) of arrays (shape and little-endian bytes) and of the ``repr`` of anything else, in order."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(repr(part.shape).encode())
            sha.update(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<")).tobytes())
        else:
            sha.update(repr(part).encode())
    return sha.hexdigest()
