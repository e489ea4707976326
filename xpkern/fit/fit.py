"""The fit of a block of stars, from observations to parameters with errors."""

from __future__ import annotations

import numpy as np

from xpkern.engine import Engine, get_engine
from xpkern.engine.arrays import namespace_of, on_device, to_host
from xpkern.engine.contract import Box, FitOptions, Float32, Float64, LossTerms, Solution, StarData
from xpkern.errors import InputError
from xpkern.fit.covariance import invert_fisher_absolute, invert_held
from xpkern.fit.result import Fit
from xpkern.fit.scale import marginalise_scale, widen_parallax
from xpkern.fit.second_pass import second_pass
from xpkern.fit.start import StartGrid, start_grid
from xpkern.fit.zgr23 import Zgr23Options, zgr23_solution
from xpkern.model.flux_model import FluxModel
from xpkern.model.noise import KINDS
from xpkern.model.type_prior import TypePrior
from xpkern.observe.observations import Observations
from xpkern.status import SECOND_MINIMUM_GAP, UNFITTED, Status, mark

#: Extinctions and parallaxes [mas] the search may reach: Eq. 19 is unbounded below beyond any such box.
EXT_BOUNDS = (0.0, 15.0)
PLX_BOUNDS = (1e-4, 1e3)


def default_box(prior: TypePrior) -> Box:
    """Box of the search: the prior's support, 0 < ext < 15, 1e-4 < plx / mas < 1e3."""
    lower, upper = prior.support()
    return Box(
        lower=np.append(lower, [EXT_BOUNDS[0], PLX_BOUNDS[0]]),
        upper=np.append(upper, [EXT_BOUNDS[1], PLX_BOUNDS[1]]),
    )


def fit(
    obs: Observations,
    model: FluxModel,
    prior: TypePrior,
    *,
    engine: str | Engine = "auto",
    threads: int | None = None,
    terms: LossTerms | None = None,
    box: Box | None = None,
    optimizer: str | Zgr23Options = "newton",
    options: FitOptions | None = None,
    start: StartGrid | Float64 | None = None,
    noise: str | None = None,
) -> Fit:
    """Find the parameters at which the star loss (Eq. 19) is lowest.

    Observations whose arrays are on a GPU are fitted there, nothing of a star is copied, and the arrays that come back
    are there, too. Model, prior and grid are prepared on the host; "zgr23" copies stars there, and its solution back.

    Parameters
    ----------
    obs : Observations
    model : FluxModel
    prior : TypePrior
    engine : str or Engine
        Name of an engine, or "auto" for the fastest one found here. Only "cuda" takes arrays on a GPU.
    threads : int, optional
        Every core this process may use when not given. The result does not depend on it.
    terms : LossTerms, optional
        Which terms the loss has; :func:`default_terms` when not given.
    box : Box, optional
        Where the optimum is sought; :func:`default_box` when not given.
    optimizer : {"newton", "zgr23"} or Zgr23Options
        "newton": damped Gauss-Newton steps, then Newton's. "zgr23": the recipe of ZGR23 (grid of 31,232 candidates,
        8,192 steps of Adam, gradient descent), hundreds of times slower.
    options : FitOptions, optional
        Of "newton".
    start : StartGrid or (n, 5) float64, optional
        Where the search starts: a grid for "newton" to choose from, or linear parameters. By default
        :func:`xpkern.fit.start.start_grid`, or the recipe's own grid.
    noise : {"learned", "eq2"}, optional
        "learned": a second pass under the noise that the model's residuals have taught
        (:mod:`xpkern.fit.second_pass`), and errors that know of the prior (:class:`xpkern.Fit`). "eq2": the covariances
        as the observations have them, and errors of the Fisher matrix alone. "learned" when not given
        if the model has such a noise and the optimizer is "newton"; "zgr23" knows Eq. 2 alone.

    Returns
    -------
    Fit

    Raises
    ------
    InputError
        If model, prior, box, start and observations do not fit together, options are not the optimizer's, or no such
        engine or optimizer exists here.
    """
    if len(obs.wavelength) != model.n_samples or not np.allclose(obs.wavelength, model.wavelength):
        raise InputError("observations and model have different wavelengths", field="wavelength")
    if prior.means.shape[1] != model.n_inputs:
        raise InputError(f"the prior has {prior.means.shape[1]} dimensions, the model {model.n_inputs} inputs")
    box = default_box(prior) if box is None else checked_box(box, model.n_parameters)
    how = options_of(optimizer, options)
    noise = noise_of(noise, model, optimizer)
    if start is not None and not isinstance(start, StartGrid):
        start = _checked_start(start, (len(obs), model.n_parameters), obs.flux)
    chosen = get_engine(engine, on_gpu=on_device(obs.flux))
    terms = default_terms(noise) if terms is None else terms
    stars = obs.star_data()
    widened = widen_parallax(stars, model.scale_sigma)
    if isinstance(how, FitOptions):
        start = start_grid(model, prior) if start is None else start
        solution = chosen.fit(model, prior, widened, start, terms, box, how, threads=threads)
        chi2, ln_prior, frozen_at = solution.chi2, solution.ln_prior, np.full_like(solution.params, np.nan)
        if noise == "learned":
            passed = second_pass(chosen, model, prior, widened, obs.noise, solution, terms, box, how, threads=threads)
            solution, frozen_at = passed.solution, passed.frozen_at
            chi2, ln_prior = passed.chi2_eq2, passed.ln_prior_eq2
    elif isinstance(start, StartGrid):
        raise InputError("a StartGrid is for newton: zgr23 has its own grid, or takes parameters", field="start")
    else:
        if on_device(obs.flux):
            widened, start = _on_host(widened), None if start is None else to_host(start)
        solution = zgr23_solution(chosen, model, prior, widened, start, terms, box, how, threads=threads)
        solution = _beside(solution, obs.flux)
        chi2, ln_prior, frozen_at = solution.chi2, solution.ln_prior, np.full_like(solution.params, np.nan)
    params, fisher = solution.params, solution.fisher
    if model.scale_sigma > 0:
        plx, fisher = marginalise_scale(params[:, -1], fisher, stars, model.scale_sigma)
        params = np.column_stack([params[:, :-1], np.clip(plx, box.lower[-1], box.upper[-1])])
    if isinstance(how, FitOptions):
        held = noise == "learned" and terms.prior
        curvature = chosen.prior_curvature(prior, params[:, : model.n_inputs], threads=threads) if held else None
        covariance, inverse, floored = invert_held(chosen, fisher, curvature, threads=threads)
    else:
        xp, inverted = namespace_of(fisher), invert_fisher_absolute(to_host(fisher), how.fisher_floor)
        covariance, inverse, floored = (xp.asarray(array) for array in inverted)
    status = obs.status | solution.status
    fitted = (status & np.uint32(UNFITTED)) == 0
    mark(status, floored, Status.COVARIANCE_FLOORED)
    threshold = prior.ln_prior_threshold
    mark(status, fitted & ((solution.ln_prior < threshold) | (ln_prior < threshold)), Status.EXTRAPOLATED)
    mark(status, fitted & (solution.second_gap < SECOND_MINIMUM_GAP), Status.SECOND_MINIMUM)
    if model.scale_sigma > 0:
        mark(status, fitted, Status.THEORETICAL_SCALE)
    return Fit(
        params=params,
        model_plx=solution.params[:, -1],
        cov=covariance,
        icov=inverse,
        fisher=fisher,
        hessian=solution.hessian,
        loss=solution.loss,
        chi2=chi2,
        chi2_learned=solution.chi2 if noise == "learned" else np.full_like(chi2, np.nan),
        ln_prior=solution.ln_prior,
        gradient_norm=np.linalg.norm(solution.gradient, axis=1),
        decrement=solution.decrement,
        residual=solution.residual,
        status=status,
        iterations=solution.iterations,
        minima=solution.minima,
        second_params=solution.second_params,
        second_gap=solution.second_gap,
        engine=chosen.name,
        observations=obs,
        model=model,
        prior=prior,
        terms=terms,
        options=how,
        noise_kind=noise,
        instruction_set=getattr(chosen, "instruction_set", ""),
        frozen_at=frozen_at,
    )


def noise_of(noise: str | None, model: FluxModel, optimizer: str | Zgr23Options) -> str:
    """Kind of noise that a fit allows for: "learned" or "eq2".

    Raises
    ------
    InputError
        If there is no such kind, the model has learned none, or the optimizer knows Eq. 2 alone.
    """
    if noise is None:
        return model.noise.kind if optimizer == "newton" else "eq2"
    if noise not in KINDS:
        raise InputError(f"{noise!r} is none of {', '.join(KINDS)}", field="noise")
    if noise == "learned" and model.noise.kind != "learned":
        raise InputError("the model's residuals have taught it none: its noise is that of Eq. 2", field="noise")
    if noise == "learned" and optimizer != "newton":
        raise InputError("zgr23 knows that of Eq. 2 alone", field="noise")
    return noise


def default_terms(noise: str) -> LossTerms:
    """Terms of the loss of a fit that allows for a kind of noise: those of Eq. 19 with the noise of Eq. 2.

    Under a learned noise the loss has no Jacobian terms, - 2 ln ext and - 2 ln plx, which make of the optimum the mode
    in the logarithms: too high in E by about its error, which is large where only a model that may be wrong tells E,
    and with it in teff (by some 20 to 30 K), feh and logg.
    """
    return LossTerms() if noise == "eq2" else LossTerms(jacobian_ext=False, jacobian_plx=False)


def options_of(optimizer: str | Zgr23Options, options: FitOptions | None) -> FitOptions | Zgr23Options:
    """Options of the optimizer that was asked for.

    Raises
    ------
    InputError
        If there is no such optimizer, or ``options`` are given for one that does not read them.
    """
    if optimizer == "newton":
        return FitOptions() if options is None else options
    if optimizer != "zgr23" and not isinstance(optimizer, Zgr23Options):
        raise InputError(f"{optimizer!r} is neither newton, zgr23 nor a Zgr23Options", field="optimizer")
    if options is not None:
        raise InputError(
            "starts, tolerance and the like are newton's; zgr23 takes optimizer=Zgr23Options(...)", field="options"
        )
    return optimizer if isinstance(optimizer, Zgr23Options) else Zgr23Options()


def checked_box(box: Box, size: int) -> Box:
    """The box, if it is one of so many parameters and extinction and parallax may have logarithms in it."""
    lower, upper = np.asarray(box.lower, dtype=np.float64), np.asarray(box.upper, dtype=np.float64)
    if lower.shape != (size,) or upper.shape != (size,) or not (lower < upper).all():
        raise InputError(f"needs lower < upper, each ({size},)", field="box")
    if lower[-2] < 0 or lower[-1] <= 0:
        raise InputError("extinction must be >= 0 and parallax > 0 in it", field="box")
    return Box(lower, upper)


def _on_host(stars: StarData) -> StarData:
    return StarData(**{name: to_host(array) for name, array in vars(stars).items()})


def _beside(solution: Solution, array: Float32) -> Solution:
    """A solution whose arrays lie where another array does."""
    xp = namespace_of(array)
    return Solution(**{name: xp.asarray(values) for name, values in vars(solution).items()})


def _checked_start(start: Float64, shape: tuple[int, int], beside: Float32) -> Float64:
    xp = namespace_of(beside)
    params = xp.ascontiguousarray(xp.asarray(start), dtype=np.float64)
    if params.shape != shape:
        raise InputError(f"shape {params.shape}, expected {shape}", field="start")
    if not np.isfinite(params).all() or (params[:, -2:] <= 0).any():
        raise InputError("needs finite parameters with ext > 0 and plx > 0", field="start")
    return params
