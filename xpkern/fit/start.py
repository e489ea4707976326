"""Where the search for the optimum starts: stellar types all over the prior, their spectra linearised in ln flux.

In ln flux the model is linear in extinction and ln parallax, and close to a stellar type of the grid nearly so in the
type: ln f = mean + basis @ x, with x = position + slope @ (Theta - type) + (ext, ln plx) in its first two entries.
For each type the best extinction, parallax and displacement are then one small linear problem with the star's full
covariance; :class:`xpkern.engine.contract.Engine` says what an engine makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from xpkern.engine.contract import Float64
from xpkern.engine.reference_loss import ln_prior_derivatives
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior

#: Stellar types of the grid. Of 2,048 mock stars 98.5 % ended in the best optimum from the best of 64 types, and no
#: more from that of 128.
N_TYPES = 64

#: Spectra that the differences between types are made of: 12 leave 0.3 % of the flux; with 8, the best optimum is
#: missed by half as many stars again.
N_BASIS = 12

#: Columns of the basis: extinction, ln parallax, spectra.
N_COLUMNS = 2 + N_BASIS

#: A slope counts in the choice of the basis as much as the difference in flux over this step [kK, dex, dex].
_SLOPE_STEP = 0.15

#: A type stands for its surroundings up to this distance in each of (teff [kK], feh, logg).
REACH = 0.6

#: Starts of one star differ by more than this in at least one of (teff [kK], feh, logg).
APART = 0.35

#: XP samples to each side that a sample is compared with when its own noise hides its flux.
_NEIGHBOURS = 2

#: Samples redward of this [nm] are photometric bands, which have no neighbours.
_LAST_XP_WAVELENGTH = 1050.0

#: Draws from the prior for each type, and rounds of k-means: enough for cells that hardly move any more.
_DRAWS_PER_TYPE, _ROUNDS = 128, 20

#: Step of the central differences of ln flux, in kK and dex.
_DIFFERENCE = 1e-4


@dataclass(frozen=True, eq=False)
class StartGrid:
    """Stellar types and what is known of their spectra.

    Attributes
    ----------
    types : (t, d) float64
    ln_prior : (t,) float64
        Normalised density of the type.
    prior_gradient : (t, d) float64
        Of ``ln_prior``.
    prior_precision : (t, d, d) float64
        Definite part of minus its Hessian.
    mean : (m,) float64
        Mean of ln flux over the types, at ext = 0 and plx = 1 mas.
    basis : (m, c) float64
        What ln flux responds to: ext, ln plx and spectra; columns of zeros where ``m`` leaves no room for more.
    inverse : (c, m) float64
        Its pseudo-inverse.
    position : (t, c) float64
        ``basis @ position`` is the type's ln flux less the mean.
    slope : (t, c, d) float64
        ``basis @ slope`` is its derivative.
    window : (m, 2) int32
        First sample, and one beyond the last, of those whose mean a noisy sample is compared with.
    reach : (d,) float64
        How far from a type its surroundings extend.
    apart : (d,) float64
        Starts of one star differ by more than this in at least one of the network's inputs.
    """

    types: Float64
    ln_prior: Float64
    prior_gradient: Float64
    prior_precision: Float64
    mean: Float64
    basis: Float64
    inverse: Float64
    position: Float64
    slope: Float64
    window: NDArray[np.int32]
    reach: Float64
    apart: Float64

    def __len__(self) -> int:
        return len(self.types)

    @property
    def n_parameters(self) -> int:
        """Stellar parameters: the type's coordinates, extinction and parallax."""
        return self.types.shape[1] + 2


@lru_cache(maxsize=8)
def start_grid(model: FluxModel, prior: TypePrior, n_types: int = N_TYPES) -> StartGrid:
    """Stellar types spread over the prior; the grids of the last few models are kept.

    Parameters
    ----------
    model : FluxModel
    prior : TypePrior
    n_types : int

    Returns
    -------
    StartGrid
    """
    with threadpool_limits(1):  # matrices so small that threads of BLAS would only wait for one another
        types = _spread_types(prior, n_types)
        spectra, slopes = _ln_flux(model, types), _ln_flux_slopes(model, types)
        mean = spectra.mean(axis=0)
        basis = _basis(model, np.concatenate([spectra - mean, *(_SLOPE_STEP * slopes.transpose(2, 0, 1))]))
        inverse: Float64 = np.linalg.pinv(basis).astype(np.float64)
    ln_prior, gradient, _, definite = ln_prior_derivatives(prior, types)
    return StartGrid(
        types=types,
        ln_prior=ln_prior,
        prior_gradient=gradient,
        prior_precision=-definite,
        mean=mean,
        basis=basis,
        inverse=inverse,
        position=(spectra - mean) @ inverse.T,
        slope=np.einsum("ci,tid->tcd", inverse, slopes),
        window=_windows(model.wavelength),
        reach=np.full(model.n_inputs, REACH),
        apart=np.full(model.n_inputs, APART),
    )


@lru_cache(maxsize=8)
def _spread_types(prior: TypePrior, n_types: int) -> Float64:
    """Centres of cells that share the prior's mass: k-means on draws with a fixed seed."""
    draws = prior.sample(_DRAWS_PER_TYPE * n_types, np.random.default_rng(0))
    unit = draws.std(axis=0)
    draws /= unit
    centres = draws[:n_types].copy()
    doubled = 2.0 * draws
    distance = np.empty((len(draws), n_types))  # squared, less the draw's own square; memory kept from round to round
    for _ in range(_ROUNDS):
        np.matmul(doubled, centres.T, out=distance)
        nearest = np.subtract(np.square(centres).sum(axis=1), distance, out=distance).argmin(axis=1)
        stars = np.bincount(nearest, minlength=n_types)
        sums = np.column_stack([np.bincount(nearest, column, n_types) for column in draws.T])
        centres[stars > 0] = sums[stars > 0] / stars[stars > 0, None]
    return centres * unit


def _ln_flux(model: FluxModel, types: Float64) -> Float64:
    """Of types at ext = 0 and plx = 1 mas, (t, m)."""
    params = np.ones((len(types), model.n_parameters))
    params[:, : model.n_inputs] = types
    params[:, -2] = 0.0
    return model.ln_flux(params)


def _ln_flux_slopes(model: FluxModel, types: Float64) -> Float64:
    """Derivatives of ln flux in the type, (t, m, d), by central differences."""
    steps = _DIFFERENCE * np.eye(model.n_inputs)
    pairs = [(_ln_flux(model, types + step), _ln_flux(model, types - step)) for step in steps]
    return np.stack([(above - below) / (2.0 * _DIFFERENCE) for above, below in pairs], axis=2)


def _basis(model: FluxModel, differences: Float64) -> Float64:
    """Response to ext and ln plx, and the principal components of what these leave of differences (s, m)."""
    response = np.column_stack([-model.ext_curve, np.full(model.n_samples, 2.0)])
    unit, _ = np.linalg.qr(response)
    left = differences - differences @ unit @ unit.T
    _, _, components = np.linalg.svd(left, full_matrices=False)
    room = min(N_BASIS, max(model.n_samples - 2, 0))
    basis = np.zeros((model.n_samples, N_COLUMNS))
    basis[:, :2] = response
    basis[:, 2 : 2 + room] = components[:room].T
    return basis


def _windows(wavelength: Float64) -> NDArray[np.int32]:
    spectrum = np.flatnonzero(wavelength < _LAST_XP_WAVELENGTH)
    windows = np.column_stack([np.arange(len(wavelength)), np.arange(1, len(wavelength) + 1)])
    if len(spectrum):
        windows[spectrum, 0] = np.maximum(spectrum - _NEIGHBOURS, spectrum[0])
        windows[spectrum, 1] = np.minimum(spectrum + _NEIGHBOURS, spectrum[-1]) + 1
    return windows.astype(np.int32)
