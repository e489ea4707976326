"""The posterior beyond Fisher: simulation-based calibration, missed modes, what a star costs, emcee beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import chi2

import xpkern as xk
from bench.peers import emcee_posterior
from bench.result import Result
from bench.stars import model_and_prior, observed, survey
from xpkern.engine.contract import Box, Float64
from xpkern.engine.packed import pack_factor, unpack_factor
from xpkern.fit.fit import default_box
from xpkern.fit.posterior import data_of_fit, posterior
from xpkern.fit.posterior_result import Posterior, PosteriorFlag
from xpkern.fit.sightline_prior import SightlinePrior
from xpkern.grid import PARAMETERS

#: Priors of the calibration, so that its stars are like those of the sky: E(B-V) [mag] and distance [kpc].
SIGHTLINE = SightlinePrior(ext_scale=0.5, distance_scale=0.8)

#: Where these end: extinction [mag], parallax [mas]. Signal-to-noise ratios then differ by a factor of 1,000, not more.
EXT_RANGE, PLX_RANGE = (0.0, 4.0), (0.2, 4.0)

#: Bins of the ranks, and samples of each star.
RANK_BINS, SAMPLES = 20, 2000

#: Parallax errors [mas] of the stars are log-uniform in this range.
PLX_ERRORS = (0.02, 0.5)

#: Stars that emcee samples, too: a star takes it seconds.
PEER_STARS = 16

SEED = 8100


@dataclass(frozen=True)
class DrawnStars:
    """Stars drawn from the priors of a posterior, observed with known covariances.

    Attributes
    ----------
    truth : (n, 5) float64
    observations : Observations
    """

    truth: Float64
    observations: xk.Observations


def calibration_box(prior: xk.TypePrior) -> Box:
    """Return the box of the calibration."""
    box = default_box(prior)
    ends = np.array([EXT_RANGE, PLX_RANGE])
    return Box(np.append(box.lower[:-2], ends[:, 0]), np.append(box.upper[:-2], ends[:, 1]))


def draw_stars(
    model: xk.FluxModel, prior: xk.TypePrior, sightline: SightlinePrior, box: Box, n_stars: int, seed: int
) -> DrawnStars:
    """Draw truths from the priors, and observations from the likelihood of each.

    The covariance of a star must not depend on its truth, for the posterior takes it as known: it is that of a star of
    the simulated survey, drawn at random, relative to a flux that is the same for all. Signal-to-noise ratios are as
    wide as the priors are then, from stars of which one hardly sees anything to some of 1,000 and more.
    """
    rng = np.random.default_rng(seed)
    theta = prior.sample(4 * n_stars + 64, rng)
    theta = theta[((theta >= box.lower[:-2]) & (theta <= box.upper[:-2])).all(axis=1)][:n_stars]
    truth = np.column_stack([theta, sightline.sample(n_stars, box, rng)])
    shown = truth.copy()
    shown[:, -1] *= np.exp(0.5 * model.scale_sigma * rng.standard_normal(n_stars))
    flux = np.exp(model.ln_flux(shown))

    like = observed(survey(256))
    like = like.take(rng.integers(len(like), size=n_stars))
    factor = unpack_factor(like.whitener)
    diagonal = np.einsum("njj->nj", factor)
    present = diagonal > 0
    np.divide(1.0, diagonal, out=diagonal, where=present)
    # where noise hides a sample's flux, which may then be negative, its error takes the flux's place
    error = np.linalg.norm(factor, axis=2)
    relative = factor / np.where(present, np.maximum(np.abs(like.flux), error), 1.0)[:, :, None]
    factor = relative * np.where(present, typical_flux(model, prior, sightline, box), 0.0)[:, :, None]
    noisy = flux + np.einsum("nij,nj->ni", factor, rng.standard_normal(flux.shape))
    plx_error = np.exp(rng.uniform(*np.log(PLX_ERRORS), n_stars))
    observations = xk.Observations.from_arrays(
        flux=np.where(present, noisy, 0.0),
        packed_factor=pack_factor(factor, present),
        plx=truth[:, -1] + plx_error * rng.standard_normal(n_stars),
        plx_err=plx_error,
    )
    return DrawnStars(truth, observations)


def typical_flux(model: xk.FluxModel, prior: xk.TypePrior, sightline: SightlinePrior, box: Box) -> Float64:
    """Return the median flux (m,) of draws from the priors."""
    rng = np.random.default_rng(SEED)
    drawn = np.column_stack([prior.sample(2000, rng), sightline.sample(2000, box, rng)])
    return np.median(np.exp(model.ln_flux(drawn)), axis=0)


def ranks(found: Posterior, truth: Float64) -> Float64:
    """Return the weight of the samples below the truth, (n, 5): uniform if the posterior is right."""
    return np.einsum("ns,nsk->nk", found.weights, found.samples < truth[:, None])


def rank_chi2(rank: Float64, bins: int = RANK_BINS) -> tuple[Float64, Float64]:
    """Return chi^2 of the ranks (n, k) over equal bins, and the probability of a larger one, each (k,)."""
    counts = np.stack([np.histogram(column, bins, (0.0, 1.0))[0] for column in rank.T])
    expected = len(rank) / bins
    found = np.square(counts - expected).sum(axis=1) / expected
    return found, chi2.sf(found, bins - 1)


def bench_posterior(n_stars: int, _rounds: int, engine_name: str) -> Result:
    """Posterior samples: ranks of truths drawn from its priors, coverage of a survey, effective samples, cost."""
    model, prior = model_and_prior()
    extra: dict[str, Any] = {"samples of a star": SAMPLES}
    box = calibration_box(prior)
    drawn = draw_stars(model, prior, SIGHTLINE, box, n_stars, SEED)
    extra |= _judged("truths from the priors", drawn.observations, drawn.truth, SIGHTLINE, engine_name, box)
    stars = survey(n_stars)
    simulated = observed(stars, engine=engine_name)
    extra |= _judged("simulated survey", simulated, stars.truth, SightlinePrior(), engine_name)
    blind = replace(simulated, plx=np.zeros(n_stars), plx_err=np.full(n_stars, np.inf))
    extra |= _judged("simulated survey, no parallax", blind, stars.truth, SightlinePrior(), engine_name)
    extra |= _beside_emcee(simulated.take(np.arange(min(PEER_STARS, n_stars))), engine_name)
    return Result("posterior", extra=extra)


def _beside_emcee(obs: xk.Observations, engine_name: str) -> dict[str, Any]:
    """Return effective samples a second of CPU time of ours and of emcee, star by star in turn, and how they agree.

    Ours has to find fit and modes, too; emcee is given the fit to begin at. Both have the same priors and covariances.
    """
    model, prior = model_and_prior()
    engine, box, sightline = xk.get_engine(engine_name), default_box(prior), SightlinePrior()
    rates, agreement, modes = [], [], []
    for star in range(len(obs)):
        one = obs.take(np.array([star]))
        started = time.process_time()
        found = posterior(one, model, prior, samples=SAMPLES, seed=SEED, box=box, engine=engine, threads=1)
        ours = found.ess[0] / (time.process_time() - started)
        if not found.fit.fitted[0]:
            continue
        data = data_of_fit(engine, found.fit, threads=1)
        density = emcee_posterior.NaturalDensity(engine, model, prior, sightline, box, data)
        try:
            peer = emcee_posterior.emcee_samples(density, found.fit.params[0], found.fit.cov[0], SEED + star)
        except ImportError as error:
            return {"emcee": str(error)}
        rates.append((ours, peer.effective / peer.seconds))
        agreement.append(np.abs(found.interval[0] - peer.interval) / found.width[0])
        modes.append(found.n_modes[0])
    rate, apart, one_mode = np.array(rates), np.array(agreement), np.array(modes) == 1
    said: dict[str, Any] = {
        "emcee: stars": len(rate),
        "emcee: walkers, steps": f"{emcee_posterior.WALKERS}, {emcee_posterior.STEPS}",
        "effective samples per CPU second, median star": float(np.median(rate[:, 0])),
        "emcee: effective samples per CPU second, median star": float(np.median(rate[:, 1])),
        "ratio to emcee, least, median, greatest": "  ".join(
            f"{each:.1f}" for each in np.quantile(rate[:, 0] / rate[:, 1], (0.0, 0.5, 1.0))
        ),
    }
    for name, chosen in (("one mode", one_mode), ("several modes", ~one_mode)):
        if chosen.any():
            said[f"quantiles apart from emcee's, in posterior widths, {name}: median, 95 %, most"] = "  ".join(
                f"{each:.3f}" for each in np.quantile(apart[chosen], (0.5, 0.95, 1.0))
            )
    return said


def _judged(
    name: str,
    obs: xk.Observations,
    truth: Float64,
    sightline: SightlinePrior,
    engine_name: str,
    box: Box | None = None,
) -> dict[str, Any]:
    """Return what the posterior of some stars says of their truths, and what it took."""
    model, prior = model_and_prior()
    started = time.process_time()
    found = posterior(
        obs, model, prior, samples=SAMPLES, seed=SEED, sightline=sightline, box=box, engine=engine_name, threads=1
    )
    seconds = time.process_time() - started
    good = found.ess >= 100.0
    rank = ranks(found, truth)
    fisher = np.abs(found.fit.params - truth) / np.sqrt(np.einsum("nkk->nk", found.fit.cov))
    share = np.quantile(found.ess / SAMPLES, (0.02, 0.1, 0.5))
    said: dict[str, Any] = {
        f"{name}: stars": len(obs),
        f"{name}: CPU time of a star [ms]": 1e3 * seconds / len(obs),
        f"{name}: effective share of the samples, 2, 10, 50 %": "  ".join(f"{each:.3f}" for each in share),
        f"{name}: fewer than 100 effective samples [%]": 100.0 * float((~good).mean()),
        f"{name}: more than one mode [%]": 100.0 * float((found.n_modes > 1).mean()),
    }
    for flag in (PosteriorFlag.WIDER_THAN_ERROR, PosteriorFlag.OTHER_MODES):
        said[f"{name}: {flag.name} [%]"] = 100.0 * float(((found.flags & np.uint32(flag)) != 0).mean())
    if box is not None:  # truths are drawn from what is sampled
        values, chance = rank_chi2(rank[good])
        for parameter, value, probability in zip(PARAMETERS, values, chance, strict=True):
            said[f"{name}: rank chi2 of {parameter}, {RANK_BINS - 1} d.o.f. (probability)"] = (
                f"{value:.1f} ({probability:.2f})"
            )
    for level in (0.683, 0.9, 0.99):
        inside = np.abs(rank[good] - 0.5) < 0.5 * level
        said[f"{name}: truths within {100 * level:g} %, {', '.join(PARAMETERS)} [%]"] = "  ".join(
            f"{each:.1f}" for each in 100.0 * inside.mean(axis=0)
        )
    said[f"{name}: within one Fisher error of the optimum [%]"] = "  ".join(
        f"{each:.1f}" for each in 100.0 * (fisher[found.fit.fitted] < 1.0).mean(axis=0)
    )
    return said
