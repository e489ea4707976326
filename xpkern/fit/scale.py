"""A theoretical flux scale, marginalised exactly.

Flux goes as plx^2, so that an error of the absolute scale, common to all samples of a star, cannot be told from an
error of its parallax. A spectrum measured by a scale that is wrong by a factor exp(delta) shows the parallax

    plx_s = plx exp(delta / 2),  delta ~ N(0, scale_sigma)   =>   plx_s - plx ~ N(0, tau),  tau = scale_sigma plx / 2

and plx_s is what the loss is minimised over, its measured parallax uncertain by hypot(sigma, tau). The parallax of the
star itself lies between plx_s and the measured one: with their weights a = 1 / tau^2 and b = 1 / sigma^2,

    plx = (a plx_s + b plx_measured) / (a + b),  variance 1 / (a + b) for a given plx_s.

With I the information on (Theta, E, plx_s), its measured parallax counted, that on all of (Theta, E, plx_s, plx) is

    | I_ij   I_i5                   0     |                                 | I_ij - I_i5 I_j5 / d   a I_i5 / d        |
    | I_5j   I_55 + a^2 / (a + b)  -a     |  and, plx_s marginalised,  F =  | a I_5j / d             (a + b) I_55 / d  |
    | 0     -a                      a + b |                                 d = I_55 + a^2 / (a + b).

To add scale_sigma^2 f f^T to the covariance of the observed flux f instead would be wrong: the fit could then lower
its chi2 by a flux near zero.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xpkern.engine.contract import Float64, StarData

#: Smaller errors of a parallax [mas] count as this: the square of their inverse would be no finite number.
LEAST_SIGMA = 1e-100


def widen_parallax(stars: StarData, scale_sigma: float) -> StarData:
    """Stars whose measured parallax constrains plx_s: its error [mas] is hypot(sigma, tau), tau at what was measured.

    Parameters
    ----------
    stars : StarData
        Of n stars.
    scale_sigma : float
        Fractional standard error of the model's absolute scale.
    """
    sigma = stars.sigma.copy()
    sigma[:, -1] = np.hypot(sigma[:, -1], 0.5 * scale_sigma * np.maximum(stars.mean[:, -1], 0.0))
    return replace(stars, sigma=sigma)


def marginalise_scale(
    model_plx: Float64, information: Float64, stars: StarData, scale_sigma: float
) -> tuple[Float64, Float64]:
    """Parallaxes of stars, and the information on their parameters, from a fit of :func:`widen_parallax`'s stars.

    Parameters
    ----------
    model_plx : (n,) float64
        plx_s [mas]; NaN for a star without a fit.
    information : (n, k, k) float64
        Fisher matrix of the linear parameters, the last of which is plx_s.
    stars : StarData
        With the measured parallaxes as they are.
    scale_sigma : float
        Fractional standard error of the model's absolute scale, > 0.

    Returns
    -------
    plx : (n,) float64
        [mas]; may be negative where the measured parallax is.
    information : (n, k, k) float64
        Fisher matrix of the linear parameters, the last of which is ``plx``.
    """
    of_scale = (0.5 * scale_sigma * model_plx) ** -2.0
    of_measured = np.maximum(stars.sigma[:, -1], LEAST_SIGMA) ** -2.0
    total = of_scale + of_measured
    plx = (of_scale * model_plx + of_measured * stars.mean[:, -1]) / total

    coupling, shown = information[:, :, -1], information[:, -1, -1]
    pivot = shown + of_scale**2 / total
    marginal = np.empty_like(information)
    for i, of_row in enumerate(coupling.T):  # whole columns: NumPy takes twice as long for matrices of 5 x 5
        for j, of_column in enumerate(coupling.T[: i + 1]):
            marginal[:, i, j] = marginal[:, j, i] = information[:, i, j] - of_row * of_column / pivot
    marginal[:, -1, :] = marginal[:, :, -1] = coupling * (of_scale / pivot)[:, None]
    marginal[:, -1, -1] = total * shown / pivot
    return plx, marginal
