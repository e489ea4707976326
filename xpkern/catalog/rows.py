"""From a fit to the rows of a catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xpkern.catalog.flags import quality_flags
from xpkern.catalog.schema import CONFIDENT_PARAMETERS, StarRows
from xpkern.engine.packed import present_samples
from xpkern.grid import PARAMETERS

if TYPE_CHECKING:
    from xpkern.fit.result import Fit


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
    observed, fitted = fit.observations, fit.fitted

    def of_fitted(values: np.ndarray) -> np.ndarray:
        return np.where(fitted.reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)

    measured = np.isfinite(observed.plx_err)
    plx_observed = np.where(measured, observed.plx, np.nan)
    plx_error = np.where(measured, observed.plx_err, np.nan)
    confidence = np.full((len(fit), len(CONFIDENT_PARAMETERS)), np.nan)
    params, chi2, ln_prior = of_fitted(fit.params), of_fitted(fit.chi2), of_fitted(fit.ln_prior)
    return StarRows(
        source_id=fit.source_id,
        observed=observed.columns,
        plx_observed=plx_observed,
        plx_error=plx_error,
        params=params,
        model_plx=of_fitted(fit.model_plx),
        covariance=of_fitted(fit.cov),
        fisher=of_fitted(fit.fisher),
        loss=of_fitted(fit.loss),
        chi2=chi2,
        ln_prior=ln_prior,
        gradient_norm=of_fitted(fit.gradient_norm),
        decrement=of_fitted(fit.decrement),
        residual=of_fitted(fit.residual),
        used=present_samples(observed.whitener) & fitted[:, None],
        confidence=confidence,
        quality_flags=quality_flags(
            confidence=confidence,
            chi2=chi2,
            ln_prior=ln_prior,
            ln_prior_threshold=fit.prior.ln_prior_threshold,
            plx=params[:, PARAMETERS.index("plx")],
            plx_observed=plx_observed,
            plx_error=plx_error,
            fitted=fitted,
        ),
        status=fit.status,
        iterations=fit.iterations,
        minima=fit.minima,
        second_params=of_fitted(fit.second_params),
        second_gap=of_fitted(fit.second_gap),
    )
