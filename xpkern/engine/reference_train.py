"""First-order training in NumPy float64: gradients of the model's and of the stars' losses, and the steps they make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xpkern.engine.contract import Box, Float64, Int64, LossTerms, StarData
from xpkern.engine.epoch import check_epoch, check_rows
from xpkern.engine.packed import forward_substitute, unpack_factor
from xpkern.engine.reference_descent import ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON, clipped
from xpkern.engine.reference_fit import SMALLEST_EXT
from xpkern.engine.reference_loss import back_substitute, flux_and_jacobian
from xpkern.engine.training import EpochResult, ModelArrays, ModelMoments, Steps
from xpkern.errors import TrainingDiverged
from xpkern.model.flux_model import FluxModel

if TYPE_CHECKING:
    from xpkern.engine.groups import GroupedStars


@dataclass(frozen=True)
class ModelLoss:
    """Eq. 12 averaged over stars.

    Attributes
    ----------
    loss : float
    chi2 : (n,) float64
        Of each star.
    gradient : ModelArrays
        Of ``loss``.
    """

    loss: float
    chi2: Float64
    gradient: ModelArrays


def model_loss(model: FluxModel, stars: StarData, params: Float64) -> ModelLoss:
    """The model's loss and its gradient by a reverse sweep, at linear parameters (n, k).

    ::

        mean over stars of chi^2 + sum W^2 / n_W
    """
    at = flux_and_jacobian(model, params)
    factor = unpack_factor(stars.whitener)
    residual = forward_substitute(factor, (at.flux - stars.flux.astype(np.float64))[:, :, None])[:, :, 0]
    chi2 = (residual**2).sum(axis=1)
    n_weights = sum(weight.size for weight in model.weights)
    loss = float(chi2.sum() / max(len(stars), 1))
    loss += sum(float((weight**2).sum()) for weight in model.weights) / n_weights
    weight_gradients = [2.0 * weight / n_weights for weight in model.weights]
    bias_gradients = [np.zeros_like(bias) for bias in model.biases]
    # d loss / d ln f, then backwards through the layers
    adjoint = 2.0 * back_substitute(factor, residual) * at.flux / max(len(stars), 1)
    ln_ext_gradient = -model.ext_curve * (params[:, -2] @ adjoint)
    inputs = (params[:, : model.n_inputs] - model.input_zp) / model.input_scale
    values = [inputs, *at.hidden]
    for layer in reversed(range(len(values))):
        weight_gradients[layer] += values[layer].T @ adjoint
        bias_gradients[layer] += adjoint.sum(axis=0)
        adjoint = (adjoint @ model.weights[layer].T) * (1.0 - values[layer] ** 2)
    return ModelLoss(loss, chi2, ModelArrays(weight_gradients, bias_gradients, ln_ext_gradient))


def train_epoch(
    model: FluxModel,
    stars: StarData | GroupedStars,
    params: Float64,
    batches: Int64,
    terms: LossTerms,
    box: Box,
    model_steps: Steps | None,
    star_steps: Steps | None,
    moments: ModelMoments | None,
) -> EpochResult:
    """See :meth:`xpkern.engine.contract.Engine.train_epoch`."""
    check_epoch(model, stars, params, batches, terms, model_steps, star_steps, moments)
    check_rows(batches, len(stars))
    result = EpochResult(
        model,
        params.copy(),
        ModelMoments.zeros(model) if moments is None else moments,
        np.full(len(batches), np.nan),
        np.full(len(stars), np.nan),
    )
    for step, rows in enumerate(batches):
        batch = stars[rows]
        if model_steps is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is looked for, and named
                at = model_loss(result.model, batch, result.params[rows])
                moved, moments = _model_step(result, at.gradient, model_steps, step)
            if not np.isfinite(at.loss):
                raise TrainingDiverged("the model's loss", step, rows[~np.isfinite(at.chi2)], result)
            if moved is None:
                raise TrainingDiverged("the model after its step", step, rows[:0], result)
            result.model_loss[step] = at.loss
            result = replace(result, model=moved, moments=moments)
        if star_steps is not None:
            result.params[rows], result.star_loss[rows] = _star_step(
                result.model, batch, result.params[rows], terms, box, star_steps.rates[step], star_steps.clip
            )
    return result


def _model_step(
    reached: EpochResult, gradient: ModelArrays, steps: Steps, step: int
) -> tuple[FluxModel | None, ModelMoments]:
    """The model one step on, or None where it would not be finite, and the moments then.

    A step of ln R multiplies R: that rounds alike however many steps one call takes.
    """
    model, rate = reached.model, steps.rates[step]
    count = reached.moments.steps + 1
    first, second = reached.moments.first.flatten(), reached.moments.second.flatten()
    slope = clipped(gradient.flatten()[None], steps.clip, unless_finite=np.nan)[0]
    if steps.method == "adam":
        first = ADAM_BETA1 * first + (1.0 - ADAM_BETA1) * slope
        second = ADAM_BETA2 * second + (1.0 - ADAM_BETA2) * slope**2
        unbiased = np.sqrt(1.0 - ADAM_BETA2**count) / (1.0 - ADAM_BETA1**count)
        move = -rate * unbiased * first / (np.sqrt(second) + ADAM_EPSILON)
    else:
        first = move = steps.momentum * first - rate * slope
    change = ModelArrays.unflatten(move, model)
    weights = [weight + delta for weight, delta in zip(model.weights, change.weights, strict=True)]
    biases = [bias + delta for bias, delta in zip(model.biases, change.biases, strict=True)]
    ext_curve = model.ext_curve * np.exp(change.ln_ext_curve)
    moments = ModelMoments(ModelArrays.unflatten(first, model), ModelArrays.unflatten(second, model), count)
    finite = all(np.isfinite(array).all() for array in (*weights, *biases, ext_curve)) and (ext_curve > 0.0).all()
    return (replace(model, weights=weights, biases=biases, ext_curve=ext_curve) if finite else None), moments


def _star_step(
    model: FluxModel, stars: StarData, params: Float64, terms: LossTerms, box: Box, rate: float, clip: float
) -> tuple[Float64, Float64]:
    """Linear parameters (n, k) one step of gradient descent in x on, and the loss (n,) before it."""
    lower = box.lower.copy()
    lower[-2] = max(lower[-2], SMALLEST_EXT)
    params = np.clip(params, lower, box.upper)
    with np.errstate(over="ignore", invalid="ignore"):  # a flux may overflow: that star stays where it is
        loss, gradient = star_gradient(model, stars, params, terms)
        move = -rate * clipped(gradient, clip)
        moved = np.column_stack([params[:, :-2] + move[:, :-2], params[:, -2:] * np.exp(move[:, -2:])])
    return np.clip(moved, lower, box.upper), loss


def star_gradient(model: FluxModel, stars: StarData, params: Float64, terms: LossTerms) -> tuple[Float64, Float64]:
    """Loss (n,) of each star (Eqs. 13-14; no prior) and its gradient (n, k) in x, at linear parameters (n, k).

    ::

        |G^-1 (f - f_obs)|^2 + sum_v ((v - mean_v) / sigma_v)^2 - 2 ln plx - 2 ln ext
    """
    at = flux_and_jacobian(model, params)
    factor = unpack_factor(stars.whitener)
    residual = forward_substitute(factor, (at.flux - stars.flux.astype(np.float64))[:, :, None])[:, :, 0]
    pull = (params - stars.mean) / stars.sigma**2
    loss = (residual**2).sum(axis=1) + (pull * (params - stars.mean)).sum(axis=1)
    weighted = back_substitute(factor, residual) * at.flux
    gradient = 2.0 * np.einsum("nj,nja->na", weighted, at.jacobian)  # in (Theta, ext, ln plx)
    gradient[:, -2] *= params[:, -2]
    gradient[:, :-2] += 2.0 * pull[:, :-2]
    gradient[:, -2:] += 2.0 * pull[:, -2:] * params[:, -2:]
    for column, wanted in ((-2, terms.jacobian_ext), (-1, terms.jacobian_plx)):
        if wanted:
            loss -= 2.0 * np.log(params[:, column])
            gradient[:, column] -= 2.0
    return loss, gradient
