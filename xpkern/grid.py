"""Wavelengths, bands and parameter order: each constant once, with its reason.

Everything that has an order (samples of a spectrum, stellar parameters) takes it from here, so that no
other file indexes by position on faith.
"""

from __future__ import annotations

import numpy as np

#: XP samples [nm]: 392-992 nm every 10 nm is the finest sampling whose covariances stay positive definite
#: (ZGR23 section 2.1).
XP_WAVELENGTH = np.arange(392.0, 993.0, 10.0)

#: Infrared bands in the order in which they follow the XP samples.
BANDS = ("J", "H", "Ks", "W1", "W2")

#: Central wavelengths [nm] assumed for the bands in Eq. 5 (2MASS: Blanton et al. 2005; WISE: Explanatory Supplement).
BAND_WAVELENGTH = np.array([1235.0, 1662.0, 2159.0, 3352.6, 4602.8])

#: AB minus Vega magnitude of the bands, Eq. 5.
BAND_AB_OFFSET = np.array([0.91, 1.39, 1.85, 2.699, 3.339])

#: All samples of a flux vector [nm], in order.
WAVELENGTH = np.concatenate([XP_WAVELENGTH, BAND_WAVELENGTH])

N_XP = XP_WAVELENGTH.size
N_BANDS = len(BANDS)
N_FLUX = WAVELENGTH.size

#: Length of the packed lower triangle that stores one whitener.
N_PACKED = N_FLUX * (N_FLUX + 1) // 2

#: How the samples of a covariance of Eq. 2 are related: BP alone before the first number, BP before the second, which
#: shares a sample with RP, all XP samples before the third. A factor that is not of this form is fitted all the same.
BLOCKS = (25, 26, N_XP)

#: Stellar parameters in catalogue order: Teff [kK], [Fe/H] [dex], log g [dex], extinction E [mag], parallax [mas].
PARAMETERS = ("teff", "feh", "logg", "ext", "plx")
N_PARAMETERS = len(PARAMETERS)

#: Window [nm] whose flux fixes the scale of a spectrum: away from the noisy edges of BP and RP (ZGR23 section 4.2).
SCALE_WINDOW = (592.0, 782.0)


def in_scale_window(wavelength: np.ndarray) -> np.ndarray:
    """Mask of the samples inside :data:`SCALE_WINDOW` (both ends included)."""
    return (wavelength >= SCALE_WINDOW[0]) & (wavelength <= SCALE_WINDOW[1])
