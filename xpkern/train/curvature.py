"""Coordinates in which the model's loss (Eq. 12) curves about alike in every direction: a step may be as long in all.

A sample with a signal-to-noise ratio of 200 beside one of 5, and errors common to all samples, make the loss curve
10^4 times as strongly in some directions of the network's output as in others: first-order steps that are short enough
for the former never get anywhere in the latter. To second order, with residuals left out (Gauss-Newton), a change D of
one layer's weights and biases, (inputs + 1, outputs), costs

    mean over stars of  a^T D J F C^-1 F J^T D^T a   ~   tr(D^T A D G)
    A = mean of a a^T,    G = mean of J F C^-1 F J^T

with a the layer's inputs and a 1, J the derivative of the network's output by this layer's, F the fluxes. That the mean
of the product is about the product of the means is the approximation of K-FAC (Martens & Grosse 2015). Where each star
is at its own optimum (a profile loss), its five parameters give way and take their part of the information away:

    F C^-1 F  becomes  I - I S (S^T I S + K)^-1 S^T I,    I = F C^-1 F,    S = d ln f / d y

with y = (Theta, E, ln plx) and K the curvature that labels and Jacobian terms add. With A = P P^T and G = Q Q^T,

    D = P^-T U Q^-1    costs    |U|^2.

ln R, whose curvature is the mean of E^2 (R R^T) * (that information), gets coordinates of its own in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dtrtri

from xpkern.engine.contract import Float64, LossTerms, StarData
from xpkern.engine.packed import present_samples, unpack_factor
from xpkern.engine.reference_loss import flux_and_jacobian
from xpkern.engine.training import ModelArrays
from xpkern.model.flux_model import FluxModel

#: Below this extinction its logarithm's Jacobian term is held to be as strong as here.
_SMALLEST_EXT = 1e-3

#: What is added to the curvature by a star's parameters, as a fraction of its diagonal.
_RIDGE = 1e-9


@dataclass(frozen=True)
class EvenCoordinates:
    """Coordinates u of the changes of a model, see the module.

    Attributes
    ----------
    layers : list of ((inputs + 1, inputs + 1), (outputs, outputs)) float64
        Lower triangles P and Q of each layer.
    ln_ext_curve : (m, m) float64
        The same of ln R.
    """

    layers: list[tuple[Float64, Float64]]
    ln_ext_curve: Float64

    @classmethod
    def of(
        cls, model: FluxModel, stars: StarData, params: Float64, terms: LossTerms, damping: float
    ) -> EvenCoordinates:
        """Those at a model, from a sample of stars at linear parameters (n, k) and the terms of their loss.

        ``damping`` times its mean curvature is added to every direction, so that none has hardly any.
        """
        with np.errstate(over="ignore"):
            flux = np.exp(model.ln_flux(params))
        whitening = _inverse_factors(stars) * flux[:, None, :]
        information = np.einsum("nki,nkj->nij", whitening, whitening, optimize=True)  # F C^-1 F
        information -= _taken_by_the_stars(model, stars, params, terms, information)
        inputs = [(params[:, : model.n_inputs] - model.input_zp) / model.input_scale]
        for weight, bias in zip(model.weights[:-1], model.biases[:-1], strict=True):
            inputs.append(np.tanh(inputs[-1] @ weight + bias))
        outputs = [information.mean(axis=0)]
        slope = np.broadcast_to(model.weights[-1], (len(flux), *model.weights[-1].shape))
        for layer in reversed(range(len(model.weights) - 1)):
            slope = (1.0 - inputs[layer + 1] ** 2)[:, :, None] * slope
            outputs.insert(0, np.einsum("nal,nbl->ab", slope @ information, slope, optimize=True) / len(flux))
            slope = model.weights[layer] @ slope
        layers = []
        for values, curvature in zip(inputs, outputs, strict=True):
            with_one = np.column_stack([values, np.ones(len(values))])
            second_moment = with_one.T @ with_one / len(values)
            # the root, as the curvature is a product of both
            layers.append((_triangle(second_moment, np.sqrt(damping)), _triangle(curvature, np.sqrt(damping))))
        of_curve = np.einsum("n,nij->ij", params[:, -2] ** 2, information) / len(flux)
        of_curve *= np.outer(model.ext_curve, model.ext_curve)
        return cls(layers, _triangle(of_curve, damping))

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return sum(len(inner) * len(outer) for inner, outer in self.layers) + len(self.ln_ext_curve)

    def moved(self, model: FluxModel, coordinates: Float64) -> FluxModel:
        """The model changed by ``coordinates``, (size,).

        Raises
        ------
        InputError
            If it would not be finite.
        """
        weights, biases = [], []
        first = 0
        for (inner, outer), weight, bias in zip(self.layers, model.weights, model.biases, strict=True):
            shape = (len(inner), len(outer))
            block = coordinates[first : first + shape[0] * shape[1]].reshape(shape)
            first += block.size
            change = solve_triangular(inner, block, lower=True, trans="T")
            change = solve_triangular(outer, change.T, lower=True, trans="T").T
            weights.append(weight + change[:-1])
            biases.append(bias + change[-1])
        of_curve = solve_triangular(self.ln_ext_curve, coordinates[first:], lower=True, trans="T")
        with np.errstate(over="ignore"):
            ext_curve = model.ext_curve * np.exp(of_curve)
        return replace(model, weights=weights, biases=biases, ext_curve=ext_curve)

    def gradient(self, of_model: ModelArrays) -> Float64:
        """The gradient by ``coordinates``, (size,), from that by the model's arrays."""
        parts = []
        for (inner, outer), of_weight, of_bias in zip(self.layers, of_model.weights, of_model.biases, strict=True):
            block = solve_triangular(inner, np.vstack([of_weight, of_bias]), lower=True)
            parts.append(solve_triangular(outer, block.T, lower=True).T.ravel())
        parts.append(solve_triangular(self.ln_ext_curve, of_model.ln_ext_curve, lower=True))
        return np.concatenate(parts)


def _inverse_factors(stars: StarData) -> Float64:
    """G^-1 of each star, (n, m, m); rows and columns of missing samples are 0."""
    factor, present = unpack_factor(stars.whitener), present_samples(stars.whitener)
    diagonal = np.einsum("njj->nj", factor)
    diagonal[:] = 1.0 / np.where(present, diagonal, 1.0)
    for star in range(len(factor)):
        factor[star] = dtrtri(factor[star].T)[0].T  # its upper triangle is our lower one
    return np.where(present[:, :, None] & present[:, None, :], factor, 0.0)


def _taken_by_the_stars(
    model: FluxModel, stars: StarData, params: Float64, terms: LossTerms, information: Float64
) -> Float64:
    """What a profile loss lacks of ``information`` (n, m, m), as each star's parameters give way; see the module."""
    jacobian = flux_and_jacobian(model, params).jacobian  # in (teff, feh, logg, ext, ln plx)
    of_flux = information @ jacobian
    curvature = jacobian.swapaxes(1, 2) @ of_flux
    own = 1.0 / stars.sigma**2
    if terms.jacobian_ext:
        own[:, -2] += 1.0 / np.maximum(params[:, -2], _SMALLEST_EXT) ** 2
    own[:, -1] *= params[:, -1] ** 2
    diagonal = np.einsum("nkk->nk", curvature)
    diagonal += own
    diagonal *= 1.0 + _RIDGE  # under a flat curve nothing tells extinction from distance, if no label does
    return of_flux @ np.linalg.solve(curvature, of_flux.swapaxes(1, 2))


def _triangle(matrix: Float64, damping: float) -> Float64:
    """Cholesky factor of a positive semi-definite matrix with ``damping`` times its mean eigenvalue added."""
    mean = np.trace(matrix) / len(matrix)
    triangle: Float64 = np.linalg.cholesky(
        matrix + damping * max(mean, np.finfo(np.float64).tiny) * np.eye(len(matrix))
    )
    return triangle
