"""Streaming histograms: what a figure keeps of stars it has seen, in memory that does not grow with their number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64

#: Quantiles at -1, 0 and +1 standard deviation of a normal law: the paper's "15th, 50th and 84th percentiles".
SHARES = (0.158655, 0.5, 0.841345)

#: Percentile lines are drawn in columns with at least this many stars.
LEAST_STARS = 10


@dataclass(frozen=True)
class Axis:
    """Bins of equal width between two ends, in a quantity or in its logarithm.

    Attributes
    ----------
    label : str
        With its unit, for the figure.
    low, high : float
    bins : int
    is_log : bool
        Whether the bins are equal in the logarithm; both ends are then positive.
    is_reversed : bool
        Whether it is drawn from high to low.
    """

    label: str
    low: float
    high: float
    bins: int
    is_log: bool = False
    is_reversed: bool = False

    @property
    def edges(self) -> Float64:
        """Edges of the bins, (bins + 1,)."""
        spaced = np.geomspace if self.is_log else np.linspace
        return np.asarray(spaced(self.low, self.high, self.bins + 1), np.float64)

    @property
    def centres(self) -> Float64:
        """Centres of the bins, (bins,); of their logarithms where these are equal."""
        edges = self.edges
        return np.sqrt(edges[1:] * edges[:-1]) if self.is_log else 0.5 * (edges[1:] + edges[:-1])

    @property
    def limits(self) -> tuple[float, float]:
        """Ends in the order in which they are drawn."""
        return (self.high, self.low) if self.is_reversed else (self.low, self.high)

    def index(self, values: Float64) -> NDArray[np.int32]:
        """Bin of each of n finite values, counted from 1; 0 is below all bins, ``bins + 1`` above them."""
        low, high = (np.log(self.low), np.log(self.high)) if self.is_log else (self.low, self.high)
        with np.errstate(divide="ignore", invalid="ignore"):
            place = np.log(np.maximum(values, 0.0)) if self.is_log else values
        found = np.clip((place - low) * (self.bins / (high - low)) + 1.0, 0.0, self.bins + 1.0).astype(np.int32)
        found[place == high] = self.bins  # the last bin has its upper edge, as in numpy.histogram
        return found


class Density:
    """Numbers of stars in cells of two quantities, what lies outside included.

    Parameters
    ----------
    x, y : Axis

    Attributes
    ----------
    counts : (x.bins + 2, y.bins + 2) int64
        The first and last row and column are what lies below and above all bins.
    """

    def __init__(self, x: Axis, y: Axis) -> None:
        self.x, self.y = x, y
        self.counts = np.zeros((x.bins + 2, y.bins + 2), np.int64)

    def add(self, x: Float64, y: Float64) -> None:
        """Count stars by two quantities, each (n,); a star that lacks one of them (not finite) is left out."""
        known = np.isfinite(x) & np.isfinite(y)
        if not known.all():
            x, y = x[known], y[known]
        cell = self.x.index(x) * np.int32(self.y.bins + 2) + self.y.index(y)
        self.counts += np.bincount(cell, minlength=self.counts.size).reshape(self.counts.shape)

    @property
    def inside(self) -> NDArray[np.int64]:
        """Stars within the bins of both axes, (x.bins, y.bins)."""
        return self.counts[1:-1, 1:-1]

    @property
    def total(self) -> int:
        """Stars counted, those outside included."""
        return int(self.counts.sum())

    @property
    def outside(self) -> int:
        """Stars counted that lie outside the bins."""
        return self.total - int(self.inside.sum())

    @property
    def column_stars(self) -> NDArray[np.int64]:
        """Stars in each bin of x, whatever their y, (x.bins,)."""
        return self.counts[1:-1].sum(axis=1)

    def column_normalised(self) -> Float64:
        """Numbers of stars over the largest one in the same bin of x, (x.bins, y.bins); 0 in a column without stars."""
        largest = self.inside.max(axis=1, keepdims=True)
        return self.inside / np.maximum(largest, 1)

    def quantiles(self, shares: tuple[float, ...] = SHARES) -> Float64:
        """Quantiles of y in each bin of x, (x.bins, len(shares)).

        Stars are taken as spread evenly over their cell. NaN where a column has fewer than :data:`LEAST_STARS` stars,
        or where the quantile lies outside the bins of y.
        """
        cumulated = np.cumsum(self.counts[1:-1], axis=1)
        found = np.full((self.x.bins, len(shares)), np.nan)
        for column in np.flatnonzero(cumulated[:, -1] >= LEAST_STARS):
            found[column] = _crossings(cumulated[column], self.y.edges, shares)
        return found


def _crossings(cumulated: NDArray[np.int64], edges: Float64, shares: tuple[float, ...]) -> Float64:
    """Where a cumulated histogram, (bins + 2,) with what is outside, reaches shares of its sum; NaN if outside."""
    at_edges = cumulated[:-1]  # stars below each edge
    wanted = np.array(shares) * cumulated[-1]
    upper = np.searchsorted(at_edges, wanted)
    inside = (upper > 0) & (upper < len(edges))
    upper = np.clip(upper, 1, len(edges) - 1)
    below, above = at_edges[upper - 1], at_edges[upper]
    part = (wanted - below) / np.maximum(above - below, 1)
    return np.where(inside, edges[upper - 1] + part * (edges[upper] - edges[upper - 1]), np.nan)


class Spread:
    """Median and width of quantities of any scale, from bins that are narrow near zero and wider further out.

    The edges are sinh-spaced: a bin is 0.8 % of the value wide where that exceeds ``scale``, 0.8 % of ``scale`` else.

    Parameters
    ----------
    groups : int
        Numbers of separate spreads that are kept.
    scale : float
        Typical size of the quantity.
    """

    _STEP, _REACH = 0.008, 16.0

    def __init__(self, groups: int, scale: float) -> None:
        self.scale = scale
        half = round(self._REACH / self._STEP)
        self._edges = np.sinh(self._STEP * np.arange(-half, half + 1)) * scale
        self.counts = np.zeros((groups, 2 * half + 2), np.int64)

    def add(self, group: NDArray[np.intp], values: Float64) -> None:
        """Count values (n,), each in its group (n,); those not finite, or in a group below 0, are left out."""
        known = np.isfinite(values) & (group >= 0)
        place = np.arcsinh(values[known] / self.scale) / self._STEP
        bins = self.counts.shape[1]
        cell = np.clip(np.floor(place) + bins // 2, 0, bins - 1).astype(np.intp)
        flat = group[known] * bins + cell
        self.counts += np.bincount(flat, minlength=self.counts.size).reshape(self.counts.shape)

    def stars(self, group: int) -> int:
        """Values counted in a group."""
        return int(self.counts[group].sum())

    def median_and_width(self, group: int) -> tuple[float, float]:
        """Median, and half of the central 68.3 %, to 0.4 %; NaN in a group without values."""
        if not self.stars(group):
            return np.nan, np.nan
        low, middle, high = _crossings(np.cumsum(self.counts[group]), self._edges, SHARES)
        return float(middle), float(0.5 * (high - low))


def range_of(values: Float64, share: float = 0.995, margin: float = 0.04) -> tuple[float, float] | None:
    """Ends between which this share of the finite values lies, a little apart; None without finite values."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, (0.5 - 0.5 * share, 0.5 + 0.5 * share))
    apart = margin * (high - low) or max(0.05 * abs(high), 1e-3)
    return float(low - apart), float(high + apart)


def symmetric_range(values: Float64, share: float = 0.97, margin: float = 0.25) -> float | None:
    """Largest absolute value of this share of the finite values, and some more; None without finite values."""
    values = np.abs(values[np.isfinite(values)])
    if not len(values):
        return None
    return float((1.0 + margin) * np.quantile(values, share)) or 1e-3
