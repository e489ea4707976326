"""The compiled engine: the kernels of ``csrc`` on every core, with the best instruction set of this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from xpkern.engine import _cpu
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
from xpkern.engine.epoch import check_epoch
from xpkern.engine.groups import GroupedStars
from xpkern.engine.tables import contained_errors, grid_rows, learned_error, mixture
from xpkern.engine.training import EpochResult, ModelArrays, ModelMoments, Steps
from xpkern.errors import InputError, TrainingDiverged
from xpkern.fit.candidates import CandidateGrid
from xpkern.fit.start import StartGrid
from xpkern.grid import BLOCKS, N_FLUX
from xpkern.model.flux_model import FluxModel
from xpkern.model.model_error import ModelError
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior
from xpkern.observe.calibration import Calibration
from xpkern.threads import number_of_threads

#: Environment variable: the instruction set to use (for tests).
ISA_VARIABLE = "XPKERN_ISA"

Source = TypeVar("Source", FluxModel, TypePrior, StartGrid, CandidateGrid, ModelError)


class CpuEngine:
    """See :class:`xpkern.engine.contract.Engine`.

    Values and residuals are float64, slopes and whitening float32; stars that float32 steps cannot bring to
    convergence are finished in float64. Results do not depend on the number of threads, nor on the order of the stars.

    Parameters
    ----------
    instruction_set : str, optional
        One of :func:`instruction_sets`; the environment variable ``XPKERN_ISA`` or the best one when not given.

    Raises
    ------
    InputError
        If this machine cannot run that instruction set.
    """

    name = "cpu"

    def __init__(self, instruction_set: str | None = None) -> None:
        usable = instruction_sets()
        wanted = instruction_set or os.environ.get(ISA_VARIABLE) or usable[0]
        if wanted not in usable:
            raise InputError(f"{wanted!r} is not available here: this machine can run {', '.join(usable)}", field="isa")
        self.instruction_set = wanted

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
        flux, whitener, status = _cpu.calibrate(
            self.instruction_set,
            np.ascontiguousarray(calibration.bp_design),
            np.ascontiguousarray(calibration.rp_design),
            coefficients.bp,
            coefficients.rp,
            coefficients.bp_error,
            coefficients.rp_error,
            coefficients.bp_correlation,
            coefficients.rp_correlation,
            coefficients.bp_standard_deviation,
            coefficients.rp_standard_deviation,
            coefficients.has_bp,
            coefficients.has_rp,
            np.ascontiguousarray(photometry_flux, np.float64),
            np.ascontiguousarray(photometry_error, np.float64),
            np.ascontiguousarray(noise.independent),
            noise.common,
            noise.bp,
            noise.rp,
            noise.floor,
            noise.sigma == "zgr23",
            number_of_threads(threads),
        )
        return Calibrated(flux=flux, whitener=whitener, status=status)

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
        whitener, ln_det = _cpu.freeze_noise(
            self.instruction_set,
            _compiled(model, _compile_model),
            _compiled(learned_error(noise), _compile_model_error),
            *contained_errors(contained, model.wavelength),
            stars.flux,
            stars.whitener,
            _blocks(stars),
            np.ascontiguousarray(params, np.float64),
            number_of_threads(threads),
        )
        return FrozenNoise(whitener=whitener, ln_det=ln_det)

    def prior_curvature(self, prior: TypePrior, theta: Float64, *, threads: int | None = None) -> Float64:
        """Minus the Hessian of ln p_GMM, (n, d, d), at stellar types (n, d)."""
        return _cpu.prior_curvature(
            self.instruction_set,
            _compiled(prior, _compile_prior),
            np.ascontiguousarray(theta, np.float64),
            number_of_threads(threads),
        )

    def predict(self, model: FluxModel, params: Float64, *, threads: int | None = None) -> Float64:
        """Flux (n, m) of linear parameters (n, k) (Eq. 8)."""
        return _cpu.predict(
            self.instruction_set,
            _compiled(model, _compile_model),
            np.ascontiguousarray(params, np.float64),
            number_of_threads(threads),
        )

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
        return Evaluation(
            **_cpu.evaluate(
                self.instruction_set,
                _compiled(model, _compile_model),
                _compiled(prior, _compile_prior),
                stars.flux,
                stars.whitener,
                stars.mean,
                stars.sigma,
                np.ascontiguousarray(params, np.float64),
                asdict(terms),
                number_of_threads(threads),
            )
        )

    def start(self, grid: StartGrid, stars: StarData, options: FitOptions, *, threads: int | None = None) -> Float64:
        """Starts of each star, best first, as linear parameters (n, starts, k); NaN where it has fewer."""
        return _cpu.start(
            self.instruction_set,
            _compiled(grid, _compile_grid),
            stars.flux,
            stars.whitener,
            stars.mean,
            stars.sigma,
            options.starts,
            options.gate,
            number_of_threads(threads),
        )

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
        from_grid = isinstance(start, StartGrid)
        return Solution(
            **_cpu.fit(
                self.instruction_set,
                _compiled(model, _compile_model),
                _compiled(prior, _compile_prior),
                stars.flux,
                stars.whitener,
                stars.mean,
                stars.sigma,
                _blocks(stars),
                _compiled(start, _compile_grid) if isinstance(start, StartGrid) else None,
                None if from_grid else np.ascontiguousarray(start, np.float64),
                asdict(terms),
                np.ascontiguousarray(box.lower, np.float64),
                np.ascontiguousarray(box.upper, np.float64),
                options.max_iterations,
                options.tolerance,
                options.starts,
                options.gate,
                number_of_threads(threads),
            )
        )

    def invert_information(
        self, information: Float64, *, threads: int | None = None
    ) -> tuple[Float64, Float64, np.ndarray]:
        """Covariances (n, k, k) of information matrices such as Fisher's, their inverses, where the floor acted (n,).

        See :func:`xpkern.fit.covariance.invert_information`.
        """
        return _cpu.invert_information(
            self.instruction_set, np.ascontiguousarray(information, np.float64), number_of_threads(threads)
        )

    def search(self, grid: CandidateGrid, stars: StarData, *, threads: int | None = None) -> Float64:
        """Candidate of each star with the lowest score, as linear parameters (n, k); the first of equal ones."""
        return _cpu.search(
            self.instruction_set,
            _compiled(grid, _compile_candidates),
            stars.flux,
            stars.whitener,
            stars.mean,
            stars.sigma,
            number_of_threads(threads),
        )

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
        return _cpu.descend(
            self.instruction_set,
            _compiled(model, _compile_model),
            _compiled(prior, _compile_prior),
            stars.flux,
            stars.whitener,
            stars.mean,
            stars.sigma,
            np.ascontiguousarray(start, np.float64),
            asdict(terms),
            np.ascontiguousarray(box.lower, np.float64),
            np.ascontiguousarray(box.upper, np.float64),
            descent.method == "adam",
            descent.steps,
            descent.rate,
            descent.decay,
            descent.decay_every,
            descent.clip,
            number_of_threads(threads),
        )

    def train_step(
        self, model: FluxModel, stars: StarData, params: Float64, *, threads: int | None = None
    ) -> tuple[float, list[Float64], list[Float64], Float64]:
        """Eq. 12 averaged over the stars, and its gradient in weights, biases and ln R."""
        loss, gradient = _cpu.train_step(
            self.instruction_set,
            _compiled(model, _compile_model),
            stars.flux,
            stars.whitener,
            stars.mean,
            stars.sigma,
            np.ascontiguousarray(params, np.float64),
            number_of_threads(threads),
        )
        arrays = ModelArrays.unflatten(gradient, model)
        return loss, arrays.weights, arrays.biases, arrays.ln_ext_curve

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
        check_epoch(model, stars, params, batches, terms, model_steps, star_steps, moments)
        if moments is None:
            moments = ModelMoments.zeros(model)
        how = Steps("sgd", np.empty(0)) if model_steps is None else model_steps
        whitener = stars.whitener.groups if isinstance(stars, GroupedStars) else stars.whitener
        try:
            found = _cpu.train_epoch(
                self.instruction_set,
                _compile_model(model),  # not kept: the next call is given another
                stars.flux,
                whitener,
                stars.mean,
                stars.sigma,
                np.ascontiguousarray(params, np.float64),
                np.ascontiguousarray(batches),
                asdict(terms),
                np.ascontiguousarray(box.lower, np.float64),
                np.ascontiguousarray(box.upper, np.float64),
                None if model_steps is None else model_steps.rates,
                how.method == "adam",
                how.momentum,
                how.clip,
                None if star_steps is None else star_steps.rates,
                math.inf if star_steps is None else star_steps.clip,
                moments.first.flatten(),
                moments.second.flatten(),
                moments.steps,
                number_of_threads(threads),
            )
        except IndexError as error:
            raise InputError(str(error), field="batches") from None
        if found["count"] > moments.steps:
            now = ModelArrays.unflatten(found["parameters"], model)  # with R itself in place of what belongs to ln R
            model = replace(model, weights=now.weights, biases=now.biases, ext_curve=now.ln_ext_curve)
            first, second = (ModelArrays.unflatten(found[name], model) for name in ("first", "second"))
            moments = ModelMoments(first, second, found["count"])
        result = EpochResult(model, found["params"], moments, found["model_loss"], found["star_loss"])
        if found["reached"] < len(batches):
            what = "the model after its step" if found["loss_is_finite"] else "the model's loss"
            raise TrainingDiverged(what, found["reached"], np.array(found["rows_not_finite"], np.int64), result)
        return result


def instruction_sets() -> list[str]:
    """Instruction sets that this build has and this machine can run, best first."""
    return _cpu.instruction_sets()


# What the kernels read of a model is made once and kept as long as the model itself.
_COMPILED: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _blocks(stars: StarData) -> tuple[int, int, int]:
    """How the samples of whiteners may be related; zeros where they are not the usual ones."""
    return BLOCKS if stars.flux.shape[1] == N_FLUX else (0, 0, 0)


def _compiled(source: Source, make: Callable[[Source], Any]) -> Any:
    if source not in _COMPILED:
        _COMPILED[source] = make(source)
    return _COMPILED[source]


def _compile_model(model: FluxModel) -> _cpu.Model:
    return _cpu.Model(list(model.weights), list(model.biases), model.ext_curve, model.input_zp, model.input_scale)


def _compile_model_error(error: ModelError) -> _cpu.ModelError:
    return _cpu.ModelError(error.centre, error.scale, error.covariance, error.archive_factor)


def _compile_prior(prior: TypePrior) -> _cpu.Prior:
    log_weight, root = mixture(prior)
    return _cpu.Prior(log_weight, prior.means, root)


def _compile_grid(grid: StartGrid) -> _cpu.Grid:
    def as_float(values: Float64) -> Float32:
        return np.ascontiguousarray(values, np.float32)

    return _cpu.Grid(
        grid_rows(grid),
        as_float(grid.basis),
        as_float(grid.inverse.T),
        as_float(grid.mean),
        np.ascontiguousarray(grid.window),
        as_float(grid.reach),
        as_float(grid.apart),
    )


def _compile_candidates(grid: CandidateGrid) -> _cpu.Candidates:
    return _cpu.Candidates(
        grid.types,
        grid.ext,
        grid.base_flux,
        grid.ext_curve,
        grid.penalty,
        np.flatnonzero(grid.window).astype(np.int32),
        grid.guess == "mean_of_ratios",
        grid.score == "parallax",
        *grid.plx_bounds,
    )
