"""The page of ``xpkern demo``: what was simulated, what was found, and how the two compare."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.pending import PendingFile
from xpkern.engine.contract import Float64
from xpkern.grid import BANDS, N_XP
from xpkern.report.comparison import Comparison, median_and_width
from xpkern.report.spectrum_plot import BAND_COLOUR, FLUX_LABEL, SPECTRUM_COLOUR

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

#: Ink of text, of secondary text and points, of the stars that are not high-quality, of what is expected.
INK, QUIET, FAINT_STARS, EXPECTED = "#16202b", "#5f6b7a", "#b9c2cc", "#d9822b"

METALLICITY_COLOURS, METALLICITY_RANGE = "viridis", (-1.5, 0.5)

#: Parameters as they are written on the page: symbol and unit.
PANELS = {
    "teff": (r"$T_\mathrm{eff}$", "K"),
    "feh": ("[Fe/H]", "dex"),
    "logg": (r"$\log\,g$", "dex"),
    "ext": (r"$E$", "mag"),
    "parallax_est": (r"$\varpi$", "mas"),
}

#: Share of the reliable stars that the residual panels have room for.
SHOWN_SHARE = 0.985

#: Pulls of E count where E is at least this many standard errors: nearer to zero its estimate is high by design.
SMALLEST_EXT_SNR = 5.0

_STYLE: Any = {
    "text.usetex": False,  # GaiaXPy, once imported, asks for LaTeX in every figure
    "font.family": "DejaVu Sans",  # which comes with matplotlib
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a0",
    "axes.labelcolor": INK,
    "xtick.color": "#4a5663",
    "ytick.color": "#4a5663",
    "axes.grid": True,
    "grid.color": "#e9ecef",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@dataclass(frozen=True)
class ExampleSpectrum:
    """One star of the survey as it was fitted.

    Attributes
    ----------
    wavelength : (66,) float64
        [nm].
    flux, sigma, model : (66,) float64
        Observed flux, its standard error, fitted flux; NaN in the former two where a sample is missing.
    row : int
        Of the star in the :class:`Comparison`.
    """

    wavelength: Float64
    flux: Float64
    sigma: Float64
    model: Float64
    row: int


def draw_page(path: str | os.PathLike[str], comparison: Comparison, example: ExampleSpectrum) -> None:
    """Draw the page as a PNG; equal results give equal bytes.

    Parameters
    ----------
    path : path-like
    comparison : Comparison
    example : ExampleSpectrum
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure: Any = Figure(figsize=(15.5, 13.0), dpi=120, facecolor="white", layout="constrained")
        header, top, middle, bottom = figure.subfigures(4, 1, height_ratios=(1.0, 5.2, 3.4, 3.2))
        _draw_header(header, comparison)
        left, right = top.subfigures(1, 2, width_ratios=(1.12, 1.0))
        _draw_kiel_diagrams(left, comparison)
        _draw_example(right, comparison, example)
        _draw_residuals(middle, comparison)
        _draw_pulls(bottom, comparison)
        with PendingFile(Path(path)) as partial:
            figure.savefig(partial, format="png", metadata={"Software": None})


def _draw_header(figure: SubFigure, comparison: Comparison) -> None:
    good = comparison.high_quality
    figure.text(0.012, 0.68, "xpkern demo", fontsize=21, fontweight="bold", color=INK, va="center")
    summary = (
        f"{len(comparison):,} simulated stars with G {np.nanmin(comparison.g):.1f} to {np.nanmax(comparison.g):.1f},\n"
        "written as Gaia writes XP spectra, fitted, compared with the truth"
    )
    figure.text(0.012, 0.20, summary, fontsize=10, color=QUIET, va="center")
    numbers = [
        (f"{100.0 * comparison.converged.mean():.1f} %", "converged"),
        (f"{np.nanmedian(comparison.chi2_per_dof):.2f}", r"median $\chi^2$ / d.o.f."),
        (f"{100.0 * good.mean():.0f} %", "high-quality"),
    ]
    for k, name in enumerate(comparison.names):
        width = median_and_width(comparison.residual[good, k])[1]
        symbol, unit = PANELS[name]
        numbers.append((f"{width:.0f} {unit}" if unit == "K" else f"{width:.3f} {unit}", f"scatter in {symbol}"))
    for position, (number, label) in zip(np.linspace(0.40, 0.99, len(numbers)), numbers, strict=True):
        figure.text(position, 0.66, number, fontsize=14, fontweight="bold", color=SPECTRUM_COLOUR, ha="right")
        figure.text(position, 0.38, label, fontsize=9, color=QUIET, ha="right")
    figure.text(
        0.99, 0.08, "scatter: half of the central 68 % of fitted − true; high-quality: within the cuts of ZGR23",
        fontsize=8.5, color=QUIET, ha="right",
    )  # fmt: skip


def _draw_kiel_diagrams(figure: SubFigure, comparison: Comparison) -> None:
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    teff, logg = comparison.names.index("teff"), comparison.names.index("logg")
    feh = comparison.names.index("feh")
    stars = comparison.converged
    for panel, values, title in zip(
        axes, (comparison.truth, comparison.estimate), ("True parameters", "Fitted parameters"), strict=True
    ):
        points = panel.scatter(
            values[stars, teff],
            values[stars, logg],
            c=values[stars, feh],
            s=7,
            linewidths=0,
            alpha=0.85,
            cmap=METALLICITY_COLOURS,
            vmin=METALLICITY_RANGE[0],
            vmax=METALLICITY_RANGE[1],
            rasterized=True,
        )
        panel.set(title=title, xlabel=r"$T_\mathrm{eff}$  [K]")
    shown = comparison.truth
    axes[0].set(
        ylabel=r"$\log\,g$  [dex, cgs]",
        xlim=(shown[:, teff].max() + 300.0, shown[:, teff].min() - 300.0),
        ylim=(shown[:, logg].max() + 0.4, shown[:, logg].min() - 0.4),
    )
    figure.colorbar(points, ax=axes, label="[Fe/H]  [dex]", aspect=35, pad=0.015, extend="both")


def _draw_example(figure: SubFigure, comparison: Comparison, example: ExampleSpectrum) -> None:
    spectrum, residual = figure.subplots(2, 1, sharex=True, height_ratios=(3.0, 1.0))
    # The bands seen have places of their own right of the spectrum: a common scale would leave it no room.
    seen = np.isfinite(example.sigma)
    is_band = np.arange(len(seen)) >= N_XP
    optical, infrared = seen & ~is_band, seen & is_band
    place = example.wavelength.copy()
    place[infrared] = 1050.0 + 40.0 * np.arange(infrared.sum())
    spectrum.errorbar(
        place[optical],
        example.flux[optical],
        example.sigma[optical],
        fmt="o",
        ms=3,
        lw=1,
        color=QUIET,
        label="observed",
    )
    spectrum.plot(place[:N_XP], example.model[:N_XP], color=SPECTRUM_COLOUR, lw=1.8, label="fitted", zorder=3)
    spectrum.set_ylabel(FLUX_LABEL)
    spectrum.set_ylim(0.0, 1.12 * np.nanmax(np.where(optical, example.flux, np.nan)))
    spectrum.legend(loc="upper right")
    row = example.row
    text = []
    for k, (name, unit) in enumerate(zip(comparison.names, comparison.units, strict=True)):
        digits = 0 if unit == "K" else 2
        estimate, error, truth = (
            f"{values[row, k]:.{digits}f}" for values in (comparison.estimate, comparison.error, comparison.truth)
        )
        text.append(f"{PANELS[name][0]} = {estimate} ± {error} {unit}  (true {truth})")
    spectrum.set_title(f"One of the spectra: G = {comparison.g[row]:.1f}")
    spectrum.text(0.48, 0.05, "\n".join(text), transform=spectrum.transAxes, ha="center", fontsize=9.5, color=INK)

    pull = (example.flux - example.model) / example.sigma
    for level, alpha in ((2.0, 0.10), (1.0, 0.14)):
        residual.axhspan(-level, level, color=SPECTRUM_COLOUR, alpha=alpha, lw=0)
    residual.plot(place[optical], pull[optical], "o", ms=3, color=QUIET)
    residual.plot(place[infrared], pull[infrared], "o", ms=5, color=BAND_COLOUR)
    right = max(1010.0, place[infrared].max(initial=0.0) + 25.0)
    residual.set(xlabel="wavelength  [nm]", ylabel=r"residual  [$\sigma$]", ylim=(-4.2, 4.2), xlim=(380.0, right))
    ticks = np.arange(400.0, 1001.0, 100.0)
    names = [band for band, used in zip(BANDS, infrared[N_XP:], strict=True) if used]
    residual.set_xticks([*ticks, *place[infrared]], [*(f"{tick:.0f}" for tick in ticks), *names])


def _draw_residuals(figure: SubFigure, comparison: Comparison) -> None:
    axes = figure.subplots(1, len(comparison.names), sharex=True)
    stars, good = comparison.reliable, comparison.high_quality
    edges = np.linspace(np.floor(np.nanmin(comparison.g)), np.ceil(np.nanmax(comparison.g)), 9)
    for k, (panel, name) in enumerate(zip(axes, comparison.names, strict=True)):
        symbol, unit = PANELS[name]
        residual = comparison.residual[:, k]
        half_height = 1.2 * np.quantile(np.abs(residual[stars]), SHOWN_SHARE) if stars.any() else 1.0
        panel.scatter(
            comparison.g[stars & ~good], residual[stars & ~good], s=3, lw=0, color=FAINT_STARS, rasterized=True
        )
        panel.scatter(comparison.g[good], residual[good], s=3, lw=0, color=SPECTRUM_COLOUR, alpha=0.5, rasterized=True)
        centre, lower, middle, upper, error = _running(comparison.g, residual, comparison.error[:, k], stars, edges)
        panel.plot(centre, middle, color="black", lw=1.6)
        panel.plot(centre, lower, color="black", lw=1.0)
        panel.plot(centre, upper, color="black", lw=1.0)
        panel.plot(centre, error, color=EXPECTED, lw=1.4, ls=(0, (4, 2)))
        panel.plot(centre, -error, color=EXPECTED, lw=1.4, ls=(0, (4, 2)))
        panel.set(title=f"{symbol}: fitted − true  [{unit}]", ylim=(-half_height, half_height), xlabel="G  [mag]")
    axes[0].plot([], [], color="black", lw=1.6, label="median, 16 %, 84 %")
    axes[0].plot([], [], color=EXPECTED, lw=1.4, ls=(0, (4, 2)), label="median error")
    axes[0].legend(loc="upper left")
    axes[1].plot([], [], "o", ms=4, color=SPECTRUM_COLOUR, label="high-quality")
    axes[1].plot([], [], "o", ms=4, color=FAINT_STARS, label="other reliable")
    axes[1].legend(loc="upper left")


def _running(
    g: Float64, residual: Float64, error: Float64, stars: NDArray[np.bool_], edges: Float64
) -> tuple[Float64, Float64, Float64, Float64, Float64]:
    """Centres of the magnitude bins with at least 12 stars, quantiles of the residual, median error, each (bins,)."""
    bins = []
    for low, high in pairwise(edges):
        inside = stars & (g >= low) & (g < high)
        if inside.sum() >= 12:
            bins.append(
                (np.median(g[inside]), *np.quantile(residual[inside], (0.16, 0.5, 0.84)), np.median(error[inside]))
            )
    centre, lower, middle, upper, typical = np.array(bins).reshape(-1, 5).T
    return centre, lower, middle, upper, typical


def _draw_pulls(figure: SubFigure, comparison: Comparison) -> None:
    axes = figure.subplots(1, len(comparison.names), sharex=True, sharey=True)
    edges = np.linspace(-4.75, 4.75, 39)
    normal = np.exp(-0.5 * edges**2) / np.sqrt(2.0 * np.pi)
    for k, (panel, name) in enumerate(zip(axes, comparison.names, strict=True)):
        stars = comparison.reliable
        note = "reliable stars"
        if name == "ext":
            stars = stars & (comparison.estimate[:, k] > SMALLEST_EXT_SNR * comparison.error[:, k])
            note = rf"where $E > {SMALLEST_EXT_SNR:.0f}\,\sigma$"
        pull = comparison.pull[stars, k]
        if len(pull):
            panel.hist(np.clip(pull, *edges[[0, -1]]), edges, density=True, color=SPECTRUM_COLOUR, alpha=0.55)
        panel.plot(edges, normal, color=EXPECTED, lw=1.8)
        middle, width = median_and_width(pull)
        panel.text(
            0.03, 0.95, f"median {middle:+.2f}\nwidth {width:.2f}\n{len(pull):,} {note}", transform=panel.transAxes,
            va="top", fontsize=8.5, color=INK,
        )  # fmt: skip
        panel.set_xticks([-4, -2, 0, 2, 4])
        panel.set(title=f"{PANELS[name][0]}: pull", xlabel="(fitted − true) / error", xlim=(-4.8, 4.8), yticks=[])
    axes[0].set(ylim=(0.0, 0.62), ylabel="density of stars")
    axes[-1].plot([], [], color=EXPECTED, lw=1.8, label="unit normal")
    axes[-1].legend(loc="upper right")
