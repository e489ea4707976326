"""Peer of the simulator's spectra: the least coefficients in each star's own covariance, a system of 61 a star."""

from __future__ import annotations

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.grid import N_XP
from xpkern.observe.calibration import Calibration
from xpkern.observe.error_model import ErrorModel, photometer_fluxes


def least_norm_coefficients(
    calibration: Calibration, error_model: ErrorModel, flux: Float64, rng: np.random.Generator
) -> tuple[Float64, Float64]:
    """Coefficients with noise, (n, n_bp) and (n, n_rp), of spectra (n, 61), by batched NumPy and LAPACK."""
    brightness = photometer_fluxes(calibration, flux)
    photometers = (error_model.bp, error_model.rp)
    designs = (calibration.bp_design, calibration.rp_design)
    errors = [error.astype(np.float64) for error in error_model.draw_errors(*brightness, rng)]
    weighted, flux_covariance = [], np.zeros((len(flux), N_XP, N_XP))
    for photometer, design, mean_flux, error in zip(photometers, designs, brightness, errors, strict=True):
        correlation = photometer.correlation(mean_flux)
        weighted.append(error[:, :, None] * (correlation @ (error[:, :, None] * design.T)))
        flux_covariance += design @ weighted[-1]
    whitened = np.linalg.solve(flux_covariance, flux[:, :, None])
    bp, rp = (
        (part @ whitened)[:, :, 0] + error * photometer.draw_noise(mean_flux, rng)
        for part, error, photometer, mean_flux in zip(weighted, errors, photometers, brightness, strict=True)
    )
    return bp, rp
