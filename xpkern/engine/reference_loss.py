"""The star loss and its exact derivatives in NumPy float64: formulas first, speed never.

Derivatives are taken in the solver's coordinates y = (Theta, ext, ln plx), in which the flux has a simple Jacobian,
and converted from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xpkern.engine.contract import Evaluation, Float64, LossTerms, StarData
from xpkern.engine.packed import forward_substitute, unpack_factor
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior


@dataclass
class Flux:
    """Model flux of n stars with what its derivatives are made of.

    Attributes
    ----------
    flux : (n, m)
    jacobian : (n, m, k)
        Of ln flux, in y.
    hidden : list of (n, width)
        Values h of the tanh layers.
    hidden_slope : list of (n, width, n_inputs)
        Derivatives of their arguments z (before the tanh) by Theta.
    """

    flux: Float64
    jacobian: Float64
    hidden: list[Float64]
    hidden_slope: list[Float64]


def flux_and_jacobian(model: FluxModel, params: Float64) -> Flux:
    """Flux and its first derivatives by forward tangents.

    ::

        z = h W + b,    z' = h' W,    h = tanh z,    h' = (1 - h^2) z'
        d ln f / d ext = -R,    d ln f / d ln plx = 2

    ``params`` are linear, (n, k).
    """
    stars, inputs = len(params), model.n_inputs
    value = (params[:, :inputs] - model.input_zp) / model.input_scale
    tangent = np.broadcast_to(np.diag(1.0 / model.input_scale), (stars, inputs, inputs))  # (n, width, n_inputs)
    hidden, hidden_slope = [], []
    for weight, bias in zip(model.weights[:-1], model.biases[:-1], strict=True):
        value = np.tanh(value @ weight + bias)
        slope = np.einsum("nia,io->noa", tangent, weight)
        tangent = (1.0 - value**2)[:, :, None] * slope
        hidden.append(value)
        hidden_slope.append(slope)
    jacobian = np.empty((stars, model.n_samples, model.n_parameters))
    jacobian[:, :, :inputs] = np.einsum("nia,io->noa", tangent, model.weights[-1])
    jacobian[:, :, -2] = -model.ext_curve
    jacobian[:, :, -1] = 2.0
    return Flux(np.exp(model.ln_flux(params)), jacobian, hidden, hidden_slope)


def network_curvature(model: FluxModel, at: Flux, adjoint: Float64) -> Float64:
    """Second derivatives of the network, contracted: sum_j adjoint_j d^2 ln f_j / dTheta dTheta.

    Only the tanh curve. Going backwards, each unit adds (its adjoint) tanh''(z) z'_a z'_b, tanh'' = -2 h (1 - h^2).

    Parameters
    ----------
    adjoint : (n, m) float64

    Returns
    -------
    (n, n_inputs, n_inputs) float64
    """
    inputs = model.n_inputs
    curvature = np.zeros((len(adjoint), inputs, inputs))
    for layer in reversed(range(len(at.hidden))):
        value, slope = at.hidden[layer], at.hidden_slope[layer]
        adjoint = adjoint @ model.weights[layer + 1].T
        bend = adjoint * -2.0 * value * (1.0 - value**2)
        curvature += np.einsum("nu,nua,nub->nab", bend, slope, slope)
        adjoint = adjoint * (1.0 - value**2)
    return curvature


def ln_prior_derivatives(prior: TypePrior, theta: Float64) -> tuple[Float64, Float64, Float64, Float64]:
    """The normalised mixture density: ln p, its gradient and Hessian, and the Hessian's definite part.

    With responsibilities r_k and q_k = P_k (theta - mu_k), P_k the precisions::

        grad ln p = -sum r q =: -g,    Hess ln p = -sum r P + sum r q q^T - g g^T

    Returns
    -------
    ln_density : (n,)
    gradient : (n, d)
    hessian : (n, d, d)
    definite : (n, d, d)
        -sum r P alone: negative definite everywhere.
    """
    ln_components = prior.ln_components(theta)
    ln_density = np.logaddexp.reduce(ln_components, axis=1)
    responsibility = np.exp(ln_components - ln_density[:, None])
    pull = np.einsum("kij,nkj->nki", prior.precisions, theta[:, None, :] - prior.means)
    gradient = -np.einsum("nk,nki->ni", responsibility, pull)
    definite = -np.einsum("nk,kij->nij", responsibility, prior.precisions)
    spread = np.einsum("nk,nki,nkj->nij", responsibility, pull, pull)
    hessian = definite + spread - gradient[:, :, None] * gradient[:, None, :]
    return ln_density, gradient, hessian, definite


@dataclass
class Loss:
    """The star loss of n stars at linear parameters ``params``; derivatives in y.

    Attributes
    ----------
    params : (n, k)
    flux : (n, m)
    loss, chi2, ln_prior : (n,)
    gradient : (n, k)
    hessian : (n, k, k)
        Exact.
    normal : (n, k, k)
        The Hessian without second derivatives of the flux and without what could make it indefinite: the matrix of
        a Gauss-Newton step.
    fisher : (n, k, k)
        In the linear parameters.
    """

    params: Float64
    flux: Float64
    loss: Float64
    chi2: Float64
    ln_prior: Float64
    gradient: Float64
    hessian: Float64
    normal: Float64
    fisher: Float64

    def in_x(self) -> Evaluation:
        """The same with derivatives in x = (Theta, ln ext, ln plx).

        ::

            d/d ln E = E d/dE,    d^2/d ln E^2 = E^2 d^2/dE^2 + E d/dE
        """
        ext = self.params[:, -2]
        scale = np.ones_like(self.params)
        scale[:, -2] = ext
        hessian = self.hessian * scale[:, :, None] * scale[:, None, :]
        hessian[:, -2, -2] += ext * self.gradient[:, -2]
        return Evaluation(
            loss=self.loss,
            chi2=self.chi2,
            ln_prior=self.ln_prior,
            gradient=self.gradient * scale,
            hessian=hessian,
            fisher=self.fisher,
        )


def star_loss(model: FluxModel, prior: TypePrior, stars: StarData, params: Float64, terms: LossTerms) -> Loss:
    """Eq. 19 (or 13-14, by ``terms``) at linear parameters (n, k).

    ::

        |G^-1 (f - f_obs)|^2 + sum_v ((v - mean_v) / sigma_v)^2 - 2 ln p(Theta) - 2 ln plx - 2 ln ext
    """
    inputs = model.n_inputs
    ext, plx = params[:, -2], params[:, -1]
    at = flux_and_jacobian(model, params)

    # chi^2: with w = C^-1 (f - f_obs), its Hessian is 2 J^T C^-1 J + 2 sum_j w_j d^2 f_j,
    # and d^2 f = f (d ln f d ln f^T + d^2 ln f)
    factor = unpack_factor(stars.whitener)
    jacobian = at.flux[:, :, None] * at.jacobian
    whitened = forward_substitute(factor, np.dstack([at.flux - stars.flux.astype(np.float64), jacobian]))
    residual, tangents = whitened[:, :, 0], whitened[:, :, 1:]
    chi2 = np.einsum("nj,nj->n", residual, residual)
    gradient = 2.0 * np.einsum("nja,nj->na", tangents, residual)
    gauss_newton = np.einsum("nja,njb->nab", tangents, tangents)
    weighted = back_substitute(factor, residual) * at.flux
    bend = np.einsum("nj,nja,njb->nab", weighted, at.jacobian, at.jacobian)
    bend[:, :inputs, :inputs] += network_curvature(model, at, weighted)
    hessian, normal = 2.0 * (gauss_newton + bend), 2.0 * gauss_newton
    loss = chi2.copy()

    # Gaussian constraints on the linear parameters, plx through plx = exp(y): v' = v'' = plx
    slope = np.ones_like(params)
    slope[:, -1] = plx
    precision = 1.0 / stars.sigma**2
    pull = precision * (params - stars.mean)
    loss += np.einsum("na,na->n", pull, params - stars.mean)
    gradient += 2.0 * pull * slope
    _add_diagonal(normal, 2.0 * precision * slope**2)
    _add_diagonal(hessian, 2.0 * precision * slope**2)
    hessian[:, -1, -1] += 2.0 * pull[:, -1] * plx

    ln_prior, prior_gradient, prior_hessian, prior_definite = ln_prior_derivatives(prior, params[:, :inputs])
    if terms.prior:
        loss -= 2.0 * ln_prior
        gradient[:, :inputs] -= 2.0 * prior_gradient
        hessian[:, :inputs, :inputs] -= 2.0 * prior_hessian
        normal[:, :inputs, :inputs] -= 2.0 * prior_definite
    if terms.jacobian_plx:
        loss -= 2.0 * np.log(plx)
        gradient[:, -1] -= 2.0
    if terms.jacobian_ext:
        loss -= 2.0 * np.log(ext)
        gradient[:, -2] -= 2.0 / ext
        hessian[:, -2, -2] += 2.0 / ext**2
        normal[:, -2, -2] += 2.0 / ext**2

    fisher = gauss_newton / (slope[:, :, None] * slope[:, None, :])
    _add_diagonal(fisher, precision)
    hessian, normal, fisher = (0.5 * (matrix + matrix.swapaxes(1, 2)) for matrix in (hessian, normal, fisher))
    return Loss(params, at.flux, loss, chi2, ln_prior, gradient, hessian, normal, fisher)


def back_substitute(factor: Float64, rhs: Float64) -> Float64:
    """G^-T rhs, (n, m), from factors as :func:`xpkern.engine.packed.unpack_factor` returns them and rhs (n, m)."""
    solution = np.zeros_like(rhs)
    for j in reversed(range(factor.shape[1])):
        known = np.einsum("ni,ni->n", factor[:, j + 1 :, j], solution[:, j + 1 :])
        solution[:, j] = (rhs[:, j] - known) * factor[:, j, j]
    return solution


def _add_diagonal(matrix: Float64, diagonal: Float64) -> None:
    """In place."""
    np.einsum("naa->na", matrix)[:] += diagonal
