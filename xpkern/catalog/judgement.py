"""What is thought of a star's fit: confidence in its parameters, quality flags, status bits that depend on thresholds.

All of it comes from the diagnostics companion of a catalogue, so that it can be thought anew without the spectra. At
fit time the same columns are taken from the fit, rounded as files round them: both give the same, bit by bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.flags import FLAG_DEGREES_OF_FREEDOM, quality_flags
from xpkern.catalog.rows import StarRows
from xpkern.catalog.schema import DIAGNOSTICS, N_TYPE
from xpkern.engine.confidence import confidences
from xpkern.engine.contract import Float32
from xpkern.model.confidence import STAR_FEATURES, Confidence
from xpkern.model.type_prior import TypePrior
from xpkern.status import SECOND_MINIMUM_GAP, UNFITTED, Status

#: Columns of the companion that a judgement is made of.
JUDGED_BY = (
    *("residual", "stellar_type", "stellar_type_error", "chi2", "ln_prior", "parallax_deviation"),
    *("parallax_over_error", "phot_g_mean_mag", "phot_g_mean_flux_over_error", "phot_bp_mean_flux_over_error"),
    *("phot_rp_mean_flux_over_error", "fidelity_v2", "norm_dg", "phot_bp_rp_excess_factor", "ruwe"),
    *("bp_chi_squared", "rp_chi_squared", "second_gap", "status"),
)

#: Those of them that are enough where there are no classifiers.
FLAGGED_BY = ("chi2", "ln_prior", "parallax_deviation", "second_gap", "status")

#: A feature that is a logarithm takes that of this at least.
_LEAST = 1e-7

#: asinh of every number of 16 bits, by its bits: residuals are stored as such. What overflowed is the largest one.
_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
_ASINH = np.arcsinh(np.nan_to_num(_HALVES, nan=np.nan, posinf=65504.0, neginf=-65504.0))


@dataclass(frozen=True)
class Judgement:
    """What is thought of n stars.

    Attributes
    ----------
    confidence : (n, 3) float32
        In teff, feh, logg; NaN without classifiers and for stars without a fit.
    quality_flags : (n,) uint8
    status : (n,) uint32
        As it was, with the bits that depend on the prior and on thresholds set anew.
    """

    confidence: Float32
    quality_flags: NDArray[np.uint8]
    status: NDArray[np.uint32]


def judge(columns: Mapping[str, NDArray[Any]], classifiers: Confidence | None, prior: TypePrior) -> Judgement:
    """Judge stars by the columns :data:`JUDGED_BY` of the companion.

    Bits of the status are only added: a first pass that wanted to leave what is known, which the fit alone has seen,
    stays told.

    Parameters
    ----------
    columns : mapping of str to (n, ...) array
        Without classifiers, :data:`FLAGGED_BY` are enough.
    classifiers : Confidence, optional
    prior : TypePrior
        Whose threshold says what is unlikely.
    """
    status = np.asarray(columns["status"]).astype(np.uint32)
    fitted = (status & np.uint32(UNFITTED)) == 0
    confidence = np.full((len(status), N_TYPE), np.nan, np.float32)
    if classifiers is not None and len(status):
        confidence = confidences(classifiers, features_of(columns))
        confidence[~fitted] = np.nan
    flags = quality_flags(
        confidence=confidence,
        chi2=columns["chi2"],
        ln_prior=columns["ln_prior"],
        ln_prior_threshold=prior.ln_prior_threshold,
        parallax_deviation=columns["parallax_deviation"],
        fitted=fitted,
    )
    ln_prior, gap = (np.asarray(columns[name], np.float32) for name in ("ln_prior", "second_gap"))
    for bit, holds in (
        (Status.EXTRAPOLATED, ln_prior < np.float32(prior.ln_prior_threshold)),
        (Status.SECOND_MINIMUM, gap < np.float32(SECOND_MINIMUM_GAP)),
    ):
        status = np.where(fitted & holds, status | np.uint32(bit), status)
    return Judgement(confidence, flags, status)


def stored_judgement_columns(rows: StarRows, names: Collection[str] = JUDGED_BY) -> dict[str, NDArray[np.generic]]:
    """Columns of rows that a judgement is made of, as the companion would store them."""
    return {column.name: column.compute(rows) for column in DIAGNOSTICS if column.name in names}


def features_of(columns: Mapping[str, NDArray[Any]]) -> Float32:
    """What classifiers look at (ZGR23 Appendix B), (n, f) float32 in the order of their names; NaN where unknown.

    Parameters
    ----------
    columns : mapping of str to (n, ...) array
        :data:`JUDGED_BY`, as the companion stores them.
    """

    def column(name: str) -> Float32:
        return np.asarray(columns[name], np.float32)

    def ln(values: Float32) -> Float32:
        with np.errstate(over="ignore"):
            return np.log(np.maximum(values, np.float32(_LEAST)))

    residual = np.ascontiguousarray(columns["residual"], np.float16)
    features = np.empty((len(residual), len(STAR_FEATURES) + residual.shape[1]), np.float32)
    features[:, len(STAR_FEATURES) :] = np.take(_ASINH, residual.view(np.uint16))
    kind, error = column("stellar_type"), column("stellar_type_error")
    with np.errstate(over="ignore"):  # a deviation beyond 1e19 sigma is infinite when squared, and taken for missing
        squared_deviation = column("parallax_deviation") ** 2
    of_stars = {
        "ln_rchi2_opt": ln(column("chi2") / np.float32(FLAG_DEGREES_OF_FREEDOM)),
        "ln_dplx2": ln(squared_deviation),
        "ln_prior": column("ln_prior"),
        **{f"{name}_est": kind[:, k] for k, name in enumerate(("teff", "feh", "logg"))},
        **{f"{name}_est_err": error[:, k] for k, name in enumerate(("teff", "feh", "logg"))},
        "asinh_plx_snr": np.arcsinh(column("parallax_over_error")),
        **{f"asinh_{band}_snr": np.arcsinh(column(f"phot_{band}_mean_flux_over_error")) for band in ("g", "bp", "rp")},
        "ln_phot_bp_rp_excess_factor": ln(column("phot_bp_rp_excess_factor")),
        "phot_g_mean_mag": column("phot_g_mean_mag"),
        "ln_ruwe": ln(column("ruwe")),
        "fidelity_v2": column("fidelity_v2"),
        "norm_dg": column("norm_dg"),
        **{f"ln_{band}_chi_squared": ln(column(f"{band}_chi_squared")) for band in ("bp", "rp")},
    }
    for place, name in enumerate(STAR_FEATURES):
        features[:, place] = of_stars[name]
    return features
