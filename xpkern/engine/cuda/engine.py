"""The engine of the GPU: what the contract asks for, as launches of the kernels of ``csrc/cuda``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xpkern.engine.arrays import namespace_of, on_device, to_host
from xpkern.engine.contract import (
    Box,
    Calibrated,
    Coefficients,
    Descent,
    Evaluation,
    FitOptions,
    Float64,
    FrozenNoise,
    Int64,
    LossTerms,
    Solution,
    StarData,
)
from xpkern.engine.cpu import CpuEngine
from xpkern.engine.cuda.arguments import (
    MAX_PARAMETERS,
    CalibrateArguments,
    CalibrationRows,
    CurvatureArguments,
    DescendArguments,
    DescentView,
    EvaluateArguments,
    FreezeArguments,
    InvertArguments,
    PredictArguments,
    SearchArguments,
    SideRows,
    StartArguments,
)
from xpkern.engine.cuda.device import Device, open_device
from xpkern.engine.cuda.fitting import (
    Fitter,
    evaluation_arrays,
    evaluation_rows,
    fit_view,
    loss_view,
    solution_rows,
    star_arrays,
)
from xpkern.engine.cuda.inputs import checked, coefficient_inputs, doubles, star_inputs
from xpkern.engine.cuda.lanes import Batch, Lanes
from xpkern.engine.cuda.launching import Launcher, form
from xpkern.engine.cuda.residents import Kept
from xpkern.engine.cuda.tables import (
    Tables,
    candidate_table,
    grid_table,
    model_table,
    prior_table,
)
from xpkern.engine.cuda.training import Course, Trainer
from xpkern.engine.epoch import check_epoch, check_rows
from xpkern.engine.groups import GroupedStars
from xpkern.engine.packed import packed_size
from xpkern.engine.training import EpochResult, ModelMoments, Steps
from xpkern.fit.candidates import CandidateGrid
from xpkern.fit.start import StartGrid
from xpkern.grid import N_FLUX
from xpkern.model.flux_model import FluxModel
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior
from xpkern.observe.calibration import Calibration

#: Threads that a search of candidates should have at least, of each processor.
_SEARCHERS_A_PROCESSOR = 512


class CudaEngine:
    """See :class:`xpkern.engine.contract.Engine`.

    Arrays of NumPy pass through the GPU in batches and come back as arrays of NumPy. Where all the arrays of the stars
    are CuPy's, so is what comes back; it is computed in CuPy's current stream, and nothing is copied. ``threads`` is
    ignored; several threads may call at the same time.

    Parameters
    ----------
    device : Device, optional
        The GPU of this process when not given.

    Raises
    ------
    DeviceUnavailable
        If there is none that can be used.
    """

    name = "cuda"

    def __init__(self, device: Device | None = None) -> None:
        self.device = open_device() if device is None else device
        self._launcher = Launcher(self.device)
        self._lanes = Lanes(self.device)
        self._tables = Tables(self.device)
        self._kept = Kept(self.device)

    #: Stars that it likes to be given at a time: with fewer it waits for the slowest of them more often.
    block_stars = 16384

    @property
    def instruction_set(self) -> str:
        """What compiled code this is, for provenance: compute capability and compiler."""
        facts = self.device.facts
        return f"compute capability {facts.compute_capability}, {facts.compiler}"

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
        table = self._tables.of_calibration(calibration, noise, samples)
        scratch = self._launcher.scratch(calibration=table.view)
        needed = scratch.calibrate

        def rows(batch: Batch, side: str) -> SideRows:
            return SideRows(
                batch[side],
                batch[f"{side}_error"],
                batch[f"{side}_correlation"],
                batch[f"{side}_standard_deviation"],
                batch[f"has_{side}"],
            )

        def queue(batch: Batch) -> None:
            arguments = CalibrateArguments(
                view=table.view,
                rows=CalibrationRows(
                    rows(batch, "bp"),
                    rows(batch, "rp"),
                    **{name: batch[name] for name in ("band_flux", "band_error", "flux", "whitener", "status")},
                ),
                n=batch.size,
                unfinished=batch["unfinished"],
            )
            if needed:
                self._launch("calibrate", batch, arguments, needed)
            else:
                self._launcher.launch_spectra("calibrate", batch.size, arguments, batch.stream, scratch)

        found = self._lanes.run(
            stars,
            coefficient_inputs(coefficients, calibration.bp_design.shape[1], calibration.rp_design.shape[1])
            | {
                "band_flux": doubles(photometry_flux, coefficients.bp, (stars, bands)),
                "band_error": doubles(photometry_error, coefficients.bp, (stars, bands)),
            },
            {
                "flux": ((samples,), np.float32),
                "whitener": ((packed_size(samples),), np.float32),
                "status": ((), np.uint32),
                "unfinished": ((), np.bool_),
            },
            lambda size: {"memory": self._launcher.memory(size, needed)},
            queue,
        )
        unfinished = np.flatnonzero(to_host(found.pop("unfinished")))
        calibrated = Calibrated(**found)
        if len(unfinished):
            # eigenvalues at the floor: a few stars in a million, whose eigenvectors the kernels of the CPU look for
            some = Coefficients(**{name: to_host(array[unfinished]) for name, array in vars(coefficients).items()})
            bands_of = (to_host(array[unfinished]) for array in (photometry_flux, photometry_error))
            rest = CpuEngine().calibrate(calibration, some, noise, *bands_of, threads=threads)
            xp = namespace_of(calibrated.flux)
            for name, values in vars(rest).items():
                getattr(calibrated, name)[xp.asarray(unfinished)] = xp.asarray(values)
        return calibrated

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
        """Whiteners of C = (f f^T) o S(Theta) + archive_factor C_gaia, f and S those of linear parameters (n, k).

        Spectra that have not the archive's samples are the CPU's work.
        """
        samples, k = model.n_samples, model.n_parameters
        of_model, of_noise = self._tables.of(model, model_table), self._tables.of_noise(noise, contained, model)
        if samples != N_FLUX:
            on_host = StarData(**{name: to_host(array) for name, array in vars(stars).items()})
            frozen = CpuEngine().freeze_noise(model, noise, on_host, contained, to_host(params), threads=threads)
            xp = namespace_of(stars.flux)
            return FrozenNoise(whitener=xp.asarray(frozen.whitener), ln_det=xp.asarray(frozen.ln_det))
        needed = self._launcher.scratch(model=of_model.view).predict

        def queue(batch: Batch) -> None:
            at = PredictArguments(model=of_model.view, params=batch["params"], flux=batch["predicted"], n=batch.size)
            self._launch_fits("predict", batch, at, needed)
            arguments = FreezeArguments(
                noise=of_noise.view,
                n=batch.size,
                parameters=k,
                inputs=model.n_inputs,
                **{name: batch[name] for name in ("flux", "whitener", "params", "predicted", "frozen", "ln_det")},
            )
            self._launcher.launch_fits("freeze_noise", "freeze", batch.size, arguments, batch.stream)

        found = self._lanes.run(
            len(stars),
            {
                "flux": checked(stars.flux, "flux", np.float32, (len(stars), samples)),
                "whitener": checked(stars.whitener, "whitener", np.float32, (len(stars), packed_size(samples))),
                "params": doubles(params, stars.flux, (len(stars), k)),
            },
            {"frozen": ((packed_size(samples),), np.float32), "ln_det": ((), np.float64)},
            lambda size: {"predicted": 8 * samples * size, "memory": self._launcher.memory(size, needed)},
            queue,
        )
        return FrozenNoise(whitener=found["frozen"], ln_det=found["ln_det"])

    def prior_curvature(self, prior: TypePrior, theta: Float64, *, threads: int | None = None) -> Float64:
        """Minus the Hessian of ln p_GMM, (n, d, d), at stellar types (n, d)."""
        table, d = self._tables.of(prior, prior_table), prior.means.shape[1]
        needed = self._launcher.scratch(prior=table.view).curvature

        def queue(batch: Batch) -> None:
            arguments = CurvatureArguments(table.view, batch["theta"], batch["curvature"], batch.size)
            self._launch("prior_curvature", batch, arguments, needed)

        return self._lanes.run(
            len(theta),
            {"theta": doubles(theta, theta, (len(theta), d))},
            {"curvature": ((d, d), np.float64)},
            lambda size: {"memory": self._launcher.memory(size, needed)},
            queue,
        )["curvature"]

    def predict(self, model: FluxModel, params: Float64, *, threads: int | None = None) -> Float64:
        """Flux (n, m) of linear parameters (n, k) (Eq. 8)."""
        table = self._tables.of(model, model_table)
        needed = self._launcher.scratch(model=table.view).predict

        def queue(batch: Batch) -> None:
            arguments = PredictArguments(model=table.view, params=batch["params"], flux=batch["flux"], n=batch.size)
            self._launch_fits("predict", batch, arguments, needed)

        return self._lanes.run(
            len(params),
            {"params": doubles(params, params, (len(params), model.n_parameters))},
            {"flux": ((model.n_samples,), np.float64)},
            lambda size: {"memory": self._launcher.memory(size, needed)},
            queue,
        )["flux"]

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
        of_model, of_prior = self._tables.of(model, model_table), self._tables.of(prior, prior_table)
        inputs = star_inputs(stars, model.n_samples, model.n_parameters)
        needed = self._launcher.scratch(model=of_model.view, prior=of_prior.view).evaluate

        def queue(batch: Batch) -> None:
            arguments = EvaluateArguments(
                model=of_model.view,
                prior=of_prior.view,
                terms=loss_view(terms),
                stars=star_arrays(batch),
                params=batch["params"],
                out=evaluation_arrays(batch),
                n=batch.size,
            )
            self._launch_fits("evaluate", batch, arguments, needed)

        found = self._lanes.run(
            len(stars),
            inputs | {"params": doubles(params, stars.flux, (len(stars), model.n_parameters))},
            evaluation_rows(model.n_parameters),
            lambda size: {"memory": self._launcher.memory(size, needed)},
            queue,
        )
        return Evaluation(**found)

    def start(self, grid: StartGrid, stars: StarData, options: FitOptions, *, threads: int | None = None) -> Float64:
        """Starts of each star, best first, as linear parameters (n, starts, k); NaN where it has fewer."""
        table, inputs = self._tables.of(grid, grid_table), grid.types.shape[1]
        samples = len(grid.basis)
        needed = self._launcher.scratch(n_types=len(grid), samples=samples, inputs=inputs).start

        def queue(batch: Batch) -> None:
            arguments = StartArguments(
                grid=table.view,
                samples=samples,
                inputs=inputs,
                stars=star_arrays(batch),
                n=batch.size,
                starts=options.starts,
                gate=options.gate,
                params=batch["params"],
            )
            if needed:
                self._launch("start", batch, arguments, needed)
            else:
                self._launcher.launch_fits("start", "start", batch.size, arguments, batch.stream)

        return self._lanes.run(
            len(stars),
            star_inputs(stars, samples, grid.n_parameters),
            {"params": ((options.starts, grid.n_parameters), np.float64)},
            lambda size: {"memory": self._launcher.memory(size, needed)},
            queue,
        )["params"]

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
        of_model, of_prior = self._tables.of(model, model_table), self._tables.of(prior, prior_table)
        view = fit_view(of_model.view, of_prior.view, terms, box)
        inputs = star_inputs(stars, model.n_samples, model.n_parameters)
        sizes: dict[str, Any] = {}
        if isinstance(start, StartGrid):
            view.grid = self._tables.of(start, grid_table).view
            sizes = {"n_types": len(start), "samples": model.n_samples, "inputs": model.n_inputs}
        else:
            inputs["start"] = doubles(start, stars.flux, (len(stars), model.n_parameters))
        needed = self._launcher.scratch(model=of_model.view, prior=of_prior.view, **sizes)
        fitter = Fitter(self._launcher, view, options, needed)
        rows = solution_rows(model.n_parameters, model.n_samples)
        return Solution(**self._lanes.run(len(stars), inputs, rows, fitter.scratch, fitter.queue))

    def invert_information(
        self, information: Float64, *, threads: int | None = None
    ) -> tuple[Float64, Float64, np.ndarray]:
        """Covariances (n, k, k) of information matrices such as Fisher's, their inverses, where the floor acted (n,).

        See :func:`xpkern.fit.covariance.invert_information`.
        """
        stars, parameters = len(information), information.shape[-1]
        square = (parameters, parameters)
        if parameters > MAX_PARAMETERS:
            raise ValueError(f"{parameters} parameters, at most {MAX_PARAMETERS}")
        _ = self._launcher.sizes  # before the first structure is handed over

        def queue(batch: Batch) -> None:
            names = ("information", "covariance", "inverse", "floored")
            arguments = InvertArguments(*(batch[name] for name in names), batch.size, parameters)
            self._launcher.launch("invert_information", batch.size, arguments, batch.stream)

        found = self._lanes.run(
            stars,
            {"information": checked(information, "information", np.float64, (stars, *square))},
            {"covariance": (square, np.float64), "inverse": (square, np.float64), "floored": ((), np.bool_)},
            lambda size: {},
            queue,
        )
        return found["covariance"], found["inverse"], found["floored"]

    def search(self, grid: CandidateGrid, stars: StarData, *, threads: int | None = None) -> Float64:
        """Candidate of each star with the lowest score, as linear parameters (n, k); the first of equal ones."""
        table, parameters = self._tables.of(grid, candidate_table), grid.types.shape[1] + 2
        needed = self._launcher.scratch(search_samples=table.view.n_samples, search_window=table.view.n_window).search
        best = self._launcher.sizes["BestCandidate"]

        def slices(size: int) -> int:
            wanted = _SEARCHERS_A_PROCESSOR * self.device.facts.processors
            return min(len(grid.types), math.ceil(wanted / size))

        def queue(batch: Batch) -> None:
            arguments = SearchArguments(
                grid=table.view,
                stars=star_arrays(batch),
                n=batch.size,
                parameters=parameters,
                slices=slices(batch.size),
                best=batch["best"],
                params=batch["params"],
            )
            searchers = batch.size * slices(batch.size)
            self._launcher.launch(form("search", needed), searchers, arguments, batch.stream, needed, batch["memory"])
            self._launcher.launch("search_best", batch.size, arguments, batch.stream)

        return self._lanes.run(
            len(stars),
            star_inputs(stars, table.view.n_samples, parameters),
            {"params": ((parameters,), np.float64)},
            lambda size: {
                "best": best * size * slices(size),
                "memory": self._launcher.memory(size * slices(size), needed),
            },
            queue,
        )["params"]

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
        of_model, of_prior = self._tables.of(model, model_table), self._tables.of(prior, prior_table)
        view = fit_view(of_model.view, of_prior.view, terms, box)
        needed = self._launcher.scratch(model=of_model.view, prior=of_prior.view).descend
        how = DescentView(
            descent.method == "adam", descent.steps, descent.rate, descent.decay, descent.decay_every, descent.clip
        )

        def queue(batch: Batch) -> None:
            view.start_params = batch["start"]
            arguments = DescendArguments(
                fit=view, how=how, stars=star_arrays(batch), n=batch.size, params=batch["params"]
            )
            self._launch_fits("descend", batch, arguments, needed)

        return self._lanes.run(
            len(stars),
            star_inputs(stars, model.n_samples, model.n_parameters)
            | {"start": doubles(start, stars.flux, (len(stars), model.n_parameters))},
            {"params": ((model.n_parameters,), np.float64)},
            lambda size: {"memory": self._launcher.memory(size, needed)},
            queue,
        )["params"]

    def train_step(
        self, model: FluxModel, stars: StarData, params: Float64, *, threads: int | None = None
    ) -> tuple[float, list[Float64], list[Float64], Float64]:
        """Eq. 12 averaged over the stars, and its gradient in weights, biases and ln R."""
        trainer = self._trainer(model, None, stars)
        star_inputs(stars, model.n_samples, model.n_parameters)
        loss, gradient = trainer.gradient(stars, doubles(params, stars.flux, (len(stars), model.n_parameters)))
        return loss, gradient.weights, gradient.biases, gradient.ln_ext_curve

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
        check_rows(batches, len(stars))
        trainer = self._trainer(model, moments, stars)
        course = Course(terms, box, model_steps, star_steps)
        star_inputs(stars, model.n_samples, model.n_parameters)
        return trainer.epoch(stars, doubles(params, stars.flux, (len(stars), model.n_parameters)), batches, course)

    def _trainer(self, model: FluxModel, moments: ModelMoments | None, stars: StarData | GroupedStars) -> Trainer:
        stream = self.device.current_stream() if on_device(stars.flux) else self.device.new_stream()
        return Trainer(
            self._launcher, model, ModelMoments.zeros(model) if moments is None else moments, stream, self._kept
        )

    def _launch(self, kernel: str, batch: Batch, arguments: Any, needed: int) -> None:
        """Queue a kernel over the stars of a batch."""
        memory = batch["memory"] if needed else 0
        self._launcher.launch(form(kernel, needed), batch.size, arguments, batch.stream, needed, memory)

    def _launch_fits(self, kernel: str, batch: Batch, arguments: Any, needed: int) -> None:
        """The same, where a star has a warp's share of what searches keep in shared memory, or a thread with memory."""
        if needed:
            self._launch(kernel, batch, arguments, needed)
        else:
            self._launcher.launch_fits(kernel, "search", batch.size, arguments, batch.stream)
