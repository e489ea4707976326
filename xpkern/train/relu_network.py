"""A small classifier, trained as ZGR23 Appendix B says: relu layers, dropout, L2 penalty, Adam, plateau schedule.

In NumPy, because scikit-learn's multi-layer perceptron has no dropout, and PyTorch or TensorFlow would be gigabytes of
dependency for 14,000 weights. Sums are those of BLAS on one thread: the same seed on the same machine gives the same
network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from xpkern.engine.contract import Float32, Float64

#: Adam: what a step keeps of the gradients' mean and of that of their squares, and what keeps a step finite.
_KEPT, _KEPT_SQUARE, _SMALLEST = 0.9, 0.999, 1e-7


@dataclass(frozen=True)
class NetworkSettings:
    """How a network is trained; the numbers are those of ZGR23 Appendix B but for ``epochs``, which ends any training.

    Attributes
    ----------
    hidden : tuple of int
        Width of each hidden layer.
    dropout : float
        Share of the inputs of each hidden layer that a batch goes without.
    penalty : float
        On the sum of squares of the hidden layers' weights.
    batch : int
        Stars of a step.
    rate : float
        Of Adam at first.
    plateau, drop : int, float
        After so many epochs in which the validation loss has not fallen below its lowest, the rate is multiplied by
        ``drop``.
    patience : int
        After so many the training ends, and the network of the lowest validation loss is taken.
    epochs : int
        After so many it ends in any case.
    """

    hidden: tuple[int, ...] = (64, 64, 64)
    dropout: float = 0.1
    penalty: float = 1e-3
    batch: int = 4096
    rate: float = 1e-3
    plateau: int = 256
    drop: float = 0.1
    patience: int = 1024
    epochs: int = 1 << 14


@dataclass(frozen=True)
class Examples:
    """Stars that are good or bad.

    Attributes
    ----------
    inputs : (n, f) float32
        Standardised features.
    good : (n,) float32
        1 or 0.
    weight : (n,) float32
        Mean 1.
    """

    inputs: Float32
    good: Float32
    weight: Float32

    @classmethod
    def balanced(cls, inputs: Float32, good: NDArray[np.bool_]) -> Examples:
        """Weights that give both classes the same weight in all."""
        share = good.mean()
        weight = np.where(good, 0.5 / share, 0.5 / (1.0 - share))
        return cls(np.ascontiguousarray(inputs, np.float32), good.astype(np.float32), weight.astype(np.float32))

    def __len__(self) -> int:
        return len(self.good)


@dataclass
class ReluNetwork:
    """Layers of relu units with one linear output, the logit.

    Attributes
    ----------
    parameters : (size,) float32
        All weights and biases; ``weights`` and ``biases`` are views of it.
    weights : list of (inputs, outputs) float32
    biases : list of (outputs,) float32
    """

    parameters: Float32
    weights: list[Float32]
    biases: list[Float32]

    @classmethod
    def zeros(cls, sizes: tuple[int, ...]) -> ReluNetwork:
        """A network of these widths, from the inputs to the output, that says 0."""
        parameters = np.zeros(sum((below + 1) * above for below, above in pairwise(sizes)), np.float32)
        weights, biases, place = [], [], 0
        for below, above in pairwise(sizes):
            weights.append(parameters[place : place + below * above].reshape(below, above))
            place += below * above
            biases.append(parameters[place : place + above])
            place += above
        return cls(parameters, weights, biases)

    @classmethod
    def random(cls, sizes: tuple[int, ...], rng: np.random.Generator) -> ReluNetwork:
        """One whose layers keep the variance of their inputs (He et al. 2015)."""
        network = cls.zeros(sizes)
        for weight in network.weights:
            weight[:] = rng.standard_normal(weight.shape) * np.sqrt(2.0 / len(weight))
        return network

    @property
    def sizes(self) -> tuple[int, ...]:
        """Width of each layer, from the inputs to the output."""
        return (len(self.weights[0]), *(len(bias) for bias in self.biases))

    def logit(self, inputs: Float32) -> Float32:
        """Outputs (n,) for inputs (n, f)."""
        below = inputs
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            below = np.maximum(below @ weight + bias, 0.0)
        return (below @ self.weights[-1] + self.biases[-1])[:, 0]

    def gradient(
        self, examples: Examples, penalty: float, dropout: float, rng: np.random.Generator
    ) -> tuple[float, ReluNetwork]:
        """Weighted cross-entropy of a batch plus the penalty, and its gradient, with the dropout of one draw."""
        inputs, masks = [], []
        below = examples.inputs
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            mask = (rng.random(below.shape, np.float32) >= dropout) * np.float32(1.0 / (1.0 - dropout))
            masks.append(mask)
            inputs.append(below * mask)
            below = np.maximum(inputs[-1] @ weight + bias, 0.0)
        inputs.append(below)
        logit = (below @ self.weights[-1] + self.biases[-1])[:, 0]
        loss = cross_entropy(logit, examples) + penalty * sum(float((weight**2).sum()) for weight in self.weights[:-1])

        gradient = ReluNetwork.zeros(self.sizes)
        above = ((expit(logit) - examples.good) * examples.weight / np.float32(len(examples)))[:, None]
        for layer in reversed(range(len(self.weights))):
            gradient.weights[layer][:] = inputs[layer].T @ above
            gradient.biases[layer][:] = above.sum(axis=0)
            if layer < len(self.weights) - 1:
                gradient.weights[layer] += np.float32(2.0 * penalty) * self.weights[layer]
            if layer > 0:
                above = above @ self.weights[layer].T
                if layer < len(self.weights) - 1:
                    above *= masks[layer]
                above *= inputs[layer] > 0
        return loss, gradient


def cross_entropy(logit: Float32, examples: Examples) -> float:
    """Weighted mean of - ln of the probability of what each example is."""
    signed = np.where(examples.good > 0, logit, -logit).astype(np.float64)
    return float((np.logaddexp(0.0, -signed) * examples.weight).mean())


def train_network(
    training: Examples,
    validation: Examples,
    settings: NetworkSettings,
    rng: np.random.Generator,
    on_epoch: Callable[[int, float], object] | None = None,
) -> tuple[ReluNetwork, list[float]]:
    """Train a network; the one of the lowest validation loss, and that loss after each epoch.

    Parameters
    ----------
    training, validation : Examples
    settings : NetworkSettings
    rng : numpy.random.Generator
    on_epoch : callable, optional
        Called with the number of epochs and the validation loss after each.
    """
    network = ReluNetwork.random((training.inputs.shape[1], *settings.hidden, 1), rng)
    mean, square = np.zeros_like(network.parameters), np.zeros_like(network.parameters)
    best, best_loss, best_epoch, changed, rate, steps = network.parameters.copy(), np.inf, 0, 0, settings.rate, 0
    history: list[float] = []
    for epoch in range(1, settings.epochs + 1):
        order = rng.permutation(len(training))
        for start in range(0, len(order), settings.batch):
            chosen = order[start : start + settings.batch]
            batch = Examples(training.inputs[chosen], training.good[chosen], training.weight[chosen])
            _, gradient = network.gradient(batch, settings.penalty, settings.dropout, rng)
            steps += 1
            mean += np.float32(1.0 - _KEPT) * (gradient.parameters - mean)
            square += np.float32(1.0 - _KEPT_SQUARE) * (gradient.parameters**2 - square)
            size = rate * np.sqrt(1.0 - _KEPT_SQUARE**steps) / (1.0 - _KEPT**steps)
            network.parameters -= np.float32(size) * mean / (np.sqrt(square) + np.float32(_SMALLEST))
        loss = cross_entropy(network.logit(validation.inputs), validation)
        history.append(loss)
        if on_epoch is not None:
            on_epoch(epoch, loss)
        if loss < best_loss:
            best[:], best_loss, best_epoch, changed = network.parameters, loss, epoch, epoch
        elif epoch - best_epoch >= settings.patience:
            break
        elif epoch - changed >= settings.plateau:
            rate, changed = rate * settings.drop, epoch
    network.parameters[:] = best
    return network, history


def platt(logit: Float32, good: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope a and offset b at which sigmoid(a logit + b) is the probability of being good (Platt 1999).

    By maximum likelihood, with targets a little inside of 0 and 1 as he has them, so that the slope is finite however
    well the logits tell the classes apart.
    """
    x = np.column_stack([logit, np.ones(len(logit))]).astype(np.float64)
    count = int(good.sum())
    target = np.where(good, (count + 1.0) / (count + 2.0), 1.0 / (len(good) - count + 2.0))
    solution: Float64 = np.array([1.0, 0.0])

    def loss_of(candidate: Float64) -> float:
        z = x @ candidate
        return float((np.logaddexp(0.0, z) - target * z).sum())

    loss = loss_of(solution)
    for _ in range(100):
        probability = expit(x @ solution)
        gradient = x.T @ (probability - target)
        curvature = (x * (probability * (1.0 - probability))[:, None]).T @ x + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while (trial := loss_of(solution - step)) > loss and np.abs(step).max() > 1e-12:
            step *= 0.5
        if trial > loss:
            break
        drop, solution, loss = loss - trial, solution - step, trial
        if drop < 1e-10 * max(1.0, loss):
            break
    return float(solution[0]), float(solution[1])
