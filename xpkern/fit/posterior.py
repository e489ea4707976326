"""The posterior of chosen stars, beyond the Fisher matrix: all modes, and weighted samples of the whole of it.

Samples come from a mixture of Student's t distributions by importance sampling. It begins as the Laplace approximation
of every mode that many searches found. Where a pilot shows that to be poor, an affine-invariant ensemble that starts at
the pilot's samples walks for a while, and a mixture of more components is fitted to where it has got, as often as need
be. The samples are drawn from what the mixture has become, once; their weights make up for what is left of the
difference, whatever it is, and give the evidence without further work. Their effective number says how good the mixture
was, which a chain alone does not: it may have missed a mode, or not have arrived. Chains with gradients
would need evaluations one after the other, an ensemble and importance samples come hundreds at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xpkern.engine import Engine, get_engine
from xpkern.engine.contract import Box, Float64, StarData
from xpkern.errors import InputError
from xpkern.fit.fit import checked_box, default_box, fit
from xpkern.fit.modes import Modes, find_modes
from xpkern.fit.posterior_result import LEAST_EFFECTIVE, Posterior
from xpkern.fit.result import Fit
from xpkern.fit.scale import widen_parallax
from xpkern.fit.sightline_prior import SightlinePrior
from xpkern.fit.student_mixture import StudentMixture, root_of
from xpkern.fit.target import Gaussians, StarDensity, Target
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior
from xpkern.observe.observations import Observations
from xpkern.threads import in_order, number_of_threads

#: Samples of a pilot, and the share of them that their effective number must reach for the mixture to be good enough.
PILOT, GOOD_SHARE = 600, 0.25

#: The samples themselves are drawn once more if fewer than this share of them is effective, and too few in number.
LEAST_SHARE = 0.2

#: Rounds at most, in each of which an ensemble of so many walkers takes so many steps, and so many components are
#: fitted to it; as many once more for a star whose samples are poor all the same.
ROUNDS, WALKERS, STEPS, COMPONENTS = 5, 600, 20, 6

#: Around every component there is a second one, so many times as wide, with this share of the weight: tails that are
#: thinner than the posterior's cost more than centres that are.
_WIDE, _WIDE_SHARE = 1.6, 0.3

#: Least weight of a mode in the first mixture: its Laplace evidence may be off by orders of magnitude.
_LEAST_WEIGHT = 0.02

#: The first mixture keeps this share of the last one, for what the walkers have not seen.
_DEFENCE = 0.1

#: Walkers begin at samples of at least so many effective ones, where need be under tempered weights.
_LEAST_WALKING = 60.0


def posterior(
    obs: Observations,
    model: FluxModel,
    prior: TypePrior,
    *,
    samples: int = 2000,
    seed: int = 0,
    stars: ArrayLike | None = None,
    sightline: SightlinePrior | None = None,
    box: Box | None = None,
    noise: str | None = None,
    engine: str | Engine = "auto",
    threads: int | None = None,
) -> Posterior:
    """Sample the posterior of each star under proper priors.

    The density, with respect to dteff dfeh dlogg dE dplx, inside the box and 0 outside::

        exp(-chi^2 / 2 - ((plx - measured) / sigma)^2 / 2) p_GMM(teff, feh, logg) p(E) p(plx)

    With the default, uniform p(E) and p(plx), this is exp(-loss / 2) of Eq. 19 (a density in ln E and ln plx, hence its
    terms - 2 ln E - 2 ln plx) made proper by the box. Where the model's scale is theoretical it is marginalised over
    exactly; a learned noise is frozen where the fit froze it, one covariance for all modes of a star.

    Modes are minima of the loss that the fit minimised (:func:`xpkern.fit.fit.default_terms`): in (ln E, ln plx) with
    the noise of Eq. 2, in (E, plx) under a learned one. The density is the same for both.

    Parameters
    ----------
    obs : Observations
        Arrays on a GPU are brought to the host.
    model : FluxModel
    prior : TypePrior
    samples : int
        Of each star.
    seed : int
        The samples of a star depend on it and the source_id, not on the other stars or on ``threads``.
    stars : array_like, optional
        Row numbers or a mask of the stars wanted; all when not given.
    sightline : SightlinePrior, optional
        p(E) and p(plx); uniform when not given.
    box : Box, optional
        :func:`xpkern.fit.fit.default_box` when not given.
    noise : {"learned", "eq2"}, optional
        As :func:`xpkern.fit` takes it.
    engine : str or Engine
    threads : int, optional

    Returns
    -------
    Posterior

    Raises
    ------
    InputError
        If ``samples`` is not positive, ``stars`` are no rows of the observations, or as :func:`xpkern.fit`.
    """
    if samples < 1:
        raise InputError(f"{samples} is not a positive number", field="samples")
    chosen = obs if stars is None else obs.take(_rows(stars, len(obs)))
    chosen = chosen.on_host()
    box = default_box(prior) if box is None else checked_box(box, model.n_parameters)
    how = get_engine(engine)
    threads = number_of_threads(threads)
    best = fit(chosen, model, prior, engine=how, threads=threads, box=box, noise=noise)
    data = data_of_fit(how, best, threads)
    target = Target(how, model, prior, SightlinePrior() if sightline is None else sightline, box)
    # the loss that is searched is the fit's: with its terms, and with the parallax of the spectrum
    widened = widen_parallax(data, model.scale_sigma)
    known = np.where(best.fitted[:, None], np.column_stack([best.params[:, :-1], best.model_plx]), np.nan)
    modes = find_modes(how, model, prior, widened, known, best.terms, box, threads=threads)

    def sample(star: int) -> StarSamples | None:
        own = modes.of(star)
        if own.start == own.stop:
            return None
        density = StarDensity(target, data[star : star + 1])
        rng = np.random.default_rng([seed, int(chosen.source_id[star]) & (1 << 63) - 1])
        return sample_star(density, density.gaussians(modes.params[own]), samples, rng)

    drawn = list(in_order(iter(range(len(chosen))), sample, threads=threads))
    return _result(best, target, modes, drawn, samples, seed)


@dataclass(frozen=True)
class StarSamples:
    """What importance sampling found of one star.

    Attributes
    ----------
    gaussians : Gaussians
        Of its modes.
    params : (s, k) float64
        Linear parameters.
    weight : (s,) float64
        Adding up to 1.
    mode : (s,) intp
        To which mode each sample belongs: that whose Gaussian is densest there.
    ln_evidence : float
    rounds : int
        Pilot rounds.
    """

    gaussians: Gaussians
    params: Float64
    weight: Float64
    mode: NDArray[np.intp]
    ln_evidence: float
    rounds: int

    @property
    def effective(self) -> float:
        """Effective number of samples, 1 / sum of squared weights."""
        return float(1.0 / np.square(self.weight).sum())


def sample_star(density: StarDensity, gaussians: Gaussians, samples: int, rng: np.random.Generator) -> StarSamples:
    """Importance samples of one star whose modes have Gaussians of their own."""

    def ln_density(y: Float64) -> Float64:
        return density.at(y)[0]

    first = _mixture_of(gaussians, density.target.box)
    walkers: Walkers | None = None

    def moved(y: Float64, height: Float64, ln_weight: Float64) -> StudentMixture:
        nonlocal walkers
        walkers = Walkers.among(y, height, ln_weight, rng) if walkers is None else walkers
        walkers.walk(ln_density, STEPS, rng)
        fitted = StudentMixture.fitted(walkers.y, COMPONENTS, first.lower, first.upper, rng)
        return _widened(fitted).joined(first, _DEFENCE)

    mixture, rounds, most = first, 0, ROUNDS
    while True:
        rounds += 1
        pilot = mixture.sample(PILOT, rng)
        height = ln_density(pilot)
        ln_weight = height - mixture.ln_density(pilot)
        if rounds < most and _effective(ln_weight) < GOOD_SHARE * PILOT:
            mixture = moved(pilot, height, ln_weight)
            continue
        y = mixture.sample(samples, rng)
        height, params = density.at(y)
        ln_weight = height - mixture.ln_density(y)
        if most > ROUNDS or _effective(ln_weight) > min(LEAST_EFFECTIVE, LEAST_SHARE * samples):
            break
        most = 2 * ROUNDS  # the samples have found what the pilot had not: once more
        mixture = moved(y, height, ln_weight)
    highest = ln_weight.max()
    if not np.isfinite(highest):
        ln_evidence, weight = -np.inf, np.full(samples, 1.0 / samples)
    else:
        ln_evidence = float(highest + np.log(np.exp(ln_weight - highest).mean()))
        weight = _normalised(ln_weight)
    own = StudentMixture(_weights(gaussians), gaussians.centre, root_of(gaussians.covariance), first.lower, first.upper)
    mode = own.ln_components(y)[0].argmax(axis=1)
    return StarSamples(gaussians, params, weight, mode, ln_evidence, rounds)


@dataclass
class Walkers:
    """An affine-invariant ensemble (Goodman & Weare 2010) of w walkers: where they are, ln of the density there."""

    y: Float64
    height: Float64

    @classmethod
    def among(cls, y: Float64, height: Float64, ln_weight: Float64, rng: np.random.Generator) -> Walkers:
        """Walkers at weighted samples; where few of these count, at those of tempered weights."""
        power, weight = 1.0, _normalised(ln_weight)
        while _effective(power * ln_weight) < _LEAST_WALKING and power > 1e-3:
            power *= 0.8
            weight = _normalised(power * ln_weight)
        rows = rng.choice(len(y), WALKERS, p=weight)
        return cls(y[rows], height[rows])

    def walk(self, ln_density: Callable[[Float64], Float64], steps: int, rng: np.random.Generator) -> None:
        """Let each half of the walkers, one after the other, stretch towards the other half, so many times."""
        half, size = len(self.y) // 2, self.y.shape[1]
        for step in range(2 * steps):
            moving, resting = (slice(0, half), slice(half, None))[:: 1 - 2 * (step % 2)]
            stretch = (1.0 + rng.random(half)) ** 2 / 2.0  # density 1 / sqrt(z) between 1/2 and 2
            partner = self.y[resting][rng.integers(half, size=half)]
            proposed = partner + stretch[:, None] * (self.y[moving] - partner)
            height = ln_density(proposed)
            gain = (size - 1) * np.log(stretch) + height - self.height[moving]
            taken = np.log(rng.random(half)) < gain
            self.y[moving] = np.where(taken[:, None], proposed, self.y[moving])
            self.height[moving] = np.where(taken, height, self.height[moving])


def _mixture_of(gaussians: Gaussians, box: Box) -> StudentMixture:
    """Two components for each mode, one of them wide."""
    root, weight = root_of(gaussians.covariance), _weights(gaussians)
    mixture = StudentMixture(weight, gaussians.centre, root, float(box.lower[-2]), float(box.upper[-2]))
    return _widened(mixture)


def _widened(mixture: StudentMixture) -> StudentMixture:
    """The mixture with a wider component around each."""
    return mixture.joined(replace(mixture, root=_WIDE * mixture.root), _WIDE_SHARE)


def _weights(gaussians: Gaussians) -> Float64:
    """Shares of the modes by Laplace's method, none below the least."""
    share = _normalised(gaussians.ln_evidence)
    share = np.maximum(share, _LEAST_WEIGHT)
    return share / share.sum()


def _effective(ln_weight: Float64) -> float:
    """Effective number of samples with these weights."""
    return float(1.0 / np.square(_normalised(ln_weight)).sum())


def _normalised(ln_weight: Float64) -> Float64:
    """Weights adding up to 1; equal ones where there is none."""
    highest = ln_weight.max()
    if not np.isfinite(highest):
        return np.full(len(ln_weight), 1.0 / len(ln_weight))
    weight = np.exp(ln_weight - highest)
    return weight / weight.sum()


def _rows(stars: ArrayLike, n: int) -> NDArray[np.intp]:
    """Row numbers of the stars wanted."""
    wanted = np.atleast_1d(np.asarray(stars))
    if wanted.dtype == bool and wanted.shape == (n,):
        return np.flatnonzero(wanted)
    if wanted.ndim != 1 or (len(wanted) and wanted.dtype.kind not in "iu"):
        raise InputError(f"needs row numbers, or a mask of {n} stars", field="stars")
    wanted = wanted.astype(np.intp)
    if len(wanted) and not (-n <= wanted.min() and wanted.max() < n):
        raise InputError(f"there are rows 0 to {n - 1} only", field="stars")
    return wanted


def data_of_fit(engine: Engine, best: Fit, threads: int) -> StarData:
    """Stars under the covariances that their fit ended with: those of a learned noise, where it had them."""
    data = best.observations.star_data()
    frozen = np.isfinite(best.frozen_at).all(axis=1)
    if not frozen.any():
        return data
    rows = np.flatnonzero(frozen)
    noise = engine.freeze_noise(
        best.model, best.model.noise, data[rows], best.observations.noise, best.frozen_at[rows], threads=threads
    )
    whitener = data.whitener.copy()
    whitener[rows] = noise.whitener
    return replace(data, whitener=whitener)


def _result(
    best: Fit,
    target: Target,
    modes: Modes,
    drawn: list[StarSamples | None],
    samples: int,
    seed: int,
) -> Posterior:
    """Everything of all stars in arrays; NaN where a star has no samples or fewer modes than others."""
    n, k = best.params.shape
    most = max((modes.of(star).stop - modes.of(star).start for star in range(n)), default=0)

    def absent(*shape: int) -> Float64:
        return np.full((n, *shape), np.nan)

    found = Posterior(
        fit=best,
        samples=absent(samples, k),
        weights=absent(samples),
        ess=np.zeros(n),
        ln_evidence=absent(),
        mode_params=absent(most, k),
        mode_loss=absent(most),
        mode_ln_evidence=absent(most),
        mode_weight=absent(most),
        rounds=np.zeros(n, np.int32),
        sightline=target.sightline,
        box=target.box,
        seed=seed,
    )
    for star, of_star in enumerate(drawn):
        if of_star is None:
            continue
        gaussians, count = of_star.gaussians, len(of_star.gaussians.params)
        found.samples[star], found.weights[star] = of_star.params, of_star.weight
        found.ess[star], found.ln_evidence[star] = of_star.effective, of_star.ln_evidence
        found.rounds[star] = of_star.rounds
        found.mode_params[star, :count] = gaussians.params
        found.mode_loss[star, :count] = modes.loss[modes.of(star)]
        found.mode_ln_evidence[star, :count] = gaussians.ln_evidence
        found.mode_weight[star, :count] = np.bincount(of_star.mode, of_star.weight, count)
    return found
