"""How figures look: colours that the colour-blind tell apart, on light paper and on dark; densities, percentile lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xpkern.report.density import LEAST_STARS, Density
from xpkern.train.figures import BLUE, ORANGE, RED, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

    from xpkern.report.density import Axis


@dataclass(frozen=True)
class Theme:
    """Paper, ink and colour maps of a figure.

    Attributes
    ----------
    name : str
        "light" or "dark".
    paper, ink, quiet, grid : str
        Colours of the background, of text, of secondary lines, of the grid.
    density_steps : tuple of str
        Colours of a density from few to many stars, all of one hue and evenly growing in contrast to the paper.
    """

    name: str
    paper: str
    ink: str
    quiet: str
    grid: str
    density_steps: tuple[str, ...]

    @property
    def rc(self) -> dict[str, Any]:
        """Settings of matplotlib; the font is the one that comes with it, whatever the machine has."""
        return STYLE | {
            "font.family": "DejaVu Sans",
            "figure.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "text.color": self.ink,
            "axes.labelcolor": self.ink,
            "axes.titlecolor": self.ink,
            "axes.edgecolor": self.quiet,
            "xtick.color": self.quiet,
            "ytick.color": self.quiet,
            "xtick.labelcolor": self.ink,
            "ytick.labelcolor": self.ink,
            "grid.color": self.grid,
            "legend.labelcolor": self.ink,
            "pdf.fonttype": 42,
        }

    @property
    def density(self) -> Colormap:
        """Of numbers of stars; cells without stars are paper."""
        from matplotlib.colors import LinearSegmentedColormap

        return LinearSegmentedColormap.from_list("density", self.density_steps)

    @property
    def signed(self) -> Colormap:
        """Of what may be negative, blue, or positive, vermilion; zero is paper."""
        from matplotlib.colors import LinearSegmentedColormap

        return LinearSegmentedColormap.from_list("signed", ["#004a75", BLUE, self.paper, RED, "#8a3c00"])


LIGHT = Theme("light", "#ffffff", "#16202b", "#6b7682", "#e6e9ec", ("#dcebf5", "#7db8dd", "#2a83ba", "#06456d", "#04202f"))
DARK = Theme("dark", "#171c22", "#e6eaee", "#8d98a4", "#2b323a", ("#16344a", "#135f8f", "#3b9bd1", "#9fd3f2", "#f2faff"))

#: Colours of percentile lines, and their widths: median, outer ones.
PERCENTILES, MEDIAN_WIDTH, OUTER_WIDTH = ORANGE, 2.0, 1.2


def draw_density(axes: Axes, density: Density, theme: Theme, *, lines: bool = True, zero: bool = False) -> None:
    """Stars in each column over the most in one of its cells, and the percentiles of each column.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    density : Density
    theme : Theme
    lines : bool
        Whether to draw the 15.9th, 50th and 84.1th percentile where a column has :data:`LEAST_STARS` stars.
    zero : bool
        Whether to mark y = 0.
    """
    few = density.column_stars < LEAST_STARS
    shares = density.column_normalised()
    shares[few] *= 0.5  # a column of a few stars is no distribution: it is paler
    _draw_cells(axes, density, np.ma.masked_equal(shares, 0.0), theme.density, vmin=0.0, vmax=1.0)
    if zero:
        axes.axhline(0.0, color=theme.ink, lw=0.8, alpha=0.7)
    if lines:
        for quantile, width in zip(density.quantiles().T, (OUTER_WIDTH, MEDIAN_WIDTH, OUTER_WIDTH), strict=True):
            axes.plot(density.x.centres, quantile, color=theme.paper, lw=width + 1.6, alpha=0.75)
            axes.plot(density.x.centres, quantile, color=PERCENTILES, lw=width)
    frame(axes, density.x, density.y)


def draw_counts(axes: Axes, density: Density, theme: Theme) -> Any:
    """Numbers of stars in cells, on a logarithmic scale; returns what a colour bar is made of."""
    from matplotlib.colors import LogNorm

    most = max(int(density.inside.max(initial=0)), 2)
    cells = np.ma.masked_equal(density.inside, 0)
    drawn = _draw_cells(axes, density, cells, theme.density, norm=LogNorm(1, most))
    frame(axes, density.x, density.y)
    return drawn


def _draw_cells(axes: Axes, density: Density, cells: Any, colours: Colormap, **scale: Any) -> Any:
    return axes.pcolormesh(
        density.x.edges, density.y.edges, cells.T, cmap=colours, rasterized=True, linewidth=0, zorder=0.5, **scale
    )


def frame(axes: Axes, x: Axis, y: Axis) -> None:
    """Labels, limits and scales of two axes."""
    axes.set(xlabel=x.label, ylabel=y.label, xlim=x.limits, ylim=y.limits)
    if x.is_log:
        axes.set_xscale("log")
    if y.is_log:
        axes.set_yscale("log")
    axes.grid(True, zorder=0)
