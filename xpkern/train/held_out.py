"""How well the model does on stars it has never seen: fits without a parallax, against APOGEE's labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.engine.packed import pack_factor
from xpkern.fit.fit import fit
from xpkern.grid import N_FLUX, N_XP, WAVELENGTH
from xpkern.model.flux_model import FluxModel
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior
from xpkern.observe.calibration import Calibration
from xpkern.observe.error_model import ErrorModel, sample_correlation
from xpkern.observe.observations import Observations
from xpkern.status import UNFITTED
from xpkern.train.apogee_library import N_OBSERVED, Library

#: Stars whose covariances are held at once.
_BLOCK = 512

#: Where the log g of giants ends and that of dwarfs begins.
GIANT_LOGG = 3.8

#: Median absolute deviation in standard deviations of a normal distribution.
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Residuals:
    """Fitted minus APOGEE's stellar type of n stars.

    Attributes
    ----------
    theta : (n, 3) float64
        APOGEE's teff [kK], feh, logg.
    difference : (n, 3) float64
    sigma : (n, 3) float64
        Errors the fit gives.
    chi2 : (n,) float64
    unfitted : int
        Stars left out because they could not be fitted.
    """

    theta: Float64
    difference: Float64
    sigma: Float64
    chi2: Float64
    unfitted: int


def observations(library: Library, noise: Noise, error_model: ErrorModel | None = None) -> Observations:
    """Library stars as the fit takes them: their errors and ``noise`` (Eq. 2), W1 and W2 missing.

    The library has the errors of its sampled spectra but not their correlations: there are none, or those of an
    ``error_model``.
    """
    calibration = Calibration.default()
    shares = noise.common_errors(WAVELENGTH[:N_OBSERVED])
    present = np.broadcast_to(np.arange(N_FLUX) < N_OBSERVED, (len(library), N_FLUX))
    packed = []
    for start in range(0, len(library), _BLOCK):
        block = slice(start, start + _BLOCK)
        flux = library.flux[block]
        common = flux[:, None, :] * shares
        covariance = np.einsum("nqi,nqj->nij", common, common)
        error = library.error[block]
        np.einsum("njj->nj", covariance)[:] += error**2 + (noise.independent[:N_OBSERVED] * flux) ** 2
        if error_model is not None:
            beside = sample_correlation(flux[:, :N_XP], calibration, error_model) - np.eye(N_XP)
            covariance[:, :N_XP, :N_XP] += error[:, :N_XP, None] * beside * error[:, None, :N_XP]
        factor = np.zeros((len(flux), N_FLUX, N_FLUX))
        factor[:, :N_OBSERVED, :N_OBSERVED] = np.linalg.cholesky(covariance)
        packed.append(pack_factor(factor, present[block]))
    flux = np.zeros((len(library), N_FLUX))
    flux[:, :N_OBSERVED] = library.flux
    return Observations.from_arrays(
        flux=flux, packed_factor=np.concatenate(packed), source_id=library.source_id, noise=noise
    )


def residuals(library: Library, model: FluxModel, prior: TypePrior, engine: str = "auto") -> Residuals:
    """Fit the stars, without a parallax, and compare."""
    fitted = fit(observations(library, model.noise), model, prior, engine=engine)
    done = (fitted.status & np.uint32(UNFITTED)) == 0
    theta = library.theta[done]
    return Residuals(
        theta=theta,
        difference=fitted.params[done, :3] - theta,
        sigma=np.sqrt(np.einsum("njj->nj", fitted.cov[done])[:, :3]),
        chi2=fitted.chi2[done],
        unfitted=int((~done).sum()),
    )


def robust_scatter(values: Float64) -> Float64:
    """1.4826 times the median absolute deviation from the median, of each column."""
    return _MAD_TO_SIGMA * np.median(np.abs(values - np.median(values, axis=0)), axis=0)


def is_giant(theta: Float64) -> NDArray[np.bool_]:
    """Which stellar types (n, 3) are giants."""
    return np.less(theta[:, 2], GIANT_LOGG)


def subsets(theta: Float64) -> dict[str, NDArray[np.bool_]]:
    """Kinds of star the residuals are told for, as masks (n,)."""
    teff, feh, _ = theta.T
    return {
        "all": np.ones(len(theta), bool),
        f"giants (log g < {GIANT_LOGG})": is_giant(theta),
        f"dwarfs (log g ≥ {GIANT_LOGG})": ~is_giant(theta),
        "[Fe/H] < −1": feh < -1.0,
        "−1 ≤ [Fe/H] < −0.3": (feh >= -1.0) & (feh < -0.3),
        "[Fe/H] ≥ −0.3": feh >= -0.3,
        "Teff < 4000 K": teff < 4.0,
        "4000–5000 K": (teff >= 4.0) & (teff < 5.0),
        "5000–6000 K": (teff >= 5.0) & (teff < 6.0),
        "Teff ≥ 6000 K": teff >= 6.0,
    }
