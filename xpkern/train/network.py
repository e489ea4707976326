"""The network of Eq. 8 while it learns: forward, backward, and the optimiser. Single precision, NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

#: Adam's memory of gradients and of their squares, and what keeps its division finite (Kingma & Ba 2015).
_MEMORY, _SQUARE_MEMORY, _TINY = 0.9, 0.999, 1e-8


@dataclass
class Network:
    """Layers of tanh units with a linear output.

    Attributes
    ----------
    weights : list of (inputs, outputs) float32
    biases : list of (outputs,) float32
    """

    weights: list[Float32]
    biases: list[Float32]

    @classmethod
    def random(cls, sizes: tuple[int, ...], output: Float32, rng: np.random.Generator) -> Network:
        """A network whose answer is close to ``output`` whatever it is asked.

        Parameters
        ----------
        sizes : tuple of int
            Width of each layer, from the inputs to the outputs.
        output : (sizes[-1],) float32
        rng : numpy.random.Generator
        """
        weights = [
            (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
            for inputs, outputs in pairwise(sizes)
        ]
        weights[-1] *= np.float32(0.1)
        biases = [np.zeros(width, np.float32) for width in sizes[1:-1]]
        return cls(weights, [*biases, output.astype(np.float32)])

    def layers(self, inputs: Float32) -> list[Float32]:
        """The inputs (n, i), what each hidden layer makes of them, and the output (n, o)."""
        layers = [inputs]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            layers.append(np.tanh(layers[-1] @ weight + bias))
        layers.append(layers[-1] @ self.weights[-1] + self.biases[-1])
        return layers

    def gradient(self, layers: list[Float32], output_gradient: Float32) -> list[Float32]:
        """Gradient of a sum over stars in ``weights`` then ``biases``.

        Parameters
        ----------
        layers : list
            What :meth:`layers` returned.
        output_gradient : (n, o) float32
            Derivative of the sum by each output.
        """
        in_weights: list[Float32] = []
        in_biases: list[Float32] = []
        for layer in range(len(self.weights) - 1, -1, -1):
            in_weights.insert(0, layers[layer].T @ output_gradient)
            in_biases.insert(0, output_gradient.sum(axis=0))
            if layer > 0:
                output_gradient = (output_gradient @ self.weights[layer].T) * (1 - layers[layer] ** 2)
        return in_weights + in_biases


@dataclass
class Adam:
    """Adam on one list of arrays, which it changes in place.

    Attributes
    ----------
    arrays : list of float32 arrays
    """

    arrays: list[Float32]
    steps: int = 0
    mean: list[Float32] = field(init=False)
    square: list[Float32] = field(init=False)

    def __post_init__(self) -> None:
        self.mean = [np.zeros_like(array) for array in self.arrays]
        self.square = [np.zeros_like(array) for array in self.arrays]

    def step(self, gradients: list[Float32], rate: float) -> None:
        """One step at learning rate ``rate`` against ``gradients``, which are in the order of ``arrays``."""
        self.steps += 1
        unbias, unbias_square = 1 - _MEMORY**self.steps, 1 - _SQUARE_MEMORY**self.steps
        for array, gradient, mean, square in zip(self.arrays, gradients, self.mean, self.square, strict=True):
            mean += np.float32(1 - _MEMORY) * (gradient - mean)
            square += np.float32(1 - _SQUARE_MEMORY) * (gradient**2 - square)
            step = mean / (np.sqrt(square / np.float32(unbias_square)) + np.float32(_TINY))
            array -= np.float32(rate / unbias) * step
