"""Adam (Kingma & Ba 2014) in even coordinates: the direction of the next step of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.engine.training import ModelArrays, ModelMoments
from xpkern.model.flux_model import FluxModel

#: What a step keeps of the gradients' mean and of that of their squares. The latter is shorter than Adam's usual 0.999:
#: the loss falls by orders of magnitude within a few hundred steps.
_KEPT, _KEPT_SQUARE = 0.9, 0.99

#: Keeps a coordinate without any gradient where it is.
_SMALLEST = 1e-12


@dataclass
class Adam:
    """Running means over the steps so far.

    Attributes
    ----------
    mean, square : (size,) float64
        Of the gradients, and of their squares, not yet divided by what the first steps lack.
    steps : int
    """

    mean: Float64
    square: Float64
    steps: int

    @classmethod
    def resumed(cls, moments: ModelMoments | None, size: int) -> Adam:
        """The one that ``moments`` were taken from, or one that has seen nothing."""
        if moments is None:
            return cls(np.zeros(size), np.zeros(size), 0)
        return cls(moments.first.flatten(), moments.second.flatten(), moments.steps)

    def direction(self, gradient: Float64) -> Float64:
        """Take a gradient in; where to go next, about 1 in every coordinate."""
        self.steps += 1
        self.mean += (1.0 - _KEPT) * (gradient - self.mean)
        self.square += (1.0 - _KEPT_SQUARE) * (gradient**2 - self.square)
        mean = self.mean / (1.0 - _KEPT**self.steps)
        square = self.square / (1.0 - _KEPT_SQUARE**self.steps)
        direction: Float64 = -mean / np.sqrt(square + _SMALLEST)
        return direction

    def moments(self, model: FluxModel) -> ModelMoments:
        """The means, as a state keeps them: one number for each of the model's."""
        first, second = (ModelArrays.unflatten(vector, model) for vector in (self.mean, self.square))
        return ModelMoments(first, second, self.steps)
