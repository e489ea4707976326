"""Networks from the spectrum straight to the stellar type, in JAX: the usual way to get labels from XP spectra.

A multilayer perceptron with GELU units, AdamW with a rate that falls as half a cosine, a loss that grows linearly for
outliers, and a share of each star's own errors added to its fluxes anew in each epoch. Several nets that differ in
their seed are averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

Layers = list[tuple[jax.Array, jax.Array]]

#: Settings; chosen on a seventh of the training stars (NOTES.md).
HIDDEN, BATCH, RATE, DECAY, HUBER, NOISE = (256, 256, 256), 256, 2e-3, 0.05, 0.5, 0.3

#: Moments of Adam, and what keeps its denominator from 0.
_FIRST, _SECOND, _SMALLEST = 0.9, 0.999, 1e-8


class JaxMlp:
    """Regression of several targets by an average of nets.

    Parameters
    ----------
    nets : int
    epochs : int
    seed : int
    """

    def __init__(self, nets: int, epochs: int, seed: int = 0) -> None:
        self.nets, self.epochs, self.seed = nets, epochs, seed
        self.trained: list[Layers] = []

    def fit(self, features: np.ndarray, errors: np.ndarray, targets: np.ndarray) -> JaxMlp:
        """Learn from stars.

        Parameters
        ----------
        features, errors : (n, m)
            And their standard errors, 0 where they have none.
        targets : (n, k)
        """
        self.center, self.width = _median_and_width(features)
        self.target_center, self.target_width = _median_and_width(targets)
        x = jnp.asarray(self._scaled(features))
        sigma = jnp.asarray(NOISE * errors / self.width, jnp.float32)
        y = jnp.asarray((targets - self.target_center) / self.target_width, jnp.float32)
        epoch = _epoch(self.epochs, len(x))
        for net in range(self.nets):
            key = jax.random.key(1000 * self.seed + net)
            state = _start((x.shape[1], *HIDDEN, y.shape[1]), key)
            for own in jax.random.split(key, self.epochs):
                state = epoch(state, own, x, sigma, y)
            self.trained.append(state[0])
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Targets (n, k) of stars."""
        x = jnp.asarray(self._scaled(features))
        mean = np.mean([np.asarray(_forward(layers, x)) for layers in self.trained], axis=0)
        return mean * self.target_width + self.target_center

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return np.clip((features - self.center) / self.width, -10.0, 10.0).astype(np.float32)


def _median_and_width(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, median, high = np.quantile(columns, [0.16, 0.5, 0.84], axis=0)
    return median, np.maximum(0.5 * (high - low), 1e-6)


def _forward(layers: Layers, x: jax.Array) -> jax.Array:
    for weight, bias in layers[:-1]:
        x = jax.nn.gelu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def _loss(layers: Layers, x: jax.Array, y: jax.Array) -> jax.Array:
    off = _forward(layers, x) - y
    return jnp.mean(HUBER**2 * (jnp.sqrt(1.0 + (off / HUBER) ** 2) - 1.0))


def _start(sizes: tuple[int, ...], key: jax.Array) -> tuple:
    """Layers with random weights, and the state of Adam: two moments and the number of steps."""
    layers = []
    for (inputs, outputs), own in zip(pairwise(sizes), jax.random.split(key, len(sizes) - 1), strict=True):
        layers.append((jax.random.normal(own, (inputs, outputs)) * np.sqrt(2.0 / inputs), jnp.zeros(outputs)))
    zero = jax.tree.map(jnp.zeros_like, layers)
    return layers, zero, zero, jnp.zeros(())


def _epoch(epochs: int, n_stars: int) -> Callable[..., tuple]:
    """One pass over the stars, compiled once for all nets."""
    batch = min(BATCH, n_stars)
    batches = n_stars // batch
    total = epochs * batches

    @jax.jit
    def epoch(state: tuple, key: jax.Array, x: jax.Array, sigma: jax.Array, y: jax.Array) -> tuple:
        order_key, noise_key = jax.random.split(key)
        order = jax.random.permutation(order_key, n_stars)[: batches * batch].reshape(batches, batch)
        noisy = x + sigma * jax.random.normal(noise_key, x.shape)

        def step(state: tuple, rows: jax.Array) -> tuple:
            layers, first, second, number = state
            gradient = jax.grad(_loss)(layers, noisy[rows], y[rows])
            number = number + 1
            rate = RATE * 0.5 * (1.0 + jnp.cos(jnp.pi * number / total))
            first = jax.tree.map(lambda m, g: _FIRST * m + (1 - _FIRST) * g, first, gradient)
            second = jax.tree.map(lambda v, g: _SECOND * v + (1 - _SECOND) * g * g, second, gradient)

            def moved(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
                towards = (m / (1 - _FIRST**number)) / (jnp.sqrt(v / (1 - _SECOND**number)) + _SMALLEST)
                return p - rate * (towards + DECAY * p * (p.ndim == 2))

            return (jax.tree.map(moved, layers, first, second), first, second, number), None

        return jax.lax.scan(step, state, order)[0]

    return epoch
