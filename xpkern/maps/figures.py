"""Pictures of a map: skies by distance (ZGR23 Figs. 22, 23), the bird's-eye view (Fig. 24), slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.pending import PendingFile
from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.maps import projections
from xpkern.maps.cube import SkyCube
from xpkern.maps.galaxy import HALF_HEIGHT, Plane, birdseye, plane_slice
from xpkern.maps.sky import centres
from xpkern.report.spectrum_plot import METADATA, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

View = Literal["sky", "birdseye", "slices"]
VIEWS: tuple[View, ...] = get_args(View)

#: Of every picture; colours are matplotlib's "inferno" and "cividis", which grow evenly in lightness, and grey for
#: no data.
_STYLE: Any = {**STYLE, "font.size": 9.5, "axes.titlesize": 10.0, "axes.titlelocation": "left"}
_COLOURS = {"ext": "inferno", "feh": "cividis"}
_NO_DATA, _INK, _QUIET = "#d9dde1", "#222b33", "#6b7680"

#: Panels of the sky at most, unless bins are named.
_PANELS = 6

#: Pixels of a picture of the sky: across the whole of it, and of a part.
_WHOLE, _PART = 1200, 500

#: Places across a view from above, and across a slice.
_ABOVE, _SLICE = 320, 500

#: A map within this angle [deg] of its middle is drawn as a part of the sky.
_PART_RADIUS = 40.0


def draw(
    view: View,
    cube: SkyCube,
    path: Path,
    *,
    bins: Sequence[int] = (),
    beside: SkyCube | None = None,
    extent: float | None = None,
) -> None:
    """Draw a view of a map; equal maps give equal bytes.

    Parameters
    ----------
    view : {"sky", "birdseye", "slices"}
    cube : SkyCube
    path : Path
        Picture to write: .png, .pdf or .svg.
    bins : sequence of int
        Of the sky: distance bins, from 1; a few that divide the range evenly when not given.
    beside : SkyCube, optional
        A map to draw beside it in the bird's-eye view.
    extent : float, optional
        Half the side of the views from outside [kpc]; as far as there are numbers when not given.

    Raises
    ------
    InputError
        If the name has another ending, its folder does not exist, or there is no such bin.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if path.suffix not in METADATA:
        raise InputError(f"a picture's name must end in one of {', '.join(METADATA)}", file=str(path))
    wrong = [number for number in bins if not 1 <= number <= cube.settings.bins]
    if wrong:
        raise InputError(f"there is no distance bin {wrong[0]}: there are 1 to {cube.settings.bins}", field="bins")
    with rc_context(_STYLE), PendingFile(path) as partial:
        figure = Figure(facecolor="white", layout="constrained")
        if not cube.covered.any():
            _draw_nothing(figure, cube)
        elif view == "sky":
            _draw_sky(figure, cube, bins)
        elif view == "birdseye":
            _draw_birdseye(figure, cube, beside, extent)
        else:
            _draw_slices(figure, cube, extent)
        figure.savefig(partial, format=path.suffix.lstrip("."), dpi=130, metadata=METADATA[path.suffix])


def _draw_nothing(figure: Figure, cube: SkyCube) -> None:
    figure.set_size_inches(7.0, 3.0)
    axes = figure.subplots()
    axes.set_facecolor(_NO_DATA)
    axes.set(xticks=[], yticks=[])
    used = cube.outcomes.get("used", 0)
    text = f"no data: no cell has {cube.settings.min_stars} stars\n({used:,} {'star' if used == 1 else 'stars'} used)"
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=_INK, fontsize=12)


# -- the sky --------------------------------------------------------------------------------------------------------


def chosen_bins(cube: SkyCube, panels: int = _PANELS) -> list[int]:
    """Bins, from 0, for a picture of the sky: of those that have numbers in enough pixels, some spread evenly."""
    filled = np.isfinite(cube.tile.value).sum(axis=0)
    usable = np.flatnonzero(filled >= 0.2 * filled.max())
    places = np.linspace(0, len(usable) - 1, min(panels, len(usable)))
    return [int(usable[round(place)]) for place in places]


def _draw_sky(figure: Figure, cube: SkyCube, bins: Sequence[int]) -> None:
    """For ext what a bin has more than the bin of the panel before; for feh the bin itself."""
    numbers = [number - 1 for number in bins] or chosen_bins(cube)
    middle, radius = _extent_on_sky(cube)
    whole = radius > _PART_RADIUS
    longitude, latitude = projections.mollweide(_WHOLE) if whole else projections.azimuthal(_PART, middle, radius)
    row, sky = _raster(cube, longitude, latitude), np.isfinite(longitude)
    columns = min(2 if whole else 3, len(numbers))
    lines = -(-len(numbers) // columns)
    figure.set_size_inches(
        *((5.6 * columns, 2.8 * lines + 0.5) if whole else (3.7 * columns + 0.4, 3.55 * lines + 0.9))
    )
    panels = np.atleast_1d(figure.subplots(lines, columns, squeeze=False, sharex=not whole, sharey=not whole)).ravel()
    images = []
    before: NDArray[Any] = np.zeros(len(cube.tile.pixel), np.float32)
    start = 0.0
    for k in numbers:
        value = cube.tile.value[:, k]
        images.append((value - before if cube.settings.quantity == "ext" else value, start, cube.distance[k]))
        before, start = value, cube.distance[k]
    norm = _norm(cube, np.concatenate([value for value, _, _ in images]))
    for panel, (value, near, far), k in zip(panels, images, numbers, strict=False):
        shown = np.where(row >= 0, value[np.maximum(row, 0)], np.nan)
        image = _show(panel, shown, norm, cube, extent=_frame(whole, radius), inside=sky)
        if cube.settings.quantity == "ext":
            panel.set_title(f"from {_parsecs(near)} to {_parsecs(far)}")
        else:
            panel.set_title(f"{_parsecs(cube.edges[k])} to {_parsecs(cube.edges[k + 1])}")
        if whole:
            _graticule(panel)
        else:
            panel.set_aspect("equal")
    for panel in panels[len(numbers) :]:
        panel.set_axis_off()
    if not whole:
        longitude, latitude = np.degrees(projections.angles(middle))
        label = f"from l = {longitude:.1f}°, b = {latitude:+.1f}°"
        figure.supxlabel(f"offset along Galactic longitude {label}  [deg]", fontsize=9.5)
        figure.supylabel("offset along Galactic latitude  [deg]", fontsize=9.5)
    label = r"$\Delta E$  [mag]" if cube.settings.quantity == "ext" else "mean [Fe/H]  [dex]"
    _colour_bar(figure, image, list(panels), label, norm)
    what = "Extinction by the dust between two distances" if cube.settings.quantity == "ext" else "Metallicity of stars"
    figure.suptitle(what + _about(cube), x=0.01, ha="left", fontsize=11.5, color=_INK)


def _extent_on_sky(cube: SkyCube) -> tuple[Float64, float]:
    """Unit vector of the middle of a map, and the angle [deg] within which it lies."""
    directions = projections.directions(*centres(cube.tile.pixel[cube.covered], cube.order))
    middle = directions.mean(axis=0)
    length = np.linalg.norm(middle)
    middle = middle / length if length > 1e-3 else np.array([1.0, 0.0, 0.0])
    largest = np.degrees(np.arccos(np.clip((directions @ middle).min(), -1.0, 1.0)))
    pixel = np.degrees(np.sqrt(4.0 * np.pi / 12.0) / cube.settings.nsides[0])
    return middle, float(largest + 1.5 * pixel)


def _raster(cube: SkyCube, longitude: Float64, latitude: Float64) -> NDArray[np.intp]:
    """Row of the map in each place of a picture; -1 outside of map or sky."""
    row = np.full(longitude.shape, -1, np.intp)
    there = np.isfinite(longitude)
    row[there] = cube.rows(longitude[there], latitude[there])
    return row


def _frame(whole: bool, radius: float) -> tuple[float, float, float, float]:
    if whole:
        return (2.0, -2.0, -1.0, 1.0)
    side = float(np.degrees(projections.azimuthal_side(radius)))
    return (side, -side, -side, side)


def _graticule(axes: Axes) -> None:
    """Lines of the Galactic coordinates, and names of some."""
    latitude = np.radians(np.linspace(-90.0, 90.0, 181))
    longitude = np.radians(np.linspace(-180.0, 180.0, 181))
    lines: dict[str, Any] = {"color": "white", "lw": 0.4, "alpha": 0.45}
    for degrees in range(-120, 121, 60):
        axes.plot(*projections.on_mollweide(np.full(181, np.radians(degrees)), latitude), **lines)
    for degrees in range(-60, 61, 30):
        axes.plot(*projections.on_mollweide(longitude, np.full(181, np.radians(degrees))), **lines)
    for side in (-np.pi, np.pi):
        axes.plot(*projections.on_mollweide(np.full(181, side), latitude), color=_QUIET, lw=0.8)
    small: dict[str, Any] = {"fontsize": 7.5, "color": _QUIET}
    for degrees in (-60, -30, 30, 60):
        x, y = projections.on_mollweide(np.array([np.pi]), np.array([np.radians(degrees)]))
        axes.text(
            x[0] + 0.03,
            y[0],
            f"{degrees:+d}°".replace("-", "−"),
            ha="right",
            va="bottom" if degrees > 0 else "top",
            **small,
        )
    for degrees in (120, 60, 0, -60, -120):
        x, y = projections.on_mollweide(np.array([np.radians(degrees)]), np.array([0.0]))
        axes.text(x[0], -1.03, f"{degrees % 360}°", ha="center", va="top", **small)
    axes.text(2.0, 0.0, "180° ", ha="right", va="center", **small)
    axes.set_axis_off()
    axes.set(xlim=(2.02, -2.02), ylim=(-1.02, 1.02))
    axes.set_aspect("equal")


# -- from outside ---------------------------------------------------------------------------------------------------


def _draw_birdseye(figure: Figure, cube: SkyCube, beside: SkyCube | None, extent: float | None) -> None:
    side = extent or _reach(cube)
    cubes = [cube] if beside is None else [cube, beside]
    figure.set_size_inches(5.6 * len(cubes) + 1.0, 5.9 if beside is None else 6.25)
    panels = figure.subplots(1, len(cubes), squeeze=False, sharey=True)[0]
    views = [birdseye(each, extent=side, step=2.0 * side / _ABOVE)[1] for each in cubes]
    norm = _norm(cube, views[0])
    for panel, each, view in zip(panels, cubes, views, strict=True):
        image = _show(panel, view, norm, cube, extent=(-side, side, -side, side))
        _from_above(panel, side)
        if beside is not None:
            panel.set_title(_about(cube).lstrip(" —") if each is cube else each.attributes.get("name", ""))
    panels[0].set_ylabel("y  [kpc], towards l = 90°")
    _colour_bar(figure, image, list(panels), _density_label(cube), norm)
    what = "Dust" if cube.settings.quantity == "ext" else "Metallicity of stars"
    title = f"{what} from above, averaged over |z| < {1000 * HALF_HEIGHT:.0f} pc"
    figure.suptitle(
        title + ("" if beside is not None else _about(cube, newline=True)), x=0.01, ha="left", fontsize=11.5, color=_INK
    )


def _draw_slices(figure: Figure, cube: SkyCube, extent: float | None) -> None:
    side = extent or _reach(cube)
    height = min(0.6, side)
    figure.set_size_inches(10.6, 6.9)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.0, 1.0))
    planes: tuple[tuple[Plane, Any, str, str], ...] = (
        ("xy", grid[:, 0], "in the Galactic plane, z = 0", "y  [kpc], towards l = 90°"),
        ("xz", grid[0, 1], "towards the Galactic centre, y = 0", "z  [kpc]"),
        ("yz", grid[1, 1], "across, x = 0", "z  [kpc]"),
    )
    found = {
        plane: plane_slice(cube, plane, extent=side, half_height=height, step=2.0 * side / _SLICE)[2]
        for plane, *_ in planes
    }
    norm = _norm(cube, np.concatenate([values.ravel() for values in found.values()]))
    panels = []
    for plane, place, title, up in planes:
        panel = figure.add_subplot(place)
        top = side if plane == "xy" else height
        image = _show(panel, found[plane], norm, cube, extent=(-side, side, -top, top))
        panel.set_title(title)
        if plane == "xy":
            _from_above(panel, side)
        else:
            panel.set_aspect("auto")
            panel.set_xlabel("x  [kpc], towards the Galactic centre" if plane == "xz" else "y  [kpc], towards l = 90°")
            _mark_sun(panel)
        panel.set_ylabel(up)
        panels.append(panel)
    _colour_bar(figure, image, panels, _density_label(cube), norm)
    what = (
        "Dust in planes through the Sun" if cube.settings.quantity == "ext" else "Metallicity in planes through the Sun"
    )
    figure.suptitle(what + _about(cube), x=0.01, ha="left", fontsize=11.5, color=_INK)


def _from_above(axes: Axes, side: float) -> None:
    """The Sun, circles around it, and the directions."""
    angle = np.linspace(0.0, 2.0 * np.pi, 361)
    spacing = next(step for step in (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0) if side / step <= 5.0)
    for radius in np.arange(spacing, side, spacing):
        axes.plot(radius * np.cos(angle), radius * np.sin(angle), color="white", lw=0.5, alpha=0.4)
    _mark_sun(axes)
    axes.set(xlim=(-side, side), ylim=(-side, side), xlabel="x  [kpc], towards the Galactic centre")
    axes.set_aspect("equal")


def _mark_sun(axes: Axes) -> None:
    axes.plot(0.0, 0.0, "o", ms=6, mfc="none", mec="white", mew=1.0)
    axes.plot(0.0, 0.0, ".", ms=2.5, color="white")


def _reach(cube: SkyCube) -> float:
    """How far [kpc] a tenth of the pixels near the plane have numbers."""
    _, latitude = cube.places()
    near = np.isfinite(cube.tile.value) & (np.abs(np.sin(latitude)) < 0.3)[:, None]
    near = near if near.any() else np.isfinite(cube.tile.value)
    share = near.sum(axis=0) / max(near.any(axis=1).sum(), 1)
    return float(cube.edges[np.flatnonzero(share >= 0.1).max(initial=0) + 1])


def _density_label(cube: SkyCube) -> str:
    return r"$\mathrm{d}E/\mathrm{d}r$  [mag kpc$^{-1}$]" if cube.settings.quantity == "ext" else "mean [Fe/H]  [dex]"


# -- shared ---------------------------------------------------------------------------------------------------------


def _norm(cube: SkyCube, values: NDArray[Any]) -> Any:
    """Colours: extinctions from 0 on, widened where they are small, up to what half a per cent exceeds."""
    from matplotlib.colors import AsinhNorm, Normalize

    known = values[np.isfinite(values)]
    if cube.settings.quantity == "feh":
        low, high = np.quantile(known, [0.01, 0.99]) if len(known) else (-1.0, 0.5)
        return Normalize(low, max(high, low + 1e-3))
    top = max(float(np.quantile(known, 0.995)) if len(known) else 1.0, 1e-3)
    return AsinhNorm(linear_width=0.15 * top, vmin=0.0, vmax=top)


def _show(
    axes: Axes,
    values: NDArray[Any],
    norm: Any,
    cube: SkyCube,
    *,
    extent: tuple[float, float, float, float],
    inside: NDArray[np.bool_] | None = None,
) -> Any:
    """Draw an image, grey where there is no number; outside of the sky white."""
    from matplotlib import colormaps

    colours = colormaps[_COLOURS[cube.settings.quantity]].with_extremes(bad=_NO_DATA)
    alpha = None if inside is None else inside.astype(np.float64)
    return axes.imshow(
        np.ma.masked_invalid(values), cmap=colours, norm=norm, extent=extent, origin="lower", alpha=alpha,
        interpolation="nearest", rasterized=True,
    )  # fmt: skip


def _colour_bar(figure: Figure, image: Any, panels: Sequence[Axes], label: str, norm: Any) -> None:
    bar = figure.colorbar(image, ax=panels, label=label, extend="both", shrink=0.8, pad=0.02, aspect=28)
    if norm.vmin == 0.0:
        ticks = [0.0, *(norm.vmax * np.array([0.05, 0.1, 0.25, 0.5, 1.0]))]
        bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
        bar.ax.minorticks_off()
    bar.outline.set_linewidth(0.5)


def _about(cube: SkyCube, *, newline: bool = False) -> str:
    """What was mapped how."""
    name = {"weighted": "inverse-variance weighted mean", "mean": "unweighted mean", "median": "median"}
    used = cube.outcomes.get("used")
    stars = "" if used is None else f", {used:,} stars"
    start = "\n" if newline else " — "
    return f"{start}{name[cube.settings.estimate]}{stars}, nside {cube.settings.nsides[0]}; grey: no data"


def _parsecs(distance: float) -> str:
    """A distance [kpc] in words."""
    if distance == 0.0:
        return "the Sun"
    return f"{1000 * distance:.0f} pc" if distance < 0.995 else f"{distance:.2f} kpc"
