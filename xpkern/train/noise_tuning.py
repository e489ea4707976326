"""Tuning a learned noise by what it is for: fits whose types agree with the labels as well as their errors say.

Of the covariance of a spectrum a fit uses what it says of the directions in which parameters move the spectrum. There
the likelihood of residuals (:mod:`xpkern.train.noise_fit`), in which all samples count alike, need not be right: one S
stands for the types of a group, and residuals are not normal. The types themselves tell. At the optimum of a fit under
C_0, in fractions of the flux, with the residual r = f_observed / f - 1, the slope J = d ln f / d(Theta, E, ln plx) and
K the curvature of what else holds the optimum, another C moves the parameters to first order by

    M (J^T C^-1 r - J^T C_0^-1 r),    M = (J^T C^-1 J + K)^-1.

K is the precision of the constraints of E and parallax and, unless the recipe leaves it out, the curvature of the
prior, where that is positive. With it T below is the error that a fit reports. But the prior is no parabola: a tuning
that begins far from where it ends comes out better without.

The type then differs by d from the label, whose covariance is Sigma, and with T = M + Sigma (of the type) S is moved to
where the sum over the stars of

    l = ln det T / 2 + (nu + q) ln(1 + c^2 d^T T^-1 d / nu) / 2

is least, Student's distribution of the q differences, so that a wrong label or another minimum counts for little. Its
scale is T / c^2: errors are c times as wide as those of the likeliest Student's distribution. With c = 1 errors of
normal differences come out too small by a tenth (nu = 5, q = 3), those of stars that were not tuned by smaller yet.
With P = M J^T C^-1 (its rows of the type), u = T^-1 d and w = (nu + q) / (nu / c^2 + d^T u) the gradient has a low
rank:

    dl / dC = P^T (T^-1 - w u u^T) P / 2 - (a b^T + b a^T) / 2,    a = w P^T u,    b = C^-1 (r - J step).

What the likelihood of residuals said is kept as the opinion of some more stars: each S_g = L F F^T L^T begins at
F = 1, and (tr (F F^T)^-1 + ln det F F^T) / 2 is added for each of these. The stars are fitted anew in every round.

Where errors D of sampled spectra have a correlation that nobody gives, D R D stands for their covariance, with one R
for all stars. Bright and faint ones tell it from S, and it is tuned in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from xpkern.engine import Engine, get_engine
from xpkern.engine.contract import FitOptions, Float32, Float64, LossTerms, StarData
from xpkern.engine.packed import present_samples
from xpkern.engine.reference_loss import flux_and_jacobian
from xpkern.engine.reference_noise import archive_covariance
from xpkern.errors import InputError
from xpkern.fit.covariance import positive_part
from xpkern.fit.fit import default_box
from xpkern.fit.scale import widen_parallax
from xpkern.fit.second_pass import second_pass
from xpkern.fit.start import start_grid
from xpkern.model.flux_model import FluxModel
from xpkern.model.model_error import ModelError
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior
from xpkern.status import UNFITTED
from xpkern.train.adam import Adam

#: Curvature of the loss in an extinction that is held at 0, the edge of its box; and below what [mag] it is.
_HELD, _AT_EDGE = 1e8, 2e-3

#: Least curvature in any parameter: under next to no spectrum nothing else would tell one.
_LEAST_CURVATURE = 1e-6


@dataclass(frozen=True)
class TuningRecipe:
    """Settings of the tuning.

    Attributes
    ----------
    rounds : int
        Of fitting the stars and one pass over them.
    batch : int
        Stars of a step.
    rate : float
        Length of the first steps in each number of F; it falls to 0 as half a cosine over all rounds.
    prior_stars : float
        How many stars the likelihood of residuals stands for in each group.
    correlation_rate, correlation_stars : float
        The same two of R: the length of its steps, and how many stars stand for where it begins.
    outlier : float
        nu above.
    width : float
        c above.
    prior_curvature : bool
        Whether K has the curvature of the prior, of fits that have a prior.
    seed : int
        Of the order of the stars.
    """

    rounds: int = 4
    batch: int = 512
    rate: float = 0.01
    prior_stars: float = 100.0
    correlation_rate: float = 0.02
    correlation_stars: float = 500.0
    outlier: float = 5.0
    width: float = 1.0
    prior_curvature: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, smallest in (("rounds", 1), ("batch", 1), ("prior_stars", 0.0), ("correlation_stars", 0.0)):
            if not getattr(self, name) >= smallest:
                raise InputError(f"{getattr(self, name)} is not a number >= {smallest}", field=name)
        for name in ("rate", "correlation_rate", "outlier", "width"):
            if not getattr(self, name) > 0:
                raise InputError(f"{getattr(self, name)} is not a number > 0", field=name)


@dataclass(frozen=True)
class UnknownCorrelation:
    """Errors of n sampled spectra whose correlation R, the same for all, is to be found.

    Attributes
    ----------
    error : (n, m) float64
        0 where a sample is missing.
    start : (m, m) float64
        Where R begins.
    whitener : callable
        From R the whiteners (n, p) of all stars, the noise of Eq. 2 contained.
    """

    error: Float64
    start: Float64
    whitener: Callable[[Float64], Float32]


@dataclass(frozen=True)
class FittedStars:
    """Optima of n stars, and their spectra to first order there.

    Attributes
    ----------
    theta, off : (n, q) float64
        Stellar types, and what they are above the labels.
    label : (n, q) float64
        Variances of the labels.
    residual : (n, m) float64
        f_observed / f - 1; 0 where a sample is missing.
    slope : (n, m, k) float64
        J, the last column by ln plx; 0 where a sample is missing.
    archive : (n, m, m) float64
        k C_gaia / (f f^T), unless its correlation is unknown; the identity where a sample is missing.
    error : (n, m) float64
        D / f of an unknown correlation; else 0.
    present : (n, m) bool
    curvature : (n, k, k) float64
        K.
    """

    theta: Float64
    off: Float64
    label: Float64
    residual: Float64
    slope: Float64
    archive: Float64
    error: Float64
    present: np.ndarray
    curvature: Float64


def tune_model_error(
    model: FluxModel,
    prior: TypePrior,
    stars: StarData,
    contained: Noise | None,
    error: ModelError,
    recipe: TuningRecipe | None = None,
    *,
    unknown: UnknownCorrelation | None = None,
    terms: LossTerms | None = None,
    engine: str | Engine = "auto",
    threads: int | None = None,
    log: Callable[[str], object] | None = None,
) -> tuple[ModelError, Float64]:
    """Move the covariances of a model error to where fits agree best with labels; see the module.

    Parameters
    ----------
    model : FluxModel
    prior : TypePrior
    stars : StarData
        Their types in ``mean`` and ``sigma`` are labels, which the fits do not see; what these say of extinction and
        parallax the fits do see.
    contained : Noise, optional
        The noise of Eq. 2 that their whiteners contain.
    error : ModelError
        Where the covariances begin.
    recipe : TuningRecipe, optional
    unknown : UnknownCorrelation, optional
        Of the errors of the stars' spectra; their whiteners are then made from it.
    terms : LossTerms, optional
        Of the fits; all when not given.
    log : callable, optional
        Told the mean of l after each round.

    Returns
    -------
    ModelError
    (m, m) float64
        R; the identity if nothing is unknown.

    Raises
    ------
    InputError
        If a star lacks a label of its type, or none can be fitted.
    """
    recipe = TuningRecipe() if recipe is None else recipe
    terms = LossTerms() if terms is None else terms
    if not np.isfinite(stars.sigma[:, : model.n_inputs]).all():
        raise InputError("a star lacks a label of its type", field="sigma")
    chosen = get_engine(engine)
    with_prior = terms.prior and recipe.prior_curvature
    rng = np.random.default_rng(recipe.seed)
    covariance = _Factored(error.covariance)
    correlation = _Factored((np.eye(model.n_samples) if unknown is None else unknown.start)[None])
    for number in range(recipe.rounds):
        if unknown is not None:
            stars = replace(stars, whitener=unknown.whitener(correlation.value[0]))
        now, now_correlation = replace(error, covariance=covariance.value), correlation.value[0]
        params = _optima(model, prior, stars, contained, now, terms, chosen, threads)
        rows = np.flatnonzero(np.isfinite(params).all(axis=1))
        if not len(rows):
            raise InputError("none of the stars can be fitted", field="stars")
        size = min(recipe.batch, len(rows))
        steps = len(rows) // size
        losses = []
        with threadpool_limits(1):  # sums are then taken in one order
            for step, batch in enumerate(np.sort(rng.permutation(rows)[: steps * size].reshape(steps, size), axis=1)):
                errors = None if unknown is None else unknown.error[batch]
                held = _prior_curvature(chosen, prior, params[batch, : model.n_inputs]) if with_prior else None
                fitted = _fitted(model, stars[batch], contained, now, params[batch], errors, held)
                loss, of_covariance, of_correlation = loss_and_gradient(
                    fitted, now, now_correlation, covariance.value, correlation.value[0], recipe.outlier, recipe.width
                )
                losses.append(loss)
                decay = 0.5 * (1.0 + np.cos(np.pi * (number + step / steps) / recipe.rounds))
                covariance.step(of_covariance, recipe.prior_stars / len(rows), recipe.rate * decay)
                if unknown is not None:
                    rate = recipe.correlation_rate * decay
                    correlation.step(of_correlation[None], recipe.correlation_stars / len(rows), rate)
        if log is not None:
            log(f"tuning of the noise, round {number + 1}: mean loss of the types {np.mean(losses):.3f}")
    return replace(error, covariance=covariance.value), correlation.value[0]


class _Factored:
    """Matrices L F F^T L^T, (g, m, m), whose F, a lower triangle that begins at 1, takes steps."""

    def __init__(self, start: Float64) -> None:
        self.start = np.linalg.cholesky(start)
        self.factor = np.tile(np.eye(start.shape[1]), (len(start), 1, 1))
        self.lower = np.tril_indices(start.shape[1])
        self.adam = Adam.resumed(None, len(start) * len(self.lower[0]))

    @property
    def value(self) -> Float64:
        """The matrices, exactly symmetric."""
        root = self.start @ self.factor
        matrices = root @ root.swapaxes(1, 2)
        return 0.5 * (matrices + matrices.swapaxes(1, 2))

    def step(self, of_value: Float64, opinion: float, rate: float) -> None:
        """Against a gradient (g, m, m) by the matrices; the start's opinion counts ``opinion`` times."""
        inverse = np.linalg.inv(self.factor)
        gradient = 2.0 * self.start.swapaxes(1, 2) @ of_value @ self.start @ self.factor
        of_start = np.eye(inverse.shape[1]) - inverse @ inverse.swapaxes(1, 2)
        gradient += opinion * inverse.swapaxes(1, 2) @ of_start
        move = self.adam.direction(gradient[:, self.lower[0], self.lower[1]].ravel())
        self.factor[:, self.lower[0], self.lower[1]] += rate * move.reshape(len(self.factor), -1)


def loss_and_gradient(
    stars: FittedStars,
    fitted_under: ModelError,
    fitted_correlation: Float64,
    covariance: Float64,
    correlation: Float64,
    outlier: float,
    width: float,
) -> tuple[float, Float64, Float64]:
    """Mean of l over stars, and its gradients by the groups' covariances and by R, all elements independent.

    Parameters
    ----------
    stars : FittedStars
    fitted_under : ModelError
        Under which they were fitted; its groups' shares count.
    fitted_correlation : (m, m) float64
        R of that fit.
    covariance : (g, m, m) float64
        Of the groups, in place of those of the fit.
    correlation : (m, m) float64
        R in place of that of the fit.
    outlier, width : float
        nu, c.
    """
    share, types = fitted_under.shares(stars.theta), stars.theta.shape[1]
    both = stars.present[:, :, None] & stars.present[:, None, :]

    def whole(groups: Float64, shared: Float64) -> Float64:
        blended = (share @ groups.reshape(len(groups), -1)).reshape(both.shape)
        return np.where(both, blended, 0.0) + stars.archive + stars.error[:, :, None] * shared * stars.error[:, None, :]

    slope_t, residual = stars.slope.swapaxes(1, 2), stars.residual[:, :, None]
    before = np.linalg.solve(whole(fitted_under.covariance, fitted_correlation), residual)
    solved = np.linalg.solve(whole(covariance, correlation), np.concatenate([stars.slope, residual], axis=2))
    leverage, pull = solved[:, :, :-1], solved[:, :, -1:]
    information = slope_t @ leverage
    information += stars.curvature
    inverse = np.linalg.inv(information)
    step = inverse @ (slope_t @ (pull - before))
    project = inverse[:, :types] @ leverage.swapaxes(1, 2)
    off = stars.off + step[:, :types, 0]
    spread = inverse[:, :types, :types].copy()
    np.einsum("nkk->nk", spread)[:] += stars.label
    precision = np.linalg.inv(spread)
    u = np.einsum("nij,nj->ni", precision, off)
    distance = np.einsum("ni,ni->n", u, off)
    loss = 0.5 * np.linalg.slogdet(spread)[1] + 0.5 * (outlier + types) * np.log1p(width**2 * distance / outlier)
    weight = (outlier + types) / (outlier / width**2 + distance)
    a = weight[:, None] * np.einsum("nij,ni->nj", project, u)
    b = (pull - leverage @ step)[:, :, 0]
    inner = 0.5 * (precision - weight[:, None, None] * u[:, :, None] * u[:, None, :])

    def summed(part: Float64) -> Float64:
        """Sum over stars of dl / dC, each of whose rows and columns counts ``part`` (n, 1) or (n, m) times."""
        scaled = project * part[:, None, :]
        square = scaled.reshape(-1, len(correlation)).T @ (inner @ scaled).reshape(-1, len(correlation))
        cross = (a * part).T @ (b * part)
        return (square - 0.5 * (cross + cross.T)) / len(share)

    of_covariance = np.stack([summed(np.sqrt(share[:, group, None])) for group in range(len(covariance))])
    return float(loss.mean()), of_covariance, summed(stars.error)


def _optima(
    model: FluxModel,
    prior: TypePrior,
    stars: StarData,
    contained: Noise | None,
    error: ModelError,
    terms: LossTerms,
    engine: Engine,
    threads: int | None,
) -> Float64:
    """Parameters (n, k) of fits that do not see the labels; NaN for a star without one."""
    blind = replace(stars, mean=stars.mean.copy(), sigma=stars.sigma.copy())
    blind.mean[:, : model.n_inputs], blind.sigma[:, : model.n_inputs] = 0.0, np.inf
    blind = widen_parallax(blind, model.scale_sigma)
    model = replace(model, noise=replace(model.noise, model_error=error))
    box, options = default_box(prior), FitOptions()
    first = engine.fit(model, prior, blind, start_grid(model, prior), terms, box, options, threads=threads)
    passed = second_pass(engine, model, prior, blind, contained, first, terms, box, options, threads=threads)
    unfitted = (passed.solution.status & np.uint32(UNFITTED)) != 0
    return np.where(unfitted[:, None], np.nan, passed.solution.params)


def _fitted(
    model: FluxModel,
    stars: StarData,
    contained: Noise | None,
    error: ModelError,
    params: Float64,
    errors: Float64 | None,
    held: Float64 | None,
) -> FittedStars:
    """What is to be known of stars at their optima.

    ``errors`` (n, m) where their correlation is unknown; ``held`` (n, q, q): curvature of the prior, if there is one.
    """
    inputs = model.n_inputs
    at, present = flux_and_jacobian(model, params), present_samples(stars.whitener)
    if errors is None:
        archive = error.archive_factor * archive_covariance(model, stars, contained)
        archive /= at.flux[:, :, None] * at.flux[:, None, :]
        archive[~(present[:, :, None] & present[:, None, :])] = 0.0
        errors = np.zeros_like(at.flux)
    else:
        archive = np.zeros((*at.flux.shape, at.flux.shape[1]))
    np.einsum("njj->nj", archive)[~present] = 1.0
    of_constraints = np.full(params.shape, _LEAST_CURVATURE)
    of_constraints[:, inputs:] += 1.0 / stars.sigma[:, inputs:] ** 2
    of_constraints[:, -1] *= params[:, -1] ** 2  # by ln plx
    of_constraints[params[:, -2] < _AT_EDGE, -2] += _HELD
    curvature = of_constraints[:, :, None] * np.eye(params.shape[1])
    if held is not None:
        curvature[:, :inputs, :inputs] += held
    return FittedStars(
        theta=params[:, :inputs],
        off=params[:, :inputs] - stars.mean[:, :inputs],
        label=stars.sigma[:, :inputs] ** 2,
        residual=np.where(present, stars.flux / at.flux - 1.0, 0.0),
        slope=np.where(present[:, :, None], at.jacobian, 0.0),
        archive=archive,
        error=np.where(present, errors / at.flux, 0.0),
        present=present,
        curvature=curvature,
    )


def _prior_curvature(engine: Engine, prior: TypePrior, theta: Float64) -> Float64:
    """Of the prior at stellar types (n, q), where it holds them: between its components it may bend the other way."""
    return positive_part(engine.prior_curvature(prior, theta, threads=1))
