"""How well the model does on stars it has never seen: fits without a parallax, against APOGEE's labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64, LossTerms, StarData
from xpkern.engine.packed import pack_factor
from xpkern.fit.fit import fit
from xpkern.grid import N_FLUX, N_XP, PARAMETERS, WAVELENGTH
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

#: Added in quadrature to the errors of labels [kK, dex, dex] from which a noise is learned.
LABEL_FLOOR = 0.02

#: Where the log g of giants ends and that of dwarfs begins.
GIANT_LOGG = 3.8

#: Percentiles of a normal distribution at -1 and +1 standard deviation.
_CENTRAL = (15.8655, 84.1345)


@dataclass(frozen=True)
class Residuals:
    """Fitted minus APOGEE's stellar type of n stars.

    Attributes
    ----------
    source_id : (n,) int64
    theta : (n, 3) float64
        APOGEE's teff [kK], feh, logg.
    difference : (n, 3) float64
    sigma : (n, 3) float64
        Errors of the differences: the fit's and the label's, in quadrature.
    ext : (n,) float64
        Fitted E.
    g : (n,) float64
        Gaia's G [mag].
    chi2 : (n,) float64
    unfitted : int
        Stars left out because they could not be fitted.
    """

    source_id: NDArray[np.int64]
    theta: Float64
    difference: Float64
    sigma: Float64
    ext: Float64
    g: Float64
    chi2: Float64
    unfitted: int

    @property
    def pull(self) -> Float64:
        """Differences over their errors, (n, 3)."""
        return self.difference / self.sigma


def observations(
    library: Library,
    noise: Noise,
    error_model: ErrorModel | None = None,
    *,
    correlation: Float64 | None = None,
) -> Observations:
    """Library stars as the fit takes them: their errors and ``noise`` (Eq. 2), W1 and W2 missing.

    The library has the errors of its sampled spectra but not their correlations: there are none, or those of an
    ``error_model``, or one ``correlation`` (64, 64) that the stars themselves have told
    (:func:`xpkern.train.apogee_library.error_correlation`).
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
        if correlation is not None:
            covariance += error[:, :, None] * (correlation - np.eye(N_OBSERVED)) * error[:, None, :]
        factor = np.zeros((len(flux), N_FLUX, N_FLUX))
        factor[:, :N_OBSERVED, :N_OBSERVED] = np.linalg.cholesky(covariance)
        packed.append(pack_factor(factor, present[block]))
    flux = np.zeros((len(library), N_FLUX))
    flux[:, :N_OBSERVED] = library.flux
    return Observations.from_arrays(
        flux=flux, packed_factor=np.concatenate(packed), source_id=library.source_id, noise=noise
    )


def labelled(library: Library, noise: Noise) -> StarData:
    """Library stars with their types as labels, extinction and parallax free; ``noise`` (Eq. 2) in their whiteners."""
    stars = observations(library, noise).star_data()
    stars.mean[:, :3], stars.sigma[:, :3] = library.theta, np.hypot(library.theta_error, LABEL_FLOOR)
    return stars


def residuals(
    library: Library,
    model: FluxModel,
    prior: TypePrior,
    engine: str = "auto",
    *,
    terms: LossTerms | None = None,
    noise: str | None = None,
    correlation: Float64 | None = None,
    threads: int | None = None,
) -> Residuals:
    """Fit the stars, without a parallax, and compare.

    ``terms``, ``noise`` and ``threads`` are as for :func:`xpkern.fit.fit.fit`, ``correlation`` as for
    :func:`observations`.
    """
    observed = observations(library, model.noise, correlation=correlation)
    fitted = fit(observed, model, prior, engine=engine, terms=terms, noise=noise, threads=threads)
    done = (fitted.status & np.uint32(UNFITTED)) == 0
    theta = library.theta[done]
    sigma = np.sqrt(np.einsum("njj->nj", fitted.cov[done])[:, :3])
    return Residuals(
        source_id=library.source_id[done],
        theta=theta,
        difference=fitted.params[done, :3] - theta,
        sigma=np.hypot(sigma, library.theta_error[done]),
        ext=fitted.params[done, PARAMETERS.index("ext")],
        g=library.g[done],
        chi2=fitted.chi2[done],
        unfitted=int((~done).sum()),
    )


def robust_scatter(values: Float64) -> Float64:
    """Half the range from the 16th to the 84th percentile, of each column; of a normal distribution that is sigma."""
    low, high = np.percentile(values, _CENTRAL, axis=0)
    return 0.5 * (high - low)


def is_giant(theta: Float64) -> NDArray[np.bool_]:
    """Which stellar types (n, 3) are giants."""
    return np.less(theta[:, 2], GIANT_LOGG)


def subsets(theta: Float64, g: Float64) -> dict[str, NDArray[np.bool_]]:
    """Kinds of star the residuals are told for, as masks (n,), by their types (n, 3) and G (n,)."""
    teff, feh, _ = theta.T
    return {
        "all": np.ones(len(theta), bool),
        f"giants (log g < {GIANT_LOGG})": is_giant(theta),
        f"dwarfs (log g ≥ {GIANT_LOGG})": ~is_giant(theta),
        "G < 12": g < 12.0,
        "12 ≤ G < 14": (g >= 12.0) & (g < 14.0),
        "G ≥ 14": g >= 14.0,
        "[Fe/H] < −1": feh < -1.0,
        "−1 ≤ [Fe/H] < −0.3": (feh >= -1.0) & (feh < -0.3),
        "[Fe/H] ≥ −0.3": feh >= -0.3,
        "Teff < 4000 K": teff < 4.0,
        "4000–5000 K": (teff >= 4.0) & (teff < 5.0),
        "5000–6000 K": (teff >= 5.0) & (teff < 6.0),
        "Teff ≥ 6000 K": teff >= 6.0,
    }
