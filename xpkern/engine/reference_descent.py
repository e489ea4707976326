"""The two parts of ZGR23's optimiser in NumPy float64: the search of a grid, and first-order descent."""

from __future__ import annotations

import numpy as np

from xpkern.engine.contract import Box, Descent, Float64, LossTerms, StarData
from xpkern.engine.packed import forward_substitute, present_samples, unpack_factor
from xpkern.engine.reference_fit import SMALLEST_EXT
from xpkern.engine.reference_loss import star_loss
from xpkern.fit.candidates import CandidateGrid
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior

#: Adam as its authors propose it (Kingma & Ba 2014), with the epsilon of the TensorFlow optimiser that ZGR23 ran:
#: x -= rate sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + epsilon).
ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-7


def best_candidates(grid: CandidateGrid, stars: StarData) -> Float64:
    """Candidate of each star with the lowest score, as linear parameters (n, k); see :class:`CandidateGrid`."""
    flux = (grid.base_flux[:, None] * np.exp(-np.outer(grid.ext, grid.ext_curve))).reshape(len(grid), -1)
    penalty = np.repeat(grid.penalty, len(grid.ext))
    found = np.empty((len(stars), grid.types.shape[1] + 2))
    for star in range(len(stars)):
        scores, plx = candidate_scores(grid, stars[star : star + 1], flux, penalty)
        best = int(np.where(np.isnan(scores), np.inf, scores).argmin())
        found[star, :-2] = grid.types[best // len(grid.ext)]
        found[star, -2:] = grid.ext[best % len(grid.ext)], plx[best]
    return found


def candidate_scores(grid: CandidateGrid, star: StarData, flux: Float64, penalty: Float64) -> tuple[Float64, Float64]:
    """Scores and parallaxes, (c,) each, of candidates with fluxes (c, m) and penalties (c,) for one star."""
    observed = star.flux[0].astype(np.float64)
    window = grid.window & present_samples(star.whitener)[0]
    mean, sigma = star.mean[0, -1], star.sigma[0, -1]
    if not window.any():
        square = np.full(len(flux), mean**2 if np.isfinite(sigma) and mean > 0 else 1.0)
    elif grid.guess == "mean_of_ratios":
        square = np.maximum(observed[window] / flux[:, window], 0.0).mean(axis=1)
    else:
        square = observed[window].sum() / flux[:, window].sum(axis=1)
    plx = np.clip(np.sqrt(np.maximum(square, 0.0)), *grid.plx_bounds)
    residual = (plx**2)[:, None] * flux - observed
    whitened = forward_substitute(unpack_factor(star.whitener), residual.T[None])[0]
    scores = np.einsum("jc,jc->c", whitened, whitened) + penalty
    if grid.score == "parallax":
        scores = scores + ((plx - mean) / sigma) ** 2
    return scores, plx


def descend(
    model: FluxModel,
    prior: TypePrior,
    stars: StarData,
    start: Float64,
    terms: LossTerms,
    box: Box,
    descent: Descent,
) -> Float64:
    """Linear parameters (n, k) where first-order steps in x = (Theta, ln ext, ln plx) end."""
    lower = box.lower.copy()
    lower[-2] = max(lower[-2], SMALLEST_EXT)
    lower, upper = _to_x(lower), _to_x(box.upper)
    x = np.clip(_to_x(np.maximum(start, [-np.inf] * (start.shape[1] - 2) + [SMALLEST_EXT, 0.0])), lower, upper)
    mean, square = np.zeros_like(x), np.zeros_like(x)
    for step in range(descent.steps):
        rate = descent.rate * descent.decay ** (step // descent.decay_every)
        with np.errstate(over="ignore", invalid="ignore"):  # a flux may overflow: that star stays where it is
            gradient = star_loss(model, prior, stars, _to_linear(x), terms).in_x().gradient
            gradient = clipped(gradient, descent.clip)
        if descent.method == "adam":
            mean = ADAM_BETA1 * mean + (1.0 - ADAM_BETA1) * gradient
            square = ADAM_BETA2 * square + (1.0 - ADAM_BETA2) * gradient**2
            unbiased = np.sqrt(1.0 - ADAM_BETA2 ** (step + 1)) / (1.0 - ADAM_BETA1 ** (step + 1))
            gradient = unbiased * mean / (np.sqrt(square) + ADAM_EPSILON)
        x = np.clip(x - rate * gradient, lower, upper)
    return _to_linear(x)


def clipped(gradient: Float64, clip: float, unless_finite: float = 0.0) -> Float64:
    """Gradients (n, k) scaled to a norm of at most ``clip``; ``unless_finite`` throughout where one is no number."""
    norm = np.sqrt(np.einsum("na,na->n", gradient, gradient))
    scale = np.minimum(1.0, clip / np.maximum(norm, 1e-15))
    return np.where(np.isfinite(norm)[:, None], gradient * scale[:, None], unless_finite)


def _to_x(params: Float64) -> Float64:
    x = params.copy()
    x[..., -2:] = np.log(params[..., -2:])
    return x


def _to_linear(x: Float64) -> Float64:
    params = x.copy()
    params[..., -2:] = np.exp(x[..., -2:])
    return params
