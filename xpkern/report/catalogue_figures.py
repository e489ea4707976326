"""Figures of a catalogue by itself: stellar types, places, goodness of fit, correlations of errors, reliability."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.flags import FLAG_DEGREES_OF_FREEDOM
from xpkern.engine.contract import Float64
from xpkern.grid import N_PARAMETERS
from xpkern.report.density import Axis, Density, range_of
from xpkern.report.drawing import (
    PARAMETER_NAMES,
    SYMBOLS,
    Drawing,
    density_table,
    g_axis,
    parameter_axis,
    stars_text,
)
from xpkern.report.sky import SkyMap
from xpkern.report.stars import PLX, Stars
from xpkern.report.style import (
    INK,
    PAPER,
    PERCENTILES,
    QUIET,
    SHARES_COLOURS,
    density_colours,
    draw_counts,
    draw_density,
    frame,
    signed_colours,
)
from xpkern.train.figures import BLUE

if TYPE_CHECKING:
    from astropy.table import Table
    from matplotlib.figure import Figure

TEFF, FEH, LOGG = 0, 1, 2

#: A cell of a map of means or shares has at least this many stars.
_LEAST_IN_CELL = 3


def main_sequence_logg(teff: Float64) -> Float64:
    """Surface gravity along the main sequence, Eq. 28; ``teff`` in K."""
    return np.where(teff < 5000.0, 4.6, np.where(teff < 6300.0, 4.6 - 5e-4 * (teff - 5000.0), 3.95))


def giant_branch_teff(logg: Float64) -> Float64:
    """Effective temperature [K] along the giant branch, Eq. 29."""
    return np.where(logg < 3.65, 5200.0 - 441.86 * (3.65 - logg), 5900.0 - 1400.0 * (4.15 - logg))


class KielDiagram(Drawing):
    """Numbers of stars, and their metallicity, by temperature and surface gravity (Fig. 1)."""

    name, section, title = "kiel", "The catalogue", "Kiel diagram (Fig. 1)"
    columns = ("teff", "logg", "quality_flags")
    optional = ("feh",)
    size = (10.0, 4.9)

    def begin(self, sample: Stars) -> None:
        """Axes by the reliable stars."""
        good = sample.reliable if sample.reliable.any() else np.ones(len(sample), bool)
        teff = parameter_axis("teff", sample.estimate(TEFF)[good], 120)
        logg = parameter_axis("logg", sample.estimate(LOGG)[good], 120)
        logg = Axis(logg.label, logg.low, logg.high, logg.bins, is_reversed=True)
        self.reliable, self.all = Density(teff, logg), Density(teff, logg)
        self._feh = np.zeros((teff.bins + 2, logg.bins + 2))
        self._has_feh = "feh" in sample

    def add(self, stars: Stars) -> None:
        """Count a block."""
        teff, logg = stars.estimate(TEFF), stars.estimate(LOGG)
        self.all.add(teff, logg)
        self.reliable.add(np.where(stars.reliable, teff, np.nan), logg)
        if self._has_feh:
            feh = stars.estimate(FEH)
            good = stars.reliable & np.isfinite(teff) & np.isfinite(logg) & np.isfinite(feh)
            cell = self.all.x.index(teff[good]) * np.int32(self._feh.shape[1]) + self.all.y.index(logg[good])
            self._feh += np.bincount(cell, feh[good], self._feh.size).reshape(self._feh.shape)

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        return None if self.all.total else "no star has a temperature and a surface gravity"

    def caption(self) -> str:
        """What is drawn."""
        return (
            f"Left: all {stars_text(self.all.total)} with a solution; lines: main sequence and giant branch of "
            f"Eqs. 28 and 29. Right: mean [Fe/H] of the {stars_text(self.reliable.total)} that pass the basic cut "
            f"(quality_flags < 8). {self.all.outside:,} lie outside the frame."
        )

    def draw(self, figure: Figure) -> None:
        """Draw both diagrams."""
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        bar = figure.colorbar(draw_counts(left, self.all), ax=left, label="stars in a cell", aspect=30, pad=0.01)
        bar.outline.set_visible(False)
        teff = np.linspace(3500.0, 11000.0, 151)
        logg = np.linspace(1.0, 4.15, 64)
        left.plot(teff, main_sequence_logg(teff), color=PAPER, lw=3.2, alpha=0.7)
        left.plot(giant_branch_teff(logg), logg, color=PAPER, lw=3.2, alpha=0.7)
        left.plot(teff, main_sequence_logg(teff), color=PERCENTILES, lw=1.5)
        left.plot(giant_branch_teff(logg), logg, color=PERCENTILES, lw=1.5, ls=(0, (4, 2)))
        left.set_title("all stars")
        right.set_title("mean [Fe/H] of reliable stars")
        if self._has_feh:
            mean = np.ma.masked_invalid(self._mean_feh())
            shown = mean.compressed()
            low, high = np.quantile(shown, (0.02, 0.98)) if len(shown) else (-1.0, 0.5)
            drawn = right.pcolormesh(
                self.all.x.edges, self.all.y.edges, mean.T, cmap=SHARES_COLOURS, vmin=low, vmax=max(high, low + 0.01),
                rasterized=True, linewidth=0, zorder=0.7,
            )  # fmt: skip
            bar = figure.colorbar(drawn, ax=right, label="[Fe/H]  [dex]", aspect=30, pad=0.01, extend="both")
            bar.outline.set_visible(False)
        frame(right, self.all.x, self.all.y)
        right.set_ylabel("")
        right.tick_params(labelleft=True)  # or the bar's label would be taken for this axis's

    def _mean_feh(self) -> Float64:
        count = self.reliable.inside
        return np.where(count >= 1, self._feh[1:-1, 1:-1] / np.maximum(count, 1), np.nan)

    def table(self) -> Table:
        """The cells."""
        return density_table({"all": self.all, "reliable": self.reliable}, {"x": "teff [K]", "y": "logg [dex]"})


class SkyDensity(Drawing):
    """Stars on the sky, and the share of them that is reliable."""

    name, section, title = "sky", "The catalogue", "Where the stars are"
    columns = ("ra", "dec", "quality_flags")
    size = (10.0, 3.5)

    def begin(self, sample: Stars) -> None:
        """The whole sky, or the region of the sample."""
        self.map = SkyMap(*sample.galactic, sample.total, sums=1)
        self._without = 0

    def add(self, stars: Stars) -> None:
        """Count a block."""
        longitude, latitude = stars.galactic
        self._without += int(np.count_nonzero(np.isnan(longitude) | np.isnan(latitude)))
        self.map.add(longitude, latitude, (stars.reliable.astype(np.float64),))

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        return None if self.map.stars.any() else f"none of {stars_text(self._without)} has coordinates"

    def caption(self) -> str:
        """What is drawn."""
        lacking = f" {stars_text(self._without)} without coordinates." if self._without else ""
        return f"Stars per square degree, and the share that passes the basic cut, in cells of equal area.{lacking}"

    def draw(self, figure: Figure) -> None:
        """Draw both maps."""
        from matplotlib.colors import LogNorm

        left, right = figure.subplots(1, 2)
        density = np.where(self.map.stars > 0, self.map.stars / self.map.cell_area, np.nan)
        least, most = np.nanmin(density), np.nanmax(density)
        for axes, cells, colours, scale, label in (
            (left, density, density_colours(), {"norm": LogNorm(least, max(most, 1.01 * least))}, "stars / deg²"),
            (right, self.map.mean(0, _LEAST_IN_CELL), SHARES_COLOURS, {"vmin": 0.0, "vmax": 1.0}, "share reliable"),
        ):
            drawn = self.map.draw(axes, cells, colours, **scale)
            bar = figure.colorbar(drawn, ax=axes, label=label, location="bottom", aspect=40, pad=0.1, shrink=0.8)
            bar.outline.set_visible(False)

    def table(self) -> Table:
        """The cells."""
        return self.map.table(("reliable_share",))


class GoodnessOfFit(Drawing):
    """Chi-squared per degree of freedom, and how it runs with magnitude."""

    name, section, title = "chi2", "The catalogue", "Goodness of fit"
    columns = ("chi2",)
    optional = ("chi2_dof", "phot_g_mean_mag", "chi2_learned")
    size = (10.0, 4.2)
    _RATIO = Axis("χ² / degrees of freedom", 0.05, 50.0, 120, is_log=True)

    def begin(self, sample: Stars) -> None:
        """Axis over G."""
        self._g = g_axis(sample.of("phot_g_mean_mag")) if "phot_g_mean_mag" in sample else None
        self.with_g = None if self._g is None else Density(self._g, self._RATIO)
        one = Axis("", 0.0, 1.0, 1)
        self.counts = {"chi2": Density(one, self._RATIO)}
        if "chi2_learned" in sample and np.isfinite(sample.of("chi2_learned")).any():
            self.counts["chi2_learned"] = Density(one, self._RATIO)
        self._true_dof = "chi2_dof" in sample
        self._expected = np.zeros(self._RATIO.bins)

    def add(self, stars: Stars) -> None:
        """Count a block."""
        dof = stars.degrees_of_freedom
        for name, density in self.counts.items():
            density.add(np.full(len(stars), 0.5), stars.of(name) / dof)
        if self.with_g is not None:
            self.with_g.add(stars.of("phot_g_mean_mag"), stars.of("chi2") / dof)
        values, numbers = np.unique(dof[np.isfinite(dof) & np.isfinite(stars.of("chi2"))], return_counts=True)
        from scipy.stats import chi2

        for value, number in zip(values, numbers, strict=True):
            self._expected += number * np.diff(chi2.cdf(self._RATIO.edges * value, value))

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        return None if self.counts["chi2"].total else "no star has a chi2 and degrees of freedom"

    def caption(self) -> str:
        """What is drawn."""
        total = self.counts["chi2"].total
        poor = 100.0 * self.counts["chi2"].counts[1, 1:][self._RATIO.edges >= 2.0].sum() / total
        dof = "the samples used minus 5" if self._true_dof else f"{FLAG_DEGREES_OF_FREEDOM} for all"
        return (
            f"{stars_text(total)}; degrees of freedom: {dof}. Dashed: the distribution if model and errors were exact. "
            f"{poor:.1f} % lie above 2, where the flag “poor fit” begins (it divides by {FLAG_DEGREES_OF_FREEDOM})."
        )

    def draw(self, figure: Figure) -> None:
        """Draw the distribution and its run with G."""
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.25))
        centres, names = self._RATIO.centres, {"chi2": "noise of Eq. 2", "chi2_learned": "learned noise"}
        for (name, density), colour in zip(self.counts.items(), (BLUE, PERCENTILES), strict=False):
            left.step(
                centres, density.inside[0] / max(density.total, 1), where="mid", color=colour, label=names[name], lw=1.8
            )
        total = self.counts["chi2"].total
        left.plot(centres, self._expected / total, color=INK, lw=1.2, ls=(0, (4, 2)), label="exact model and errors")
        left.axvline(2.0, color=QUIET, lw=1.0, ls=(0, (1, 1.5)))
        left.set(xscale="log", xlabel=self._RATIO.label, ylabel="share of stars in a bin", ylim=(0.0, None))
        left.set_xlim(0.2, 20.0)
        left.legend(loc="upper right")
        if self.with_g is None or not self.with_g.total:
            right.text(0.5, 0.5, "no magnitudes G in the catalogue", ha="center", color=QUIET)
            right.set_axis_off()
            return
        draw_density(right, self.with_g)
        right.axhline(1.0, color=INK, lw=0.8, alpha=0.7)
        right.set_ylim(0.2, 20.0)

    def table(self) -> Table:
        """Bins of both panels."""
        parts = dict(self.counts) | ({} if self.with_g is None else {"with G": self.with_g})
        return density_table(dict(parts.items()), {"y": "chi2 / dof, bins equal in its logarithm"})


class Correlations(Drawing):
    """Median correlations of the errors without and with the measured parallax (Fig. 6, Eqs. 21-23)."""

    name, section, title = (
        "correlations",
        "The catalogue",
        "Correlations of the errors without and with the parallax (Fig. 6)",
    )
    columns = (
        *tuple(f"{PARAMETER_NAMES[i]}_{PARAMETER_NAMES[j]}_corr" for i, j in combinations(range(N_PARAMETERS), 2)),
        "parallax_est_error",
        "parallax_error",
        "parallax",
        "quality_flags",
    )
    size = (10.0, 5.0)
    _PAIRS = tuple(combinations(range(N_PARAMETERS), 2))
    _RHO = Axis("correlation", -1.0, 1.0, 800)

    def begin(self, sample: Stars) -> None:
        """Nothing yet."""
        pairs = Axis("pair", -0.5, len(self._PAIRS) - 0.5, len(self._PAIRS))
        self.without, self.with_parallax = Density(pairs, self._RHO), Density(pairs, self._RHO)
        self._without_spectrum = 0

    def add(self, stars: Stars) -> None:
        """Count a block: correlations as they are, and after the parallax's information is taken out of them."""
        measured = stars.reliable & np.isfinite(stars.parallax_snr)
        rho = np.zeros((int(measured.sum()), N_PARAMETERS, N_PARAMETERS))
        for (i, j), name in zip(self._PAIRS, self.columns, strict=False):
            rho[:, i, j] = rho[:, j, i] = stars.of(name)[measured]
        rho[:, range(N_PARAMETERS), range(N_PARAMETERS)] = 1.0
        share = (stars.error(PLX)[measured] / stars.of("parallax_error")[measured]) ** 2
        bare, known = without_parallax(rho, share)
        self._without_spectrum += int(np.count_nonzero(~known))
        for k, (i, j) in enumerate(self._PAIRS):
            place = np.full(np.count_nonzero(known), float(k))
            self.with_parallax.add(place, rho[known, i, j])
            self.without.add(place, bare[known, i, j])

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        if self.with_parallax.total:
            return None
        return "no reliable star has correlations and a measured parallax"

    def caption(self) -> str:
        """What is drawn."""
        stars = int(self.with_parallax.column_stars.max())
        left_out = (
            f" {stars_text(self._without_spectrum)} whose parallax is all that holds the distance left out."
            if self._without_spectrum
            else ""
        )
        return (
            f"Medians over {stars_text(stars)} that pass the basic cut and have a parallax. Left: from the "
            "spectrum alone; the "
            "information of the measurement, 1/σ², has been taken out of each star's Fisher matrix. Right: with "
            f"it.{left_out}"
        )

    def _medians(self, density: Density) -> Float64:
        matrix = np.eye(N_PARAMETERS)
        medians = density.quantiles((0.5,))[:, 0]
        for k, (i, j) in enumerate(self._PAIRS):
            cumulated = np.cumsum(density.counts[k + 1])
            middle = medians[k]
            if np.isnan(middle) and cumulated[-1]:  # too few stars for a percentile line, or beyond +-1 by rounding
                middle = float(self._RHO.centres[np.clip(np.searchsorted(cumulated, 0.5 * cumulated[-1]) - 1, 0, 799)])
            matrix[i, j] = matrix[j, i] = middle
        return matrix

    def draw(self, figure: Figure) -> None:
        """Draw both matrices."""
        axes = figure.subplots(1, 2, sharey=True)
        names = [SYMBOLS[name][0] for name in PARAMETER_NAMES]
        for panel, density, title in zip(
            axes, (self.without, self.with_parallax), ("spectrum alone", "spectrum and parallax"), strict=True
        ):
            matrix = self._medians(density)
            lower = np.ma.masked_where(np.triu(np.ones_like(matrix), 1) > 0, matrix)
            drawn = panel.imshow(lower, cmap=signed_colours(), vmin=-1.0, vmax=1.0)
            for i in range(N_PARAMETERS):
                for j in range(i):
                    strong = abs(matrix[i, j]) > 0.55
                    colour = "#ffffff" if strong else INK
                    panel.text(j, i, f"{matrix[i, j]:+.2f}", ha="center", va="center", color=colour, fontsize=10)
            panel.set_xticks(range(N_PARAMETERS), names)
            panel.set_yticks(range(N_PARAMETERS), names)
            panel.grid(False)
            panel.set_title(title)
            panel.tick_params(length=0)
            for side in panel.spines.values():
                side.set_visible(False)
        bar = figure.colorbar(drawn, ax=axes, label="median correlation", aspect=30, pad=0.02, shrink=0.85)
        bar.outline.set_visible(False)

    def table(self) -> Table:
        """A row per pair."""
        from astropy.table import Table

        without, with_parallax = self._medians(self.without), self._medians(self.with_parallax)
        rows = [
            (
                PARAMETER_NAMES[i],
                PARAMETER_NAMES[j],
                without[i, j],
                with_parallax[i, j],
                int(self.without.column_stars[k]),
            )
            for k, (i, j) in enumerate(self._PAIRS)
        ]
        return Table(rows=rows, names=("first", "second", "spectrum_alone", "with_parallax", "stars"))


def without_parallax(rho: Float64, share: Float64) -> tuple[Float64, NDArray[np.bool_]]:
    """Correlations that the errors would have had without the measured parallax.

    The Fisher matrix of the spectrum is C^-1 minus 1/s^2 on the parallax's diagonal (Eq. 22), and so, with the parallax
    last and r its column of C,

        C' = C + r r^T / (s^2 - C_pp).

    Parameters
    ----------
    rho : (n, 5, 5) float64
        Correlations of the errors.
    share : (n,) float64
        C_pp / s^2: 1 where the spectrum adds nothing to the parallax.

    Returns
    -------
    (n, 5, 5) float64
    (n,) bool
        Where they are known: the spectrum adds enough for float32 errors to tell.
    """
    known = np.isfinite(rho).all(axis=(1, 2)) & (share < 1.0 - 1e-5) & (share > 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = share / (1.0 - share)
        full = rho + gain[:, None, None] * rho[:, :, -1:] * rho[:, -1:, :]
        error = np.sqrt(np.einsum("nii->ni", full))
        return np.clip(full / (error[:, :, None] * error[:, None, :]), -1.0, 1.0), known


class Reliability(Drawing):
    """Share of the stars that pass the basic cut, in the colour-magnitude or Hertzsprung-Russell diagram (Fig. 18)."""

    name, section, title = "reliability", "The catalogue", "Which stars are reliable (Fig. 18)"
    columns = ("phot_g_mean_mag", "parallax_est", "teff", "quality_flags")
    optional = ("phot_bp_mean_mag", "phot_rp_mean_mag", "bp_rp")
    size = (10.0, 5.0)

    def begin(self, sample: Stars) -> None:
        """Axes over all stars: those that are not reliable are the point."""
        colour = _colour(sample)
        self._has_colour = colour is not None and bool(np.isfinite(colour).any())
        if colour is None or not self._has_colour:
            x = parameter_axis("teff", sample.estimate(TEFF), 100)
        else:
            low, high = range_of(colour) or (-0.3, 3.5)
            x = Axis("BP − RP  [mag]", low, high, 100)
        low, high = range_of(sample.absolute_g) or (-2.0, 14.0)
        y = Axis(r"$M_G$  [mag], by the estimated parallax, dust included", low, high, 100, is_reversed=True)
        self.all, self.reliable = Density(x, y), Density(x, y)

    def add(self, stars: Stars) -> None:
        """Count a block."""
        colour = _colour(stars) if self._has_colour else None
        x = stars.estimate(TEFF) if colour is None else colour
        self.all.add(x, stars.absolute_g)
        self.reliable.add(np.where(stars.reliable, x, np.nan), stars.absolute_g)

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        return None if self.all.total else "no star has a magnitude G, an estimated parallax and a temperature"

    def caption(self) -> str:
        """What is drawn."""
        share = 100.0 * self.reliable.total / max(self.all.total, 1)
        why = "" if self._has_colour else " The catalogue has no BP − RP, so that temperature stands for it."
        return (
            f"{stars_text(self.all.total)}, of which {share:.1f} % pass the basic cut (quality_flags < 8). Right: "
            f"that share in cells of {_LEAST_IN_CELL} stars or more.{why}"
        )

    def draw(self, figure: Figure) -> None:
        """Draw numbers and shares."""
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        bar = figure.colorbar(draw_counts(left, self.all), ax=left, label="stars in a cell", aspect=30, pad=0.01)
        bar.outline.set_visible(False)
        all_stars = self.all.inside
        share = np.ma.masked_where(all_stars < _LEAST_IN_CELL, self.reliable.inside / np.maximum(all_stars, 1))
        drawn = right.pcolormesh(
            self.all.x.edges, self.all.y.edges, share.T, cmap=SHARES_COLOURS, vmin=0.0, vmax=1.0, rasterized=True,
            linewidth=0, zorder=0.7,
        )  # fmt: skip
        bar = figure.colorbar(drawn, ax=right, label="share that passes the basic cut", aspect=30, pad=0.01)
        bar.outline.set_visible(False)
        frame(right, self.all.x, self.all.y)
        right.set_ylabel("")
        right.tick_params(labelleft=True)  # or the bar's label would be taken for this axis's

    def table(self) -> Table:
        """The cells."""
        x = "BP - RP [mag]" if self._has_colour else "teff [K]"
        return density_table({"all": self.all, "reliable": self.reliable}, {"x": x, "y": "M_G [mag]"})


def _colour(stars: Stars) -> Float64 | None:
    """BP - RP (n,); None where the catalogue has no such columns."""
    if "bp_rp" in stars:
        return stars.of("bp_rp")
    if "phot_bp_mean_mag" in stars and "phot_rp_mean_mag" in stars:
        return stars.of("phot_bp_mean_mag") - stars.of("phot_rp_mean_mag")
    return None
