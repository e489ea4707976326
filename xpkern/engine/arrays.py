"""Arrays of the host and of a GPU side by side: whose functions work on them, and how they cross over.

An array on a GPU is one of CuPy's, or anything with ``__cuda_array_interface__``, which CuPy takes without a copy.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from xpkern.errors import InputError


def namespace_of(*arrays: Any) -> Any:
    """NumPy, or CuPy where one of the arrays lies on a GPU: ``namespace_of(a).zeros(3)`` lies where ``a`` does."""
    return _cupy() if any(on_device(array) for array in arrays) else np


def on_device(array: Any) -> bool:
    """Whether an array lies on a GPU."""
    return hasattr(array, "__cuda_array_interface__")


def as_array(values: Any) -> Any:
    """An array of NumPy, or of CuPy where the values are on a GPU already; nothing is copied that is an array."""
    return _cupy().asarray(values) if on_device(values) else np.asarray(values)


def to_host(array: Any) -> np.ndarray:
    """The array itself, or a copy on the host of one on a GPU."""
    return _cupy().asnumpy(_cupy().asarray(array)) if on_device(array) else np.asarray(array)


def _cupy() -> Any:
    """CuPy: imported only once somebody hands in an array of a GPU."""
    if "cupy" not in sys.modules:
        try:
            import cupy
        except ImportError as error:
            raise InputError(f"arrays on a GPU need CuPy ({error}): pip install 'xpkern[cuda13]'") from None
        return cupy
    return sys.modules["cupy"]


def constant(array: np.ndarray) -> np.ndarray:
    """The same array, to which nobody can write any more: an engine may keep a copy where it computes."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base.flags.writeable = False
        base = base.base
    return array


def is_constant(array: np.ndarray) -> bool:
    """Whether nobody can write to an array through it or what it is a view of."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return True
