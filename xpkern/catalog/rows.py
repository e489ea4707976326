"""From a fit to the rows of a catalogue: all that its columns are computed from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.arrays import on_device, to_host
from xpkern.engine.contract import Float32, Float64
from xpkern.engine.packed import diagonal_positions, present_samples
from xpkern.grid import BANDS, N_PARAMETERS, N_XP, XP_WAVELENGTH
from xpkern.model.confidence import CONFIDENT_PARAMETERS

if TYPE_CHECKING:
    from xpkern.fit.result import Fit

#: Bits of ``bands_used`` after the infrared bands: the two spectra.
BP_USED, RP_USED = 1 << len(BANDS), 1 << (len(BANDS) + 1)

#: Samples [nm] that only one of the two spectra covers; the one they share, 642 nm, tells nothing.
BP_ONLY, RP_ONLY = XP_WAVELENGTH < 640.0, XP_WAVELENGTH > 650.0


@dataclass(frozen=True)
class StarRows:
    """All that the columns are computed from, for n stars; floats are NaN where a star has no fit.

    Attributes
    ----------
    source_id : (n,) int64
    observed : dict of str to (n,) array
        Columns carried from the gaia_source table; absent ones read as NaN.
    plx_observed, plx_error : (n,) float64
        Parallax [mas] as the fit used it and its error; NaN and NaN where there is none.
    params : (n, 5) float64
        Linear parameters in catalogue order and units (teff in kK).
    model_plx : (n,) float64
        Parallax [mas] at which the model's flux is the observed one.
    covariance, fisher : (n, 5, 5) float64
        Of the linear parameters.
    loss, chi2, ln_prior, gradient_norm, decrement : (n,) float64
        ``ln_prior`` is that of the normalised density, ``chi2`` under the noise of Eq. 2.
    chi2_learned : (n,) float64
        chi^2 under a learned noise; NaN where the fit had none.
    residual : (n, 66) float32
        (predicted - observed) / sigma; 0 where missing.
    used : (n, 66) bool
        Samples that carry weight.
    confidence : (n, 3) float
        In teff, feh, logg; NaN where no classifier gave one.
    quality_flags : (n,) uint8
    status : (n,) uint32
    iterations, minima : (n,) int32
    second_params : (n, 5) float64
        Linear parameters at the second lowest minimum, its parallax by the model's own scale.
    second_gap : (n,) float64
    """

    source_id: NDArray[np.int64]
    observed: dict[str, NDArray[np.generic]]
    plx_observed: Float64
    plx_error: Float64
    params: Float64
    model_plx: Float64
    covariance: Float64
    fisher: Float64
    loss: Float64
    chi2: Float64
    chi2_learned: Float64
    ln_prior: Float64
    gradient_norm: Float64
    decrement: Float64
    residual: Float32
    used: NDArray[np.bool_]
    confidence: Float32 | Float64
    quality_flags: NDArray[np.uint8]
    status: NDArray[np.uint32]
    iterations: NDArray[np.int32]
    minima: NDArray[np.int32]
    second_params: Float64
    second_gap: Float64

    def __len__(self) -> int:
        return len(self.source_id)

    @cached_property
    def error(self) -> Float64:
        """Standard errors of the linear parameters, (n, 5)."""
        return np.sqrt(np.einsum("nii->ni", self.covariance))

    @cached_property
    def bands_used(self) -> NDArray[np.uint8]:
        """One bit per infrared band in grid order, then one each for BP and RP, (n,)."""
        bits = np.zeros(len(self), np.uint8)
        for index in range(len(BANDS)):
            bits[self.used[:, N_XP + index]] |= np.uint8(1 << index)
        bits[self.used[:, :N_XP][:, BP_ONLY].any(axis=1)] |= np.uint8(BP_USED)
        bits[self.used[:, :N_XP][:, RP_ONLY].any(axis=1)] |= np.uint8(RP_USED)
        return bits

    @property
    def degrees_of_freedom(self) -> NDArray[np.int16]:
        """Samples used minus parameters, (n,); may be negative for a star with hardly any data."""
        return np.asarray(self.used.sum(axis=1) - N_PARAMETERS, np.int16)

    def from_gaia(self, name: str) -> NDArray[np.generic]:
        """A column of the gaia_source table, NaN where the table has none."""
        return self.observed[name] if name in self.observed else np.full(len(self), np.nan)


def star_rows(fit: Fit) -> StarRows:
    """Everything the columns are computed from.

    Parameters
    ----------
    fit : Fit
        n stars.

    Returns
    -------
    StarRows
        n rows; those without a fit are NaN in every float, whatever the engine left there.
    """
    # which reads columns, made of these rows
    from xpkern.catalog.judgement import FLAGGED_BY, JUDGED_BY, judge, stored_judgement_columns

    used = to_host(_used(fit.residual, fit.observations.whitener))
    fit = fit.without_spectra().on_host()
    observed, fitted = fit.observations, fit.fitted
    all_fitted = bool(fitted.all())

    def of_fitted(values: np.ndarray) -> np.ndarray:
        return values if all_fitted else np.where(fitted.reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)

    measured = np.isfinite(observed.plx_err)
    plx_observed = np.where(measured, observed.plx, np.nan)
    plx_error = np.where(measured, observed.plx_err, np.nan)
    unjudged = StarRows(
        source_id=fit.source_id,
        observed=observed.columns,
        plx_observed=plx_observed,
        plx_error=plx_error,
        params=of_fitted(fit.params),
        model_plx=of_fitted(fit.model_plx),
        covariance=of_fitted(fit.cov),
        fisher=of_fitted(fit.fisher),
        loss=of_fitted(fit.loss),
        chi2=of_fitted(fit.chi2),
        chi2_learned=of_fitted(fit.chi2_learned),
        ln_prior=of_fitted(fit.ln_prior),
        gradient_norm=of_fitted(fit.gradient_norm),
        decrement=of_fitted(fit.decrement),
        residual=of_fitted(fit.residual),
        used=used & fitted[:, None],
        confidence=np.full((len(fit), len(CONFIDENT_PARAMETERS)), np.nan),
        quality_flags=np.zeros(len(fit), np.uint8),
        status=fit.status,
        iterations=fit.iterations,
        minima=fit.minima,
        second_params=of_fitted(fit.second_params),
        second_gap=of_fitted(fit.second_gap),
    )
    classifiers = fit.model.confidence
    judged_by = stored_judgement_columns(unjudged, FLAGGED_BY if classifiers is None else JUDGED_BY)
    judged = judge(judged_by, classifiers, fit.prior)
    return replace(unjudged, confidence=judged.confidence, quality_flags=judged.quality_flags, status=judged.status)


def _used(residual: Float32, whitener: Float32) -> NDArray[np.bool_]:
    """Samples (n, 66) that are not missing: all but those without a residual that the whitener leaves out.

    The whiteners are no longer in the cache, and few samples are missing.
    """
    used = residual != 0
    if on_device(residual):
        return used | present_samples(whitener)
    row, sample = np.divmod(np.flatnonzero(~used), used.shape[1])  # ten times as fast as np.nonzero() in two dimensions
    used[row, sample] = whitener[row, diagonal_positions(residual.shape[1])[sample]] > 0
    return used
