"""Numbers of a prior and of a start grid in the order in which kernels read them."""

from __future__ import annotations

import numpy as np

from xpkern.engine.contract import Float32, Float64
from xpkern.errors import InputError
from xpkern.fit.start import StartGrid
from xpkern.model.model_error import ModelError
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior


def mixture(prior: TypePrior) -> tuple[Float64, Float64]:
    """Logarithm of weight over normalisation of each Gaussian (K,), and L of its precision L L^T, (K, d, d) lower."""
    dimensions = prior.means.shape[1]
    root = np.linalg.cholesky(np.linalg.inv(prior.covariances))
    half_ln_determinant = -np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
    return np.log(prior.weights) - half_ln_determinant - 0.5 * dimensions * np.log(2 * np.pi), root


def learned_error(noise: Noise) -> ModelError:
    """The model error of a noise.

    Raises
    ------
    InputError
        If it has none.
    """
    if noise.model_error is None:
        raise InputError("nothing was learned from residuals: it is that of Eq. 2 alone", field="noise")
    return noise.model_error


def contained_errors(contained: Noise | None, wavelength: Float64) -> tuple[Float64, Float64]:
    """Fractional errors of Eq. 2 in a covariance, of each sample (m,) and common ones (3, m); zeros where none is."""
    if contained is None:
        return np.zeros(len(wavelength)), np.zeros((3, len(wavelength)))
    return np.ascontiguousarray(contained.independent), contained.common_errors(wavelength)


def grid_rows(grid: StartGrid) -> Float32:
    """What is known of each type of a grid, one behind the other, (t, r); csrc/core/start.hpp names the parts."""
    inputs = grid.types.shape[1]
    rows = [
        grid.position,
        grid.slope.transpose(0, 2, 1).reshape(len(grid), -1),
        grid.types,
        grid.prior_gradient,
        grid.prior_precision[(slice(None), *np.tril_indices(inputs))],
        2.0 * grid.ln_prior[:, None],
    ]
    return np.ascontiguousarray(np.concatenate(rows, axis=1), np.float32)
