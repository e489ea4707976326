"""The start of the search in the reference engine: each type of a grid, moved and reddened to suit the star.

With x the coordinates of ln flux in the grid's basis, h a guess of the star's flux that noise cannot drive to zero and

    y = ln h + (f - h) / h - mean,        chi^2 = |G^-1 diag(h) (y - basis x)|^2,

which is the spectrum's chi^2 where model and guess are close: nowhere else is a type a good start. Ordering
x = (ext, ln plx, rest), the normal matrix has the Cholesky factor L = [[L1, 0], [L21, L2]], and z is L^-1 times the
right-hand side. A type at u in the rest leaves q = L2^T u - z2, chi^2 = least + |q|^2, and
(ext, ln plx) = L1^-T (z1 - L21^T u). Its displacement d is a Gauss-Newton step of |q + L2^T slope d|^2 with the prior
and the parallax, no longer than the grid's reach; extinction then minimises ((E - E0) / sigma)^2 - 2 ln E.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xpkern.engine.contract import FitOptions, Float64, StarData
from xpkern.engine.packed import forward_substitute, present_samples, sample_variance, unpack_factor
from xpkern.fit.start import StartGrid

#: The guess trusts the grid's mean spectrum, scaled to the star, to this fraction; the mean of a sample's neighbours to
#: that one. It is never below this fraction of either the former or the sample's sigma.
START_SPECTRUM_ERROR, START_NEIGHBOUR_ERROR, START_LEAST_FLUX = 0.8, 0.1, 0.1

#: Keeps sums from being divided by zero, and the scale of the mean spectrum positive.
START_SMALLEST = 1e-12

#: Largest distance of ln flux from the guess that a sample may claim, in units of the guess.
START_LARGEST_EXCESS = 30.0

#: Added to the diagonal of the normal matrix: nothing is known of ext and ln plx to better than 10, and rounding
#: takes a fraction of what is there.
START_RIDGE, START_RELATIVE_RIDGE = 0.01, 1e-6

#: Extinctions and parallaxes [mas] that the start may propose.
START_LEAST_EXT, START_PLX = 1e-3, (1e-4, 1e3)


@dataclass
class Candidates:
    """What a grid's types offer to n stars: expected loss up to a constant (n, t), and linear parameters (n, t, k)."""

    score: Float64
    params: Float64


def starts_from_grid(grid: StartGrid, stars: StarData, options: FitOptions) -> Float64:
    """See :meth:`xpkern.engine.contract.Engine.start`."""
    candidates = rate_types(grid, stars)
    score, inputs = candidates.score.copy(), grid.types.shape[1]
    starts = np.full((len(stars), options.starts, grid.n_parameters), np.nan)
    limit = score.min(axis=1) + options.gate
    rows = np.arange(len(stars))
    for choice in range(options.starts):
        best = score.argmin(axis=1)
        taken = np.flatnonzero((score[rows, best] <= limit) | (choice == 0))
        params = candidates.params[rows, best]
        starts[taken, choice] = params[taken]
        distance = np.abs(candidates.params[:, :, :inputs] - params[:, None, :inputs])
        score[(distance <= grid.apart).all(axis=2)] = np.inf
    return starts


def rate_types(grid: StartGrid, stars: StarData) -> Candidates:
    """Move every type of a grid to where it suits each star best, and say how well it does."""
    normal, right, origin = _normal_equations(grid, stars)
    root = np.linalg.cholesky(normal)
    z = np.linalg.solve(root, right[:, :, None])[:, :, 0]
    of_response, of_rest, mixed = root[:, :2, :2], root[:, 2:, 2:], root[:, 2:, :2]
    covariance = np.linalg.inv(of_response @ of_response.swapaxes(1, 2))

    u = grid.position[None, :, 2:] - origin[:, None, 2:]
    q = np.einsum("nba,ntb->nta", of_rest, u) - z[:, None, 2:]
    q_slope = np.einsum("nba,tbd->ntad", of_rest, grid.slope[:, 2:])

    # (ext, ln plx) = constant + follow @ u, of the data less what the type has of its own
    constant = np.linalg.solve(of_response.swapaxes(1, 2), z[:, :2, None])[:, :, 0]
    follow = -np.linalg.solve(of_response.swapaxes(1, 2), mixed.swapaxes(1, 2))
    reddened = (constant + origin[:, :2])[:, None] + np.einsum("nab,ntb->nta", follow, u) - grid.position[:, :2]
    per_step = np.einsum("nab,tbd->ntad", follow, grid.slope[:, 2:]) - grid.slope[:, :2]

    plx_observed, plx_error = stars.mean[:, -1, None], stars.sigma[:, -1, None]
    plx = _parallax(reddened[:, :, 1])
    stiffness = plx**2 / (plx_error**2 + plx**2 * covariance[:, 1, 1, None])
    tension = stiffness * (plx - plx_observed) / plx
    step = per_step[:, :, 1]
    curvature = np.einsum("ntad,ntae->ntde", q_slope, q_slope)
    slope = np.einsum("ntad,nta->ntd", q_slope, q)
    matrix = curvature + grid.prior_precision + stiffness[..., None, None] * step[..., :, None] * step[..., None, :]
    pull = grid.prior_gradient - slope - tension[..., None] * step
    moved = np.linalg.solve(matrix, pull[..., None])[..., 0]
    moved /= np.maximum(1.0, np.abs(moved / grid.reach).max(axis=2))[..., None]

    score = (q**2).sum(axis=2) + _quadratic(curvature, moved) + 2.0 * (slope * moved).sum(axis=2)
    score += _quadratic(grid.prior_precision, moved) - 2.0 * (grid.ln_prior + (grid.prior_gradient * moved).sum(axis=2))
    ext, ln_plx = np.moveaxis(reddened + np.einsum("ntad,ntd->nta", per_step, moved), 2, 0)

    # the observed parallax, then the extinction's own term, each a correction in one dimension
    plx = _parallax(ln_plx)
    ext_ext, ext_plx, plx_plx = (covariance[:, i, j, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    stiffness = plx**2 / (plx_error**2 + plx**2 * plx_plx)
    off = (plx - plx_observed) / plx
    score += stiffness * off**2
    ext, ln_plx = ext - ext_plx * stiffness * off, ln_plx - plx_plx * stiffness * off
    ext_ext, ext_plx = ext_ext - ext_plx**2 * stiffness, ext_plx * (1.0 - plx_plx * stiffness)
    largest = np.sqrt(ext**2 + 4.0 * ext_ext)
    at_mode = np.where(ext > 0, 0.5 * (ext + largest), 2.0 * ext_ext / (largest - np.minimum(ext, 0.0)))
    at_mode = np.maximum(at_mode, START_LEAST_EXT)
    score += (at_mode - ext) ** 2 / ext_ext
    ln_plx += ext_plx / ext_ext * (at_mode - ext)
    score -= 2.0 * (np.log(at_mode) + ln_plx)
    params = np.concatenate([grid.types + moved, at_mode[:, :, None], _parallax(ln_plx)[:, :, None]], axis=2)
    return Candidates(score=score, params=params)


def _normal_equations(grid: StartGrid, stars: StarData) -> tuple[Float64, Float64, Float64]:
    """Normal matrix (n, c, c) and right-hand side (n, c) of x - origin, and the origin (n, c)."""
    factor = unpack_factor(stars.whitener)
    guess = guessed_flux(grid, stars)
    present = present_samples(stars.whitener)
    excess = np.clip((stars.flux - guess) / guess, -START_LARGEST_EXCESS, START_LARGEST_EXCESS)
    ln_flux = np.log(guess) + excess - grid.mean
    level = np.where(present, ln_flux, 0.0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    # any origin serves; one close to the data keeps the numbers small
    shifted = np.where(present, ln_flux - level[:, None], 0.0)
    origin = shifted @ grid.inverse.T
    left = shifted - origin @ grid.basis.T
    origin[:, 1] += 0.5 * level
    columns = np.concatenate([np.broadcast_to(grid.basis, (len(stars), *grid.basis.shape)), left[:, :, None]], axis=2)
    whitened = forward_substitute(factor, guess[:, :, None] * columns)
    product = whitened.swapaxes(1, 2) @ whitened
    normal = product[:, :-1, :-1]
    diagonal = np.einsum("ncc->nc", normal)
    diagonal *= 1.0 + START_RELATIVE_RIDGE
    diagonal += START_RIDGE
    return normal, product[:, :-1, -1], origin


def guessed_flux(grid: StartGrid, stars: StarData) -> Float64:
    """Flux (n, m): the observed one where noise leaves it, else its neighbours' mean, else the grid's mean spectrum."""
    variance = sample_variance(stars.whitener)
    present = variance > 0
    flux = np.where(present, stars.flux, 0.0).astype(np.float64)
    typical = np.exp(grid.mean)
    weight = np.divide(typical, variance, out=np.zeros_like(variance), where=present)
    scale = np.einsum("ni,ni->n", weight, flux) / np.maximum(weight @ typical, START_SMALLEST)
    typical = np.maximum(scale, START_SMALLEST)[:, None] * typical
    guess = np.ones_like(variance)
    for sample, (first, last) in enumerate(grid.window):
        count = np.maximum(present[:, first:last].sum(axis=1), 1)
        mean = flux[:, first:last].sum(axis=1) / count
        of_mean = variance[:, first:last].sum(axis=1) / count**2
        expected = typical[:, sample]
        of_expected = (START_SPECTRUM_ERROR * expected) ** 2
        share = of_expected / (of_expected + np.where(present[:, sample], of_mean, 1.0))
        mean = np.maximum(expected + (mean - expected) * share, START_LEAST_FLUX * expected)
        of_mean = (START_NEIGHBOUR_ERROR * mean) ** 2 + of_mean * share
        share = of_mean / np.where(present[:, sample], of_mean + variance[:, sample], 1.0)
        smoothed = mean + (flux[:, sample] - mean) * share
        least = START_LEAST_FLUX * np.sqrt(variance[:, sample])
        guess[:, sample] = np.where(present[:, sample], np.maximum(smoothed, least), 1.0)
    return guess


def _parallax(ln_plx: Float64) -> Float64:
    return np.clip(np.exp(np.clip(ln_plx, *np.log(START_PLX))), *START_PLX)


def _quadratic(matrix: Float64, vector: Float64) -> Float64:
    return np.einsum("...a,...ab,...b->...", vector, matrix, vector)
