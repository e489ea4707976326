"""The page of ``xpkern demo``: what was simulated, what was found, and how the two compare."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.pending import PendingFile
from xpkern.engine.contract import Float64
from xpkern.grid import BANDS, N_XP
from xpkern.report.comparison import Comparison, median_and_width
from xpkern.report.spectrum_plot import BAND_COLOUR, FLUX_LABEL, SPECTRUM_COLOUR

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

#: Ink of secondary text and lines, of the stars that are not high-quality, of what is expected rather than measured.
QUIET, FAINT_STARS, EXPECTED = "#5f6b7a", "#c3cad3", "#d9822b"

METALLICITY_COLOURS, METALLICITY_RANGE = "viridis", (-1.5, 0.5)

#: Parameters as they are written on the page: symbol, unit, half height of the residual panels in the unit.
PANELS = {
    "teff": (r"$T_\mathrm{eff}$", "K", 450.0),
    "feh": ("[Fe/H]", "dex", 0.9),
    "logg": (r"$\log\,g$", "dex", 0.9),
    "ext": (r"$E$", "mag", 0.22),
    "parallax_est": (r"$\varpi$", "mas", 0.22),
}

#: Pulls of E count where E is at least this many standard errors: nearer to zero its estimate is high by design.
SMALLEST_EXT_SNR = 5.0

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a0",
    "axes.labelcolor": "#26323f",
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
        figure = Figure(figsize=(15.5, 13.0), dpi=120, facecolor="white", layout="constrained")
        header, top, middle, bottom = figure.subfigures(4, 1, height_ratios=(1.15, 5.2, 3.4, 3.2))
        _draw_header(header, comparison)
        left, right = top.subfigures(1, 2, width_ratios=(1.12, 1.0))
        _draw_kiel_diagrams(left, comparison)
        _draw_example(right, comparison, example)
        _draw_residuals(middle, comparison)
        _draw_pulls(bottom, comparison)
        pending = PendingFile(Path(path))
        try:
            figure.savefig(pending.partial, format="png", metadata={"Software": None})
            pending.commit()
        finally:
            pending.discard()


def _draw_header(figure: SubFigure, comparison: Comparison) -> None:
    count, good = len(comparison), comparison.high_quality
    figure.text(0.012, 0.66, "xpkern demo", fontsize=21, fontweight="bold", color="#16202b", va="center")
    figure.text(
        0.012,
        0.22,
        f"{count:,} simulated stars, G {np.nanmin(comparison.g):.1f}-{np.nanmax(comparison.g):.1f}, written as Gaia "
        "writes XP spectra, fitted, compared with the truth",
        fontsize=11,
        color=QUIET,
        va="center",
    )
    chi2 = np.nanmedian(comparison.chi2_per_dof) if count else np.nan
    numbers = [
        (f"{100.0 * comparison.converged.mean():.1f} %", "converged"),
        (f"{chi2:.2f}", r"median $\chi^2$ per d.o.f."),
        (f"{100.0 * good.mean():.0f} %", "high-quality"),
    ]
    for k, name in enumerate(comparison.names[:4]):
        width = median_and_width(comparison.residual[good, k])[1]
        symbol, unit, _ = PANELS[name]
        numbers.append((f"{width:.0f} {unit}" if unit == "K" else f"{width:.3f} {unit}", f"scatter in {symbol}"))
    for position, (number, label) in zip(np.linspace(0.50, 0.99, len(numbers)), numbers, strict=True):
        figure.text(position, 0.64, number, fontsize=15, fontweight="bold", color=SPECTRUM_COLOUR, ha="right")
        figure.text(position, 0.30, label, fontsize=9, color=QUIET, ha="right")
    figure.text(
        0.99, 0.02, "scatter: high-quality stars (cuts of ZGR23), half of the central 68 %", fontsize=8, color=QUIET,
        ha="right",
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
    # Each band has a place of its own right of the spectrum: a common scale would leave no room for the spectrum.
    bands = 1040.0 + 34.0 * np.arange(len(BANDS))
    place = np.concatenate([example.wavelength[:N_XP], bands])
    seen = np.isfinite(example.sigma)
    optical, infrared = seen & (np.arange(len(place)) < N_XP), seen & (np.arange(len(place)) >= N_XP)
    scale = example.model
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
    spectrum.plot(place[:N_XP], scale[:N_XP], color=SPECTRUM_COLOUR, lw=1.8, label="fitted", zorder=3)
    spectrum.set_ylabel(FLUX_LABEL)
    spectrum.set_ylim(0.0, 1.22 * np.nanmax(np.where(optical, example.flux, np.nan)))
    spectrum.legend(loc="upper right", bbox_to_anchor=(1.0, 0.86))
    row = example.row
    text = []
    for k, (name, unit) in enumerate(zip(comparison.names, comparison.units, strict=True)):
        digits = 0 if unit == "K" else 2
        estimate, error, truth = (
            f"{values[row, k]:.{digits}f}" for values in (comparison.estimate, comparison.error, comparison.truth)
        )
        text.append(f"{PANELS[name][0]} = {estimate} ± {error} {unit}  (true {truth})")
    spectrum.set_title(f"One of the spectra: G = {comparison.g[row]:.1f}")
    spectrum.text(
        0.02, 0.97, "\n".join(text), transform=spectrum.transAxes, va="top", fontsize=8.5, color="#26323f",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2.0},
    )  # fmt: skip

    pull = (example.flux - example.model) / example.sigma
    for level, alpha in ((2.0, 0.10), (1.0, 0.14)):
        residual.axhspan(-level, level, color=SPECTRUM_COLOUR, alpha=alpha, lw=0)
    residual.plot(place[optical], pull[optical], "o", ms=3, color=QUIET)
    residual.plot(place[infrared], pull[infrared], "o", ms=5, color=BAND_COLOUR)
    residual.set(xlabel="wavelength  [nm]", ylabel=r"residual  [$\sigma$]", ylim=(-4.2, 4.2), xlim=(380.0, 1200.0))
    ticks = [400.0, 500.0, 600.0, 700.0, 800.0, 900.0, 1000.0]
    residual.set_xticks([*ticks, *bands], [*(f"{tick:.0f}" for tick in ticks), *BANDS])


def _draw_residuals(figure: SubFigure, comparison: Comparison) -> None:
    axes = figure.subplots(1, len(comparison.names), sharex=True)
    stars, good = comparison.reliable, comparison.high_quality
    edges = np.linspace(np.floor(np.nanmin(comparison.g)), np.ceil(np.nanmax(comparison.g)), 9)
    for k, (panel, name) in enumerate(zip(axes, comparison.names, strict=True)):
        symbol, unit, half_height = PANELS[name]
        residual = comparison.residual[:, k]
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
    edges = np.linspace(-5.0, 5.0, 41)
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
            va="top", fontsize=8.5, color="#26323f",
        )  # fmt: skip
        panel.set(title=f"{PANELS[name][0]}: pull", xlabel="(fitted − true) / error", xlim=(-5.0, 5.0), yticks=[])
    axes[0].set(ylim=(0.0, 0.62), ylabel="density of stars")
    axes[-1].plot([], [], color=EXPECTED, lw=1.8, label="unit normal")
    axes[-1].legend(loc="upper right")
