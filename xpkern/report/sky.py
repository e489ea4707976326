"""Streaming maps of the sky: stars, or sums over them, in cells of equal area."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.report.style import INK, QUIET

if TYPE_CHECKING:
    from astropy.table import Table
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

#: A survey whose stars lie within this many degrees of their middle is drawn alone, not on the whole sky.
_LARGEST_REGION = 40.0

#: Stars that a cell has on average, if that makes neither fewer nor more cells across than these.
_STARS_IN_CELL, _FEWEST, _MOST = 20, 24, 360


class SkyMap:
    """Cells of equal area: of the whole sky in Mollweide's projection, or of a region in Lambert's azimuthal one.

    Parameters
    ----------
    longitude, latitude : (n,) float64
        Galactic, of a sample of the stars [deg]; they decide what is mapped.
    total : int
        Stars there will be; they decide how large cells are.
    sums : int
        Quantities that are summed beside the number of stars.

    Attributes
    ----------
    stars : (columns, rows) int64
    totals : (sums, columns, rows) float64
    counted : (sums, columns, rows) int64
        Stars that went into the totals: those that had a number.
    """

    def __init__(self, longitude: Float64, latitude: Float64, total: int, sums: int = 0) -> None:
        known = np.isfinite(longitude) & np.isfinite(latitude)
        self._centre = _region_centre(longitude[known], latitude[known])
        if self._centre is None:
            self._low, self._high = np.array([-2.0, -1.0]), np.array([2.0, 1.0])
            rows = int(np.clip(np.sqrt(total / _STARS_IN_CELL / (0.5 * np.pi)), _FEWEST, _MOST // 2))
            shape = (2 * rows, rows)
        else:
            places = np.stack(self._project(longitude[known], latitude[known]))
            half = 1.05 * max(float(np.abs(places).max()), 1e-4)
            self._low, self._high = np.full(2, -half), np.full(2, half)
            side = int(np.clip(np.sqrt(total / _STARS_IN_CELL), _FEWEST, _MOST // 2))
            shape = (side, side)
        self.stars = np.zeros(shape, np.int64)
        self.totals = np.zeros((sums, *shape))
        self.counted = np.zeros((sums, *shape), np.int64)

    @property
    def is_whole(self) -> bool:
        """Whether it is of the whole sky."""
        return self._centre is None

    @property
    def cell_area(self) -> float:
        """Area of a cell [deg^2]."""
        in_plane = float(np.prod((self._high - self._low) / self.stars.shape))
        # Mollweide's ellipse with semi-axes 2 and 1 has the area 2 pi, the sphere 4 pi
        return in_plane * (2.0 if self.is_whole else 1.0) * float(np.degrees(1.0)) ** 2

    def add(self, longitude: Float64, latitude: Float64, values: tuple[Float64, ...] = ()) -> None:
        """Count n stars; of each of the values (n,) what is not finite is left out."""
        known = np.isfinite(longitude) & np.isfinite(latitude)
        x, y = self._project(np.where(known, longitude, 0.0), np.where(known, latitude, 0.0))
        columns, rows = self.stars.shape
        i, j = (
            np.floor((place - low) / (high - low) * cells).astype(np.intp)
            for place, low, high, cells in zip((x, y), self._low, self._high, (columns, rows), strict=True)
        )
        known &= (i >= 0) & (i < columns) & (j >= 0) & (j < rows)
        cell = i * rows + j
        self.stars += np.bincount(cell[known], minlength=columns * rows).reshape(columns, rows)
        for k, value in enumerate(values):
            there = known & np.isfinite(value)
            self.counted[k] += np.bincount(cell[there], minlength=columns * rows).reshape(columns, rows)
            total = np.bincount(cell[there], value[there], minlength=columns * rows)
            self.totals[k] += total.reshape(columns, rows)

    def mean(self, k: int, least: int) -> Float64:
        """Mean of a quantity in each cell, (columns, rows); NaN where fewer than ``least`` stars have it."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.counted[k] >= least, self.totals[k] / self.counted[k], np.nan)

    def draw(self, axes: Axes, cells: Any, colours: Colormap | str, **scale: Any) -> Any:
        """Draw values of the cells, (columns, rows), masked or NaN where there are none."""
        x, y = (
            np.linspace(low, high, n + 1) for low, high, n in zip(self._low, self._high, self.stars.shape, strict=True)
        )
        drawn = axes.pcolormesh(
            x, y, np.ma.masked_invalid(cells).T, cmap=colours, rasterized=True, linewidth=0, **scale
        )
        axes.set_aspect("equal")
        axes.grid(False)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set(xticks=[], yticks=[])
        line = {"color": QUIET, "lw": 0.6, "alpha": 0.7}
        if self.is_whole:
            self._draw_graticule(axes, line)
        else:
            self._draw_frame(axes)
        return drawn

    def _draw_graticule(self, axes: Axes, line: dict[str, Any]) -> None:
        """Lines of equal longitude and latitude; longitude grows to the left, 0 in the middle."""
        turn = np.linspace(-90.0, 90.0, 91)
        for longitude in (-180.0, -120.0, -60.0, 0.0, 60.0, 120.0, 179.999):
            axes.plot(*self._project(np.full(91, longitude), turn), **line)
        around = np.linspace(-180.0, 179.999, 181)
        for latitude in (-60.0, -30.0, 0.0, 30.0, 60.0):
            x, y = self._project(around, np.full(181, latitude))
            axes.plot(x, y, **line)
            if latitude:
                name = f"{latitude:+.0f}°".replace("-", "−")
                axes.text(x.max() + 0.08, float(y[0]), name, fontsize=7.5, color=QUIET, va="center")
        axes.set(xlim=(-2.04, 2.25), ylim=(-1.04, 1.04))
        axes.text(0.0, -1.14, "Galactic; longitude 0° in the middle, growing to the left", ha="center", fontsize=8,
                  color=QUIET)  # fmt: skip

    def _draw_frame(self, axes: Axes) -> None:
        half = float(self._high[0])
        assert self._centre is not None
        length = 10.0 ** np.floor(np.log10(np.degrees(half)))
        x0, y0 = -0.92 * half, -1.06 * half
        axes.plot([x0, x0 + np.radians(length)], [y0, y0], color=INK, lw=1.6)
        name = f"{length:g}°" if length >= 1.0 else f"{60.0 * length:g}′"
        text = (
            f"  {name};  centre l = {self._centre[0] % 360.0:.2f}°, b = {self._centre[1]:+.2f}°; longitude to the left"
        )
        axes.text(x0 + np.radians(length), y0, text, fontsize=8, color=QUIET, va="center")
        axes.set(xlim=(-half, half), ylim=(-1.14 * half, half))

    def table(self, names: tuple[str, ...] = ()) -> Table:
        """A row per cell with stars: Galactic position of its centre, stars, mean and number of each quantity."""
        from astropy.table import Table

        columns, rows = self.stars.shape
        x, y = (
            low + (np.arange(n) + 0.5) * (high - low) / n
            for low, high, n in zip(self._low, self._high, (columns, rows), strict=True)
        )
        longitude, latitude = self._unproject(*np.meshgrid(x, y, indexing="ij"))
        filled = self.stars > 0
        data: dict[str, NDArray] = {"l": longitude[filled] % 360.0, "b": latitude[filled], "stars": self.stars[filled]}
        for k, name in enumerate(names):
            data[name] = self.mean(k, 1)[filled]
            data[f"{name}_stars"] = self.counted[k][filled]
        table = Table(data, meta={"cell_area": self.cell_area, "cell_area_unit": "deg2"})
        table["l"].unit = table["b"].unit = "deg"
        return table

    def _project(self, longitude: Float64, latitude: Float64) -> tuple[Float64, Float64]:
        if self._centre is None:
            return _mollweide(longitude, latitude)
        return _lambert(longitude, latitude, self._centre)

    def _unproject(self, x: Float64, y: Float64) -> tuple[Float64, Float64]:
        if self._centre is None:
            return _from_mollweide(x, y)
        return _from_lambert(x, y, self._centre)


def _region_centre(longitude: Float64, latitude: Float64) -> tuple[float, float] | None:
    """Middle [deg] of stars that all lie within :data:`_LARGEST_REGION` of it; None if they do not."""
    if not len(longitude):
        return None
    around, up = np.radians(longitude), np.radians(latitude)
    direction = np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
    middle = direction.mean(axis=1)
    length = float(np.linalg.norm(middle))
    if length == 0.0 or (middle / length @ direction).min() < np.cos(np.radians(_LARGEST_REGION)):
        return None
    return float(np.degrees(np.arctan2(middle[1], middle[0]))), float(np.degrees(np.arcsin(middle[2] / length)))


def _mollweide(longitude: Float64, latitude: Float64) -> tuple[Float64, Float64]:
    """Plane coordinates, each (n,), within an ellipse of semi-axes 2 and 1; longitude grows to the left."""
    sine = np.pi * np.sin(np.radians(latitude))
    # 2 t + sin 2 t = pi sin b by Newton's method, which near the poles starts from the series there
    away = np.cbrt(12.0 * np.maximum(np.pi - np.abs(sine), 0.0)) / 2.0
    angle = np.sign(sine) * np.where(np.abs(sine) > 2.6, 0.5 * np.pi - 0.5 * away, np.abs(sine) / 4.0)
    for _ in range(5):
        slope = 2.0 + 2.0 * np.cos(2.0 * angle)
        angle = angle - np.where(
            slope > 1e-12, (2.0 * angle + np.sin(2.0 * angle) - sine) / np.maximum(slope, 1e-12), 0.0
        )
    turned = (np.asarray(longitude) + 180.0) % 360.0 - 180.0
    return -turned / 90.0 * np.cos(angle), np.sin(angle)


def _from_mollweide(x: Float64, y: Float64) -> tuple[Float64, Float64]:
    """Longitude and latitude [deg]; a place outside the ellipse is moved onto it."""
    away = np.maximum(np.hypot(0.5 * x, y), 1.0)
    angle = np.arcsin(y / away)
    latitude = np.degrees(np.arcsin(np.clip((2.0 * angle + np.sin(2.0 * angle)) / np.pi, -1.0, 1.0)))
    longitude = -90.0 * x / away / np.maximum(np.cos(angle), 1e-12)
    return np.clip(longitude, -180.0, 180.0), latitude


def _lambert(longitude: Float64, latitude: Float64, centre: tuple[float, float]) -> tuple[Float64, Float64]:
    """Lambert's azimuthal equal-area projection about a centre [deg], in radians near it; longitude to the left."""
    around, up = np.radians(longitude - centre[0]), np.radians(latitude)
    b0 = np.radians(centre[1])
    towards = np.sin(b0) * np.sin(up) + np.cos(b0) * np.cos(up) * np.cos(around)
    stretch = np.sqrt(2.0 / np.maximum(1.0 + towards, 1e-6))
    north = np.cos(b0) * np.sin(up) - np.sin(b0) * np.cos(up) * np.cos(around)
    return -stretch * np.cos(up) * np.sin(around), stretch * north


def _from_lambert(x: Float64, y: Float64, centre: tuple[float, float]) -> tuple[Float64, Float64]:
    rho = np.maximum(np.hypot(x, y), 1e-15)
    c, b0 = 2.0 * np.arcsin(np.minimum(0.5 * rho, 1.0)), np.radians(centre[1])
    latitude = np.arcsin(np.clip(np.cos(c) * np.sin(b0) + y * np.sin(c) * np.cos(b0) / rho, -1.0, 1.0))
    longitude = np.arctan2(-x * np.sin(c), rho * np.cos(b0) * np.cos(c) - y * np.sin(b0) * np.sin(c))
    return centre[0] + np.degrees(longitude), np.degrees(latitude)
