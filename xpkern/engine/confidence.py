"""Confidences from features: the compiled networks, and what they are held against."""

from __future__ import annotations

import os

import numpy as np

from xpkern.engine.contract import Float32, Float64
from xpkern.model.confidence import LARGEST_FEATURE, Confidence


def confidences(classifiers: Confidence, features: Float32, *, instruction_set: str = "", threads: int = 1) -> Float32:
    """Confidences of stars, (n, 3) float32 in the order of :data:`xpkern.model.confidence.CONFIDENT_PARAMETERS`.

    A star's do not depend on the other stars, their number, or the threads. Where the compiled kernels are not
    installed it is :func:`reference_confidences`.

    Parameters
    ----------
    classifiers : Confidence
    features : (n, f) float32
        One that is not a finite number is missing.
    instruction_set : str
        Of the compiled kernels; that of the environment variable ``XPKERN_ISA``, or the best one, when not given.
    threads : int
    """
    try:
        from xpkern.engine import _cpu
    except ImportError:
        return reference_confidences(classifiers, features).astype(np.float32)
    return _cpu.confidence(
        instruction_set or os.environ.get("XPKERN_ISA") or "",
        np.ascontiguousarray(features, np.float32),
        classifiers.centre,
        np.float32(1.0) / classifiers.scale,
        classifiers.fill,
        classifiers.weights,
        classifiers.biases,
        LARGEST_FEATURE,
        threads,
    )


def reference_confidences(classifiers: Confidence, features: Float32) -> Float64:
    """The same in float64: the formulas of :class:`xpkern.model.Confidence`."""
    from scipy.special import expit  # takes longer to import than the rest of a command; few need it

    known = np.where(np.isfinite(features), features, classifiers.fill).astype(np.float64)
    below = np.clip((known - classifiers.centre) / classifiers.scale, -LARGEST_FEATURE, LARGEST_FEATURE)[None]
    for weight, bias in zip(classifiers.weights, classifiers.biases, strict=True):
        layer = below @ weight.astype(np.float64) + bias.astype(np.float64)[:, None, :]
        below = np.maximum(layer, 0.0)
    return expit(layer[:, :, 0]).T
