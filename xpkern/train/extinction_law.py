"""A standard extinction law: where the learned curve starts, what fixes its unit, and what reaches beyond it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline

from xpkern.engine.contract import Float64

LAW = "Fitzpatrick (1999), R_V = 3.1"

#: Wavelength [nm] at which the learned curve is tied to the law, so that ext = 1 means E(B-V) = 1 mag: a sample near
#: the V band, where extinction is strong and the XP spectra are good.
PIVOT = 552.0

# Optical and infrared anchors of Fitzpatrick (1999, PASP 111, 63), Table 3, for R_V = 3.1, with the two ultraviolet
# points of its Table 4 that the spline goes on to: inverse wavelength [1/um] and A / E(B-V).
_INVERSE_WAVELENGTH = (0.0, 0.377, 0.820, 1.667, 1.828, 2.141, 2.433, 3.704, 3.846)
_EXTINCTION = (0.0, 0.265, 0.829, 2.688, 3.055, 3.806, 4.315, 6.265, 6.591)

#: Magnitudes per unit of optical depth.
MAGNITUDES_PER_DEPTH = 2.5 * np.log10(np.e)


def extinction(wavelength: ArrayLike) -> Float64:
    """A(wavelength) / E(B-V) [mag/mag] of the law.

    Parameters
    ----------
    wavelength : (m,) array_like
        Wavelength [nm], 260 or longer.

    Returns
    -------
    (m,) float64
    """
    law = CubicSpline(_INVERSE_WAVELENGTH, _EXTINCTION, bc_type="natural")
    return law(1000.0 / np.asarray(wavelength, dtype=np.float64))


def optical_depth(wavelength: ArrayLike) -> Float64:
    """R(wavelength) of Eq. 8 at E(B-V) = 1 mag, by the law; arguments as for :func:`extinction`."""
    return extinction(wavelength) / MAGNITUDES_PER_DEPTH
