"""The posterior of a star as a density that can be evaluated, in coordinates in which it is nearly a Gaussian.

The flux fixes the scale of a spectrum to half a per cent while luminosity and distance may be open by tens: in the
parameters themselves a posterior is a thin, curved sheet. With M = G^-1 f(Theta, E, plx = 1) and F = G^-1 f_obs,

    chi^2 = |A M - F|^2,  A = plx^2,  is least at  A_best(Theta, E) = M.F / M.M,

and in y = (E, Theta, s), s = ln plx - ln(A_best) / 2, that sheet is flat and the change of variables has a determinant
of one. E keeps its edge at zero, where the posterior of a star without dust is cut off like half a Gaussian. The
density in y is

    exp(-chi^2 / 2 - sum of constraints / 2) p_GMM(Theta) p(E) p(plx) plx,

the last factor because plx d ln plx = dplx. Under a theoretical flux scale (:mod:`xpkern.fit.scale`) there is one more
coordinate, y = (E, Theta, s, ln plx): the spectrum shows plx_s = plx exp(delta / 2), delta ~ N(0, scale_sigma), which
takes the place of plx in A and s, while the measured parallax constrains plx. That is exact where the fit's covariance
linearises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from xpkern.engine import Engine
from xpkern.engine.contract import Box, Evaluation, Float64, LossTerms, StarData
from xpkern.fit.sightline_prior import SightlinePrior
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior
from xpkern.observe.whiteners import dense_whitener

#: chi^2, constraints and p_GMM: the loss without what makes of densities in plx and E such in their logarithms.
TERMS = LossTerms(prior=True, jacobian_ext=False, jacobian_plx=False)

#: Smallest extinction at which derivatives are taken, those by ln E being too small below.
_SMALLEST_EXT = 1e-4

#: Steps [kK, dex, dex, ..., mag] of central differences of ln A_best.
_DIFFERENCE = 1e-3

#: Least cosine between M and F that A_best is taken from: noise can make that of a faint star negative.
_LEAST_COSINE = 1e-3

#: Smallest eigenvalue, at unit diagonal, of a curvature that a Gaussian is made of.
_SMALLEST_CURVATURE = 1e-5

#: Longest step, in standard deviations, from where derivatives are taken to the centre of the Gaussian they make.
_LONGEST_STEP = 6.0

#: Newton steps towards the parallax that suits a given plx_s best.
_PLX_STEPS = 30


@dataclass(frozen=True)
class Target:
    """What the densities of all stars share."""

    engine: Engine
    model: FluxModel
    prior: TypePrior
    sightline: SightlinePrior
    box: Box

    @property
    def has_scale(self) -> bool:
        """Whether the flux scale is theoretical, and y one coordinate longer."""
        return self.model.scale_sigma > 0


@dataclass(frozen=True)
class Gaussians:
    """Gaussian approximations of a posterior, one for each of its modes.

    Attributes
    ----------
    centre : (m, d) float64
        In y. Its extinction may be negative: the Gaussian is cut off.
    covariance : (m, d, d) float64
    ln_evidence : (m,) float64
        ln of the integral of exp(-chi^2 / 2 - constraints / 2) times the prior over the mode, by the Gaussian.
    params : (m, k) float64
        Linear parameters of the mode, the parallax its own.
    """

    centre: Float64
    covariance: Float64
    ln_evidence: Float64
    params: Float64


class StarDensity:
    """The posterior density of one star.

    Parameters
    ----------
    target : Target
    star : StarData
        One row, with the parallax as it was measured.
    """

    def __init__(self, target: Target, star: StarData) -> None:
        self.target, self.star = target, star
        self.whitener = dense_whitener(star.whitener)[0]
        self.white_flux = self.whitener @ star.flux[0].astype(np.float64)
        self.mean, self.sigma = star.mean[0].copy(), star.sigma[0].copy()
        self.plx, self.plx_err = self.mean[-1], self.sigma[-1]
        if target.has_scale:  # the parallax of the flux is another one than that which was measured
            self.mean[-1], self.sigma[-1] = 0.0, np.inf

    def at(self, y: Float64) -> tuple[Float64, Float64]:
        """Logarithm of the density in y, (n,), -inf outside the box, and linear parameters (n, k), at points (n, d)."""
        target, k = self.target, self.target.model.n_parameters
        lower, upper = target.box.lower, target.box.upper
        unit = np.column_stack([y[:, 1 : k - 1], y[:, 0], np.ones(len(y))])
        inside = np.all((unit[:, :-1] >= lower[:-1]) & (unit[:, :-1] <= upper[:-1]), axis=1)
        unit = np.where(inside[:, None], unit, np.append(0.5 * (lower + upper)[:-1], 1.0))
        shape, overlap, norm = self._predicted(unit)
        ln_model_plx = y[:, k - 1] + 0.5 * self._ln_best_area(overlap, norm)
        ln_plx = y[:, -1] if target.has_scale else ln_model_plx
        low, high = np.log(lower[-1]), np.log(upper[-1])
        inside &= (np.minimum(ln_plx, ln_model_plx) >= low) & (np.maximum(ln_plx, ln_model_plx) <= high)
        ln_model_plx, ln_plx = (np.clip(each, low, high) for each in (ln_model_plx, ln_plx))
        residual = np.exp(2.0 * ln_model_plx)[:, None] * shape - self.white_flux
        params, model_params = unit, unit.copy()
        params[:, -1], model_params[:, -1] = np.exp(ln_plx), np.exp(ln_model_plx)
        loss = np.einsum("nj,nj->n", residual, residual)
        loss += np.square((model_params - self.mean) / self.sigma).sum(axis=1)
        loss -= 2.0 * target.prior.ln_density(params[:, : k - 2])
        height = -0.5 * loss + self._ln_rest(params[:, -2], params[:, -1], ln_model_plx)
        return np.where(inside, height, -np.inf), params

    def gaussians(self, model_params: Float64) -> Gaussians:
        """Gaussians at modes of the loss (m, k), the parallax that of the flux (Laplace's method, cut off at E = 0)."""
        target, k = self.target, self.target.model.n_parameters
        at = model_params.copy()
        at[:, -2] = np.maximum(at[:, -2], _SMALLEST_EXT)
        ln_model_plx = np.log(at[:, -1])
        ln_plx = self._best_ln_plx(ln_model_plx) if target.has_scale else ln_model_plx
        rows = np.zeros(len(at), np.intp)
        stars = StarData(
            self.star.flux[rows],
            self.star.whitener[rows],
            np.repeat(self.mean[None], len(at), axis=0),
            np.repeat(self.sigma[None], len(at), axis=0),
        )
        found = target.engine.evaluate(target.model, target.prior, stars, at, TERMS, threads=1)
        gradient, curvature = self._derivatives(at[:, -2], ln_model_plx, ln_plx, found)
        covariance = np.linalg.inv(_positive(curvature))
        step = -np.einsum("mij,mj->mi", covariance, gradient)
        length = np.sqrt(np.maximum(-np.einsum("mi,mi->m", gradient, step), 0.0))
        height = -0.5 * found.loss + self._ln_rest(at[:, -2], np.exp(ln_plx), ln_model_plx)
        size = covariance.shape[1]
        ln_volume = 0.5 * (size * math.log(2.0 * math.pi) + np.linalg.slogdet(covariance)[1])
        # from (E, Theta, ln plx_s, ...) to y: only s = ln plx_s - ln(A_best) / 2 is another one
        unit = np.column_stack([at[:, :-1], np.ones(len(at))])
        turn = np.repeat(np.eye(size)[None], len(at), axis=0)
        turn[:, k - 1, : k - 1] = -0.5 * self._slope_of_best_area(unit)
        y = np.column_stack(
            [at[:, -2], at[:, : k - 2], ln_model_plx - 0.5 * self._ln_best_area(*self._predicted(unit)[1:])]
        )
        if target.has_scale:
            y = np.column_stack([y, ln_plx])
        step *= np.minimum(1.0, _LONGEST_STEP / np.maximum(length, 1e-300))[:, None]
        centre = y + np.einsum("mij,mj->mi", turn, step)
        covariance = turn @ covariance @ turn.swapaxes(1, 2)
        width = np.sqrt(covariance[:, 0, 0])
        kept = _ln_normal_between(*((edge[-2] - centre[:, 0]) / width for edge in (target.box.lower, target.box.upper)))
        params = np.column_stack([model_params[:, :-1], np.exp(ln_plx)])
        return Gaussians(centre, covariance.astype(np.float64), height + 0.5 * length**2 + ln_volume + kept, params)

    def _predicted(self, unit: Float64) -> tuple[Float64, Float64, Float64]:
        """M (n, m), M.F and M.M (n,) at linear parameters (n, k) with a parallax of 1 mas."""
        shape = self.target.engine.predict(self.target.model, unit, threads=1) @ self.whitener.T
        return shape, shape @ self.white_flux, np.einsum("nj,nj->n", shape, shape)

    def _ln_best_area(self, overlap: Float64, norm: Float64) -> Float64:
        """Logarithm of A_best, (n,)."""
        least = _LEAST_COSINE * np.sqrt(norm * (self.white_flux @ self.white_flux))
        return np.log(np.maximum(overlap, least)) - np.log(norm)

    def _slope_of_best_area(self, unit: Float64) -> Float64:
        """Derivatives of ln A_best by (E, Theta), (n, k - 1)."""
        slopes = []
        for column in (unit.shape[1] - 2, *range(unit.shape[1] - 2)):
            step = np.zeros(unit.shape[1])
            step[column] = _DIFFERENCE
            above, below = (self._ln_best_area(*self._predicted(unit + sign * step)[1:]) for sign in (1.0, -1.0))
            slopes.append((above - below) / (2.0 * _DIFFERENCE))
        return np.column_stack(slopes)

    def _ln_rest(self, ext: Float64, plx: Float64, ln_model_plx: Float64) -> Float64:
        """What the loss does not contain of the ln of the density, (n,)."""
        ln_plx = np.log(plx)
        rest = self.target.sightline.ln_density(ext, plx, self.target.box) + ln_plx
        if self.target.has_scale:
            width = 0.5 * self.target.model.scale_sigma
            rest -= 0.5 * ((ln_model_plx - ln_plx) / width) ** 2 + math.log(width * math.sqrt(2.0 * math.pi))
            rest -= 0.5 * ((plx - self.plx) / self.plx_err) ** 2
        return rest

    def _derivatives(
        self, ext: Float64, ln_model_plx: Float64, ln_plx: Float64, found: Evaluation
    ) -> tuple[Float64, Float64]:
        """Derivatives (m, d), (m, d, d) of minus ln density by (E, Theta, ln plx_s, ln plx), from those in x."""
        k = self.target.model.n_parameters
        size = k + self.target.has_scale
        order = [k - 2, *range(k - 2), k - 1]  # of x, with ln E first
        gradient, curvature = np.zeros((len(ext), size)), np.zeros((len(ext), size, size))
        gradient[:, :k], curvature[:, :k, :k] = (
            0.5 * found.gradient[:, order],
            0.5 * found.hessian[:, order][:, :, order],
        )
        curvature[:, 0, 0] -= gradient[:, 0]
        gradient[:, 0] /= ext
        curvature[:, 0, :] /= ext[:, None]
        curvature[:, :, 0] /= ext[:, None]
        plx = np.exp(ln_plx)
        by_ext, by_ln_plx, by_ln_plx_twice = self.target.sightline.slopes(plx)
        gradient[:, 0] -= by_ext
        gradient[:, -1] -= by_ln_plx + 1.0
        curvature[:, -1, -1] -= by_ln_plx_twice
        if self.target.has_scale:
            stiffness, precision = 4.0 / self.target.model.scale_sigma**2, self.plx_err**-2.0
            stretch, offset = stiffness * (ln_model_plx - ln_plx), plx - self.plx
            gradient[:, -2] += stretch
            gradient[:, -1] += precision * plx * offset - stretch
            curvature[:, -2, -2] += stiffness
            curvature[:, -1, -1] += stiffness + precision * plx * (plx + offset)
            curvature[:, -2, -1] -= stiffness
            curvature[:, -1, -2] -= stiffness
        return gradient, curvature

    def _best_ln_plx(self, ln_model_plx: Float64) -> Float64:
        """Logarithm of the most probable parallax (m,) of a star whose spectrum shows another one."""
        stiffness, precision = 4.0 / self.target.model.scale_sigma**2, self.plx_err**-2.0
        ln_plx = ln_model_plx.copy()
        for _ in range(_PLX_STEPS):
            plx = np.exp(ln_plx)
            _, slope, bend = self.target.sightline.slopes(plx)
            gradient = stiffness * (ln_plx - ln_model_plx) + precision * plx * (plx - self.plx) - slope - 1.0
            curvature = stiffness + precision * plx * np.maximum(2.0 * plx - self.plx, plx) - bend
            ln_plx -= np.clip(gradient / curvature, -0.5, 0.5)
        lower, upper = self.target.box.lower[-1], self.target.box.upper[-1]
        return np.clip(ln_plx, math.log(lower) + 1e-9, math.log(upper) - 1e-9)


def _positive(matrix: Float64) -> Float64:
    """Symmetric matrices (n, d, d) with the eigenvalues, at unit diagonal, that are not positive made so."""
    diagonal = np.abs(np.einsum("nii->ni", matrix))
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    outer = scale[:, :, None] * scale[:, None, :]
    values, vectors = np.linalg.eigh(matrix / outer)
    values = np.maximum(np.abs(values), _SMALLEST_CURVATURE)
    return np.einsum("nij,nj,nkj->nik", vectors, values, vectors) * outer


def _ln_normal_between(low: Float64, high: Float64) -> Float64:
    """Logarithm of the probability (n,) of a standard normal deviate between two values."""
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    upper, lower = log_ndtr(high), log_ndtr(low)
    return upper + np.log1p(-np.exp(lower - upper))
