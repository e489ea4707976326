"""The absolute scale of the flux, by stellar physics: log g and a mass give the radius, an atmosphere the rest.

The library has no parallaxes, so its spectra have shapes only. A star of type Theta at 1 kpc has the flux

    f = F(Theta) (radius / 1 kpc)^2,    radius^2 = G mass(Theta) / g

with F the surface flux of a model atmosphere. The scale is tied in J, H and Ks, where atmospheres are least wrong,
cool ones above all, and dust matters least. The same atmospheres extend the spectrum from Ks to W1 and W2.
"""

from __future__ import annotations

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.observe.calibration import FLUX_UNIT
from xpkern.train.atmospheres import Atmospheres

#: Fractional 1-sigma error of the scale: 20 % for the mass, 12 % for an error of 0.05 dex in log g, 5 % for the
#: atmospheres do not add up in most stars as they do in the worst. See the model card for what was found.
SCALE_SIGMA = 0.2

#: Fractional error of W1 and W2 (:class:`xpkern.model.noise.Noise`): what atmospheres and reality differ by there.
THEORETICAL_ERROR = 0.1

#: Solar gravitational parameter [m3 s-2] and one kiloparsec [m].
_GM_SUN = 1.32712440018e20
_KILOPARSEC = 3.0856775814913673e19

#: cm s-2 in m s-2.
_CM = 1e-2

#: Masses on the main sequence [solar] by teff [kK]: rounded from Pecaut & Mamajek (2013) and Eker et al. (2018).
DWARF_TEFF = (2.6, 2.8, 3.05, 3.2, 3.4, 3.55, 3.7, 3.85, 4.05, 4.45, 4.85, 5.28, 5.77, 6.0, 6.55, 7.2, 8.1, 9.7)
DWARF_MASS = (0.09, 0.12, 0.16, 0.23, 0.36, 0.44, 0.50, 0.57, 0.64, 0.72, 0.80, 0.89, 1.0, 1.08, 1.3, 1.6, 1.8, 2.2)

#: Typical masses of giants [solar] by feh: old and light at low metallicity.
_GIANT_FEH = (-1.5, -0.5, 0.0)
_GIANT_MASS = (0.85, 1.0, 1.2)

#: log g where dwarfs give way to giants, and how softly [dex].
_TURN_OFF, _TURN_OFF_WIDTH = 3.9, 0.12


def mass(theta: Float64) -> Float64:
    """Typical mass [solar] of stellar types (n, 3): of the main sequence by teff, of giants by feh."""
    teff, feh, logg = theta.T
    dwarf = np.log(np.interp(teff, DWARF_TEFF, DWARF_MASS))
    giant = np.log(np.interp(feh, _GIANT_FEH, _GIANT_MASS))
    dwarf_share = 1.0 / (1.0 + np.exp(-(logg - _TURN_OFF) / _TURN_OFF_WIDTH))
    return np.exp(dwarf_share * dwarf + (1.0 - dwarf_share) * giant)


def ln_flux_at_1kpc(atmospheres: Atmospheres, theta: Float64, masses: Float64 | None = None) -> Float64:
    """Logarithm of the theoretical flux [1e-18 W m-2 nm-1] of stellar types (n, 3) at 1 kpc without dust, (n, 66).

    ``masses`` (n,) [solar] are the typical ones when not given.
    """
    masses = mass(theta) if masses is None else masses
    return atmospheres.ln_surface_flux(theta) + ln_dilution(masses, theta[:, 2])[:, None] - np.log(FLUX_UNIT)


def ln_dilution(masses: Float64, logg: Float64) -> Float64:
    """Logarithm (n,) of the flux at 1 kpc over that at the surface, by mass [solar] and log g (n,)."""
    gravity = 10.0**logg * _CM
    return np.log(_GM_SUN * masses / gravity / _KILOPARSEC**2)
