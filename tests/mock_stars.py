"""Random models and stars for the tests: new ones in every run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from xpkern.engine.contract import StarData
from xpkern.engine.packed import pack_factor
from xpkern.grid import BLOCKS, N_FLUX, N_XP, WAVELENGTH
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior


def random_model(
    rng: np.random.Generator, *, inputs: int = 3, hidden: Sequence[int] = (32, 32, 32), samples: int = N_FLUX
) -> FluxModel:
    """A network whose ln f varies by a few over the prior, as that of real stars does."""
    sizes = [inputs, *hidden, samples]
    weights = [rng.normal(0.0, 1.0 / np.sqrt(size), (size, width)) for size, width in pairwise(sizes)]
    biases = [rng.normal(0.0, 0.3, width) for width in sizes[1:]]
    wavelength = WAVELENGTH if samples == N_FLUX else np.linspace(392.0, 992.0, samples)
    return FluxModel.from_arrays(
        weights,
        biases,
        3.0 * (552.0 / wavelength) ** 1.3 * rng.uniform(0.9, 1.1, samples),
        [5.5, -0.3, 3.5, 0.1][:inputs],
        [1.2, 0.5, 1.2, 0.2][:inputs],
        wavelength,
    )


def random_prior(rng: np.random.Generator, *, inputs: int = 3, components: int = 5) -> TypePrior:
    """Overlapping components with correlations, none so narrow that finite differences fail."""
    roots = rng.normal(0.0, 0.3, (components, inputs, inputs)) + 0.5 * np.eye(inputs)
    return TypePrior.from_arrays(
        rng.dirichlet(np.full(components, 5.0)),
        np.array([5.5, -0.3, 3.5, 0.1])[:inputs] + rng.normal(0.0, 0.7, (components, inputs)),
        roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(inputs),
    )


def random_params(rng: np.random.Generator, prior: TypePrior, stars: int) -> np.ndarray:
    """Linear parameters (n, k): types from the prior, extinctions 0.03-1, parallaxes 0.3-3 mas."""
    theta = prior.sample(stars, rng)
    ext = np.exp(rng.uniform(np.log(0.03), 0.0, stars))
    plx = np.exp(rng.uniform(np.log(0.3), np.log(3.0), stars))
    return np.column_stack([theta, ext, plx])


def random_stars(
    rng: np.random.Generator,
    model: FluxModel,
    params: np.ndarray,
    *,
    snr: float = 50.0,
    missing: np.ndarray | None = None,
    parallax: bool = True,
    correlation: np.ndarray | None = None,
) -> StarData:
    """Stars observed with correlated noise of about ``snr`` per sample, and a parallax of 20 sigma.

    ``missing`` (n, m) marks samples that were not observed. ``correlation`` (m, m) is that of the noise, by default one
    of neighbouring samples.
    """
    flux = np.exp(model.ln_flux(params))
    stars, samples = flux.shape
    present = np.ones(flux.shape, bool) if missing is None else ~missing
    if correlation is None:  # neighbouring samples share noise, as Gaia's do
        smooth = np.exp(-0.5 * ((np.arange(samples)[:, None] - np.arange(samples)) / 1.5) ** 2)
        correlation = 0.8 * smooth + 0.2 * np.eye(samples)
    sigma = flux / snr * rng.uniform(0.7, 1.4, flux.shape)
    factor = np.zeros((stars, samples, samples))
    noise = np.zeros(flux.shape)
    for star in range(stars):
        kept = np.flatnonzero(present[star])
        covariance = correlation[np.ix_(kept, kept)] * np.outer(sigma[star, kept], sigma[star, kept])
        if len(kept):
            root = np.linalg.cholesky(covariance)
            factor[np.ix_([star], kept, kept)] = root
            noise[star, kept] = root @ rng.standard_normal(len(kept))
    mean, error = np.zeros(params.shape), np.full(params.shape, np.inf)
    if parallax:
        error[:, -1] = params[:, -1] / 20.0
        mean[:, -1] = params[:, -1] + error[:, -1] * rng.standard_normal(stars)
    return StarData(
        flux=np.where(present, flux + noise, 0.0).astype(np.float32),
        whitener=pack_factor(factor, present),
        mean=mean,
        sigma=error,
    )


def correlation_in_blocks() -> np.ndarray:
    """Correlation (m, m) of the form that Eq. 2 has: BP and RP, which share a sample, a common error, bands apart.

    Of ``sigma``, so that the covariance's common error is no multiple of the flux.
    """
    alone, leading, linked = BLOCKS
    correlation = np.eye(N_FLUX)
    for first, last in ((0, leading), (alone, linked)):
        apart = np.arange(last - first)
        correlation[first:last, first:last] += np.exp(-0.5 * ((apart[:, None] - apart) / 1.5) ** 2)
    correlation[:linked, :linked] += 0.7
    return correlation / 2.0


def infrared_missing(stars: int) -> np.ndarray:
    """Mask (n, 66): no infrared band at all."""
    missing = np.zeros((stars, N_FLUX), bool)
    missing[:, N_XP:] = True
    return missing


def some_bands_missing(rng: np.random.Generator, stars: int) -> np.ndarray:
    """Mask (n, 66): each infrared band missing in half of the stars."""
    missing = np.zeros((stars, N_FLUX), bool)
    missing[:, N_XP:] = rng.random((stars, N_FLUX - N_XP)) < 0.5
    return missing


def side_missing(stars: int, side: str) -> np.ndarray:
    """Mask (n, 66): BP or RP missing, with 642 nm, to which both contribute."""
    missing = np.zeros((stars, N_FLUX), bool)
    if side == "bp":
        missing[:, : int(np.searchsorted(WAVELENGTH, 642.0)) + 1] = True
    else:
        missing[:, int(np.searchsorted(WAVELENGTH, 642.0)) : N_XP] = True
    return missing


def assert_same(engine: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Whether two computations by one engine agree: to the last bit, as the design promises.

    Except in the reference engine, whose matrix products choose their order of summation by their size.
    """
    assert found.dtype == expected.dtype
    if engine == "reference":
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11 * scale)
    else:
        np.testing.assert_array_equal(found, expected)
