"""The quality flags of the published catalogue (ZGR23 Table 2), one byte a star."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float32, Float64

#: The published ``ln_prior`` lacks the -(3/2) ln 2 pi of a normalised density in three dimensions; adding this to
#: our normalised value gives the published one. The threshold shifts with it, so bit 4 is the same in both.
LN_PRIOR_PUBLISHED_OFFSET = 1.5 * float(np.log(2.0 * np.pi))

#: Degrees of freedom that the published flag divides by, whatever the bands used: 66 samples minus 5 parameters.
FLAG_DEGREES_OF_FREEDOM = 61

#: Thresholds of the flags: confidence, chi2 over those degrees of freedom, errors of the measured parallax.
LEAST_CONFIDENCE, LARGEST_REDUCED_CHI2, PARALLAX_SIGMAS = 0.5, 2.0, 10.0


class QualityFlags(IntFlag):
    """Bits of the ``quality_flags`` column (uint8); bits 6 and 7 are never set."""

    TEFF_UNSURE = 1 << 0
    FEH_UNSURE = 1 << 1
    LOGG_UNSURE = 1 << 2
    POOR_FIT = 1 << 3
    UNLIKELY_TYPE = 1 << 4
    PARALLAX_DISAGREES = 1 << 5


#: What each bit means, for the column description and the documentation.
MEANING: dict[QualityFlags, str] = {
    QualityFlags.TEFF_UNSURE: f"confidence in teff below {LEAST_CONFIDENCE} or unknown",
    QualityFlags.FEH_UNSURE: f"confidence in feh below {LEAST_CONFIDENCE} or unknown",
    QualityFlags.LOGG_UNSURE: f"confidence in logg below {LEAST_CONFIDENCE} or unknown",
    QualityFlags.POOR_FIT: f"chi2 / {FLAG_DEGREES_OF_FREEDOM} above {LARGEST_REDUCED_CHI2:g}",
    QualityFlags.UNLIKELY_TYPE: "ln_prior below the 0.1 % quantile of the prior's own mass",
    QualityFlags.PARALLAX_DISAGREES: f"estimated parallax more than {PARALLAX_SIGMAS:g} sigma from the measured one",
}

#: Value of a star without a fit: bits 0-5.
ALL_BITS = sum(QualityFlags)

#: ``quality_flags`` below this pass the basic reliability cut (Eqs. 24-26).
BASIC_CUT = int(QualityFlags.POOR_FIT)


def quality_flags(
    *,
    confidence: Float32 | Float64,
    chi2: Float32 | Float64,
    ln_prior: Float32 | Float64,
    ln_prior_threshold: float,
    parallax_deviation: Float32 | Float64,
    fitted: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """Quality flags of n stars (MATH.md, "Numbers to reproduce").

    Each test asks whether the star passes, so that a NaN (which passes nothing) sets the bit. The exception is the
    parallax: without a usable measurement there is nothing to disagree with and bit 5 stays unset; the ``status``
    column says so. Numbers are compared as a catalogue stores them, in single precision, so that the flags are the same
    whenever they are computed.

    Parameters
    ----------
    confidence : (n, 3) float32 or float64
        Confidence in teff, feh and logg, 0 to 1; NaN where no classifier gave one.
    chi2 : (n,) float64
        Chi-squared under the noise model of Eq. 2.
    ln_prior : (n,) float64
        Log of the prior density at the solution, in the same convention as ``ln_prior_threshold``.
    ln_prior_threshold : float
        The 0.1 % quantile of ``ln_prior`` over the prior's own mass.
    parallax_deviation : (n,) float64
        Estimated minus measured parallax, over the error of the measured one; NaN where none was measured.
    fitted : (n,) bool
        Whether the star has a solution; where not, bits 0-5 are all set.

    Returns
    -------
    (n,) uint8
    """
    confidence, chi2, ln_prior, parallax_deviation = (
        np.asarray(values, np.float32) for values in (confidence, chi2, ln_prior, parallax_deviation)
    )
    flags = np.zeros(len(chi2), np.uint8)
    for bit, column in zip(
        (QualityFlags.TEFF_UNSURE, QualityFlags.FEH_UNSURE, QualityFlags.LOGG_UNSURE), confidence.T, strict=True
    ):
        flags[~(column >= np.float32(LEAST_CONFIDENCE))] |= np.uint8(bit)
    flags[~(chi2 <= np.float32(LARGEST_REDUCED_CHI2 * FLAG_DEGREES_OF_FREEDOM))] |= np.uint8(QualityFlags.POOR_FIT)
    flags[~(ln_prior >= np.float32(ln_prior_threshold))] |= np.uint8(QualityFlags.UNLIKELY_TYPE)
    flags[np.abs(parallax_deviation) > np.float32(PARALLAX_SIGMAS)] |= np.uint8(QualityFlags.PARALLAX_DISAGREES)
    flags[~fitted] = np.uint8(ALL_BITS)
    return flags
