"""Estimates beside a reference: residuals and pulls of each parameter against what they may depend on."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.grid import N_PARAMETERS, PARAMETERS
from xpkern.report.density import LEAST_STARS, Axis, Density, symmetric_range
from xpkern.report.drawing import (
    PARAMETER_NAMES,
    SYMBOLS,
    Drawing,
    density_table,
    g_axis,
    parameter_axis,
    snr_axis,
    stars_text,
)
from xpkern.report.stars import LEAST_CONFIDENCE, PLX, Stars
from xpkern.report.style import INK, PERCENTILES, density_colours, draw_density
from xpkern.train.figures import BLUE, levels_around, smoothed

if TYPE_CHECKING:
    from astropy.table import Table
    from matplotlib.figure import Figure

#: What residuals are drawn against: parameters of the reference, magnitude, signal-to-noise ratio of the parallax.
_AGAINST = ("teff", "feh", "logg", "ext", "phot_g_mean_mag", "parallax_snr")

#: Pulls that the figures reach to.
_LARGEST_PULL = 5.0

#: Sections by what the reference is.
SECTIONS = {"labels": "Beside labels", "compare": "Beside another catalogue"}

#: Shares of the stars within the contours of Figs. 7 and 8.
_CONTOURS = (0.68, 0.95)


def _columns(parameter: int) -> tuple[str, ...]:
    name = PARAMETER_NAMES[parameter]
    measured = ("parallax", "parallax_error") if parameter == PLX else ()
    return (name, f"{name}_error", "quality_flags", *measured)


def _counted(stars: Stars, parameter: int, values: Float64) -> Float64:
    """The values of stars that count: reliable, and confident where there is a classifier; NaN elsewhere."""
    return np.where(stars.confident(parameter), values, np.nan)


def _why_nothing(matched: int, reference: str) -> str:
    what = {"labels": "the label table", "compare": "the other catalogue (that is reliable there)"}[reference]
    if not matched:
        return f"no star of the catalogue is in {what}: are these source_ids of the same release?"
    return f"of {stars_text(matched)} in {what} none passes the basic cut (quality_flags < 8) with a number there"


class Residuals(Drawing):
    """Residuals, or pulls, of one parameter against six quantities (Figs. 9-11, 16, 17, 20, 21 in their manner).

    Parameters
    ----------
    reference : str
        "labels" or "compare".
    parameter : int
    is_pull : bool
        Whether residuals are drawn over their errors.
    """

    size = (10.0, 5.8)

    def __init__(self, reference: str, parameter: int, *, is_pull: bool) -> None:
        self.reference, self.parameter, self.is_pull = reference, parameter, is_pull
        self.column = PARAMETER_NAMES[parameter]
        self.name = f"{reference}_{self.column}_{'pull' if is_pull else 'residual'}"
        self.section = SECTIONS[reference]
        what = {"teff": "Temperature", "feh": "Metallicity", "logg": "Surface gravity", "ext": "Extinction"}
        self.title = f"{what.get(PARAMETERS[parameter], 'Parallax')}: {'pulls' if is_pull else 'residuals'}"
        self.columns = _columns(parameter)
        self.optional = (
            *PARAMETER_NAMES[:4],
            "phot_g_mean_mag",
            "parallax",
            "parallax_error",
            f"{self.column}_confidence",
        )
        self.needs = (reference,)
        self._matched = 0

    def begin(self, sample: Stars) -> None:
        """Axes by the stars of the sample that are in the reference."""
        symbol, unit, usual, _ = SYMBOLS[self.column]
        there = sample.rows_in(self.reference) >= 0
        self._known = self.parameter == PLX or bool(sample.references[self.reference].known[self.parameter])
        counted = _counted(sample, self.parameter, self._residual(sample))
        if self.is_pull:
            y = Axis(f"Δ{symbol} / error", -_LARGEST_PULL, _LARGEST_PULL, 80)
        else:
            half = symmetric_range(counted) or usual
            y = Axis(f"Δ{symbol}  [{unit}]", -half, half, 80)
        self.densities: dict[str, Density] = {}
        for name in _AGAINST:
            values = self._against(sample, name)
            if values is None:
                continue
            values = np.where(there & np.isfinite(counted), values, np.nan)
            make = {"phot_g_mean_mag": g_axis, "parallax_snr": snr_axis}.get(name)
            axis = make(values, 40) if make else parameter_axis(name, values, 40)
            self.densities[name] = Density(axis, y)

    def _residual(self, stars: Stars) -> Float64:
        return (stars.pull if self.is_pull else stars.residual)(self.reference, self.parameter)

    def _against(self, stars: Stars, name: str) -> Float64 | None:
        """The quantity (n,): the reference's where it has it, else the catalogue's; None where there is none."""
        if name == "parallax_snr":
            return stars.parallax_snr if "parallax" in stars and "parallax_error" in stars else None
        if name in PARAMETER_NAMES:
            k = PARAMETER_NAMES.index(name)
            if stars.references[self.reference].known[k]:
                return stars.others(self.reference, k)[0]
        return stars.of(name) if name in stars else None

    def add(self, stars: Stars) -> None:
        """Count a block."""
        self._matched += int(np.count_nonzero(stars.rows_in(self.reference) >= 0))
        residual = _counted(stars, self.parameter, self._residual(stars))
        known = np.isfinite(residual)
        for name, density in self.densities.items():
            values = self._against(stars, name)
            assert values is not None
            density.add(values[known], residual[known])

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        if any(density.total for density in self.densities.values()):
            return None
        if not self._known:
            name = PARAMETERS[self.parameter]
            return f"{'the label table' if self.reference == 'labels' else 'the other catalogue'} has no {name}"
        return _why_nothing(self._matched, self.reference)

    def caption(self) -> str:
        """What is drawn."""
        most = max(density.total for density in self.densities.values())
        judged = f" and whose confidence exceeds {LEAST_CONFIDENCE:g}, where there is one" if self.parameter < 3 else ""
        what = "Estimate minus reference"
        if self.is_pull:
            what += ", over the root of the sum of both variances"
        if self.parameter == PLX:
            what += " (Gaia's parallax where the reference has none"
            what += "; as it is part of the estimate, over the root of their difference)" if self.is_pull else ")"
        return (
            f"{what}, for {stars_text(most)} that pass the basic cut{judged}, against values of the reference, or of "
            "the catalogue where it has none. Shade: stars over the most in a cell of the same column, paler where "
            f"they are few. Lines: 15.9, 50 and 84.1 % of columns with {LEAST_STARS} stars or more."
        )

    def draw(self, figure: Figure) -> None:
        """Draw the six densities."""
        axes = figure.subplots(2, 3, sharey=True).ravel()
        for panel, density in zip(axes, self.densities.values(), strict=False):
            draw_density(panel, density, zero=True)
            if self.is_pull:
                for level in (-1.0, 1.0):
                    panel.axhline(level, color=INK, lw=0.7, ls=(0, (2, 3)), alpha=0.7)
        for panel in axes[len(self.densities) :]:
            panel.set_axis_off()
        for panel in axes[[1, 2, 4, 5]]:
            panel.set_ylabel("")

    def table(self) -> Table:
        """Bins of all panels."""
        y = next(iter(self.densities.values())).y.label
        return density_table(
            self.densities, {"residual": self.column, "in": "errors" if self.is_pull else "its unit", "y": y}
        )


class ResidualCorner(Drawing):
    """Residuals, or pulls, of all parameters against each other (Figs. 7 and 8)."""

    size = (9.0, 8.4)

    def __init__(self, reference: str, *, is_pull: bool) -> None:
        self.reference, self.is_pull = reference, is_pull
        self.name = f"{reference}_{'pulls' if is_pull else 'residuals'}"
        self.section = SECTIONS[reference]
        self.title = f"All {'pulls' if is_pull else 'residuals'} (Fig. {8 if is_pull else 7})"
        self.columns = tuple(dict.fromkeys(name for k in range(N_PARAMETERS) for name in _columns(k)))
        self.needs = (reference,)
        self._matched = 0

    def begin(self, sample: Stars) -> None:
        """Axes by the sample; parameters of which the reference knows nothing have no panel."""
        known = sample.references[self.reference].known
        self.parameters = [k for k in range(N_PARAMETERS) if known[k] or k == PLX]
        self.axes: dict[int, Axis] = {}
        for k in self.parameters:
            symbol, unit, usual, _ = SYMBOLS[PARAMETER_NAMES[k]]
            half = symmetric_range(np.where(sample.reliable, self._residual(sample, k), np.nan)) or usual
            label = f"Δ{symbol} / error" if self.is_pull else f"Δ{symbol}  [{unit}]"
            half = _LARGEST_PULL if self.is_pull else half
            self.axes[k] = Axis(label, -half, half, 60)
        one = Axis("", 0.0, 1.0, 1)
        self.pairs = {(i, j): Density(self.axes[i], self.axes[j]) for i, j in combinations(self.parameters, 2)}
        self.single = {k: Density(one, self.axes[k]) for k in self.parameters}

    def _residual(self, stars: Stars, k: int) -> Float64:
        return (stars.pull if self.is_pull else stars.residual)(self.reference, k)

    def add(self, stars: Stars) -> None:
        """Count a block."""
        there = stars.rows_in(self.reference) >= 0
        self._matched += int(np.count_nonzero(there))
        counted = np.flatnonzero(there & stars.reliable)
        residuals = {k: self._residual(stars, k)[counted] for k in self.parameters}
        for (i, j), density in self.pairs.items():
            density.add(residuals[i], residuals[j])
        for k, density in self.single.items():
            density.add(np.full(len(counted), 0.5), residuals[k])

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        if any(density.total for density in self.single.values()):
            return None
        return _why_nothing(self._matched, self.reference)

    def caption(self) -> str:
        """What is drawn."""
        most = max(density.total for density in self.single.values())
        shares = " and ".join(f"{100 * share:.0f} %" for share in _CONTOURS)
        curve = " Dashed: the unit normal." if self.is_pull else ""
        return f"{stars_text(most)} that pass the basic cut; contours around {shares} of them.{curve}"

    def draw(self, figure: Figure) -> None:
        """Draw the triangle."""
        n = len(self.parameters)
        axes = figure.subplots(n, n, squeeze=False)
        for row, j in enumerate(self.parameters):
            for column, i in enumerate(self.parameters):
                panel = axes[row, column]
                if column > row:
                    panel.set_axis_off()
                    continue
                if column == row:
                    self._draw_single(panel, j)
                else:
                    self._draw_pair(panel, self.pairs[i, j])
                panel.set(xlim=self.axes[i].limits, xlabel=self.axes[i].label if row == n - 1 else "")
                panel.set_ylabel(self.axes[j].label if column == 0 and row else "")
                panel.locator_params(nbins=4)
                if row < n - 1:
                    panel.tick_params(labelbottom=False)
                if column:
                    panel.tick_params(labelleft=False)

    def _draw_single(self, panel, k: int) -> None:  # type: ignore[no-untyped-def]
        density = self.single[k]
        width = (density.y.high - density.y.low) / density.y.bins
        height = density.inside[0] / max(density.total * width, 1e-300)
        panel.stairs(height, density.y.edges, color=BLUE, fill=True, alpha=0.65)
        if self.is_pull:
            x = density.y.edges
            panel.plot(x, np.exp(-0.5 * x**2) / np.sqrt(2.0 * np.pi), color=INK, lw=1.1, ls=(0, (4, 2)))
        panel.set(yticks=[], ylim=(0.0, None))

    def _draw_pair(self, panel, density: Density) -> None:  # type: ignore[no-untyped-def]
        cells = np.ma.masked_equal(density.inside / max(int(density.inside.max()), 1), 0.0)
        panel.pcolormesh(
            density.x.edges, density.y.edges, cells.T, cmap=density_colours(), rasterized=True, linewidth=0, zorder=0.7
        )
        if density.inside.sum() >= 100:
            smooth = smoothed(density.inside)
            panel.contour(
                density.x.centres, density.y.centres, smooth.T, levels=levels_around(smooth, _CONTOURS),
                colors=[PERCENTILES], linewidths=[1.2, 1.8],
            )  # fmt: skip
        panel.axhline(0.0, color=INK, lw=0.7, alpha=0.6)
        panel.axvline(0.0, color=INK, lw=0.7, alpha=0.6)
        panel.set_ylim(density.y.limits)

    def table(self) -> Table:
        """Bins of all panels."""
        parts = {PARAMETER_NAMES[k]: density for k, density in self.single.items()}
        parts |= {f"{PARAMETER_NAMES[i]},{PARAMETER_NAMES[j]}": density for (i, j), density in self.pairs.items()}
        return density_table(parts, {"in": "errors" if self.is_pull else "units of the parameters"})


class GoodAndBad(Drawing):
    """Residuals of stars whose estimates are trusted and of those whose are not (Fig. 10)."""

    size = (10.0, 8.0)

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self.name, self.section = f"{reference}_good_bad", SECTIONS[reference]
        self.title = "Trusted and other estimates (Fig. 10)"
        self.columns = (*PARAMETER_NAMES[:3], "quality_flags")
        self.optional = tuple(f"{name}_confidence" for name in PARAMETER_NAMES[:3])
        self.needs = (reference,)
        self._matched = 0

    def begin(self, sample: Stars) -> None:
        """Axes by the sample; what separates good from bad."""
        self.judged = any(name in sample and np.isfinite(sample.of(name)).any() for name in self.optional)
        self.densities: dict[tuple[int, bool], Density] = {}
        for k in range(3):
            symbol, unit, usual, _ = SYMBOLS[PARAMETER_NAMES[k]]
            half = symmetric_range(sample.residual(self.reference, k), 0.95) or usual
            values = np.where(sample.reliable, sample.others(self.reference, k)[0], np.nan)
            x = parameter_axis(PARAMETER_NAMES[k], values, 50)
            for good in (True, False):
                self.densities[k, good] = Density(x, Axis(f"Δ{symbol}  [{unit}]", -half, half, 100))

    def add(self, stars: Stars) -> None:
        """Count a block."""
        there = stars.rows_in(self.reference) >= 0
        self._matched += int(np.count_nonzero(there))
        for (k, is_good), density in self.densities.items():
            good = stars.confident(k) if self.judged else stars.reliable
            chosen = there & (good if is_good else (stars.reliable if self.judged else True) & ~good)
            density.add(stars.others(self.reference, k)[0][chosen], stars.residual(self.reference, k)[chosen])

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        if any(density.total for density in self.densities.values()):
            return None
        return _why_nothing(self._matched, self.reference)

    def caption(self) -> str:
        """What is drawn."""
        if self.judged:
            return (
                "Stars that pass the basic cut. Left: the confidence in the parameter exceeds "
                f"{LEAST_CONFIDENCE:g}; right: "
                "it does not. Shade and lines as above."
            )
        return (
            "Left: stars that pass the basic cut; right: those that do not. (The catalogue has no confidences: "
            "`xpkern flag` writes them.) Shade and lines as above."
        )

    def draw(self, figure: Figure) -> None:
        """Draw three rows, good and bad beside each other."""
        axes = figure.subplots(3, 2, sharex="row", sharey="row")
        for (k, good), density in self.densities.items():
            panel = axes[k, 0 if good else 1]
            draw_density(panel, density, zero=True)
            title = (
                ("confident" if good else "not confident")
                if self.judged
                else ("passes" if good else "fails the basic cut")
            )
            panel.set_title(f"{title}: {stars_text(density.total)}", fontsize=9.5)
            if not good:
                panel.set_ylabel("")

    def table(self) -> Table:
        """Bins of all panels."""
        parts = {
            f"{PARAMETER_NAMES[k]} {'good' if good else 'bad'}": part for (k, good), part in self.densities.items()
        }
        return density_table(parts, {"x": "the reference's value", "y": "estimate minus reference"})


def residual_figures(reference: str) -> list[Drawing]:
    """All figures beside one reference."""
    figures: list[Drawing] = [ResidualCorner(reference, is_pull=False), ResidualCorner(reference, is_pull=True)]
    figures += [
        Residuals(reference, parameter, is_pull=is_pull)
        for parameter in range(N_PARAMETERS)
        for is_pull in (False, True)
    ]
    figures.append(GoodAndBad(reference))
    return figures
