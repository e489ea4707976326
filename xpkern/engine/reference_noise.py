"""The covariance of a spectrum under a learned noise, in NumPy float64."""

from __future__ import annotations

import numpy as np

from xpkern.engine.contract import Float64, FrozenNoise, StarData
from xpkern.engine.packed import pack_factor, present_samples, unpack_factor
from xpkern.engine.tables import contained_errors, learned_error
from xpkern.model.flux_model import FluxModel
from xpkern.model.noise import Noise


def archive_covariance(model: FluxModel, stars: StarData, contained: Noise | None) -> Float64:
    """C_gaia, (n, m, m): what the stored factors G stand for less the terms of Eq. 2 that are said to be in it.

    ::

        C_gaia = G G^T - diag((independent f_obs)^2) - sum_q (common_q f_obs) (common_q f_obs)^T

    Rows and columns of missing samples are 0.
    """
    present = present_samples(stars.whitener)
    factor = unpack_factor(stars.whitener)
    diagonal = np.einsum("njj->nj", factor)
    np.divide(1.0, diagonal, out=diagonal, where=present)
    covariance = factor @ factor.swapaxes(1, 2)
    independent, common = contained_errors(contained, model.wavelength)
    observed = np.where(present, stars.flux, 0.0).astype(np.float64)
    np.einsum("njj->nj", covariance)[:] -= (independent * observed) ** 2
    for fractions in common:
        in_flux = fractions * observed
        covariance -= in_flux[:, :, None] * in_flux[:, None, :]
    return covariance


def freeze_noise(
    model: FluxModel, noise: Noise, stars: StarData, contained: Noise | None, params: Float64
) -> FrozenNoise:
    """Factors of C = (f f^T) o S(Theta) + archive_factor C_gaia at given parameters, as the contract says."""
    error = learned_error(noise)
    present = present_samples(stars.whitener)
    covariance = error.archive_factor * archive_covariance(model, stars, contained)
    usable: np.ndarray = np.asarray(present.any(axis=1) & np.isfinite(params).all(axis=1))
    at = np.where(usable[:, None], params, 1.0)
    flux = np.exp(model.ln_flux(at))
    covariance += flux[:, :, None] * error.at(at[:, : model.n_inputs]) * flux[:, None, :]

    # a missing sample is a row and column of the identity while C is factorised
    covariance[~(present[:, :, None] & present[:, None, :])] = 0.0
    np.einsum("njj->nj", covariance)[~present] = 1.0
    ln_det = np.full(len(stars), np.nan)
    factors = np.zeros_like(covariance)
    for star in np.flatnonzero(usable):
        try:
            factors[star] = np.linalg.cholesky(covariance[star])
        except np.linalg.LinAlgError:
            continue
        ln_det[star] = 2.0 * np.log(np.diagonal(factors[star])).sum()
    whitener = pack_factor(factors, present & np.isfinite(ln_det)[:, None])
    return FrozenNoise(whitener=whitener, ln_det=ln_det)
