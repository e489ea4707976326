"""The optimiser of the reference engine: Levenberg-Marquardt, then Newton, in y = (Theta, ext, ln plx)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xpkern.engine.contract import Box, FitOptions, Float64, LossTerms, StarData
from xpkern.engine.reference_loss import Loss, star_loss
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior
from xpkern.status import Status

#: Below this predicted drop of the loss the exact Hessian is trusted, above it the Gauss-Newton matrix.
_NEWTON_BELOW = 0.1

#: Damping, relative to the diagonal: at the start, after a step that lowered the loss, after one that did not.
_DAMPING_START, _DAMPING_DOWN, _DAMPING_UP = 1e-2, 0.1, 8.0
_DAMPING_RANGE = (1e-9, 1e9)

_RIDGE = 1e-13

#: Extinction never goes below this, whatever the box: its logarithm is needed.
SMALLEST_EXT = 1e-6


@dataclass
class Optimum:
    """Where the search ended.

    Attributes
    ----------
    loss : Loss
    decrement : (n,) float64
        g^T H^-1 g / 2 in x, over the parameters that are not held at the edge of the box; inf where H is not
        positive definite.
    iterations : (n,) int32
    status : (n,) uint32
    """

    loss: Loss
    decrement: Float64
    iterations: np.ndarray
    status: np.ndarray


def minimise(
    model: FluxModel,
    prior: TypePrior,
    stars: StarData,
    start: Float64,
    terms: LossTerms,
    box: Box,
    options: FitOptions,
) -> Optimum:
    """Optimum of the star loss from given linear parameters (n, k)."""
    lower, upper = _solver_box(box)
    y = np.clip(_to_solver(start), lower, upper)
    damping = np.full(len(stars), _DAMPING_START)
    iterations = np.ones(len(stars), np.int32)
    converged = np.zeros(len(stars), bool)
    best = star_loss(model, prior, stars, _to_linear(y), terms)
    for _ in range(2 * options.max_iterations):
        free = ~_held(y, best.gradient, lower, upper)
        matrix, gradient = _step_matrix(best, free)
        predicted = 0.5 * np.einsum("na,na->n", gradient, _solve(matrix, gradient))
        converged |= predicted < options.tolerance * np.maximum(1.0, 0.01 * best.loss)
        active = np.flatnonzero(~converged)
        if len(active) == 0:
            break
        damped = matrix[active] + damping[active, None, None] * _diagonal_part(matrix[active])
        proposed = y[active] - _solve(damped, gradient[active])
        if terms.jacobian_ext:
            proposed[:, -2] = np.maximum(proposed[:, -2], 0.5 * y[active, -2])
        proposed = np.clip(proposed, lower, upper)
        trial = star_loss(model, prior, stars[active], _to_linear(proposed), terms)
        iterations[active] += 1
        lowered = trial.loss < best.loss[active]
        damping[active] *= np.where(lowered, _DAMPING_DOWN, _DAMPING_UP)
        np.clip(damping, *_DAMPING_RANGE, out=damping)
        y[active[lowered]] = proposed[lowered]
        _replace(best, active[lowered], trial, lowered)
    return _diagnose(best, y, lower, upper, converged, iterations)


def _to_solver(params: Float64) -> Float64:
    y = params.copy()
    y[..., -1] = np.log(params[..., -1])
    return y


def _to_linear(y: Float64) -> Float64:
    params = y.copy()
    params[..., -1] = np.exp(y[..., -1])
    return params


def _solver_box(box: Box) -> tuple[Float64, Float64]:
    lower = box.lower.copy()
    lower[-2] = max(lower[-2], SMALLEST_EXT)
    return _to_solver(lower), _to_solver(box.upper)


def _held(y: Float64, gradient: Float64, lower: Float64, upper: Float64) -> np.ndarray:
    """Parameters (n, k) bool at an edge of the box that the loss pushes further out."""
    return ((y <= lower) & (gradient > 0)) | ((y >= upper) & (gradient < 0))


def _step_matrix(at: Loss, free: np.ndarray) -> tuple[Float64, Float64]:
    """Matrix and gradient of the next step, the parameters that are held taken out of both.

    The exact Hessian where it is positive definite and predicts a small drop, the Gauss-Newton matrix elsewhere.
    """
    gradient = np.where(free, at.gradient, 0.0)
    exact, normal = _only_free(at.hessian, free), _only_free(at.normal, free)
    positive = _is_positive(exact)
    usable = np.where(positive[:, None, None], exact, normal)
    predicted = 0.5 * np.einsum("na,na->n", gradient, _solve(usable, gradient))
    newton = positive & (predicted < _NEWTON_BELOW)
    return np.where(newton[:, None, None], exact, normal), gradient


def _only_free(matrix: Float64, free: np.ndarray) -> Float64:
    """The matrix with rows and columns of held parameters replaced by those of the unit matrix."""
    both = free[:, :, None] & free[:, None, :]
    return np.where(both, matrix, np.eye(matrix.shape[1]))


def _diagonal_part(matrix: Float64) -> Float64:
    return np.eye(matrix.shape[1]) * matrix


def _solve(matrix: Float64, rhs: Float64) -> Float64:
    """Solution (n, k) of symmetric systems, equilibrated (parameters differ in scale by many orders).

    The small ridge lets directions that nothing constrains pass: they then have no gradient either.
    """
    diagonal = np.abs(np.einsum("naa->na", matrix))
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    balanced = matrix * scale[:, :, None] * scale[:, None, :] + _RIDGE * np.eye(matrix.shape[1])
    return scale * np.linalg.solve(balanced, (scale * rhs)[:, :, None])[:, :, 0]


def _is_positive(matrix: Float64) -> np.ndarray:
    """Whether symmetric matrices (n, k, k) are positive definite, (n,) bool."""
    diagonal = np.einsum("naa->na", matrix)
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    smallest = np.linalg.eigvalsh(matrix * scale[:, :, None] * scale[:, None, :])[:, 0]
    return (diagonal > 0).all(axis=1) & (smallest > 0)


def _replace(best: Loss, rows: np.ndarray, trial: Loss, accepted: np.ndarray) -> None:
    for name in vars(best):
        getattr(best, name)[rows] = getattr(trial, name)[accepted]


def _diagnose(
    best: Loss, y: Float64, lower: Float64, upper: Float64, converged: np.ndarray, iterations: np.ndarray
) -> Optimum:
    evaluation = best.in_x()
    held = _held(y, best.gradient, lower, upper)
    hessian = _only_free(evaluation.hessian, ~held)
    gradient = np.where(held, 0.0, evaluation.gradient)
    positive = _is_positive(hessian)
    status = np.zeros(len(y), np.uint32)
    status[~converged] |= np.uint32(Status.NOT_CONVERGED)
    status[~positive] |= np.uint32(Status.HESSIAN_NOT_POSITIVE)
    status[((y <= lower) | (y >= upper)).any(axis=1)] |= np.uint32(Status.ON_BOX_EDGE)
    decrement = np.where(positive, 0.5 * np.einsum("na,na->n", gradient, _solve(hessian, gradient)), np.inf)
    return Optimum(best, decrement, iterations, status)
