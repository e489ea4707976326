"""A learned extinction curve beside published laws, in a form that neither unit nor zero point of E enters.

    shape(lambda) = E(lambda - Ks) / E(552 nm - Ks) = (R(lambda) - R(Ks)) / (R(552 nm) - R(Ks))

E is defined up to a factor, and its zero point at each stellar type rests on labels; the shape does not depend on the
former, and hardly on the latter.
"""

from __future__ import annotations

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.errors import XpkernError
from xpkern.grid import BANDS, N_XP, WAVELENGTH
from xpkern.train.extinction_law import PIVOT, STANDARD_RV

#: Laws of the package dust_extinction that have R(V) as their parameter.
LAWS = ("CCM89", "F99", "F19", "G23")

#: Samples that XP spectra and 2MASS have: the published laws are compared there.
COMPARED = N_XP + BANDS.index("Ks") + 1


def curve_shape(ext_curve: Float64) -> Float64:
    """E(lambda - Ks) / E(552 nm - Ks) at the XP samples and J, H, Ks, (64,), of R (66,) or (64,)."""
    at_ks = ext_curve[COMPARED - 1]
    at_pivot = ext_curve[: len(WAVELENGTH)][np.flatnonzero(WAVELENGTH == PIVOT)[0]]
    return (ext_curve[:COMPARED] - at_ks) / (at_pivot - at_ks)


def published_curves(rv: float = STANDARD_RV) -> dict[str, Float64]:
    """A / A(V) of each of :data:`LAWS` at the XP samples and J, H, Ks, (64,).

    Raises
    ------
    XpkernError
        If the package dust_extinction is not installed.
    """
    try:
        from astropy import units
        from dust_extinction import parameter_averages
    except ImportError as error:
        raise XpkernError('published extinction laws need dust_extinction: pip install "xpkern[train]"') from error
    wavelength = WAVELENGTH[:COMPARED] * units.nm
    return {name: np.asarray(getattr(parameter_averages, name)(Rv=rv)(wavelength)) for name in LAWS}
