"""Learning how wrong a flux model is: the covariance S of its fractional errors, from stars with labels.

The residual of a star at its labels, r = f_observed / f - 1, has the covariance

    V = S + k C_gaia / (f f^T) + J Sigma J^T,   J = d ln f / d(labels), Sigma = diag(sigma^2) of the labels,

so that an error of a label, which moves r along J, is not counted as one of the model. A parameter without a label has
sigma = inf: what r has along its column of J is then left out (restricted maximum likelihood). With

    W = V^-1 = B - B J (J^T B J + Sigma^-1)^-1 J^T B,   B = (S + k C_gaia / (f f^T))^-1,   b = W r

S and k are those that make the residuals most likely, found by the iteration

    S <- S + M <t b b^T - W> M,   M = (1 + e) (<W> + e S^-1)^-1,
    k <- k + <t b^T C b - tr(W C)> / <tr(W C W C)>,   C = C_gaia / (f f^T).

With M = S the first would be a step of expectation-maximisation, which is slow where the noise of the measurement hides
S; with M = <W>^-1 one of Fisher's scoring, if all stars had the same W. e is between them.
The weight t = (nu + d) / (nu + r^T W r), d the number of samples less that of free parameters, is that of Student's
distribution: a binary, or a star with a wrong label, counts for little.

Each group of stellar types has an S of its own (:class:`xpkern.model.model_error.ModelError`); <> is a mean over the
stars, weighted by their share in the group. Some more stars, whose errors are known and have a covariance S_0 that is
smooth in wavelength, stand for what is known beforehand (an inverse Wishart distribution): without them nothing would
say how large S is in directions that no star tells of, as where all extinctions are free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from xpkern.engine import Engine, get_engine
from xpkern.engine.contract import Box, FitOptions, Float32, Float64, LossTerms, StarData
from xpkern.engine.packed import present_samples
from xpkern.engine.reference_loss import flux_and_jacobian
from xpkern.engine.reference_noise import archive_covariance
from xpkern.errors import InputError
from xpkern.fit.fit import default_box
from xpkern.grid import in_scale_window
from xpkern.model.flux_model import FluxModel
from xpkern.model.model_error import ModelError, blend
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior

#: Smallest share in a group of a star that it learns from.
_LEAST_SHARE = 0.05

#: e above.
_CAUTION = 0.05

#: Factor by which k changes at most in one iteration.
_LARGEST_STEP = 1.5

#: S_0: fractional errors of each sample on its own, of neighbours within a length of ln wavelength, of all together.
_PRIOR_INDEPENDENT, _PRIOR_NEIGHBOURS, _PRIOR_COMMON = 0.003, 0.01, 0.02
_PRIOR_LENGTH = 0.15


@dataclass(frozen=True)
class NoiseRecipe:
    """Settings of the learning.

    Attributes
    ----------
    groups : int
        Groups of stellar types; their centres are those of k-means.
    scale : tuple of float
        Over which types [kK, dex, dex] groups blend.
    most_stars : int
        Stars of a group that are looked at.
    iterations : int
    outlier : float
        nu above; inf for none.
    prior_stars : float
        How many stars S_0 stands for in each group.
    least_error : float
        Fractional error of each sample on its own that S has at least.
    learn_archive_factor : bool
        Whether k is learned; else it is 1.
    seed : int
    """

    groups: int = 10
    scale: tuple[float, ...] = (0.3, 0.35, 0.5)
    most_stars: int = 500
    iterations: int = 30
    outlier: float = 5.0
    prior_stars: float = 5.0
    least_error: float = 1e-3
    learn_archive_factor: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, smallest in (("groups", 1), ("most_stars", 1), ("iterations", 1), ("prior_stars", 0.0)):
            if not getattr(self, name) >= smallest:
                raise InputError(f"{getattr(self, name)} is not a number >= {smallest}", field=name)
        for name in ("outlier", "least_error"):
            if not getattr(self, name) > 0:
                raise InputError(f"{getattr(self, name)} is not a number > 0", field=name)


@dataclass(frozen=True)
class LabelledResiduals:
    """Fractional residuals of n stars at their labels, and what is known of them.

    Attributes
    ----------
    theta : (n, inputs) float64
        Labels.
    residual : (n, m) float64
        f_observed / f - 1; 0 where a sample is missing.
    present : (n, m) bool
    archive : (n, m, m) float32
        C_gaia / (f f^T).
    slope : (n, m, k) float64
        J, the last column by ln plx.
    precision : (n, k) float64
        1 / sigma^2 of the labels in the coordinates of J; 0 where there is none.
    share : (n,) float64
        What each star counts for.
    """

    theta: Float64
    residual: Float64
    present: np.ndarray
    archive: Float32
    slope: Float64
    precision: Float64
    share: Float64

    def __len__(self) -> int:
        return len(self.theta)


def residuals_at_labels(
    model: FluxModel,
    prior: TypePrior,
    stars: StarData,
    contained: Noise | None,
    *,
    engine: str | Engine = "auto",
    threads: int | None = None,
) -> LabelledResiduals:
    """Residuals of stars at their labels, to first order.

    They are found where spectrum and labels agree best, and taken to the labels along J: an error of a label may
    change fluxes by so much that J is another one there. A parameter without a label stays where it is.

    Parameters
    ----------
    model : FluxModel
    prior : TypePrior
        Says in which box parameters without a label are sought.
    stars : StarData
        ``mean`` and ``sigma`` are the labels and their errors; each star has those of its type, the inputs of the
        model.
    contained : Noise, optional
        The noise of Eq. 2 that their whiteners contain.

    Raises
    ------
    InputError
        If a star lacks a label of its type.
    """
    inputs = model.n_inputs
    if not np.isfinite(stars.sigma[:, :inputs]).all():
        raise InputError("a star lacks a label of its type", field="sigma")
    params = near_labels(model, prior, stars, engine, threads)
    at = flux_and_jacobian(model, params)
    present = present_samples(stars.whitener)
    # d ln plx = d plx / plx at the parallax that was found
    unit = np.where(np.arange(model.n_parameters) < inputs + 1, 1.0, params[:, -1:])
    sigma = stars.sigma / unit
    off = np.where(np.isfinite(sigma), (stars.mean - params) / unit, 0.0)
    residual = stars.flux / at.flux - 1.0 - np.einsum("nmk,nk->nm", at.jacobian, off)
    both = present[:, :, None] & present[:, None, :]
    archive = archive_covariance(model, stars, contained) / (at.flux[:, :, None] * at.flux[:, None, :])
    return LabelledResiduals(
        theta=stars.mean[:, :inputs].copy(),
        residual=np.where(present, residual, 0.0),
        present=present,
        archive=np.where(both, archive, 0.0).astype(np.float32),
        slope=np.where(present[:, :, None], at.jacobian, 0.0),
        precision=1.0 / sigma**2,
        share=np.ones(len(stars)),
    )


def near_labels(
    model: FluxModel, prior: TypePrior, stars: StarData, engine: str | Engine, threads: int | None
) -> Float64:
    """Parameters (n, k) that suit a star's spectrum and its labels best, next to the labels."""
    inputs = model.n_inputs
    known = np.isfinite(stars.sigma)
    start = np.where(known, stars.mean, 0.1)
    start[:, -2] = np.maximum(start[:, -2], 1e-2)
    start[:, -1] = 1.0
    window = in_scale_window(model.wavelength)
    if not window.any():
        window = np.ones(model.n_samples, bool)
    seen = present_samples(stars.whitener) & window
    observed = np.where(seen, stars.flux, 0.0).sum(axis=1, dtype=np.float64)
    expected = np.where(seen, np.exp(model.ln_flux(start)), 0.0).sum(axis=1)
    ratio = np.divide(observed, expected, out=np.ones(len(observed)), where=expected > 0)
    start[:, -1] = np.sqrt(np.clip(ratio, 1e-8, 1e6))
    margin = np.where(np.arange(model.n_parameters) < inputs, 1.0, 0.0)
    box = default_box(prior)
    box = Box(
        lower=np.minimum(box.lower, start.min(axis=0, initial=np.inf) - margin),
        upper=np.maximum(box.upper, start.max(axis=0, initial=-np.inf) + margin),
    )
    constrained = replace(stars, mean=np.ascontiguousarray(stars.mean), sigma=np.ascontiguousarray(stars.sigma))
    terms = LossTerms(prior=False, jacobian_ext=False, jacobian_plx=False)
    solution = get_engine(engine).fit(model, prior, constrained, start, terms, box, FitOptions(), threads=threads)
    return np.where(np.isfinite(solution.params), solution.params, start)


def learn_model_error(
    model: FluxModel,
    prior: TypePrior,
    stars: StarData,
    contained: Noise | None,
    recipe: NoiseRecipe | None = None,
    *,
    engine: str | Engine = "auto",
    threads: int | None = None,
) -> ModelError:
    """The model error that makes the residuals of labelled stars most likely.

    Parameters
    ----------
    model : FluxModel
    prior : TypePrior
    stars : StarData
        Stars with labels in ``mean`` and ``sigma``, as :func:`residuals_at_labels` takes them; best such as the model
        has not learned from. Errors of labels that are too large, as with a floor, take from S what they say too much.
    contained : Noise, optional
        The noise of Eq. 2 that their whiteners contain.
    recipe : NoiseRecipe, optional

    Returns
    -------
    ModelError
        Samples that are theoretical, or that no star has, carry the error that ``model.noise`` gives them.
    """
    recipe = NoiseRecipe() if recipe is None else recipe
    if len(stars) == 0:
        raise InputError("no star to learn from", field="stars")
    rng = np.random.default_rng(recipe.seed)
    theta = stars.mean[:, : model.n_inputs]
    scale = np.asarray(recipe.scale, dtype=np.float64)
    with threadpool_limits(1):
        centre = _centres(theta, scale, min(recipe.groups, len(stars)), recipe.seed)
        shares = blend(theta, centre, scale)
        parts = []
        for group in range(len(centre)):
            rows = np.flatnonzero(shares[:, group] > _LEAST_SHARE)
            if len(rows) > recipe.most_stars:
                rows = np.sort(rng.choice(rows, recipe.most_stars, replace=False))
            part = residuals_at_labels(model, prior, stars[rows], contained, engine=engine, threads=threads)
            parts.append(replace(part, share=shares[rows, group]))
        unseen = ~present_samples(stars.whitener).any(axis=0) | np.asarray(model.theoretical)
        covariance, factor = maximise_likelihood(parts, recipe, prior_covariance(model, unseen))
    return ModelError(centre=centre, scale=scale, covariance=covariance, archive_factor=factor)


def prior_covariance(model: FluxModel, unseen: np.ndarray) -> Float64:
    """S_0 (m, m); of samples that no star tells of, the model's own independent errors."""
    distance = np.log(model.wavelength[:, None] / model.wavelength) / _PRIOR_LENGTH
    covariance = _PRIOR_NEIGHBOURS**2 * np.exp(-0.5 * distance**2) + _PRIOR_COMMON**2
    covariance[unseen] = covariance[:, unseen] = 0.0
    independent = np.where(unseen, model.noise.independent, _PRIOR_INDEPENDENT)
    return covariance + np.diag(independent**2)


def _centres(theta: Float64, scale: Float64, groups: int, seed: int) -> Float64:
    """Centres (g, k) of groups of stellar types, sorted by temperature."""
    found = KMeans(groups, n_init=4, random_state=seed).fit(theta / scale).cluster_centers_ * scale
    return found[np.lexsort(found.T[::-1])]


def maximise_likelihood(parts: list[LabelledResiduals], recipe: NoiseRecipe, prior: Float64) -> tuple[Float64, float]:
    """S of each group (g, m, m), and k, from the residuals of the groups' stars and from S_0."""
    covariance, factor = [prior + _spread(part) for part in parts], 1.0
    least = np.minimum(recipe.least_error, np.sqrt(np.diagonal(prior)))
    for _ in range(recipe.iterations):
        sums = [_sums(part, each, factor, recipe.outlier) for part, each in zip(parts, covariance, strict=True)]
        for group, each in enumerate(sums):
            covariance[group] = _at_least(_step(each, covariance[group], prior, recipe.prior_stars), least)
        if recipe.learn_archive_factor:
            step = sum(each.archive for each in sums) / sum(each.information for each in sums)
            factor = float(np.clip(factor + step, factor / _LARGEST_STEP, factor * _LARGEST_STEP))
    return np.stack(covariance), factor


def _spread(part: LabelledResiduals) -> Float64:
    """Second moment of residuals (m, m), that of an outlier no larger than a typical star's.

    Noise and errors of labels are in it. S starts from above because from below it would hardly grow in directions in
    which labels hide it: one step changes it by its square.
    """
    size = (part.residual**2).sum(axis=1)
    weight = part.share * np.minimum(1.0, np.median(size) / np.maximum(size, np.finfo(np.float64).tiny))
    return (part.residual * weight[:, None]).T @ part.residual / part.share.sum()


def _at_least(covariance: Float64, error: Float64) -> Float64:
    """A covariance (m, m) whose eigenvalues, in units of errors (m,), are at least 1."""
    units = error[:, None] * error
    values, vectors = np.linalg.eigh(covariance / units)
    raised = (vectors * np.maximum(values, 1.0)) @ vectors.T * units
    return 0.5 * (raised + raised.T)


def _step(sums: _Sums, covariance: Float64, prior: Float64, prior_stars: float) -> Float64:
    """S after one iteration, without a floor."""
    inverse = np.linalg.inv(covariance)
    stars = sums.stars + prior_stars
    precision = (sums.precision + prior_stars * inverse) / stars
    moment = (sums.moment + prior_stars * inverse @ prior @ inverse) / stars
    reach = (1.0 + _CAUTION) * np.linalg.inv(precision + _CAUTION * inverse)
    return covariance + reach @ (moment - precision) @ reach


@dataclass(frozen=True)
class _Sums:
    """Sums over the stars of a group, each weighted by its share.

    Attributes
    ----------
    moment, precision : (m, m) float64
        Of t b b^T and of W.
    stars, archive, information : float
        Of 1, of t b^T C b - tr(W C) and of tr(W C W C).
    """

    moment: Float64
    precision: Float64
    stars: float
    archive: float
    information: float


#: Stars whose matrices are inverted at once.
_BLOCK = 256


def _sums(part: LabelledResiduals, covariance: Float64, factor: float, outlier: float) -> _Sums:
    samples = len(covariance)
    moment, precision, archive, information = np.zeros((samples, samples)), np.zeros((samples, samples)), 0.0, 0.0
    for first in range(0, len(part), _BLOCK):
        block = slice(first, first + _BLOCK)
        present, share = part.present[block], part.share[block]
        noise = part.archive[block].astype(np.float64)
        weight = whitened_precision(covariance + factor * noise, part.slope[block], part.precision[block], present)
        pull = np.einsum("nij,nj->ni", weight, part.residual[block])
        chi2 = np.einsum("ni,ni->n", pull, part.residual[block])
        free = present.sum(axis=1) - (part.precision[block] == 0).sum(axis=1)
        student = np.ones(len(chi2)) if np.isinf(outlier) else (outlier + free) / (outlier + chi2)
        moment += (pull * (share * student)[:, None]).T @ pull
        precision += np.einsum("n,nij->ij", share, weight)
        product = weight @ noise
        archive += float((share * student) @ np.einsum("ni,ni->n", pull, np.einsum("nij,nj->ni", noise, pull)))
        archive -= float(share @ np.einsum("nii->n", product))
        information += float(share @ np.einsum("nij,nji->n", product, product))
    return _Sums(moment, precision, float(part.share.sum()), archive, information)


def whitened_precision(covariance: Float64, slope: Float64, precision: Float64, present: np.ndarray) -> Float64:
    """W = (covariance + J Sigma J^T)^-1 of samples that are present, (n, m, m); 0 elsewhere.

    Parameters
    ----------
    covariance : (n, m, m) float64
    slope : (n, m, k) float64
        J; 0 where a sample is missing.
    precision : (n, k) float64
        Diagonal of Sigma^-1; 0 where nothing is known.
    present : (n, m) bool
    """
    both = present[:, :, None] & present[:, None, :]
    masked = np.where(both, covariance, 0.0)
    np.einsum("njj->nj", masked)[~present] = 1.0
    inverse = np.where(both, np.linalg.inv(masked), 0.0)
    leverage = inverse @ slope
    information = slope.swapaxes(1, 2) @ leverage
    np.einsum("nkk->nk", information)[:] += precision
    # columns of very unlike sizes: scaled to 1 on the diagonal
    size = 1.0 / np.sqrt(np.einsum("nkk->nk", information))
    scaled = information * size[:, :, None] * size[:, None, :]
    leverage = leverage * size[:, None, :]
    return inverse - leverage @ np.linalg.solve(scaled, leverage.swapaxes(1, 2))
