"""A standard extinction law: where the learned curve starts, what fixes its unit, and what reaches beyond it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline

from xpkern.engine.contract import Float64
from xpkern.grid import BAND_WAVELENGTH, BANDS

LAW = "Fitzpatrick (1999), R_V = 3.1"

#: R(V) of the standard law: that of the diffuse interstellar medium.
STANDARD_RV = 3.1

#: Wavelength [nm] at which the learned curve is tied to the law, so that ext = 1 means E(B-V) = 1 mag: a sample near
#: the V band, where extinction is strong and the XP spectra are good.
PIVOT = 552.0

#: Unit of E where nothing but the law fixes it: E and R are known up to a factor.
EXT_UNIT = f"E(B-V) [mag]: R({PIVOT:.0f} nm) is that of {LAW}, at E(B-V) = 1 mag"

# Optical and infrared anchors of Fitzpatrick (1999, PASP 111, 63), Table 3, for R_V = 3.1, with the two ultraviolet
# points of its Table 4 that the spline goes on to: inverse wavelength [1/um] and A / E(B-V).
_INVERSE_WAVELENGTH = (0.0, 0.377, 0.820, 1.667, 1.828, 2.141, 2.433, 3.704, 3.846)
_EXTINCTION = (0.0, 0.265, 0.829, 2.688, 3.055, 3.806, 4.315, 6.265, 6.591)

# The same four optical anchors for any R_V: coefficients of the polynomials in R_V of the author's own program, which
# Table 4 rounds.
_OPTICAL = (
    (-4.22809e-1, 1.00270, 2.13572e-4),
    (-5.13540e-2, 1.00216, -7.35778e-5),
    (7.00127e-1, 1.00184, -3.32598e-5),
    (1.19456, 1.01707, -5.46959e-3, 7.97809e-4, -4.45636e-5),
)

#: Wavelength of Ks [nm].
_KS = float(BAND_WAVELENGTH[BANDS.index("Ks")])

#: Magnitudes per unit of optical depth.
MAGNITUDES_PER_DEPTH = 2.5 * np.log10(np.e)


def extinction(wavelength: ArrayLike, rv: ArrayLike = STANDARD_RV) -> Float64:
    """A(wavelength) / E(B-V) [mag/mag] of the law.

    Parameters
    ----------
    wavelength : (m,) array_like
        Wavelength [nm], 260 or longer.
    rv : float or (n,) array_like
        R(V) = A(V) / E(B-V).

    Returns
    -------
    (m,) float64, or (n, m) for an array of R(V)
    """
    anchors = np.asarray(_EXTINCTION) + (_anchors(rv) - _anchors(STANDARD_RV))
    law = CubicSpline(_INVERSE_WAVELENGTH, anchors, axis=-1, bc_type="natural")
    return law(1000.0 / np.asarray(wavelength, dtype=np.float64))


def _anchors(rv: ArrayLike) -> Float64:
    """Anchors (..., 9) for R(V): infrared ones in proportion, optical ones by Table 4, ultraviolet ones by Eq. 2."""
    r = np.asarray(rv, dtype=np.float64)
    infrared = [np.zeros(r.shape), 0.265 / STANDARD_RV * r, 0.829 / STANDARD_RV * r]
    optical = [np.polynomial.polynomial.polyval(r, coefficients) for coefficients in _OPTICAL]
    slope = -0.824 + 4.717 / r
    ultraviolet = [(2.030 - 3.007 * slope) + slope * x + 3.23 * _bump(x) + r for x in _INVERSE_WAVELENGTH[7:]]
    return np.stack([*infrared, *optical, *ultraviolet], axis=-1)


def _bump(x: float) -> float:
    """The Drude profile D of the 217.5 nm bump at inverse wavelength x [1/um]."""
    return x**2 / ((x**2 - 4.596**2) ** 2 + (0.99 * x) ** 2)


def optical_depth(wavelength: ArrayLike, rv: ArrayLike = STANDARD_RV) -> Float64:
    """R(wavelength) of Eq. 8 at E(B-V) = 1 mag, by the law; arguments as for :func:`extinction`."""
    return extinction(wavelength, rv) / MAGNITUDES_PER_DEPTH


def grey_to_law(ext_curve: Float64, wavelength: Float64) -> float:
    """What is to be added to R (m,) at every wavelength so that R(Ks) / R(``PIVOT``) is the law's.

    Where parallaxes are free, dust that dims all wavelengths alike cannot be told from distance.
    """
    law = optical_depth(wavelength)
    pivot, ks = (int(np.flatnonzero(wavelength == at)[0]) for at in (PIVOT, _KS))
    ratio = law[ks] / law[pivot]
    return float((ratio * ext_curve[pivot] - ext_curve[ks]) / (1.0 - ratio))


def factor_to_law(ext_curve: Float64, wavelength: Float64) -> float:
    """What R (m,) is to be multiplied by, and E divided, so that R is the law's at ``PIVOT``."""
    pivot = int(np.flatnonzero(wavelength == PIVOT)[0])
    return float(optical_depth(wavelength)[pivot] / ext_curve[pivot])
