"""The fit as fast as NumPy allows, one core, float32 matrix products through BLAS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import xpkern as xk

LN_2PI = float(np.log(2 * np.pi))


@dataclass
class NumpyFit:
    """The star loss (Eq. 19) and its minimum by Levenberg-Marquardt, all stars of a batch at once.

    Coordinates x = (teff, feh, logg, ln ext, ln plx). Matrix products are float32 through BLAS, small systems float64.
    """

    model: xk.FluxModel
    prior: xk.TypePrior
    max_iterations: int = 40
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        self.weights = [weight.astype(np.float32) for weight in self.model.weights]
        self.biases = [bias.astype(np.float32) for bias in self.model.biases]
        self.precision = np.linalg.inv(self.prior.covariances)
        _, log_determinant = np.linalg.slogdet(self.prior.covariances)
        self.log_weight = np.log(self.prior.weights) - 0.5 * log_determinant - 1.5 * LN_2PI

    def flux_and_slopes(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flux (n, 66) and its derivatives in x, (n, 66, 5); x: (n, 5)."""
        value = ((x[:, :3] - self.model.input_zp) / self.model.input_scale).astype(np.float32)
        slope = np.broadcast_to(np.diag(1 / self.model.input_scale).astype(np.float32), (len(x), 3, 3))
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            value, slope = value @ weight + bias, slope @ weight
            if layer < len(self.weights) - 1:
                value = np.tanh(value)
                slope = slope * (1 - value * value)[:, None, :]
        optical_depth = np.outer(np.exp(x[:, 3]), self.model.ext_curve)
        flux = np.exp(value - optical_depth + 2 * x[:, 4:])
        slopes = [*(flux[:, :, None] * slope.transpose(0, 2, 1)).transpose(2, 0, 1), -flux * optical_depth, 2 * flux]
        return flux, np.stack(slopes, axis=2)

    def prior_terms(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log prior (n,), its gradient (n, 3) and its mean precision (n, 3, 3); theta: (n, 3)."""
        difference = theta[:, None, :] - self.prior.means
        pulled = np.einsum("kij,nkj->nki", self.precision, difference)
        exponent = self.log_weight - 0.5 * np.einsum("nki,nki->nk", pulled, difference)
        top = exponent.max(axis=1, keepdims=True)
        share = np.exp(exponent - top)
        total = share.sum(axis=1, keepdims=True)
        share /= total
        gradient = -np.einsum("nk,nki->ni", share, pulled)
        return (top + np.log(total))[:, 0], gradient, np.einsum("nk,kij->nij", share, self.precision)

    def loss_and_derivatives(
        self, x: np.ndarray, flux: np.ndarray, whitener: np.ndarray, plx: np.ndarray, plx_err: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Loss (n,), gradient (n, 5) and Gauss-Newton Hessian (n, 5, 5)."""
        predicted, slopes = self.flux_and_slopes(x)
        columns = np.concatenate([slopes, (predicted - flux)[:, :, None]], axis=2).astype(np.float32)
        whitened = (whitener @ columns).astype(np.float64)
        normal = whitened.transpose(0, 2, 1) @ whitened
        ln_prior, prior_gradient, prior_curvature = self.prior_terms(x[:, :3])
        parallax = np.exp(x[:, 4])
        pull = (parallax - plx) / plx_err
        loss = normal[:, 5, 5] - 2 * ln_prior - 2 * x[:, 3] - 2 * x[:, 4] + pull**2
        gradient = 2 * normal[:, :5, 5]
        gradient[:, :3] -= 2 * prior_gradient
        gradient[:, 3:] -= 2
        gradient[:, 4] += 2 * pull * parallax / plx_err
        hessian = 2 * normal[:, :5, :5]
        hessian[:, :3, :3] += 2 * prior_curvature
        hessian[:, 3, 3] += 2
        hessian[:, 4, 4] += 2 * (parallax / plx_err) ** 2 + 2
        return loss, gradient, hessian

    def run(
        self,
        start: np.ndarray,
        flux: np.ndarray,
        whitener: np.ndarray,
        plx: np.ndarray,
        plx_err: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Minimise from linear parameters (n, 5); return the linear parameters and the loss."""
        x = start.copy()
        x[:, 3:] = np.log(x[:, 3:])
        data = (flux, whitener, plx, plx_err)
        loss, gradient, hessian = self.loss_and_derivatives(x, *data)
        damping = np.full(len(x), 1e-3)
        active = np.arange(len(x))
        for _ in range(self.max_iterations):
            curvature = hessian[active] * (1 + np.eye(5) * damping[active, None, None])
            step = -np.linalg.solve(curvature, gradient[active][:, :, None])[:, :, 0]
            step = np.clip(step, -1, 1)
            trial = x[active] + step
            tried = self.loss_and_derivatives(trial, *(part[active] for part in data))
            predicted_drop = -0.5 * np.einsum("ni,ni->n", gradient[active], step)
            better = tried[0] < loss[active]
            damping[active] = np.where(better, damping[active] * 0.2, damping[active] * 8)
            taken = active[better]
            x[taken] = trial[better]
            loss[taken], gradient[taken], hessian[taken] = (part[better] for part in tried)
            active = active[predicted_drop > self.tolerance * np.maximum(1, 0.01 * loss[active])]
            if not len(active):
                break
        x[:, 3:] = np.exp(x[:, 3:])
        return x, loss
