"""The loss around an optimum: along each parameter alone, with the others held and with the others at their best."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from xpkern.engine import get_engine
from xpkern.engine.contract import FitOptions, Float64, StarData
from xpkern.fit.posterior import data_of_fit
from xpkern.fit.posterior_result import Posterior
from xpkern.fit.scale import widen_parallax

#: How far a profile reaches: in errors of the fit, and to these quantiles of the posterior.
_REACH, _QUANTILES = 4.0, (0.001, 0.999)

#: A parameter is held by a constraint of so many errors of the fit; the loss is then evaluated without it.
_HELD = 1e-3

#: Smallest extinction of a profile, unless the optimum is smaller: the loss of a density in ln E is infinite at 0.
_SMALLEST_EXT = 1e-4


@dataclass(frozen=True)
class LossProfiles:
    """Losses of one star less that of its lowest mode.

    Attributes
    ----------
    values : (5, p) float64
        Of teff [kK], feh, logg, ext, and the parallax by the model's own scale [mas].
    held, profiled : (5, p) float64
        Where the other parameters are those of the optimum, and where they are the best ones.
    parabola : (5, p) float64
        ((value - optimum) / error of the fit)^2, on top of the optimum's own loss.
    """

    values: Float64
    held: Float64
    profiled: Float64
    parabola: Float64


def loss_profiles(found: Posterior, star: int = 0, points: int = 61) -> LossProfiles:
    """Profiles of one star's loss, that which its fit minimised.

    Parameters
    ----------
    found : Posterior
    star : int
        Its row.
    points : int
        Of each profile.
    """
    fit, box = found.fit, found.box
    engine, model, prior, terms = get_engine(fit.engine), fit.model, fit.prior, fit.terms
    one = slice(star, star + 1)
    data = widen_parallax(data_of_fit(engine, fit, 1)[one], model.scale_sigma)
    best = np.append(fit.params[star, :-1], fit.model_plx[star])
    covariance = fit.cov[star]
    error = np.sqrt(np.diag(covariance))
    k = len(best)
    values = np.stack([_range(found, star, index, best[index], error[index], points) for index in range(k)])
    modes = found.mode_params[star][np.isfinite(found.mode_loss[star])]
    # the others start where the fit's covariance expects them, from the optimum and from every mode
    origins = [best, *(np.append(mode[:-1], best[-1]) for mode in modes)]
    lowest = float(found.mode_loss[star, 0])
    starts, held = [], np.repeat(best[None], k * points, axis=0)
    smallest = np.maximum(box.lower, [-np.inf] * (k - 2) + [min(_SMALLEST_EXT, best[-2]), 0.0])
    for origin in origins:
        rows = np.repeat(origin[None], k * points, axis=0)
        for index in range(k):
            here = slice(index * points, (index + 1) * points)
            rows[here] += np.outer(values[index] - origin[index], covariance[index] / covariance[index, index])
            rows[here, index] = held[here, index] = values[index]
        starts.append(np.clip(rows, smallest, box.upper))
    params = np.concatenate(starts)
    which = np.tile(np.repeat(np.arange(k), points), len(origins))
    repeated = data[np.zeros(len(params), np.intp)]
    mean, sigma = repeated.mean.copy(), repeated.sigma.copy()
    mean[np.arange(len(params)), which] = params[np.arange(len(params)), which]
    sigma[np.arange(len(params)), which] = _HELD * error[which]
    ends = engine.fit(
        model, prior, replace(repeated, mean=mean, sigma=sigma), params, terms, box, FitOptions(max_iterations=100)
    ).params

    def loss_at(at: Float64) -> Float64:
        some = StarData(*(getattr(repeated, name)[: len(at)] for name in ("flux", "whitener", "mean", "sigma")))
        return engine.evaluate(model, prior, some, at, terms).loss - lowest

    profiled = loss_at(ends).reshape(len(origins), k, points).min(axis=0)
    return LossProfiles(
        values=values,
        held=loss_at(held).reshape(k, points),
        profiled=profiled,
        parabola=((values - best[:, None]) / error[:, None]) ** 2 + (float(fit.loss[star]) - lowest),
    )


def _range(found: Posterior, star: int, index: int, best: float, error: float, points: int) -> Float64:
    """Values of one parameter, the optimum among them."""
    low, high = best - _REACH * error, best + _REACH * error
    if index < found.samples.shape[2] - 1:  # the posterior's parallax may be another one than the model's
        quantiles = found.quantile(_QUANTILES)[star, :, index]
        low, high = min(low, quantiles[0]), max(high, quantiles[1])
    lower, upper = found.box.lower[index], found.box.upper[index]
    if index >= found.samples.shape[2] - 2:
        lower = max(lower, min(_SMALLEST_EXT, best))
    below = np.linspace(max(low, lower), best, points // 2 + 1)[:-1]
    return np.concatenate([below, np.linspace(best, min(high, upper), points - len(below))])
