"""Training steps in JAX, for speed on one core: what a good Python programmer gets out of XLA.

Everything is compiled and in float32, the reverse sweep written out. Stars lie in memory batch by batch, in the order
in which they are visited, so that nothing is gathered while the clock runs. A whitener is a dense triangle, transposed,
and applied as a batch of matrix products: six times as fast in XLA as sums over broadcast products. A packed triangle
would first have to be scattered into such a one.
It shares no code with xpkern.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import xpkern as xk
from bench.peers.jax_fit import jax, jnp

#: As the paper's training of the model.
MOMENTUM = 0.5


@dataclass
class Batches:
    """Stars in batches as the kernels take them, made outside the time that counts.

    Attributes
    ----------
    data : list of lists of jax.Array
        Of each batch: flux (b, m), transposed whitener (b, m, m), mean and 1 / sigma^2 (b, 5).
    x : list of jax.Array
        Parameters (teff, feh, logg, ln ext, ln plx), (b, 5).
    """

    data: list[list]
    x: list

    @classmethod
    def of(
        cls,
        flux: np.ndarray,
        whitener: np.ndarray,
        mean: np.ndarray,
        sigma: np.ndarray,
        params: np.ndarray,
        batches: np.ndarray,
        source: np.ndarray,
    ) -> Batches:
        """Lay out ``batches``, (steps, size) rows of the stars; star i has the dense whitener ``source[i]``."""
        transposed = np.ascontiguousarray(whitener.transpose(0, 2, 1), np.float32)
        x = np.column_stack([params[:, :3], np.log(params[:, 3:])]).astype(np.float32)
        data = []
        for rows in batches:
            arrays = (flux[rows], transposed[source[rows]], mean[rows], 1 / sigma[rows] ** 2)
            data.append([jnp.asarray(array, jnp.float32) for array in arrays])
        return cls(data, [jnp.asarray(x[rows]) for rows in batches])


class JaxTraining:
    """Steps of one model; compiles on its first call.

    Parameters
    ----------
    model : FluxModel
    terms : LossTerms
    """

    def __init__(self, model: xk.FluxModel, terms: xk.LossTerms) -> None:
        state = [[*model.weights], [*model.biases], np.log(model.ext_curve)]
        self.state = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), state)
        self.velocity = jax.tree.map(jnp.zeros_like, self.state)
        zero_point, scale = (jnp.asarray(array, jnp.float32) for array in (model.input_zp, model.input_scale))

        def model_step(state, velocity, x, rate, data):
            loss, gradient, _ = _gradients(state, zero_point, scale, x, data)
            velocity = jax.tree.map(lambda v, g: MOMENTUM * v - rate * g, velocity, gradient)
            return jax.tree.map(jnp.add, state, velocity), velocity, loss

        def star_step(state, x, rate, clip, data):
            _, _, gradient = _gradients(state, zero_point, scale, x, data)
            gradient = gradient + _constraint_gradient(x, data, terms)
            norm = jnp.sqrt(jnp.square(gradient).sum(axis=1, keepdims=True))
            return x - rate * jnp.minimum(1, clip / jnp.maximum(norm, 1e-15)) * gradient

        def both(state, velocity, x, model_rate, star_rate, clip, data):
            state, velocity, loss = model_step(state, velocity, x, model_rate, data)
            return state, velocity, star_step(state, x, star_rate, clip, data), loss

        self._model, self._both = jax.jit(model_step), jax.jit(both)

    def model_epoch(self, batches: Batches, rate: float) -> tuple[list, np.ndarray]:
        """Steps of the model over all batches, from the model it was made with.

        Returns
        -------
        state : [weights, biases, ln R]
        loss : (steps,)
        """
        state, velocity, losses = self.state, self.velocity, []
        for data, x in zip(batches.data, batches.x, strict=True):
            state, velocity, loss = self._model(state, velocity, x, rate, data)
            losses.append(loss)
        return jax.block_until_ready(state), np.array(losses)

    def both_epoch(self, batches: Batches, model_rate: float, star_rate: float, clip: float) -> tuple[list, np.ndarray]:
        """Steps of the model and of the stars; returns the state, and parameters x (steps, b, 5)."""
        state, velocity, moved = self.state, self.velocity, []
        for data, x in zip(batches.data, batches.x, strict=True):
            state, velocity, x, _ = self._both(state, velocity, x, model_rate, star_rate, clip, data)
            moved.append(x)
        jax.block_until_ready(moved)
        return jax.block_until_ready(state), np.array(moved)


def _gradients(state, zero_point, scale, x, data):
    """Eq. 12 averaged over a batch with its gradient in the model, and each star's gradient of chi^2 in x (b, 5)."""
    weights, biases, ln_ext_curve = state
    flux, whitener, _, _ = data
    ext, ext_curve = jnp.exp(x[:, 3]), jnp.exp(ln_ext_curve)
    values = [(x[:, :3] - zero_point) / scale]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        values.append(jnp.tanh(values[-1] @ weight + bias))
    predicted = jnp.exp(values[-1] @ weights[-1] + biases[-1] - ext[:, None] * ext_curve + 2 * x[:, 4, None])
    whitened = ((predicted - flux)[:, None] @ whitener)[:, 0]
    adjoint = 2 * predicted * (whitener @ whitened[:, :, None])[:, :, 0]

    n_weights = sum(weight.size for weight in weights)
    mean = 1 / len(x)
    loss = mean * jnp.square(whitened).sum() + sum(jnp.square(weight).sum() for weight in weights) / n_weights
    of_ext, of_plx = -ext * (adjoint @ ext_curve), 2 * adjoint.sum(axis=1)
    of_curve = -mean * ext_curve * (ext @ adjoint)
    of_weights, of_biases = [], []
    for layer in range(len(weights) - 1, -1, -1):
        of_weights.insert(0, mean * (values[layer].T @ adjoint) + 2 / n_weights * weights[layer])
        of_biases.insert(0, mean * adjoint.sum(axis=0))
        adjoint = adjoint @ weights[layer].T
        if layer > 0:
            adjoint = adjoint * (1 - jnp.square(values[layer]))
    of_star = jnp.column_stack([adjoint / scale, of_ext, of_plx])
    return loss, [of_weights, of_biases, of_curve], of_star


def _constraint_gradient(x, data, terms):
    """Gradient in x, (b, 5), of what a star's loss has besides chi^2."""
    _, _, mean, precision = data
    value = x.at[:, 3:].set(jnp.exp(x[:, 3:]))
    slope = value.at[:, :3].set(1)
    jacobian = jnp.array([0, 0, 0, terms.jacobian_ext, terms.jacobian_plx], jnp.float32)
    return 2 * precision * (value - mean) * slope - 2 * jacobian
