"""The recipe of ZGR23 (section 4.2): a grid search, Adam, a test of the Hessian, rounds of gradient descent.

It repeats the way in which the published catalogue was fitted, with an option for every point where the paper and the
published code differ, so that the default optimiser can be held against it: that needs some ten evaluations of the
loss, this one 8,192 gradients and a grid of 31,232 candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from xpkern.engine import Engine
from xpkern.engine.contract import Box, Descent, Evaluation, FitOptions, Float32, Float64, LossTerms, Solution, StarData
from xpkern.engine.packed import present_samples, sample_variance
from xpkern.engine.reference_fit import SMALLEST_EXT
from xpkern.errors import InputError
from xpkern.fit.candidates import CandidateGrid
from xpkern.grid import in_scale_window
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior
from xpkern.status import Status

#: Extinctions of the grid: a geometric series between these.
GRID_EXT_RANGE = (1e-2, 10.0)

#: The published code's later grid of types: teff [kK], feh and logg, in steps of 0.3.
REGULAR_RANGE, REGULAR_STEP = ((3.0, 9.0), (-2.0, 0.7), (-1.0, 5.0)), 0.3

#: Stars at a time where dense matrices of 66 x 66 are needed.
_BLOCK = 512


@dataclass(frozen=True)
class Zgr23Options:
    """The recipe's numbers: the paper's, and the published code's where the paper is silent.

    Both take their steps in x = (teff, feh, logg, ln ext, ln plx) on Eq. 19, by Adam with its usual betas of 0.9 and
    0.999 (the epsilon of 1e-7 is that of the published code's library; the paper names none of them), then by plain
    gradient descent. Ours alone: steps are kept inside the box of the fit, grid parallaxes too, and no star's result
    depends on which others are fitted with it.

    What cannot change the result is no option: the normalisation of ln p_GMM (``Fit.ln_prior`` is normalised; the
    catalogue layout "zgr23" has the published convention), and that the published code tests half the Hessian. The
    61 degrees of freedom of flag bit 3 hold in every layout.

    Attributes
    ----------
    grid : {"draws", "regular"}
        Stellar types of the grid: drawn from the prior, always the same ones; or, in later versions of the published
        code, every 0.3 kK, dex and dex, where the prior is not below its ``ln_prior_threshold``.
    types : int
        How many are drawn.
    exts : int
        Extinctions of the grid, 10^-2 to 10 in geometric series.
    score : {"prior", "parallax"}
        Of a candidate: chi^2 - 2 ln p, or chi^2 + ((plx - measured) / sigma)^2 without the prior.
    guess : {"ratio_of_sums", "mean_of_ratios"}
        Parallax of a candidate, from observed and predicted flux: the ratio of their sums over 592-782 nm, or the mean
        of their ratios, negative ones counted as 0, over the middle third of the samples.
    adam_steps, adam_decay_every : int
    adam_rate, adam_decay : float
        Learning rate, and the factor to it after every ``adam_decay_every`` steps. The paper also says 12,288 steps
        "reduced by 8 every 512", which would stop the descent after a few thousand.
    clip : float
        Norm to which a star's gradient is scaled down where it is larger; inf for never.
    sgd_rounds, sgd_steps, sgd_decay_every : int
        Rounds for the stars whose Hessian is not positive definite, steps of each, and steps between halvings.
    sgd_rate, sgd_round_factor : float
        Learning rate of the first round, and the factor to it from round to round.
    sgd_stop : float
        No further round once fewer than this share of the stars fitted together fails, or none. The paper has 1e-4 of
        a batch of 32,768, which for up to 10,000 stars is the same as 0; 0 lets no star depend on the others.
    jacobian_in_hessian : bool
        Whether the Hessian tested, always in the linear parameters, is that of the whole loss, or of what is left of
        it without - 2 ln ext - 2 ln plx.
    fisher_floor : float
        Smallest eigenvalue allowed to the Fisher matrix (kK, dex, dex, mag, mas) before it is inverted.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    grid: str = "draws"
    types: int = 512
    exts: int = 61
    score: str = "prior"
    guess: str = "ratio_of_sums"
    adam_steps: int = 8192
    adam_rate: float = 0.01
    adam_decay: float = 0.5
    adam_decay_every: int = 768
    clip: float = 100.0
    sgd_rounds: int = 8
    sgd_steps: int = 12288
    sgd_rate: float = 1e-5
    sgd_round_factor: float = 0.5
    sgd_decay_every: int = 4096
    sgd_stop: float = 0.0
    jacobian_in_hessian: bool = True
    fisher_floor: float = 1e-6

    def __post_init__(self) -> None:
        words = {
            "grid": ("draws", "regular"),
            "score": ("prior", "parallax"),
            "guess": ("ratio_of_sums", "mean_of_ratios"),
        }
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{getattr(self, name)!r} is none of {', '.join(allowed)}", field=name)
        for field in fields(self):
            value = getattr(self, field.name)
            smallest = 1 if field.name in ("types", "exts", "adam_decay_every", "sgd_decay_every") else 0
            if not isinstance(value, str) and not value >= smallest:
                raise InputError(f"{value} is not a number >= {smallest}", field=field.name)

    @classmethod
    def published_code(cls) -> Zgr23Options:
        """The published code's numbers where the paper has others."""
        return cls(
            types=128,
            exts=31,
            score="parallax",
            guess="mean_of_ratios",
            adam_steps=12288,
            sgd_rounds=7,
            sgd_round_factor=0.25,
            sgd_stop=1e-3,
            jacobian_in_hessian=False,
        )

    @property
    def adam(self) -> Descent:
        """The first round."""
        return Descent("adam", self.adam_steps, self.adam_rate, self.adam_decay, self.adam_decay_every, self.clip)

    def sgd(self, number: int) -> Descent:
        """A round of gradient descent, the first having number 0."""
        rate = self.sgd_rate * self.sgd_round_factor**number
        return Descent("sgd", self.sgd_steps, rate, 0.5, self.sgd_decay_every, self.clip)


def candidate_grid(model: FluxModel, prior: TypePrior, box: Box, options: Zgr23Options) -> CandidateGrid:
    """The grid of section 4.2: stellar types times extinctions.

    Raises
    ------
    InputError
        If no type of a regular grid is likely enough, or the model has other inputs than (teff, feh, logg).
    """
    if options.grid == "regular":
        types = _regular_types(prior)
    else:
        types = prior.sample(options.types, np.random.default_rng(0))
    types = np.clip(types, box.lower[:-2], box.upper[:-2])
    bare = np.column_stack([types, np.zeros(len(types)), np.ones(len(types))])
    third = np.array_split(np.arange(model.n_samples), 3)[1]
    middle = np.isin(np.arange(model.n_samples), third)
    return CandidateGrid(
        types=types,
        ext=np.clip(np.geomspace(*GRID_EXT_RANGE, options.exts), max(box.lower[-2], SMALLEST_EXT), box.upper[-2]),
        base_flux=np.exp(model.ln_flux(bare)),
        ext_curve=model.ext_curve,
        penalty=-2.0 * prior.ln_density(types) if options.score == "prior" else np.zeros(len(types)),
        window=in_scale_window(model.wavelength) if options.guess == "ratio_of_sums" else middle,
        guess=options.guess,
        score=options.score,
        plx_bounds=(float(box.lower[-1]), float(box.upper[-1])),
    )


def _regular_types(prior: TypePrior) -> Float64:
    """Points of the regular grid, teff slowest, at which the prior is not below its threshold, (t, 3)."""
    if prior.means.shape[1] != len(REGULAR_RANGE):
        raise InputError(f"regular is for 3 inputs, not {prior.means.shape[1]}", field="grid")
    axes = [np.arange(first, last + 0.5 * REGULAR_STEP, REGULAR_STEP) for first, last in REGULAR_RANGE]
    types = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    likely = types[prior.ln_density(types) >= prior.ln_prior_threshold]
    if len(likely) == 0:
        raise InputError("no point of the regular grid is where the prior is", field="grid")
    return likely


def zgr23_solution(
    engine: Engine,
    model: FluxModel,
    prior: TypePrior,
    stars: StarData,
    start: Float64 | None,
    terms: LossTerms,
    box: Box,
    options: Zgr23Options,
    *,
    threads: int | None = None,
) -> Solution:
    """Where the recipe ends, from its own grid or from given linear parameters (n, k).

    ``iterations`` counts gradients. A star whose Hessian fails after the last round has HESSIAN_NOT_POSITIVE; one that
    a Newton step would still take lower by more than the default optimiser tolerates has NOT_CONVERGED.
    """
    seen = np.flatnonzero(present_samples(stars.whitener).any(axis=1))
    search = _Search(engine, model, prior, stars[seen], terms, box, threads)
    if start is None:
        params = engine.search(candidate_grid(model, prior, box, options), search.stars, threads=threads)
    else:
        params = np.ascontiguousarray(start[seen])
    failed = np.arange(len(seen))
    iterations = np.zeros(len(seen), np.int32)
    for descent in (options.adam, *map(options.sgd, range(options.sgd_rounds))):
        params[failed] = search.descend(params[failed], failed, descent)
        iterations[failed] += np.int32(descent.steps)
        at = search.evaluate(params[failed], failed)
        failed = failed[~_hessian_passes(at, params[failed], terms, options)]
        if len(failed) == 0 or len(failed) < options.sgd_stop * len(seen):
            break
    found = search.solution(params)
    found.iterations = iterations
    found.status[failed] |= np.uint32(Status.HESSIAN_NOT_POSITIVE)
    return _among_all(found, seen, len(stars))


@dataclass(frozen=True)
class _Search:
    """What every step of the recipe is told; ``stars`` are those with data."""

    engine: Engine
    model: FluxModel
    prior: TypePrior
    stars: StarData
    terms: LossTerms
    box: Box
    threads: int | None

    def descend(self, params: Float64, rows: np.ndarray, descent: Descent) -> Float64:
        """Parameters where some of the stars end."""
        return self.engine.descend(
            self.model, self.prior, self.stars[rows], params, self.terms, self.box, descent, threads=self.threads
        )

    def evaluate(self, params: Float64, rows: np.ndarray) -> Evaluation:
        """The loss of some of the stars."""
        return self.engine.evaluate(self.model, self.prior, self.stars[rows], params, self.terms, threads=self.threads)

    def solution(self, params: Float64) -> Solution:
        """Everything there is to say of all stars at given parameters, but how they got there."""
        at = self.evaluate(params, np.arange(len(params)))
        lower, slack = self.box.lower.copy(), 1e-12 * np.abs(params)
        lower[-2] = max(lower[-2], SMALLEST_EXT)
        low, high = params <= lower + slack, params >= self.box.upper - slack
        decrement = _decrement(at, (low & (at.gradient > 0)) | (high & (at.gradient < 0)))
        status = np.zeros(len(params), np.uint32)
        status[~(decrement <= FitOptions().tolerance * np.maximum(1.0, 0.01 * at.loss))] |= np.uint32(
            Status.NOT_CONVERGED
        )
        status[(low | high).any(axis=1)] |= np.uint32(Status.ON_BOX_EDGE)
        return Solution(
            **vars(at),
            params=params,
            decrement=decrement,
            residual=self.residual(params),
            iterations=np.zeros(len(params), np.int32),
            status=status,
            minima=np.ones(len(params), np.int32),
            second_params=np.full(params.shape, math.nan),
            second_gap=np.full(len(params), math.nan),
        )

    def residual(self, params: Float64) -> Float32:
        """(predicted - observed) / sigma, (n, m); 0 where missing."""
        difference = self.engine.predict(self.model, params, threads=self.threads) - self.stars.flux
        for first in range(0, len(params), _BLOCK):
            block = slice(first, first + _BLOCK)
            sigma = np.sqrt(sample_variance(self.stars.whitener[block]))
            difference[block] = np.divide(difference[block], sigma, out=np.zeros_like(sigma), where=sigma > 0)
        return difference.astype(np.float32)


def _hessian_passes(at: Evaluation, params: Float64, terms: LossTerms, options: Zgr23Options) -> np.ndarray:
    """Whether the Hessian in the linear parameters is positive definite, (n,) bool.

    With v = exp(x): d^2/dx^2 = v^2 d^2/dv^2 + v d/dv, and - 2 ln v contributes 2 / v^2 to d^2/dv^2.
    """
    value = params[:, -2:]
    hessian = at.hessian.copy()
    diagonal = np.einsum("naa->na", hessian)[:, -2:]  # a view
    diagonal -= at.gradient[:, -2:]
    if not options.jacobian_in_hessian:
        diagonal -= 2.0 * np.array([terms.jacobian_ext, terms.jacobian_plx])
    hessian[:, -2:] /= value[:, :, None]
    hessian[:, :, -2:] /= value[:, None, :]
    return _is_positive(hessian)


def _is_positive(matrix: Float64) -> np.ndarray:
    """Whether symmetric matrices (n, k, k) are positive definite, (n,) bool; scaled to a unit diagonal first."""
    diagonal = np.einsum("naa->na", matrix)
    positive = (diagonal > 0).all(axis=1) & np.isfinite(matrix).all(axis=(1, 2))
    scale = 1.0 / np.sqrt(np.where(positive[:, None], diagonal, 1.0))
    balanced = np.where(positive[:, None, None], matrix * scale[:, :, None] * scale[:, None, :], 0.0)
    return positive & (np.linalg.eigvalsh(balanced)[:, 0] > 0)


def _decrement(at: Evaluation, held: np.ndarray) -> Float64:
    """g^T H^-1 g / 2 in x, (n,), over the parameters not held (n, k); inf where H is not positive definite."""
    gradient = np.where(held, 0.0, at.gradient)
    free = ~held[:, :, None] & ~held[:, None, :]
    hessian = np.where(free, at.hessian, np.eye(held.shape[1]))
    decrement = np.full(len(at.loss), np.inf)
    positive = _is_positive(hessian)
    step = np.linalg.solve(hessian[positive], gradient[positive, :, None])[:, :, 0]
    decrement[positive] = 0.5 * np.einsum("na,na->n", gradient[positive], step)
    return decrement


def _among_all(found: Solution, rows: np.ndarray, total: int) -> Solution:
    """The solution of all stars, given that of those with data."""
    absent = {"residual": 0.0, "iterations": 0, "minima": 0, "status": int(Status.NO_DATA)}
    spread = {}
    for name, values in vars(found).items():
        spread[name] = np.full((total, *values.shape[1:]), absent.get(name, math.nan), values.dtype)
        spread[name][rows] = values
    return Solution(**spread)
