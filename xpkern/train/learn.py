"""Learning the shapes of spectra from real stars whose distances are unknown.

Each spectrum is divided by its own mean over 592-782 nm, in flux, not in its logarithm: 8 % of the stars have a blue
sample that noise made negative. The model of star i, with a scale a_i that is free,

    y_ij = a_i exp(n_j(Theta_i) - E_i R_j)

is fitted to all stars at once: network n and curve R by gradient descent, a_i and E_i in closed form, by one step of
Gauss-Newton in (a, a dE) whenever the star comes by (variable projection). The loss of a batch is the mean of

    nu ln(1 + chi2_i / nu) + ((E_i - ext_i) / ext_sigma)^2 + sum_k ((anchor_k(n(Theta_i)) - target_ik) / anchor_sigma)^2

plus ``decay`` times the sum of squares of the network's weights. The first term is chi2 for a star that fits and grows
slowly for one that never will (a binary, a wrong label); the anchors tie the absolute scale, and the bands that no star
has, to theory (:mod:`xpkern.train.flux_scale`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.grid import BAND_WAVELENGTH, BANDS, N_XP, WAVELENGTH, in_scale_window
from xpkern.train.apogee_library import N_OBSERVED, Library
from xpkern.train.extinction_law import extinction, optical_depth
from xpkern.train.flux_scale import ANCHORS
from xpkern.train.network import Adam, Float32, Network

#: Wavelength of the band A_K is measured in [nm].
_KS = BAND_WAVELENGTH[BANDS.index("Ks")]


@dataclass(frozen=True)
class Recipe:
    """Settings of the training; each was chosen by the residuals of the validation stars.

    Attributes
    ----------
    hidden : tuple of int
        Width of the hidden layers.
    epochs, batch : int
        Passes over the stars, stars per step.
    rate : float
        Adam's learning rate at the start, after ``warm_up`` steps; it falls to 0 as half a cosine.
    warm_up : int
    curve_rate : float
        Learning rate of ln R relative to the network's.
    ext_from, curve_from : float
        Fraction of the steps after which each E_i, and R, are let go: at first they are what the law and APOGEE say,
        or they would take over the differences between stellar types.
    ext_sigma : float
        Prior error of each E_i [mag].
    independent, band_independent : float
        Fractional error of each XP sample and band on its own (Eq. 2). Its common terms are left out: a_i takes them.
    outlier : float
        nu above.
    anchor_sigma : float
        Above.
    decay : float
        What the loss of a batch has of the sum of squares of the weights: a smoother network has fewer false minima.
    seed : int
    """

    hidden: tuple[int, ...] = (32, 32, 32)
    epochs: int = 300
    batch: int = 512
    rate: float = 2e-3
    warm_up: int = 200
    curve_rate: float = 0.02
    ext_from: float = 0.1
    curve_from: float = 0.3
    ext_sigma: float = 0.05
    independent: float = 0.005
    band_independent: float = 0.01
    outlier: float = float(N_OBSERVED)
    anchor_sigma: float = 1.0 / 30.0
    decay: float = 0.05
    seed: int = 3


@dataclass(frozen=True)
class Learned:
    """What training found, in the units it worked in.

    Attributes
    ----------
    network : Network
        Logarithm of flux [1e-18 W m-2 nm-1] at 1 kpc without dust, 66 samples.
    ext_curve : (64,) float64
        R of the samples that were seen.
    ext : (n,) float64
        E of each star.
    input_zp, input_scale : (3,) float64
    """

    network: Network
    ext_curve: Float64
    ext: Float64
    input_zp: Float64
    input_scale: Float64


def starting_ext(library: Library) -> Float64:
    """E(B-V) [mag] that APOGEE's A_K means by the standard law, (n,); the median where it is unknown."""
    ak = np.where(np.isfinite(library.ak), library.ak, np.nanmedian(library.ak))
    return ak / extinction(_KS)


def relative_spectra(library: Library, recipe: Recipe) -> tuple[Float32, Float32]:
    """Spectra over their own mean in the scale window, and the inverse variances of that, both (n, 64)."""
    wavelength = WAVELENGTH[:N_OBSERVED]
    mean = library.flux[:, in_scale_window(wavelength)].mean(axis=1, keepdims=True)
    flux, error = library.flux / mean, library.error / mean
    independent = np.where(np.arange(N_OBSERVED) < N_XP, recipe.independent, recipe.band_independent)
    variance = error**2 + (independent * flux) ** 2
    return flux.astype(np.float32), (1.0 / variance).astype(np.float32)


def learn(library: Library, anchor_targets: Float64, recipe: Recipe, log: Callable[[str], None]) -> Learned:
    """Fit the model to the stars of ``library``.

    Parameters
    ----------
    library : Library
        The training stars.
    anchor_targets : (n, 3) float64
        What theory says that ``ANCHORS`` of the network's output are.
    recipe : Recipe
    log : callable
        Told of the progress.

    Returns
    -------
    Learned
    """
    rng = np.random.default_rng(recipe.seed)
    flux, inverse_variance = relative_spectra(library, recipe)
    input_zp, input_scale = library.theta.mean(axis=0), library.theta.std(axis=0)
    inputs = ((library.theta - input_zp) / input_scale).astype(np.float32)
    targets: Float32 = anchor_targets.astype(np.float32)
    anchors: Float32 = ANCHORS.astype(np.float32)
    to_anchors = (2.0 / recipe.anchor_sigma**2 * ANCHORS.T).astype(np.float32)
    ext_prior = starting_ext(library).astype(np.float32)
    ext = ext_prior.copy()
    trust = np.full(len(library), 1e-3, np.float32)

    network = Network.random((3, *recipe.hidden, len(WAVELENGTH)), _typical_output(flux, targets), rng)
    ln_curve = np.log(optical_depth(WAVELENGTH[:N_OBSERVED])).astype(np.float32)
    in_network, in_curve = Adam(network.weights + network.biases), Adam([ln_curve])

    batches = len(library) // recipe.batch
    steps, step = recipe.epochs * batches, 0
    for epoch in range(recipe.epochs):
        losses = []
        shuffled = rng.permutation(len(library))[: batches * recipe.batch]
        for rows in shuffled.reshape(batches, recipe.batch):
            layers = network.layers(inputs[rows])
            output = layers[-1]
            seen, y, weight = output[:, :N_OBSERVED], flux[rows], inverse_variance[rows]
            if step >= recipe.ext_from * steps:
                to_prior, trusted = ext_prior[rows] - ext[rows], weight * trust[rows, None]
                ext[rows] += extinction_change(seen, ln_curve, ext[rows], y, trusted, to_prior, recipe.ext_sigma)
            in_seen, in_ln_curve, chi2 = spectrum_gradient(seen, ln_curve, ext[rows], y, weight, recipe.outlier)
            trust[rows] = np.float32(recipe.outlier) / (np.float32(recipe.outlier) + chi2)
            losses.append(float(np.median(chi2)))

            in_output: Float32 = np.asarray((output @ anchors - targets[rows]) @ to_anchors, np.float32)
            in_output[:, :N_OBSERVED] += in_seen
            in_output *= np.float32(1.0 / recipe.batch)
            gradients = network.gradient(layers, in_output)
            for gradient, weights in zip(gradients, network.weights, strict=False):
                gradient += np.float32(2.0 * recipe.decay) * weights
            step += 1
            rate = recipe.rate * 0.5 * (1.0 + np.cos(np.pi * step / steps)) * min(1.0, step / recipe.warm_up)
            in_network.step(gradients, rate)
            if step >= recipe.curve_from * steps:
                in_curve.step([in_ln_curve / np.float32(recipe.batch)], rate * recipe.curve_rate)
        if epoch % 20 == 19:
            log(f"epoch {epoch + 1} of {recipe.epochs}: median chi2 {np.median(losses):.1f} on {N_OBSERVED} samples")
    return Learned(network, np.exp(ln_curve.astype(np.float64)), ext.astype(np.float64), input_zp, input_scale)


def spectrum_gradient(
    output: Float32, ln_curve: Float32, ext: Float32, y: Float32, weight: Float32, outlier: float
) -> tuple[Float32, Float32, Float32]:
    """Gradient of the sum over stars of nu ln(1 + chi2 / nu), each star's scale a where chi2 is lowest.

    Parameters
    ----------
    output : (n, m) float32
        The network's, at the samples that were seen.
    ln_curve : (m,) float32
    ext : (n,) float32
    y, weight : (n, m) float32
        Relative spectra and their inverse variances.
    outlier : float
        nu.

    Returns
    -------
    in_output : (n, m) float32
    in_ln_curve : (m,) float32
    chi2 : (n,) float32
    """
    depth = ext[:, None] * np.exp(ln_curve)
    shape = np.exp(output - depth)
    scale = (weight * shape * y).sum(axis=1) / (weight * shape**2).sum(axis=1)
    prediction = scale[:, None] * shape
    pull = weight * (prediction - y)
    chi2 = (pull * (prediction - y)).sum(axis=1)
    trust = np.float32(outlier) / (np.float32(outlier) + chi2)
    in_output = 2.0 * trust[:, None] * pull * prediction
    return in_output, -(in_output * depth).sum(axis=0), chi2


def extinction_change(
    output: Float32, ln_curve: Float32, ext: Float32, y: Float32, weight: Float32, to_prior: Float32, sigma: float
) -> Float32:
    """Change of each star's extinction: a Gauss-Newton step in (a, E), a eliminated.

    ::

        y = a s - a0 dE r,   dE = to_prior +- sigma        s = exp(n - E R), r = R s, a0 = s.y / s.s

        dE = (to_prior / sigma^2 - a0 r.(y - a0 s)) / (1 / sigma^2 + a0^2 (r.r - (s.r)^2 / s.s))

    with dots for sums over samples by ``weight``. A step is at most 0.3, for the model is linear only near by.

    Parameters
    ----------
    output, ln_curve, ext, y, weight
        As for :func:`spectrum_gradient`.
    to_prior : (n,) float32
        What the extinction would have to change by to be what the prior says.
    sigma : float
        Error of the prior.

    Returns
    -------
    (n,) float32
    """
    curve = np.exp(ln_curve)
    shape = np.exp(output - ext[:, None] * curve)
    reddened = shape * curve
    weighted_shape, weighted_reddened = weight * shape, weight * reddened
    shape_square = (weighted_shape * shape).sum(axis=1)
    scale = (weighted_shape * y).sum(axis=1) / shape_square
    slope = scale * (weighted_reddened * (y - scale[:, None] * shape)).sum(axis=1)
    overlap = (weighted_shape * reddened).sum(axis=1)
    curvature = scale**2 * ((weighted_reddened * reddened).sum(axis=1) - overlap**2 / shape_square)
    precision = np.float32(1.0 / sigma**2)
    return np.clip((precision * to_prior - slope) / (precision + curvature), -0.3, 0.3)


def _typical_output(flux: Float32, targets: Float32) -> Float32:
    """What a network should say before it has learned: the median spectrum at the median scale."""
    output = np.zeros(len(WAVELENGTH), np.float32)
    output[:N_OBSERVED] = np.log(np.maximum(np.median(flux, axis=0), 1e-3))
    output[N_OBSERVED:] = output[N_OBSERVED - 1] + np.median(targets[:, 1:], axis=0)
    return output + np.median(targets[:, 0]) - output @ ANCHORS[:, 0].astype(np.float32)
