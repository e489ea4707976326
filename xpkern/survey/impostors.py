"""What is taken for a star and is none that the models know: white dwarfs, quasars, galaxies.

Simple spectra that have what a fit stumbles over: a colour without a match, broad lines, a redshift. Those of quasars
and galaxies are shapes at the 66 samples, which the survey scales to a magnitude.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from xpkern.engine.contract import Float64
from xpkern.grid import WAVELENGTH

#: Constants of Planck's law: 2 pi h c^2 [W m-2 nm^4], h c / k [nm kK].
_TWO_PI_HC2, _HC_OVER_K = 3.741771852e20, 1.438776877e4

#: Balmer lines [nm] of a white dwarf: depth and width (sigma [nm]) at 12 kK, where they are strongest.
_BALMER = ((656.3, 0.35, 8.0), (486.1, 0.45, 9.0), (434.0, 0.45, 9.0), (410.2, 0.40, 8.0))

#: Emission lines of quasars: rest wavelength, equivalent width [nm]; rounded from Vanden Berk et al. (2001).
_QUASAR_LINES = (
    (121.6, 9.0),
    (140.0, 0.8),
    (154.9, 2.4),
    (190.9, 2.1),
    (279.8, 3.2),
    (486.1, 4.6),
    (500.7, 1.3),
    (656.3, 19.5),
)

#: Width of a quasar's lines (sigma) as a fraction of their wavelength: 6,000 km/s full width at half maximum.
_LINE_WIDTH = 6000.0 / 299_792.458 / 2.3548

#: Power law of a quasar's continuum; temperature [kK] of its hot dust, whose flux at 2 um is so many times the power
#: law's.
_SLOPE, _HOT_DUST, _HOT_DUST_FLUX = -1.55, 1.2, 2.5

#: Wavelength [nm] at which the light of a galaxy's stars is compared.
_V = 550.0

#: Absorption of an old stellar population: wavelength, depth, width (sigma) [nm].
_GALAXY_LINES = (
    (393.4, 0.35, 3.0),
    (430.0, 0.12, 3.0),
    (517.5, 0.12, 5.0),
    (589.3, 0.10, 3.0),
    (625.0, 0.05, 9.0),
    (715.0, 0.08, 10.0),
    (855.0, 0.06, 6.0),
)


def black_body(wavelength: Float64 | float, teff: Float64 | float) -> Float64:
    """Surface flux [W m-2 nm-1] of black bodies: wavelengths [nm] and temperatures [kK] that broadcast."""
    return _TWO_PI_HC2 * wavelength**-5.0 / np.expm1(_HC_OVER_K / (wavelength * teff))


def white_dwarf(teff: Float64) -> Float64:
    """Surface flux [W m-2 nm-1] (n, 66) of hydrogen white dwarfs of temperature (n,) [kK]: a black body with lines."""
    planck = black_body(WAVELENGTH, teff[:, None])
    strength = np.exp(-0.5 * (np.log(teff / 12.0) / 0.5) ** 2)[:, None]
    for centre, depth, width in _BALMER:
        planck *= 1.0 - strength * depth * np.exp(-0.5 * ((WAVELENGTH - centre) / width) ** 2)
    return planck


def quasar(redshift: Float64) -> Float64:
    """Shape (n, 66) of quasars at redshifts (n,)."""
    rest = WAVELENGTH / (1.0 + redshift[:, None])
    shape = (rest / 200.0) ** _SLOPE
    lines = np.ones_like(rest)
    for centre, width in _QUASAR_LINES:
        sigma = _LINE_WIDTH * centre
        lines += width / (sigma * np.sqrt(2.0 * np.pi)) * np.exp(-0.5 * ((rest - centre) / sigma) ** 2)
    dust = black_body(rest, _HOT_DUST) / black_body(2000.0, _HOT_DUST)
    shape = shape * lines + _HOT_DUST_FLUX * (2000.0 / 200.0) ** _SLOPE * dust
    # hydrogen between us and it absorbs beyond Lyman alpha (mean depth of Faucher-Giguere et al. 2008)
    depth = np.where(rest < 121.6, 0.0018 * (WAVELENGTH / 121.6) ** 3.92, 0.0)
    return shape * np.exp(-depth)


def galaxy(redshift: Float64, young: Float64) -> Float64:
    """Shape (n, 66) of galaxies at redshifts (n,), a fraction ``young`` (n,) of whose light at 550 nm is of hot stars.

    Cool stars as black bodies of 4.4 kK under the absorption of their lines and the break at 400 nm, hot ones of 9 kK.
    """
    rest = WAVELENGTH / (1.0 + redshift[:, None])
    old = black_body(rest, 4.4) / black_body(_V, 4.4)
    old = old * (1.0 - 0.45 * expit((400.0 - rest) / 4.0))
    for centre, depth, width in _GALAXY_LINES:
        old = old * (1.0 - depth * np.exp(-0.5 * ((rest - centre) / width) ** 2))
    hot = black_body(rest, 9.0) / black_body(_V, 9.0)
    return (1.0 - young[:, None]) * old + young[:, None] * hot
