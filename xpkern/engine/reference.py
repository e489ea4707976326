"""The engine that specifies the others: NumPy, float64, readable, unhurried."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from xpkern.engine.contract import (
    Box,
    Calibrated,
    Coefficients,
    Descent,
    Evaluation,
    FitOptions,
    Float32,
    Float64,
    FrozenNoise,
    Int64,
    LossTerms,
    Solution,
    StarData,
)
from xpkern.engine.packed import (
    pack_factor,
    packed_size,
    present_samples,
    sample_variance,
)
from xpkern.engine.reference_descent import best_candidates, descend
from xpkern.engine.reference_fit import Optimum, minimise
from xpkern.engine.reference_loss import ln_prior_derivatives, star_loss
from xpkern.engine.reference_noise import freeze_noise
from xpkern.engine.reference_start import starts_from_grid
from xpkern.engine.reference_train import model_loss, train_epoch
from xpkern.engine.training import EpochResult, ModelMoments, Steps
from xpkern.fit.candidates import CandidateGrid
from xpkern.fit.covariance import invert_information
from xpkern.fit.start import StartGrid
from xpkern.model.flux_model import FluxModel
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior
from xpkern.observe.calibration import Calibration
from xpkern.status import Status

if TYPE_CHECKING:
    from xpkern.engine.groups import GroupedStars

#: Stars at a time; dense matrices of 66 x 66 then stay within tens of megabytes.
_BLOCK = 512

#: Two searches have ended in the same minimum if no coordinate differs by more: kK, dex, ln plx; ext.
SAME_MINIMUM, SAME_MINIMUM_EXT = 0.02, 0.01


class ReferenceEngine:
    """See :class:`xpkern.engine.contract.Engine`. ``threads`` is accepted and ignored."""

    name = "reference"

    def calibrate(
        self,
        calibration: Calibration,
        coefficients: Coefficients,
        noise: Noise,
        photometry_flux: Float64,
        photometry_error: Float64,
        *,
        threads: int | None = None,
    ) -> Calibrated:
        """Flux and whitener from coefficients (Eqs. 2-4); bands (n, 5) with error inf are missing."""
        stars, bands = photometry_flux.shape
        samples = calibration.wavelength.size + bands
        result = Calibrated(
            flux=np.zeros((stars, samples), np.float32),
            whitener=np.zeros((stars, packed_size(samples)), np.float32),
            status=np.zeros(stars, np.uint32),
        )
        for first in range(0, stars, _BLOCK):
            block = slice(first, first + _BLOCK)
            flux, covariance, present = _flux_and_covariance(
                calibration, coefficients, block, noise, photometry_flux[block], photometry_error[block]
            )
            result.flux[block] = np.where(present, flux, 0.0)
            result.status[block][~present.any(axis=1)] |= np.uint32(Status.NO_DATA)
            patterns, pattern_of_star = np.unique(present, axis=0, return_inverse=True)
            for index, pattern in enumerate(patterns):
                if not pattern.any():
                    continue
                rows = np.flatnonzero(pattern_of_star.reshape(-1) == index)
                spectrum = int(pattern[: calibration.wavelength.size].sum())
                kept = covariance[np.ix_(rows, pattern, pattern)]
                factor, status = _floored_factor(kept, spectrum, noise.floor)
                full = np.zeros((len(rows), samples, samples))
                full[np.ix_(np.arange(len(rows)), pattern, pattern)] = factor
                usable = (status & np.uint32(Status.SINGULAR_COVARIANCE)) == 0
                result.whitener[first + rows] = pack_factor(full, pattern & usable[:, None])
                result.status[first + rows] |= status
        return result

    def freeze_noise(
        self,
        model: FluxModel,
        noise: Noise,
        stars: StarData,
        contained: Noise | None,
        params: Float64,
        *,
        threads: int | None = None,
    ) -> FrozenNoise:
        """Whiteners of C = (f f^T) o S(Theta) + archive_factor C_gaia, f and S those of linear parameters (n, k)."""
        blocks = [
            freeze_noise(model, noise, stars[first : first + _BLOCK], contained, params[first : first + _BLOCK])
            for first in range(0, max(len(stars), 1), _BLOCK)
        ]
        return FrozenNoise(
            whitener=np.concatenate([block.whitener for block in blocks]),
            ln_det=np.concatenate([block.ln_det for block in blocks]),
        )

    def prior_curvature(self, prior: TypePrior, theta: Float64, *, threads: int | None = None) -> Float64:
        """Minus the Hessian of ln p_GMM, (n, d, d), at stellar types (n, d)."""
        curvature = -ln_prior_derivatives(prior, np.asarray(theta, np.float64))[2]
        return 0.5 * (curvature + curvature.swapaxes(1, 2))

    def predict(self, model: FluxModel, params: Float64, *, threads: int | None = None) -> Float64:
        """Flux (n, m) of linear parameters (n, k) (Eq. 8)."""
        return np.exp(model.ln_flux(params))

    def evaluate(
        self,
        model: FluxModel,
        prior: TypePrior,
        stars: StarData,
        params: Float64,
        terms: LossTerms,
        *,
        threads: int | None = None,
    ) -> Evaluation:
        """Loss, gradient, Hessian and Fisher matrix at linear parameters (n, k)."""
        blocks = [
            star_loss(model, prior, stars[first : first + _BLOCK], params[first : first + _BLOCK], terms).in_x()
            for first in range(0, max(len(stars), 1), _BLOCK)
        ]
        return Evaluation(
            **{
                field.name: np.concatenate([getattr(block, field.name) for block in blocks])
                for field in fields(Evaluation)
            }
        )

    def start(self, grid: StartGrid, stars: StarData, options: FitOptions, *, threads: int | None = None) -> Float64:
        """Starts of each star, best first, as linear parameters (n, starts, k); NaN where it has fewer."""
        blocks = [
            starts_from_grid(grid, stars[first : first + _BLOCK], options)
            for first in range(0, max(len(stars), 1), _BLOCK)
        ]
        return np.concatenate(blocks)

    def fit(
        self,
        model: FluxModel,
        prior: TypePrior,
        stars: StarData,
        start: StartGrid | Float64,
        terms: LossTerms,
        box: Box,
        options: FitOptions,
        *,
        threads: int | None = None,
    ) -> Solution:
        """Lowest optimum of the star loss from the starts of a grid, or that from given parameters (n, k)."""
        starts = self.start(start, stars, options) if isinstance(start, StartGrid) else start[:, None]
        solution = _unfitted(len(stars), model)
        seen = present_samples(stars.whitener).any(axis=1)
        found: list[Solution] = []
        for choice in range(starts.shape[1]):
            found.append(_unfitted(len(stars), model))
            searched = np.flatnonzero(seen & np.isfinite(starts[:, choice]).all(axis=1))
            for rows in np.array_split(searched, max(1, -(-len(searched) // _BLOCK))):
                optimum = minimise(model, prior, stars[rows], starts[rows, choice], terms, box, options)
                _record(optimum, stars[rows], rows, found[-1])
        return _lowest(found, solution)

    def invert_information(
        self, information: Float64, *, threads: int | None = None
    ) -> tuple[Float64, Float64, np.ndarray]:
        """Covariances (n, k, k) of information matrices such as Fisher's, their inverses, where the floor acted (n,).

        See :func:`xpkern.fit.covariance.invert_information`.
        """
        return invert_information(information)

    def search(self, grid: CandidateGrid, stars: StarData, *, threads: int | None = None) -> Float64:
        """Candidate of each star with the lowest score, as linear parameters (n, k); the first of equal ones."""
        return best_candidates(grid, stars)

    def descend(
        self,
        model: FluxModel,
        prior: TypePrior,
        stars: StarData,
        start: Float64,
        terms: LossTerms,
        box: Box,
        descent: Descent,
        *,
        threads: int | None = None,
    ) -> Float64:
        """Linear parameters (n, k) where first-order steps from given ones end; each step is clamped to the box."""
        return descend(model, prior, stars, start, terms, box, descent)

    def train_step(
        self, model: FluxModel, stars: StarData, params: Float64, *, threads: int | None = None
    ) -> tuple[float, list[Float64], list[Float64], Float64]:
        """Eq. 12 averaged over the stars, and its gradient in weights, biases and ln R."""
        at = model_loss(model, stars, params)
        return at.loss, at.gradient.weights, at.gradient.biases, at.gradient.ln_ext_curve

    def train_epoch(
        self,
        model: FluxModel,
        stars: StarData | GroupedStars,
        params: Float64,
        batches: Int64,
        terms: LossTerms,
        box: Box,
        model_steps: Steps | None,
        star_steps: Steps | None,
        moments: ModelMoments | None,
        *,
        threads: int | None = None,
    ) -> EpochResult:
        """First-order steps of the model and of the stars, batch by batch (Section 3.2 of the paper)."""
        return train_epoch(model, stars, params, batches, terms, box, model_steps, star_steps, moments)


def _coefficient_covariance(error: Float32, correlation: Float32, deviation: Float32, convention: str) -> Float64:
    """Sigma = diag(e) rho diag(e), over s^2 if ZGR23's reading is asked for; (n, n_coefficients, n_coefficients)."""
    size = error.shape[1]
    rho = np.zeros((len(error), size, size))
    rho[(slice(None), *np.tril_indices(size, -1))] = correlation
    rho += rho.swapaxes(1, 2) + np.eye(size)
    scaled = error.astype(np.float64)
    if convention == "zgr23":
        scaled = scaled / deviation.astype(np.float64)[:, None]
    return scaled[:, :, None] * rho * scaled[:, None, :]


def _flux_and_covariance(
    calibration: Calibration,
    coefficients: Coefficients,
    block: slice,
    noise: Noise,
    photometry_flux: Float64,
    photometry_error: Float64,
) -> tuple[Float64, Float64, np.ndarray]:
    """Flux (n, m), C (n, m, m) of Eq. 2 and which samples exist (n, m); rows of the others hold anything finite."""
    spectrum = calibration.wavelength.size
    stars, bands = photometry_flux.shape
    sides = (
        (calibration.bp_design, "bp", noise.bp),
        (calibration.rp_design, "rp", noise.rp),
    )
    present = np.ones((stars, spectrum + bands), bool)
    flux = np.zeros((stars, spectrum + bands))
    covariance = np.zeros((stars, spectrum + bands, spectrum + bands))
    of_spectrum = covariance[:, :spectrum, :spectrum]
    for design, side, common_error in sides:
        exists = getattr(coefficients, f"has_{side}")[block]
        # a sample the side contributes to is missing without it: at 642 nm, where they meet, either will do
        present[:, :spectrum] &= exists[:, None] | ~design.any(axis=1)
        side_flux = np.where(exists[:, None], getattr(coefficients, side)[block] @ design.T, 0.0)
        sigma = _coefficient_covariance(
            getattr(coefficients, f"{side}_error")[block],
            getattr(coefficients, f"{side}_correlation")[block],
            np.where(exists, getattr(coefficients, f"{side}_standard_deviation")[block], np.float32(1)),
            noise.sigma,
        )
        flux[:, :spectrum] += side_flux
        of_spectrum += np.where(exists[:, None, None], design @ sigma @ design.T, 0.0)
        of_spectrum += common_error**2 * side_flux[:, :, None] * side_flux[:, None, :]
    of_spectrum += noise.common**2 * flux[:, :spectrum, None] * flux[:, None, :spectrum]

    measured = np.isfinite(photometry_error)
    present[:, spectrum:] = measured
    flux[:, spectrum:] = np.where(measured, photometry_flux, 0.0)
    diagonal = np.einsum("njj->nj", covariance)
    diagonal[:, spectrum:] += np.where(measured, photometry_error, 0.0) ** 2
    diagonal += (noise.independent * flux) ** 2
    return flux, covariance, present


def _floored_factor(covariance: Float64, spectrum: int, floor: float) -> tuple[Float64, np.ndarray]:
    """Cholesky factors of C (n, m, m) whose leading block of ``spectrum`` XP samples has no eigenvalue below a floor.

    The smallest eigenvalue of that block is at least 1 / |G^-1|_F^2 (G its factor): where this certificate exceeds
    the floor, no eigendecomposition is needed. Elsewhere eigenvalues are raised to the floor, C is put together
    again and factorised once more.

    Returns
    -------
    factor : (n, m, m)
        Zeros where there is none.
    status : (n,) uint32
    """
    status = np.zeros(len(covariance), np.uint32)
    factor, positive = _cholesky(covariance)
    inverse = np.linalg.inv(np.where(positive[:, None, None], factor, np.eye(factor.shape[1])))
    norm = (inverse[:, :spectrum, :spectrum] ** 2).sum(axis=(1, 2))
    certain = positive & (norm * floor < 1.0)
    for star in np.flatnonzero(~certain):
        block = covariance[star, :spectrum, :spectrum]
        if np.isfinite(covariance[star]).all():
            values, vectors = np.linalg.eigh(block)
            if not positive[star] or values.min(initial=np.inf) < floor:
                raised = covariance[star].copy()
                raised[:spectrum, :spectrum] = (vectors * np.maximum(values, floor)) @ vectors.T
                factor[star : star + 1], positive[star : star + 1] = _cholesky(raised[None])
                status[star] |= np.uint32(Status.EIGENVALUE_FLOORED)
    status[~positive] = np.uint32(Status.SINGULAR_COVARIANCE)
    return factor, status


def _cholesky(covariance: Float64) -> tuple[Float64, np.ndarray]:
    """Factors (n, m, m), zeros where a matrix is not positive definite, and where it is (n,) bool."""
    factor = np.zeros_like(covariance)
    positive = np.all(np.isfinite(covariance), axis=(1, 2))
    for star in np.flatnonzero(positive):
        try:
            factor[star] = np.linalg.cholesky(covariance[star])
        except np.linalg.LinAlgError:
            positive[star] = False
    return factor, positive


def _record(optimum: Optimum, stars: StarData, rows: np.ndarray, solution: Solution) -> None:
    """Enter where some stars' searches ended into the rows of a solution."""
    evaluation = optimum.loss.in_x()
    for name in ("loss", "chi2", "ln_prior", "gradient", "hessian", "fisher"):
        getattr(solution, name)[rows] = getattr(evaluation, name)
    solution.params[rows] = optimum.loss.params
    solution.decrement[rows] = optimum.decrement
    solution.iterations[rows] = optimum.iterations
    solution.status[rows] = optimum.status
    solution.minima[rows] = 1
    sigma = np.sqrt(sample_variance(stars.whitener))
    difference = optimum.loss.flux - stars.flux
    solution.residual[rows] = np.divide(difference, sigma, out=np.zeros_like(sigma), where=sigma > 0)


def _lowest(found: list[Solution], solution: Solution) -> Solution:
    """The lowest of several searches of each star, how many distinct minima they found, and the second lowest."""
    loss = np.array([np.where(np.isnan(search.loss), np.inf, search.loss) for search in found])
    best = loss.argmin(axis=0)
    for choice, search in enumerate(found):
        rows = best == choice
        for field in fields(Solution):
            getattr(solution, field.name)[rows] = getattr(search, field.name)[rows]
    solution.iterations[:] = sum(search.iterations for search in found)
    for star in np.flatnonzero(np.isfinite(loss).sum(axis=0) > 1):
        places = [found[best[star]].params[star]]
        for choice in loss[:, star].argsort(kind="stable"):
            search = found[choice]
            unconverged = search.status[star] & np.uint32(Status.NOT_CONVERGED | Status.NO_DATA)
            if unconverged or any(_same_place(search.params[star], place) for place in places):
                continue
            if len(places) == 1:
                solution.second_params[star] = search.params[star]
                solution.second_gap[star] = loss[choice, star] - loss[best[star], star]
            places.append(search.params[star])
        solution.minima[star] = len(places)
    return solution


def _same_place(a: Float64, b: Float64) -> bool:
    """Whether two optima, in linear parameters (k,), are the same minimum."""
    difference = np.abs(a - b)
    difference[-1] = abs(np.log(a[-1] / b[-1]))
    limit = np.full(len(a), SAME_MINIMUM)
    limit[-2] = SAME_MINIMUM_EXT
    return bool((difference <= limit).all())


def _unfitted(stars: int, model: FluxModel) -> Solution:
    """A solution in which no star has been fitted."""
    parameters = model.n_parameters

    def absent(*shape: int) -> Float64:
        return np.full((stars, *shape), np.nan)

    return Solution(
        loss=absent(),
        chi2=absent(),
        ln_prior=absent(),
        gradient=absent(parameters),
        hessian=absent(parameters, parameters),
        fisher=absent(parameters, parameters),
        params=absent(parameters),
        decrement=absent(),
        residual=np.zeros((stars, model.n_samples), np.float32),
        iterations=np.zeros(stars, np.int32),
        status=np.full(stars, Status.NO_DATA, np.uint32),
        minima=np.zeros(stars, np.int32),
        second_params=absent(parameters),
        second_gap=absent(),
    )
