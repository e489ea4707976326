"""The arrays that kernels are given, checked: they would read others as if they were these."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpkern.engine.arrays import namespace_of, on_device, to_host
from xpkern.engine.contract import Coefficients, StarData
from xpkern.engine.groups import GroupedStars
from xpkern.engine.packed import packed_size


def doubles(values: Any, beside: Any, shape: tuple[int, ...]) -> Any:
    """Contiguous float64 values of that shape, where another array lies."""
    xp = namespace_of(beside)
    values = xp.asarray(values) if on_device(beside) else to_host(values)
    return checked(xp.ascontiguousarray(values, xp.float64), "parameters", np.float64, shape)


def star_inputs(stars: StarData | GroupedStars, samples: int, parameters: int) -> dict[str, Any]:
    """The arrays of stars, once they are what kernels take them for."""
    n = len(stars)
    return {
        "flux": checked(stars.flux, "flux", np.float32, (n, samples)),
        "whitener": checked(stars.whitener, "whitener", np.float32, (n, packed_size(samples))),
        "mean": checked(stars.mean, "mean", np.float64, (n, parameters)),
        "sigma": checked(stars.sigma, "sigma", np.float64, (n, parameters)),
    }


def coefficient_inputs(coefficients: Coefficients, bp: int, rp: int) -> dict[str, Any]:
    """The arrays of coefficients, so many of either side, once they are what kernels take them for."""
    n, found = len(coefficients), {}
    for side, count in (("bp", bp), ("rp", rp)):
        for name, dtype, shape in (
            (side, np.float64, (n, count)),
            (f"{side}_error", np.float32, (n, count)),
            (f"{side}_correlation", np.float32, (n, count * (count - 1) // 2)),
            (f"{side}_standard_deviation", np.float32, (n,)),
            (f"has_{side}", np.bool_, (n,)),
        ):
            found[name] = checked(getattr(coefficients, name), name, dtype, shape)
    return found


def checked(array: Any, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
    """The array, if it is of that type and shape: kernels would read anything else as if it were."""
    if array.dtype != dtype:
        raise TypeError(f"{name} must be {np.dtype(dtype)}, not {array.dtype}")
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(array.shape)}")
    return array
