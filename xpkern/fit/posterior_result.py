"""What sampling the posterior of stars returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xpkern.engine.contract import Box, Float64
from xpkern.errors import InputError
from xpkern.fit.result import Fit
from xpkern.fit.sightline_prior import SightlinePrior

if TYPE_CHECKING:
    from astropy.table import Table

#: The error of a fit understates the posterior where half of its central 68.3 % is wider by more than this factor.
WIDTH_RATIO = 1.25

#: Weight of the modes that are not the fit's above which they matter.
OTHER_MODES_WEIGHT = 0.05

#: Effective number of samples below which quantiles are not to be trusted.
LEAST_EFFECTIVE = 100.0

#: A posterior leans on the box where more than this weight lies within this share of an edge (of ln plx, for parallax).
EDGE_WEIGHT, EDGE_SHARE = 0.02, 0.01

#: Levels of the median and of the central 68.3 %.
LEVELS = (0.158655, 0.5, 0.841345)

#: Names, units and factors of the parameters in tables.
COLUMNS = (
    ("teff", "K", 1000.0),
    ("feh", "dex", 1.0),
    ("logg", "dex", 1.0),
    ("ext", "mag", 1.0),
    ("parallax_est", "mas", 1.0),
)


class PosteriorFlag(IntFlag):
    """What to know of a star's posterior."""

    NOT_FITTED = 1 << 0
    FEW_EFFECTIVE_SAMPLES = 1 << 1
    WIDER_THAN_ERROR = 1 << 2
    OTHER_MODES = 1 << 3
    ON_BOX_EDGE = 1 << 4


#: What each flag means.
MEANING: dict[PosteriorFlag, str] = {
    PosteriorFlag.NOT_FITTED: "the star has no fit, and no samples",
    PosteriorFlag.FEW_EFFECTIVE_SAMPLES: f"fewer than {LEAST_EFFECTIVE:g} effective samples: ask for more",
    PosteriorFlag.WIDER_THAN_ERROR: f"wider than the error of the fit by a factor above {WIDTH_RATIO:g} in a parameter",
    PosteriorFlag.OTHER_MODES: f"other modes than the fit's have above {100 * OTHER_MODES_WEIGHT:g} % of the weight",
    PosteriorFlag.ON_BOX_EDGE: "the edge of the box, or of the prior's support, cuts the posterior off",
}


@dataclass
class Posterior:
    """Weighted samples of the posteriors of n stars, and their modes. A star without a fit has NaN.

    Attributes
    ----------
    fit : Fit
        The stars' fit: optimum, errors, observations, model.
    samples : (n, s, 5) float64
        teff [kK], feh, logg, ext, plx [mas].
    weights : (n, s) float64
        Of the samples; those of a star add up to 1.
    ess : (n,) float64
        Effective number of samples, 1 / sum of squared weights; 0 without a fit.
    ln_evidence : (n,) float64
        ln of the integral of the likelihood exp(-chi^2 / 2 - constraints / 2) over the prior. Normalisations of the
        likelihood that no parameter changes are left out, and so is what p_GMM has outside the box.
    mode_params : (n, m, 5) float64
        Distinct minima of the loss that the fit minimised, the lowest first, NaN beyond the last one: modes in
        (ln E, ln plx) where ``fit.terms`` has the Jacobian terms, else in (E, plx).
    mode_loss, mode_ln_evidence : (n, m) float64
        That loss there; ln evidence of the mode by Laplace's method.
    mode_weight : (n, m) float64
        Share of the samples' weight where the Gaussian of that mode is the densest.
    rounds : (n,) int32
        Pilot rounds until the mixture was good enough, or no more were made.
    sightline : SightlinePrior
    box : Box
        The priors and where they end.
    seed : int
    """

    fit: Fit
    samples: Float64
    weights: Float64
    ess: Float64
    ln_evidence: Float64
    mode_params: Float64
    mode_loss: Float64
    mode_ln_evidence: Float64
    mode_weight: Float64
    rounds: NDArray[np.int32]
    sightline: SightlinePrior
    box: Box
    seed: int

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        typical = float(np.median(self.ess)) if len(self) else 0.0
        return (
            f"Posterior({len(self):,} stars, {self.weights.shape[1]:,} samples, {typical:,.0f} effective in the median)"
        )

    @property
    def source_id(self) -> NDArray[np.int64]:
        """Identifiers of the stars, (n,) int64."""
        return self.fit.source_id

    def quantile(self, levels: ArrayLike) -> Float64:
        """Quantiles of each parameter alone.

        Parameters
        ----------
        levels : (q,) array_like
            Between 0 and 1.

        Returns
        -------
        (n, q, 5) float64
            In the units of ``samples``; NaN for a star without samples.
        """
        wanted = np.atleast_1d(np.asarray(levels, np.float64))
        if not ((wanted >= 0) & (wanted <= 1)).all():
            raise InputError("must lie between 0 and 1", field="levels")
        found = np.full((len(self), len(wanted), self.samples.shape[2]), np.nan)
        for star in np.flatnonzero(self.ess > 0):
            for k in range(found.shape[2]):
                found[star, :, k] = weighted_quantile(self.samples[star, :, k], self.weights[star], wanted)
        return found

    @cached_property
    def interval(self) -> Float64:
        """Quantiles at 15.87, 50 and 84.13 %, (n, 3, 5) float64."""
        return self.quantile(LEVELS)

    @property
    def width(self) -> Float64:
        """Half of the central 68.3 % of each parameter, (n, 5) float64."""
        return 0.5 * (self.interval[:, 2] - self.interval[:, 0])

    @property
    def width_ratio(self) -> Float64:
        """``width`` in errors of the fit, (n, 5) float64."""
        return self.width / np.sqrt(np.einsum("nkk->nk", self.fit.cov))

    @property
    def mean(self) -> Float64:
        """Posterior means, (n, 5) float64."""
        return np.einsum("ns,nsk->nk", self.weights, self.samples)

    @property
    def cov(self) -> Float64:
        """Posterior covariances, (n, 5, 5) float64."""
        offset = self.samples - self.mean[:, None]
        return np.einsum("ns,nsk,nsl->nkl", self.weights, offset, offset)

    @property
    def n_modes(self) -> NDArray[np.int64]:
        """Distinct modes found, (n,) int64."""
        return np.isfinite(self.mode_loss).sum(axis=1)

    @property
    def own_mode(self) -> NDArray[np.intp]:
        """Number of the mode that the fit ended in, (n,) intp: others may be lower, as the fit searches less."""
        distance = np.linalg.norm((self.mode_params - self.fit.params[:, None])[:, :, :-1], axis=2)
        return np.where(np.isfinite(distance), distance, np.inf).argmin(axis=1)

    @property
    def other_weight(self) -> Float64:
        """Weight of all modes but the one the fit ended in, (n,) float64."""
        if not self.mode_loss.size:
            return np.full(len(self), np.nan)
        return np.nansum(self.mode_weight, axis=1) - self.mode_weight[np.arange(len(self)), self.own_mode]

    @property
    def flags(self) -> NDArray[np.uint32]:
        """Bits of :class:`PosteriorFlag`, (n,) uint32."""
        sampled = self.ess > 0
        low, high = self._edge_weights()
        on_edge = np.maximum(low, high).max(axis=1, initial=0.0) > EDGE_WEIGHT
        with np.errstate(invalid="ignore"):
            bits = {
                PosteriorFlag.NOT_FITTED: ~sampled,
                PosteriorFlag.FEW_EFFECTIVE_SAMPLES: sampled & (self.ess < LEAST_EFFECTIVE),
                PosteriorFlag.WIDER_THAN_ERROR: (self.width_ratio > WIDTH_RATIO).any(axis=1),
                PosteriorFlag.OTHER_MODES: self.other_weight > OTHER_MODES_WEIGHT,
                PosteriorFlag.ON_BOX_EDGE: on_edge,
            }
        flags = np.zeros(len(self), np.uint32)
        for bit, where in bits.items():
            flags[where] |= np.uint32(bit)
        return flags

    def _edge_weights(self) -> tuple[Float64, Float64]:
        """Weight next to the lower and the upper edge of each parameter, (n, 5); E has none at its natural edge, 0."""
        lower, upper, values = self.box.lower.copy(), self.box.upper.copy(), self.samples.copy()
        lower[-1], upper[-1], values[:, :, -1] = np.log(lower[-1]), np.log(upper[-1]), np.log(values[:, :, -1])
        margin = EDGE_SHARE * (upper - lower)
        low = np.einsum("ns,nsk->nk", self.weights, values < lower + margin)
        high = np.einsum("ns,nsk->nk", self.weights, values > upper - margin)
        if self.box.lower[-2] == 0:
            low[:, -2] = 0.0
        return low, high

    def draws(self, count: int, seed: int | None = None) -> Float64:
        """Samples of equal weight, drawn from the weighted ones (with replacement, so evenly as can be).

        Parameters
        ----------
        count : int
            Of each star; more than a star's ``ess`` repeats samples.
        seed : int, optional
            That of the posterior when not given.

        Returns
        -------
        (n, count, 5) float64
        """
        if count < 1:
            raise InputError(f"{count} is not a positive number", field="count")
        rng = np.random.default_rng(self.seed if seed is None else seed)
        drawn = np.full((len(self), count, self.samples.shape[2]), np.nan)
        for star in np.flatnonzero(self.ess > 0):
            at = (np.arange(count) + rng.random()) / count
            rows = np.searchsorted(self.weights[star].cumsum(), at * self.weights[star].sum())
            drawn[star] = rng.permutation(self.samples[star, np.minimum(rows, self.samples.shape[1] - 1)])
        return drawn

    def to_table(self) -> Table:
        """A row for each star: quantiles, errors of the fit, modes and flags, with units and descriptions."""
        from astropy.table import Column, Table

        error, table = np.sqrt(np.einsum("nkk->nk", self.fit.cov)), Table()

        def add(name: str, values: NDArray, unit: str | None, description: str) -> None:
            table[name] = Column(values, unit=unit, description=description)

        add("source_id", self.source_id, None, "Gaia DR3 source identifier")
        for k, (name, unit, factor) in enumerate(COLUMNS):
            low, middle, high = factor * self.interval[:, :, k].T
            add(name, factor * self.fit.params[:, k], unit, f"{name} at the optimum of the loss")
            add(f"{name}_error", factor * error[:, k], unit, f"error of {name} by the fit")
            add(f"{name}_p16", low, unit, f"posterior quantile of {name} at 15.87 %")
            add(f"{name}_p50", middle, unit, f"posterior median of {name}")
            add(f"{name}_p84", high, unit, f"posterior quantile of {name} at 84.13 %")
            add(f"{name}_width_ratio", self.width_ratio[:, k], None, f"(p84 - p16) / 2 over {name}_error")
        add("n_modes", self.n_modes, None, "distinct minima of the loss that were found")
        add("other_modes_weight", self.other_weight, None, "posterior weight of the modes that are not the optimum's")
        add("ess", self.ess, None, "effective number of samples")
        add("ln_evidence", self.ln_evidence, None, "ln of the likelihood's integral over the prior")
        meaning = "; ".join(f"{int(flag)}: {text}" for flag, text in MEANING.items())
        add("posterior_flags", self.flags, None, meaning)
        table.meta["seed"] = self.seed
        table.meta["samples"] = self.weights.shape[1]
        table.meta["prior"] = self.prior_text
        return table

    def modes_table(self) -> Table:
        """A row for each mode of each star, the lowest loss first."""
        from astropy.table import Column, Table

        star, mode = np.nonzero(np.isfinite(self.mode_loss))
        table = Table({"source_id": self.source_id[star], "mode": mode + 1})
        for k, (name, unit, factor) in enumerate(COLUMNS):
            table[name] = Column(factor * self.mode_params[star, mode, k], unit=unit)
        loss = self.mode_loss[star, mode]
        table["loss"] = Column(loss, description="the loss that the fit minimised")
        table["gap"] = Column(loss - self.mode_loss[star, 0], description="loss less that of the lowest mode")
        best = np.nanmax(self.mode_ln_evidence, axis=1, initial=-np.inf, where=np.isfinite(self.mode_loss))
        laplace = np.exp(self.mode_ln_evidence - best[:, None])
        laplace /= np.nansum(laplace, axis=1, keepdims=True)
        table["laplace_weight"] = Column(laplace[star, mode], description="share of the evidence by Laplace's method")
        table["weight"] = Column(self.mode_weight[star, mode], description="share of the samples' weight")
        return table

    @property
    def prior_text(self) -> str:
        """The prior in words."""
        ext = "uniform" if np.isinf(self.sightline.ext_scale) else f"exp(-E / {self.sightline.ext_scale:g} mag)"
        scale = self.sightline.distance_scale
        plx = "uniform" if scale is None else f"plx^-4 exp(-1 / (plx {scale:g} kpc))"
        (ext_low, plx_low), (ext_high, plx_high) = self.box.lower[-2:], self.box.upper[-2:]
        of_ext = f"E {ext} in {ext_low:g}...{ext_high:g}"
        return f"p_GMM(teff, feh, logg); {of_ext}; plx {plx} in {plx_low:g}...{plx_high:g} mas"


def weighted_quantile(values: Float64, weights: Float64, levels: Float64) -> Float64:
    """Quantiles (q,) of weighted values (s,): linear between the middles of the values' weights."""
    order = np.argsort(values)
    cumulative = weights[order].cumsum()
    return np.interp(levels * cumulative[-1], cumulative - 0.5 * weights[order], values[order])
