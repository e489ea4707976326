"""The classifiers' networks by other libraries: JAX, compiled for the batch, and scikit-learn's MLPClassifier."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xpkern.engine.contract import Float32
from xpkern.model.confidence import LARGEST_FEATURE, Confidence


def jax_networks(classifiers: Confidence, features: Float32) -> Callable[[], Float32]:
    """What computes the confidences (n, 3) of features (n, f) in single precision."""
    try:
        import jax
        import jax.numpy as jnp
    except ImportError as error:  # the peer is an extra of the benchmarks, not of xpkern
        raise ImportError("this peer needs JAX: pip install 'xpkern[bench]' (or pip install jax)") from error

    weights = [jnp.asarray(weight) for weight in classifiers.weights]
    biases = [jnp.asarray(bias) for bias in classifiers.biases]

    @jax.jit
    def networks(values: jax.Array) -> jax.Array:
        known = jnp.where(jnp.isfinite(values), values, classifiers.fill)
        below = jnp.clip((known - classifiers.centre) / classifiers.scale, -LARGEST_FEATURE, LARGEST_FEATURE)[None]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            below = jax.nn.relu(jnp.matmul(below, weight) + bias[:, None, :])
        logit = jnp.matmul(below, weights[-1]) + biases[-1][:, None, :]
        return jax.nn.sigmoid(logit[:, :, 0]).T

    values = jnp.asarray(features)
    return lambda: np.asarray(networks(values))


def sklearn_networks(classifiers: Confidence, features: Float32) -> Callable[[], Float32]:
    """The same by three MLPClassifiers that are given the weights; features are standardised for them beforehand."""
    from sklearn.neural_network import MLPClassifier

    known = np.where(np.isfinite(features), features, classifiers.fill)
    inputs = np.clip((known - classifiers.centre) / classifiers.scale, -LARGEST_FEATURE, LARGEST_FEATURE)
    inputs = np.ascontiguousarray(inputs, np.float32)
    hidden = tuple(weight.shape[2] for weight in classifiers.weights[:-1])
    peers = []
    for k in range(len(classifiers.weights[0])):
        peer = MLPClassifier(hidden, activation="relu", max_iter=1, batch_size=2)
        peer.partial_fit(inputs[:2], np.array([0, 1]), classes=np.array([0, 1]))
        peer.coefs_ = [np.ascontiguousarray(weight[k]) for weight in classifiers.weights]
        peer.intercepts_ = [np.ascontiguousarray(bias[k]) for bias in classifiers.biases]
        peers.append(peer)
    return lambda: np.column_stack([peer.predict_proba(inputs)[:, 1] for peer in peers])
