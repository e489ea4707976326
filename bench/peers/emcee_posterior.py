"""The posterior of one star by emcee, an ensemble that walks in the parameters themselves: the usual way."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

import xpkern as xk
from xpkern.engine import Engine
from xpkern.engine.contract import Box, Float64, StarData
from xpkern.fit.posterior_result import LEVELS
from xpkern.fit.sightline_prior import SightlinePrior
from xpkern.observe.whiteners import dense_whitener

#: Walkers, steps, and the share of these that is given up until the walkers have spread.
WALKERS, STEPS, BURN_IN = 64, 4000, 0.25


@dataclass(frozen=True)
class EnsembleSamples:
    """What the ensemble found of one star.

    Attributes
    ----------
    interval : (3, 5) float64
        Quantiles at 15.87, 50, 84.13 % of the linear parameters.
    effective : float
        Samples over the mean integrated autocorrelation time of the parameters.
    seconds : float
        CPU time.
    """

    interval: Float64
    effective: float
    seconds: float


class NaturalDensity:
    """ln of a star's posterior in x = (teff, feh, logg, ext, ln plx), written down once more, from the formula.

    Where the model's scale is theoretical there is one more coordinate, ln of the parallax that the spectrum shows.

    Parameters
    ----------
    engine : Engine
        That predicts fluxes.
    model : FluxModel
    prior : TypePrior
    sightline : SightlinePrior
    box : Box
    star : StarData
        One row, under the covariance that the posterior has.
    """

    def __init__(
        self,
        engine: Engine,
        model: xk.FluxModel,
        prior: xk.TypePrior,
        sightline: SightlinePrior,
        box: Box,
        star: StarData,
    ) -> None:
        self.engine, self.model, self.prior, self.sightline, self.box = engine, model, prior, sightline, box
        self.whitener = dense_whitener(star.whitener)[0]
        self.flux = self.whitener @ star.flux[0].astype(np.float64)
        self.plx, self.plx_err = star.mean[0, -1], star.sigma[0, -1]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.model.n_parameters + (self.model.scale_sigma > 0)

    def __call__(self, x: Float64) -> Float64:
        """Return ln density (n,), -inf outside the box, at points (n, d)."""
        k = self.model.n_parameters
        params, shown = x[:, :k].copy(), x[:, :k].copy()
        params[:, -1], shown[:, -1] = np.exp(x[:, k - 1]), np.exp(x[:, -1])
        inside = np.ones(len(x), bool)
        for each in (params, shown):
            inside &= ((each >= self.box.lower) & (each <= self.box.upper)).all(axis=1)
        height = np.full(len(x), -np.inf)
        if inside.any():
            height[inside] = self._inside(params[inside], shown[inside])
        return height

    def _inside(self, params: Float64, shown: Float64) -> Float64:
        residual = self.engine.predict(self.model, shown, threads=1) @ self.whitener.T - self.flux
        height = -0.5 * np.square(residual).sum(axis=1) - 0.5 * ((params[:, -1] - self.plx) / self.plx_err) ** 2
        height += self.prior.ln_density(params[:, :-2]) + np.log(params[:, -1])
        height += self.sightline.ln_density(params[:, -2], params[:, -1], self.box)
        if self.model.scale_sigma > 0:
            height -= 0.5 * (2.0 * np.log(shown[:, -1] / params[:, -1]) / self.model.scale_sigma) ** 2
        return height

    def near(self, params: Float64, covariance: Float64, n: int, rng: np.random.Generator) -> Float64:
        """Draw starting points (n, d) around an optimum, the parallax of the spectrum one that suits the flux."""
        lower, upper = self.box.lower, self.box.upper
        margin = 1e-6 * (upper - lower)
        drawn = rng.multivariate_normal(params, covariance, n)
        drawn[:, -2:] = np.abs(drawn[:, -2:])
        drawn = np.clip(drawn, lower + margin * rng.uniform(1.0, 2.0, drawn.shape), upper - margin)
        unit = drawn.copy()
        unit[:, -1] = 1.0
        shape = self.engine.predict(self.model, unit, threads=1) @ self.whitener.T
        least = 1e-3 * np.linalg.norm(shape, axis=1) * np.linalg.norm(self.flux)
        area = np.maximum(shape @ self.flux, least) / np.square(shape).sum(axis=1)
        ln_shown = 0.5 * np.log(area) + 0.002 * rng.standard_normal(n)
        ln_shown = np.clip(ln_shown, np.log(lower[-1]) + 1e-6, np.log(upper[-1]) - 1e-6)
        if self.size == drawn.shape[1]:
            return np.column_stack([drawn[:, :-1], ln_shown])
        return np.column_stack([drawn[:, :-1], np.log(drawn[:, -1]), ln_shown])


def emcee_samples(density: NaturalDensity, params: Float64, covariance: Float64, seed: int) -> EnsembleSamples:
    """Sample a star; the walkers begin around its optimum, by its Fisher errors.

    Raises
    ------
    ImportError
        If emcee is not installed.
    """
    import emcee

    rng = np.random.default_rng(seed)
    start = density.near(params, covariance, WALKERS, rng)
    began = time.process_time()
    sampler = emcee.EnsembleSampler(WALKERS, density.size, density, vectorize=True)
    sampler.random_state = np.random.RandomState(seed).get_state()
    sampler.run_mcmc(start, STEPS)
    chain = sampler.get_chain(discard=int(BURN_IN * STEPS))
    seconds = time.process_time() - began
    tau = emcee.autocorr.integrated_time(chain, tol=0, quiet=True)[: density.model.n_parameters]
    flat = chain.reshape(-1, density.size)[:, : density.model.n_parameters]
    flat[:, -1] = np.exp(flat[:, -1])
    return EnsembleSamples(np.quantile(flat, LEVELS, axis=0), float(len(flat) / tau.mean()), seconds)
