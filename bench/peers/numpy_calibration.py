"""Coefficients to fluxes and Cholesky factors as fast as NumPy and LAPACK allow."""

from __future__ import annotations

import numpy as np

import xpkern as xk
from xpkern.engine.contract import Coefficients
from xpkern.observe.calibration import Calibration


def numpy_calibrate(
    calibration: Calibration, coefficients: Coefficients, noise: xk.Noise
) -> tuple[np.ndarray, np.ndarray]:
    """Flux (n, 61) and Cholesky factor (n, 61, 61), float64."""
    flux, covariance = numpy_covariance(calibration, coefficients, noise)
    return flux, np.linalg.cholesky(covariance)


def numpy_covariance(
    calibration: Calibration, coefficients: Coefficients, noise: xk.Noise
) -> tuple[np.ndarray, np.ndarray]:
    """Flux (n, 61) and its covariance A Sigma A^T + Eq. 2, (n, 61, 61), float64."""
    designs = (calibration.bp_design, calibration.rp_design)
    values = (coefficients.bp, coefficients.rp)
    errors = (coefficients.bp_error, coefficients.rp_error)
    correlations = (coefficients.bp_correlation, coefficients.rp_correlation)
    sides = [value @ design.T for value, design in zip(values, designs, strict=True)]
    covariance = 0.0
    for design, error, packed in zip(designs, errors, correlations, strict=True):
        size = design.shape[1]
        correlation = np.zeros((len(error), size, size))
        rows, columns = np.tril_indices(size, -1)
        correlation[:, rows, columns] = packed
        correlation += correlation.transpose(0, 2, 1) + np.eye(size)
        weighted = error[:, :, None] * design.T
        covariance = covariance + weighted.transpose(0, 2, 1) @ (correlation @ weighted)
    flux = sides[0] + sides[1]
    for fraction, side in ((noise.common, flux), (noise.bp, sides[0]), (noise.rp, sides[1])):
        covariance += fraction**2 * side[:, :, None] * side[:, None, :]
    diagonal = np.arange(flux.shape[1])
    covariance[:, diagonal, diagonal] += (noise.independent[: flux.shape[1]] * flux) ** 2
    return flux, covariance
