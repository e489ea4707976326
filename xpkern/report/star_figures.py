"""Pictures of one star: its spectrum and what is left of it, its posterior, the loss around its optimum."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xpkern.engine import get_engine
from xpkern.engine.contract import Float64
from xpkern.fit.posterior import data_of_fit
from xpkern.fit.posterior_result import Posterior, weighted_quantile
from xpkern.fit.profiles import LossProfiles
from xpkern.grid import BANDS, N_XP
from xpkern.observe.whiteners import dense_whitener
from xpkern.report.demo_page import EXPECTED, INK, PANELS, QUIET
from xpkern.report.spectrum_plot import BAND_COLOUR, FLUX_LABEL, METADATA, SPECTRUM_COLOUR, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Another mode's colour, and the catalogue's: the colour-blind can tell them from the blue, the orange and the red, and
#: each has a mark of its own.
OTHER_COLOUR, CATALOG_COLOUR = "#7a3d8f", "#111111"

#: Dashes of modes, by which they are told apart.
_DASHES = ((0, (5, 2)), (0, (1, 1)), (0, (6, 1, 1, 1)), (0, (9, 3)))

#: A mode with less than this weight is left out of the pictures.
SHOWN_WEIGHT = 0.005

#: Modes that are drawn, by weight; the tables have all.
_MOST_MODES = 4

#: Shares of the weight that the contours of a corner plot enclose.
_CONTOURS = (0.393, 0.865)

#: Bins of the posterior's histograms, and width of the smoothing of those in two dimensions, in bins.
_BINS, _SMOOTHING = 40, 1.2

_STYLE: Any = {
    **STYLE,
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#8a94a0",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#4a5663",
    "ytick.color": "#4a5663",
    "grid.color": "#e9ecef",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
}

#: Symbols, units and factors of the parameters, in the order of the samples.
_PARAMETERS = tuple((symbol, unit, 1000.0 if unit == "K" else 1.0) for symbol, unit in PANELS.values())


def draw_spectrum(path: Path, found: Posterior, star: int, title: str) -> None:
    """Draw a star's spectrum with the model's, infrared bands beside it, and what is left in standard errors.

    Parameters
    ----------
    path : Path
        A PNG; equal results give equal bytes.
    found : Posterior
    star : int
        Its row.
    title : str
    """
    fit = found.fit
    model, data = fit.model, fit.observations
    seen = Seen(found, star)
    flux, sigma = seen.flux, seen.sigma
    best = fit.params[star].copy()
    best[-1] = fit.model_plx[star]
    fitted = np.exp(model.ln_flux(best[None]))[0]
    low, high = _predicted_range(found, star, seen)

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots(2, 2, sharex="col", width_ratios=(3.0, 1.15), height_ratios=(2.6, 1.0))
        (spectrum, infrared), (left, right) = axes
        wavelength = model.wavelength
        optical, bands = slice(0, N_XP), slice(N_XP, None)
        spectrum.fill_between(
            wavelength[optical],
            low[optical],
            high[optical],
            color=SPECTRUM_COLOUR,
            alpha=0.25,
            lw=0,
            label="posterior, 95 %",
        )
        spectrum.errorbar(
            wavelength[optical],
            flux[optical],
            sigma[optical],
            fmt="o",
            ms=3.2,
            lw=1,
            color=QUIET,
            label="observed, 1 σ" if fit.noise_kind != "learned" else "observed, 1 σ with the model's",
        )
        spectrum.plot(wavelength[optical], fitted[optical], color=SPECTRUM_COLOUR, lw=1.6, label="best fit", zorder=3)
        top = 1.15 * np.nanmax(np.append(flux[optical], fitted[optical]))
        bare = best.copy()
        bare[3] = 0.0
        without = np.exp(model.ln_flux(bare[None]))[0, optical]
        if best[3] > 0.02 and (without < top).mean() > 0.3:  # more than a corner of it
            spectrum.plot(wavelength[optical], without, color="#9a9a9a", lw=1.2, ls=(0, (1, 1.2)), label="without dust")
        for number, other in _others(found, star):
            shape = np.exp(model.ln_flux(seen.shown(other[None])))[0]
            weight = 100.0 * found.mode_weight[star, number]
            style: Any = {"color": OTHER_COLOUR, "lw": 1.2, "ls": _DASHES[number % len(_DASHES)]}
            spectrum.plot(
                wavelength[optical], shape[optical], label=f"mode {number + 1} ({weight:.0f} % of the weight)", **style
            )
            left.plot(wavelength[optical], ((shape - fitted) / sigma)[optical], **style)
        spectrum.set(ylabel=FLUX_LABEL, title=title)
        spectrum.set_ylim(min(0.0, float(np.nanmin(np.append(flux[optical], 0.0)))), top)
        spectrum.legend(loc="best", ncols=2)
        spectrum.grid(visible=True)
        if not np.isfinite(flux[optical]).any():
            _say(spectrum, "no XP sample")

        place = np.arange(len(BANDS), dtype=float)
        infrared.plot(place, fitted[bands], "_", ms=17, mew=2.2, color=SPECTRUM_COLOUR)
        infrared.errorbar(place, flux[bands], sigma[bands], fmt="o", ms=5, lw=1.2, color=BAND_COLOUR)
        infrared.set(yscale="log", title="Infrared bands", xlim=(-0.6, len(BANDS) - 0.4))
        infrared.grid(visible=True, axis="y")
        absent = [name for name, value in zip(BANDS, flux[bands], strict=True) if not np.isfinite(value)]
        if absent:
            _say(infrared, "not measured:\n" + ", ".join(absent), 0.12)

        pull = (flux - fitted) / sigma
        limit = max(3.8, 1.35 * float(np.nanmax(np.abs(pull), initial=0.0)))
        for panel, where in ((left, wavelength[optical]), (right, place)):
            for level, alpha in ((2.0, 0.10), (1.0, 0.14)):
                panel.axhspan(-level, level, color=SPECTRUM_COLOUR, alpha=alpha, lw=0)
            part = optical if panel is left else bands
            panel.vlines(where, 0.0, pull[part], color=QUIET, lw=0.8)
            colour = QUIET if panel is left else BAND_COLOUR
            panel.plot(where, pull[part], "o", ms=3.2 if panel is left else 5, color=colour)
            panel.set(ylim=(-limit, limit))
        left.set(xlabel="wavelength  [nm]", ylabel="(observed − fit) / σ", xlim=(382.0, 1002.0))
        right.set_xticks(place, BANDS)
        present = np.isfinite(pull)
        chi2 = fit.chi2_learned[star] if fit.noise_kind == "learned" else fit.chi2[star]
        left.text(
            0.01, 0.97, f"χ² = {chi2:.1f} for {present.sum()} samples, whose errors are correlated",
            transform=left.transAxes, va="top", fontsize=9, color=QUIET,
        )  # fmt: skip
        if not np.isfinite(data.plx_err[star]):
            spectrum.text(0.01, 0.02, "no parallax", transform=spectrum.transAxes, color=QUIET, fontsize=9)

    _save(path, (11.5, 6.4), draw)


def draw_corner(path: Path, found: Posterior, star: int, title: str, catalog: Float64 | None = None) -> None:
    """Draw a star's posterior of each parameter and of each pair, with the ellipses of the fit's errors and the modes.

    Parameters
    ----------
    path : Path
    found : Posterior
    star : int
    title : str
    catalog : (5,) float64, optional
        A catalogue's teff [kK], feh, logg, ext, plx [mas] to mark; NaN where it has none.
    """
    samples = found.samples[star] * [factor for _, _, factor in _PARAMETERS]
    weights, factor = found.weights[star], np.array([each[2] for each in _PARAMETERS])
    best, covariance = found.fit.params[star] * factor, found.fit.cov[star] * np.outer(factor, factor)
    others = [(number, mode * factor) for number, mode in _others(found, star)]
    interval = found.interval[star] * factor
    spans = [_span(samples[:, k], weights, best[k], covariance[k, k] ** 0.5) for k in range(len(factor))]
    spans[3] = (max(spans[3][0], 0.0), spans[3][1])

    def draw(figure: Figure) -> None:
        size = len(factor)
        axes: Any = figure.subplots(size, size)
        figure.subplots_adjust(left=0.075, right=0.985, bottom=0.075, top=0.965, wspace=0.09, hspace=0.09)
        for row in range(size):
            for column in range(size):
                panel = axes[row, column]
                if column > row:
                    panel.axis("off")
                    continue
                if column == row:
                    _draw_marginal(panel, samples[:, row], weights, spans[row], best[row], covariance[row, row] ** 0.5)
                    _title_of(panel, row, interval[:, row])
                else:
                    _draw_pair(panel, samples[:, [column, row]], weights, spans[column], spans[row])
                    pair = np.ix_([column, row], [column, row])
                    _draw_ellipses(panel, best[[column, row]], covariance[pair])
                    panel.plot(best[column], best[row], "+", ms=9, mew=1.8, color=EXPECTED)
                    panel.set_ylim(spans[row])
                for _, mode in others:
                    if column == row:
                        panel.axvline(mode[row], color=OTHER_COLOUR, lw=1.2, ls=(0, (5, 2)))
                    else:
                        panel.plot(mode[column], mode[row], "D", ms=6, mfc="none", mew=1.6, color=OTHER_COLOUR)
                if catalog is not None:
                    values = catalog * factor
                    if column == row:
                        panel.axvline(values[row], color=CATALOG_COLOUR, lw=1.0, ls=(0, (1, 1.5)))
                    else:
                        panel.plot(values[column], values[row], "x", ms=7, mew=1.6, color=CATALOG_COLOUR)
                panel.set_xlim(spans[column])
                _tick(panel, row, column, size)
        _legend(figure, bool(others), catalog is not None)
        figure.suptitle(
            f"{title}\n{found.weights.shape[1]:,} samples, {found.ess[star]:,.0f} effective", x=0.40, y=0.985,
            ha="left", va="top", fontsize=13, fontweight="bold",
        )  # fmt: skip

    # fifteen panels of one size need no layout to be worked out, which takes seconds
    _save(path, (11.0, 11.0), draw, layout=None)


def draw_profiles(path: Path, found: Posterior, star: int, profiles: LossProfiles, title: str) -> None:
    """Draw the loss around a star's optimum along each parameter.

    Parameters
    ----------
    path : Path
    found : Posterior
    star : int
    profiles : LossProfiles
    title : str
    """
    highest = 20.0

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots(1, len(_PARAMETERS), sharey=True)
        for k, (panel, (symbol, unit, factor)) in enumerate(zip(axes, _PARAMETERS, strict=True)):
            values = profiles.values[k] * factor
            for level in (1.0, 4.0, 9.0):
                panel.axhline(level, color="#c9d0d8", lw=0.9, ls=(0, (2, 2)))
            panel.plot(values, profiles.held[k], color=QUIET, lw=1.2, ls=(0, (1, 1.2)), label="others held")
            panel.plot(values, profiles.parabola[k], color=EXPECTED, lw=1.6, ls=(0, (5, 2)), label="error of the fit")
            panel.plot(values, profiles.profiled[k], color=SPECTRUM_COLOUR, lw=2.0, label="others at their best")
            for number, mode in _others(found, star):
                gap = found.mode_loss[star, number] - found.mode_loss[star, 0]
                if k < len(_PARAMETERS) - 1 and gap < highest:
                    panel.plot(mode[k] * factor, gap, "D", ms=7, mfc="none", mew=1.6, color=OTHER_COLOUR, clip_on=False)
            best = found.fit.params[star, k] if k < len(_PARAMETERS) - 1 else found.fit.model_plx[star]
            height = found.fit.loss[star] - found.mode_loss[star, 0]
            panel.plot(best * factor, height, "+", ms=10, mew=2.0, color=SPECTRUM_COLOUR, clip_on=False)
            scale = " by the model's scale" if k == len(_PARAMETERS) - 1 and found.fit.model.scale_sigma > 0 else ""
            panel.set(xlabel=f"{symbol}{scale}  [{unit}]", ylim=(-0.4, highest), xlim=(values[0], values[-1]))
            panel.locator_params(axis="x", nbins=4)
        axes[0].set_ylabel("loss − lowest loss")
        for level, name in ((1.0, "1 σ"), (4.0, "2 σ"), (9.0, "3 σ")):
            axes[-1].text(1.02, level, name, transform=axes[-1].get_yaxis_transform(), va="center", color=QUIET)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=3)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")

    _save(path, (14.0, 3.9), draw)


class Seen:
    """What was seen of a star, under the covariance that its fit and posterior had.

    Attributes
    ----------
    flux, sigma : (66,) float64
        With standard errors, those of a learned noise where the fit had one; NaN where missing.
    """

    def __init__(self, found: Posterior, star: int) -> None:
        data = data_of_fit(get_engine(found.fit.engine), found.fit, 1)[star : star + 1]
        self._model, self._whitener = found.fit.model, dense_whitener(data.whitener)[0]
        self._white_flux = self._whitener @ data.flux[0].astype(np.float64)
        seen = np.diagonal(self._whitener) > 0
        self.flux, self.sigma = np.full((2, len(seen)), np.nan)
        self.flux[seen] = data.flux[0][seen]
        self.sigma[seen] = np.linalg.norm(np.linalg.inv(self._whitener[np.ix_(seen, seen)]), axis=1)

    def shown(self, params: Float64) -> Float64:
        """Parameters (n, k) with the parallax at which the model's flux is the observed one, if there is one."""
        unit = np.column_stack([params[:, :-1], np.ones(len(params))])
        shape = np.exp(self._model.ln_flux(unit)) @ self._whitener.T
        area = shape @ self._white_flux / np.maximum(np.square(shape).sum(axis=1), 1e-300)
        unit[:, -1] = np.where(area > 0, np.sqrt(np.maximum(area, 0.0)), params[:, -1])
        return unit


def _predicted_range(found: Posterior, star: int, seen: Seen) -> tuple[Float64, Float64]:
    """Quantiles (66,) at 2.5 and 97.5 % of the flux that the posterior's parameters predict."""
    drawn = found.draws(400)[star]
    model = found.fit.model
    if model.scale_sigma > 0:  # theirs is the star's own parallax; what it is by the model's scale, the flux tells
        drawn = seen.shown(drawn)
    low, high = np.quantile(np.exp(model.ln_flux(drawn)), (0.025, 0.975), axis=0)
    return low, high


def _others(found: Posterior, star: int) -> list[tuple[int, Float64]]:
    """Numbers (from 0) and parameters of the modes that are drawn beside the one the fit ended in."""
    weight = np.nan_to_num(found.mode_weight[star])
    own = int(found.own_mode[star])
    chosen = [int(number) for number in np.argsort(-weight) if number != own and weight[number] > SHOWN_WEIGHT]
    return [(number, found.mode_params[star, number]) for number in chosen[: _MOST_MODES - 1]]


def _span(values: Float64, weights: Float64, best: float, error: float) -> tuple[float, float]:
    """What a panel shows of a parameter: the posterior but for its furthest tails, and the reach of the fit's error."""
    low, high = weighted_quantile(values, weights, np.array([0.002, 0.998]))
    low, high = min(low, best - 2.6 * error), max(high, best + 2.6 * error)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _draw_marginal(
    panel: Axes, values: Float64, weights: Float64, span: tuple[float, float], best: float, error: float
) -> None:
    edges: Any = np.linspace(*span, _BINS + 1)
    panel.hist(values, edges, weights=weights, density=True, color=SPECTRUM_COLOUR, alpha=0.35)
    panel.hist(values, edges, weights=weights, density=True, histtype="step", color=SPECTRUM_COLOUR, lw=1.2)
    for quantile, style in zip(
        weighted_quantile(values, weights, np.array([0.16, 0.5, 0.84])), ("--", "-", "--"), strict=True
    ):
        panel.axvline(quantile, color=SPECTRUM_COLOUR, lw=1.0, ls=style)
    at = np.linspace(*span, 300)
    panel.plot(at, np.exp(-0.5 * ((at - best) / error) ** 2) / (error * np.sqrt(2.0 * np.pi)), color=EXPECTED, lw=1.6)
    panel.set_yticks([])
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.set_ylim(bottom=0)


def _draw_pair(
    panel: Axes, values: Float64, weights: Float64, span_x: tuple[float, float], span_y: tuple[float, float]
) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from scipy.ndimage import gaussian_filter

    density, x, y = np.histogram2d(
        values[:, 0], values[:, 1], [np.linspace(*span_x, _BINS + 1), np.linspace(*span_y, _BINS + 1)], weights=weights
    )
    density = gaussian_filter(density, _SMOOTHING, mode="nearest").T
    ordered = np.sort(density.ravel())[::-1]
    share = ordered.cumsum() / max(ordered.sum(), 1e-300)
    levels = sorted({float(ordered[np.searchsorted(share, each)]) for each in _CONTOURS})
    tint = LinearSegmentedColormap.from_list("tint", ["#ffffff", SPECTRUM_COLOUR])
    middle_x, middle_y = 0.5 * (x[1:] + x[:-1]), 0.5 * (y[1:] + y[:-1])
    panel.imshow(
        density,
        origin="lower",
        extent=(*span_x, *span_y),
        aspect="auto",
        cmap=tint,
        alpha=0.75,
        interpolation="bilinear",
    )
    if len(levels) == len(_CONTOURS) and levels[0] > 0:
        panel.contour(middle_x, middle_y, density, levels=levels, colors=SPECTRUM_COLOUR, linewidths=1.1)


def _draw_ellipses(panel: Axes, centre: Float64, covariance: Float64) -> None:
    """One and two standard deviations of a Gaussian."""
    turn = np.linspace(0.0, 2.0 * np.pi, 121)
    circle = np.linalg.cholesky(covariance) @ np.stack([np.cos(turn), np.sin(turn)])
    for radius, style in ((1.0, "-"), (2.0, (0, (4, 2)))):
        x, y = centre[:, None] + radius * circle
        panel.plot(x, y, color=EXPECTED, lw=1.4, ls=style)


def _title_of(panel: Axes, k: int, interval: Float64) -> None:
    symbol, unit, _ = _PARAMETERS[k]
    low, middle, high = interval
    digits = 0 if unit == "K" else 2
    while min(high - middle, middle - low) < 10.0 ** (1 - digits) and digits < 4 and unit != "K":
        digits += 1
    up, down = f"{high - middle:.{digits}f}", f"{middle - low:.{digits}f}"
    panel.set_title(rf"{symbol} $= {middle:.{digits}f}^{{+{up}}}_{{-{down}}}$ {unit}", fontsize=10, fontweight="normal")


def _tick(panel: Axes, row: int, column: int, size: int) -> None:
    panel.locator_params(axis="x", nbins=4)
    panel.tick_params(axis="x", rotation=35)
    if row < size - 1:
        panel.tick_params(axis="x", labelbottom=False)
    else:
        panel.set_xlabel(f"{_PARAMETERS[column][0]}  [{_PARAMETERS[column][1]}]")
    if column == row:
        return
    panel.locator_params(axis="y", nbins=4)
    if column:
        panel.tick_params(axis="y", labelleft=False)
    else:
        panel.set_ylabel(f"{_PARAMETERS[row][0]}  [{_PARAMETERS[row][1]}]")


def _legend(figure: Figure, has_others: bool, has_catalog: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(color=SPECTRUM_COLOUR, alpha=0.45, label="posterior: 39 and 86 % inside (1 and 2 σ)"),
        Line2D([], [], color=SPECTRUM_COLOUR, ls="--", lw=1.0, label="16, 50, 84 %"),
        Line2D([], [], color=EXPECTED, lw=1.6, marker="+", ms=9, mew=1.8, label="optimum, its error (1 and 2 σ)"),
    ]
    if has_others:
        handles.append(Line2D([], [], color=OTHER_COLOUR, marker="D", mfc="none", ls=(0, (5, 2)), label="other modes"))
    if has_catalog:
        handles.append(Line2D([], [], color=CATALOG_COLOUR, marker="x", ls=(0, (1, 1.5)), label="the catalogue"))
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.99, 0.92), fontsize=10.5)


def _say(panel: Axes, text: str, height: float = 0.5) -> None:
    panel.text(0.5, height, text, transform=panel.transAxes, ha="center", va="center", color=QUIET, fontsize=9)


def _save(path: Path, size: tuple[float, float], draw: Any, layout: Any = "constrained") -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure: Any = Figure(figsize=size, dpi=110, facecolor="white", layout=layout)
        draw(figure)
        figure.savefig(path, format="png", metadata=METADATA[".png"])
