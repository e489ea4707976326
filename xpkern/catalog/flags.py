"""The quality flags of the published catalogue (ZGR23 Table 2), one byte a star."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64

#: The published ``ln_prior`` lacks the -(3/2) ln 2 pi of a normalised density in three dimensions; adding this to
#: our normalised value gives the published one. The threshold shifts with it, so bit 4 is the same in both.
LN_PRIOR_PUBLISHED_OFFSET = 1.5 * float(np.log(2.0 * np.pi))

#: Degrees of freedom that the published flag divides by, whatever the bands used: 66 samples minus 5 parameters.
FLAG_DEGREES_OF_FREEDOM = 61


class QualityFlag(IntFlag):
    """Bits of the ``quality_flags`` column (uint8); bits 6 and 7 are never set."""

    TEFF_UNSURE = 1 << 0
    FEH_UNSURE = 1 << 1
    LOGG_UNSURE = 1 << 2
    POOR_FIT = 1 << 3
    UNLIKELY_TYPE = 1 << 4
    PARALLAX_DISAGREES = 1 << 5


#: What each bit means, for the column description and the documentation.
MEANING: dict[QualityFlag, str] = {
    QualityFlag.TEFF_UNSURE: "confidence in teff below 0.5 or unknown",
    QualityFlag.FEH_UNSURE: "confidence in feh below 0.5 or unknown",
    QualityFlag.LOGG_UNSURE: "confidence in logg below 0.5 or unknown",
    QualityFlag.POOR_FIT: f"chi2 / {FLAG_DEGREES_OF_FREEDOM} above 2",
    QualityFlag.UNLIKELY_TYPE: "ln_prior below the 0.1 % quantile of the prior's own mass",
    QualityFlag.PARALLAX_DISAGREES: "estimated parallax more than 10 sigma from the measured one",
}

#: Value of a star without a fit: bits 0-5.
ALL_BITS = sum(QualityFlag)


def quality_flags(
    *,
    confidence: Float64,
    chi2: Float64,
    ln_prior: Float64,
    ln_prior_threshold: float,
    plx: Float64,
    plx_observed: Float64,
    plx_error: Float64,
    fitted: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """Quality flags of n stars (MATH.md, "Numbers to reproduce").

    Each test asks whether the star passes, so that a NaN (which passes nothing) sets the bit. The exception is the
    parallax: without a usable measurement (error infinite, or NaN) there is nothing to disagree with and bit 5
    stays unset; the ``status`` column says so.

    Parameters
    ----------
    confidence : (n, 3) float64
        Confidence in teff, feh and logg, 0 to 1; NaN where no classifier gave one.
    chi2 : (n,) float64
        Chi-squared under the noise model of Eq. 2.
    ln_prior : (n,) float64
        Log of the prior density at the solution, in the same convention as ``ln_prior_threshold``.
    ln_prior_threshold : float
        The 0.1 % quantile of ``ln_prior`` over the prior's own mass.
    plx : (n,) float64
        Estimated parallax [mas].
    plx_observed, plx_error : (n,) float64
        Measured parallax [mas] as the fit used it, and its error.
    fitted : (n,) bool
        Whether the star has a solution; where not, bits 0-5 are all set.

    Returns
    -------
    (n,) uint8
    """
    flags = np.zeros(len(chi2), np.uint8)
    for bit, column in zip(
        (QualityFlag.TEFF_UNSURE, QualityFlag.FEH_UNSURE, QualityFlag.LOGG_UNSURE), confidence.T, strict=True
    ):
        flags[~(column >= 0.5)] |= np.uint8(bit)
    flags[~(chi2 <= 2.0 * FLAG_DEGREES_OF_FREEDOM)] |= np.uint8(QualityFlag.POOR_FIT)
    flags[~(ln_prior >= ln_prior_threshold)] |= np.uint8(QualityFlag.UNLIKELY_TYPE)
    measured = np.isfinite(plx_observed) & np.isfinite(plx_error) & (plx_error > 0.0)
    distance = np.abs(plx - np.where(measured, plx_observed, 0.0))
    agrees = distance <= 10.0 * np.where(measured, plx_error, np.inf)
    flags[measured & ~agrees] |= np.uint8(QualityFlag.PARALLAX_DISAGREES)
    flags[~fitted] = np.uint8(ALL_BITS)
    return flags
