"""How figures look: colours that the colour-blind tell apart, densities, percentile lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xpkern.report.density import Density
from xpkern.train.figures import BLUE, ORANGE, RED, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

    from xpkern.report.density import Axis


#: Paper, ink of text and of secondary lines. On a dark screen the page inverts the lightness of all colours and keeps
#: their hues, so that every contrast stays.
PAPER, INK, QUIET = "#ffffff", "#16202b", "#6b7682"

#: Colours of a density from few stars to many: of one hue, evenly growing in contrast to the paper.
_DENSITY_STEPS = ("#dcebf5", "#7db8dd", "#2a83ba", "#06456d", "#04202f")

#: Colour map of means and shares: large ones are far from the paper, light or dark.
SHARES_COLOURS = "cividis_r"

#: Settings of matplotlib.
RC: Any = STYLE | {
    "figure.facecolor": PAPER,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.labelcolor": INK,
}

#: Columns with fewer stars than these are drawn paler.
_FULL_COLUMN = 400

#: Colours of percentile lines, and their widths: median, outer ones.
PERCENTILES, MEDIAN_WIDTH, OUTER_WIDTH = ORANGE, 2.0, 1.2


def density_colours() -> Colormap:
    """Colours of numbers of stars; cells without stars are paper."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("density", _DENSITY_STEPS)


def signed_colours() -> Colormap:
    """Colours of what may be negative, blue, or positive, vermilion; zero is paper."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("signed", ["#004a75", BLUE, PAPER, RED, "#8a3c00"])


def draw_density(axes: Axes, density: Density, *, lines: bool = True, zero: bool = False) -> None:
    """Stars in each column over the most in one of its cells, and the percentiles of each column.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    density : Density
    lines : bool
        Whether to draw the 15.9th, 50th and 84.1th percentile where a column has :data:`LEAST_STARS` stars.
    zero : bool
        Whether to mark y = 0.
    """
    # the few stars of a thin column are no distribution: it is paler
    shares = density.column_normalised() * np.minimum(np.sqrt(density.column_stars / _FULL_COLUMN), 1.0)[:, None]
    _draw_cells(axes, density, np.ma.masked_equal(shares, 0.0), density_colours(), vmin=0.0, vmax=1.0)
    if zero:
        axes.axhline(0.0, color=INK, lw=0.8, alpha=0.7)
    if lines:
        for quantile, width in zip(density.quantiles().T, (OUTER_WIDTH, MEDIAN_WIDTH, OUTER_WIDTH), strict=True):
            axes.plot(density.x.centres, quantile, color=PAPER, lw=width + 1.6, alpha=0.75)
            axes.plot(density.x.centres, quantile, color=PERCENTILES, lw=width)
    frame(axes, density.x, density.y)


def draw_counts(axes: Axes, density: Density) -> Any:
    """Numbers of stars in cells, on a logarithmic scale; returns what a colour bar is made of."""
    from matplotlib.colors import LogNorm

    most = max(int(density.inside.max(initial=0)), 2)
    cells = np.ma.masked_equal(density.inside, 0)
    drawn = _draw_cells(axes, density, cells, density_colours(), norm=LogNorm(1, most))
    frame(axes, density.x, density.y)
    return drawn


def _draw_cells(axes: Axes, density: Density, cells: Any, colours: Colormap, **scale: Any) -> Any:
    return axes.pcolormesh(
        density.x.edges, density.y.edges, cells.T, cmap=colours, rasterized=True, linewidth=0, zorder=0.7, **scale
    )


def frame(axes: Axes, x: Axis, y: Axis) -> None:
    """Labels, limits and scales of two axes."""
    axes.set(xlabel=x.label, ylabel=y.label, xlim=x.limits, ylim=y.limits)
    if x.is_log:
        axes.set_xscale("log")
        plain_decades(axes.xaxis)
    if y.is_log:
        axes.set_yscale("log")
        plain_decades(axes.yaxis)


def plain_decades(axis: Any) -> None:
    """Ticks of a logarithmic axis at powers of ten alone, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(10.0, numticks=8))
    axis.set_major_formatter(lambda value, position: f"{value:g}")
    axis.set_minor_locator(NullLocator())
