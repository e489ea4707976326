"""The zero point of Gaia's parallaxes, after Lindegren et al. (2021), A&A 649, A4.

A parallax of (E)DR3 is too small by some ten microarcseconds, more or less so by magnitude, colour and ecliptic
latitude beta. The paper fits, for sources with 5 and with 6 astrometric parameters,

    Z(G, nu, beta) = sum_jk q_jk(G) c_j(nu) b_k(beta)

with q_jk linear in G between the nodes of its Tables 9 and 10, b_k = 1, sin beta, sin^2 beta - 1/3, and c_j five
functions of the effective wavenumber nu: a constant, a ramp, two pieces for red sources and one for blue (its Eq. A.3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64

#: Columns of gaia_source that it depends on.
INPUTS = ("phot_g_mean_mag", "nu_eff_used_in_astrometry", "pseudocolour", "ecl_lat", "astrometric_params_solved")

#: Names of the corrections that a user may ask for.
ZERO_POINTS = ("lindegren2021", "none")

#: ``astrometric_params_solved`` of sources whose colour was known, and of those whose pseudocolour was fitted as well.
FIVE_PARAMETERS, SIX_PARAMETERS = 31, 95

#: Wavenumbers [1/um] between which each of the two was fitted.
WAVENUMBERS = {FIVE_PARAMETERS: (1.1, 1.9), SIX_PARAMETERS: (1.24, 1.72)}

#: Magnitudes G of the nodes. Beyond the first and the last, their values hold.
MAGNITUDES = np.array([6.0, 10.8, 11.2, 11.8, 12.2, 12.9, 13.1, 15.9, 16.1, 17.5, 19.0, 20.0, 21.0])

#: Tables 9 and 10: q_jk [uas] at the nodes, by (j, k).
COEFFICIENTS: dict[int, dict[tuple[int, int], list[float]]] = {
    FIVE_PARAMETERS: {
        (0, 0): [
            *(-26.98, -27.23, -30.33, -33.54, -13.65, -19.53, -37.99),
            *(-38.33, -31.05, -29.18, -18.40, -12.65, -18.22),
        ],
        (0, 1): [-9.62, -3.07, -9.23, -10.08, -0.07, -1.64, 2.63, 5.61, 2.83, -0.09, 5.98, -4.57, -15.24],
        (0, 2): [27.40, 23.04, 9.08, 13.28, 9.35, 15.86, 16.14, 15.42, 8.59, 2.41, -6.46, -7.46, -18.54],
        (1, 0): [-25.1, 35.3, -88.4, -126.7, -111.4, -66.8, -5.7, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        (1, 1): [0.0, 15.7, -11.8, 11.6, 40.6, 20.6, 14.0, 18.7, 15.5, 24.5, 5.5, 97.9, 128.2],
        (2, 0): [*[-1257.0] * 7, -1189.0, -1404.0, -1165.0, 0.0, 0.0, 0.0],
        (3, 0): [*[0.0] * 6, 107.9, 243.8, 105.5, 189.7, 0.0, 0.0, 0.0],
        (4, 0): [*[0.0] * 6, 104.3, 155.2, 170.7, 325.0, 276.6, 0.0, 0.0],
    },
    SIX_PARAMETERS: {
        (0, 0): [
            *(-27.85, -28.91, -26.72, -29.04, -12.39, -18.99, -38.29),
            *(-36.83, -28.37, -24.68, -15.32, -13.73, -29.53),
        ],
        (0, 1): [-7.78, -3.57, -8.74, -9.69, -2.16, -1.93, 2.59, 4.20, 1.99, -1.37, 4.01, -10.92, -20.34],
        (0, 2): [27.47, 22.92, 9.36, 13.63, 10.23, 15.90, 16.20, 15.76, 9.28, 3.52, -6.03, -8.30, -18.74],
        (1, 0): [-32.1, 7.7, -30.3, -49.4, -92.6, -57.2, -10.5, 22.3, 50.4, 86.8, 29.2, -74.4, -39.5],
        (1, 1): [14.4, 12.6, 5.6, 36.3, 19.8, -8.0, 1.4, 11.1, 17.2, 19.8, 14.1, 196.4, 326.8],
        (1, 2): [9.5, 1.6, 17.2, 17.7, 27.6, 19.9, 0.4, 10.0, 13.7, 21.3, 0.4, -42.0, -262.3],
        (2, 0): [
            *(-67.0, -572.0, -1104.0, -1129.0, -365.0, -554.0, -960.0),
            *(-1367.0, -1351.0, -1380.0, -563.0, 536.0, 1598.0),
        ],
    },
}


def parallax_zero_point(
    magnitude: Float64,
    nu_eff_used_in_astrometry: Float64,
    pseudocolour: Float64,
    ecl_lat: Float64,
    astrometric_params_solved: NDArray[np.generic],
) -> Float64:
    """What must be subtracted from parallaxes of Gaia (E)DR3 [mas].

    Parameters
    ----------
    magnitude : (n,) float64
        ``phot_g_mean_mag``.
    nu_eff_used_in_astrometry, pseudocolour : (n,) float64
        Effective wavenumbers [1/um]; each source needs the one that belongs to its solution.
    ecl_lat : (n,) float64
        Ecliptic latitude [deg].
    astrometric_params_solved : (n,) array
        31 or 95; any other solution has no parallax.

    Returns
    -------
    (n,) float64
        NaN where an input is missing, or the wavenumber lies where nothing was fitted.
    """
    sine = np.sin(np.radians(ecl_lat))
    latitude = (np.ones_like(sine), sine, sine**2 - 1.0 / 3.0)
    zero_point = np.full(len(magnitude), np.nan)
    for solution, wavenumber in ((FIVE_PARAMETERS, nu_eff_used_in_astrometry), (SIX_PARAMETERS, pseudocolour)):
        lowest, highest = WAVENUMBERS[solution]
        here = (astrometric_params_solved == solution) & (lowest <= wavenumber) & (wavenumber <= highest)
        colour = _colour_functions(wavenumber[here])
        zero_point[here] = 1e-3 * sum(
            np.interp(magnitude[here], MAGNITUDES, nodes) * colour[j] * latitude[k][here]
            for (j, k), nodes in COEFFICIENTS[solution].items()
        )
    return zero_point


def _colour_functions(wavenumber: Float64) -> tuple[Float64, ...]:
    """c_0 ... c_4 of the paper's Eq. A.3."""
    return (
        np.ones_like(wavenumber),
        np.clip(wavenumber - 1.48, -0.24, 0.24),
        np.clip(1.48 - wavenumber, 0.0, 0.24) ** 3,
        np.minimum(wavenumber - 1.24, 0.0),
        np.maximum(wavenumber - 1.72, 0.0),
    )
