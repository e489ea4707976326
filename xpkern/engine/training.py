"""What goes into the training of a model and comes out: steps, a model's numbers as arrays, where an epoch has led.

Names of sizes as in :mod:`xpkern.engine.contract`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.errors import InputError

if TYPE_CHECKING:
    from xpkern.model.flux_model import FluxModel


@dataclass(frozen=True, eq=False)
class Steps:
    """A run of first-order steps of one side of the training: of the model, or of the stars.

    Attributes
    ----------
    method : {"sgd", "adam"}
        Gradient descent, or Adam with the constants of :mod:`xpkern.engine.reference_descent`.
    rates : (steps,) float64
        Learning rate of each step.
    momentum : float
        Of gradient descent, in the convention of Keras, which ZGR23 used::

            velocity = momentum * velocity - rate * gradient,    parameters += velocity

    clip : float
        Norm to which a gradient is scaled down where it is larger: a star's own, or that of the model in all its
        weights, biases and ln R; inf for never.

    Raises
    ------
    InputError
        If one of them makes no sense; the message names it.
    """

    method: str
    rates: Float64
    momentum: float = 0.0
    clip: float = math.inf

    def __post_init__(self) -> None:
        if self.method not in ("adam", "sgd"):
            raise InputError(f"{self.method!r} is neither adam nor sgd", field="method")
        rates = np.array(self.rates, dtype=np.float64)
        if rates.ndim != 1 or not (np.isfinite(rates) & (rates >= 0.0)).all():
            raise InputError("must be a vector of finite numbers >= 0", field="rates")
        if not 0.0 <= self.momentum < 1.0:
            raise InputError(f"{self.momentum} is not within 0 <= momentum < 1", field="momentum")
        if self.method == "adam" and self.momentum != 0.0:
            raise InputError("adam has a momentum of its own", field="momentum")
        if not self.clip >= 0.0:
            raise InputError(f"{self.clip} is not a number >= 0", field="clip")
        rates.setflags(write=False)
        object.__setattr__(self, "rates", rates)


@dataclass(frozen=True, eq=False)
class ModelArrays:
    """One number for each of a model's parameters: a gradient, or what an optimiser remembers.

    Attributes
    ----------
    weights : list of (inputs, outputs) float64
    biases : list of (outputs,) float64
    ln_ext_curve : (m,) float64
        Belongs to ln R.
    """

    weights: list[Float64]
    biases: list[Float64]
    ln_ext_curve: Float64

    @classmethod
    def unflatten(cls, vector: Float64, model: FluxModel) -> ModelArrays:
        """The arrays whose :meth:`flatten` is ``vector``, shaped as those of ``model``."""
        shapes = [shape for weight in model.weights for shape in (weight.shape, weight.shape[1:])]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        *layers, ln_ext_curve = np.split(vector, ends)
        arrays = [part.reshape(shape) for part, shape in zip(layers, shapes, strict=True)]
        return cls(arrays[::2], arrays[1::2], ln_ext_curve)

    def flatten(self) -> Float64:
        """All of them as one vector: each layer's weights (row-major) and biases in turn, then ln R."""
        layers = [part.ravel() for pair in zip(self.weights, self.biases, strict=True) for part in pair]
        return np.concatenate([*layers, self.ln_ext_curve])


@dataclass(frozen=True, eq=False)
class ModelMoments:
    """What the optimiser of the model remembers from one call to the next.

    Attributes
    ----------
    first : ModelArrays
        The velocity of gradient descent, or Adam's mean of the gradients.
    second : ModelArrays
        Adam's mean of their squares; zeros under gradient descent.
    steps : int
        Steps taken so far.
    """

    first: ModelArrays
    second: ModelArrays
    steps: int = 0

    @classmethod
    def zeros(cls, model: FluxModel) -> ModelMoments:
        """Those of an optimiser that has not taken a step."""
        size = sum(weight.size + weight.shape[1] for weight in model.weights) + model.n_samples
        first, second = (ModelArrays.unflatten(np.zeros(size), model) for _ in range(2))
        return cls(first, second)


@dataclass(frozen=True, eq=False)
class EpochResult:
    """Where the steps of :meth:`xpkern.engine.contract.Engine.train_epoch` have led.

    Attributes
    ----------
    model : FluxModel
        After the last step.
    params : (n, k) float64
        Linear parameters of all stars after their steps.
    moments : ModelMoments
        What the model's optimiser has to be given to go on.
    model_loss : (steps,) float64
        Eq. 12, averaged over each batch, before its steps; NaN where the model takes none.
    star_loss : (n,) float64
        Eqs. 13-14 of each star when it was last visited: at its parameters before that step, under the model after
        the batch's; NaN where a star was not visited, or the stars take no steps.
    """

    model: FluxModel
    params: Float64
    moments: ModelMoments
    model_loss: Float64
    star_loss: Float64
