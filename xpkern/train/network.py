"""The network of Eq. 8 before it has learned anything."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


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
