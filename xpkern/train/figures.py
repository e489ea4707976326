"""Figures of a training run: its losses, the extinction curve it learned, what it did to the labels, and the prior."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.pending import PendingFile
from xpkern.engine.contract import Float64
from xpkern.grid import BANDS, N_XP, PARAMETERS, WAVELENGTH
from xpkern.train.extinction_law import LAW, MAGNITUDES_PER_DEPTH, PIVOT, optical_depth
from xpkern.train.phases import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from xpkern.model.type_prior import TypePrior
    from xpkern.train.outcome import Outcome

#: Colours that the colour-blind tell apart (Okabe & Ito 2008), and ink for what is secondary.
BLUE, ORANGE, GREEN, RED, PURPLE, QUIET = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#7a8591"

#: Colour and symbol of each parameter.
_PARAMETER_STYLE = {
    "teff": (BLUE, r"$T_\mathrm{eff}$"),
    "feh": (ORANGE, "[Fe/H]"),
    "logg": (GREEN, r"$\log\,g$"),
    "ext": (RED, r"$E$"),
    "plx": (PURPLE, r"$\varpi$"),
}

#: Shares of the prior's mass within the contours.
_CONTOURS = (0.68, 0.95, 0.99)

#: Draws from the prior, and labels, that a figure of it is made of.
_DRAWS, _MOST_LABELS = 1 << 18, 1 << 17

#: Of every figure.
STYLE: Any = {
    "text.usetex": False,  # GaiaXPy, once imported, asks for LaTeX in every figure
    "font.family": "DejaVu Sans",  # which comes with matplotlib: a machine need not have any font
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e9ecef",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def draw_figures(name_of: Callable[[str], Path], run: Run, outcome: Outcome) -> list[Path]:
    """Draw all of them as PNG; equal runs give equal bytes.

    Parameters
    ----------
    name_of : callable
        Returns the name of the figure that is called "loss", "extinction", "drift" or "prior".
    run : Run
        A finished one.
    outcome : Outcome

    Returns
    -------
    list of Path
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawings: dict[str, tuple[Callable[[Figure, Run, Outcome], None], tuple[float, float]]] = {
        "loss": (_draw_loss, (9.0, 5.6)),
        "extinction": (_draw_extinction, (9.0, 5.6)),
        "drift": (_draw_drift, (11.0, 5.6)),
        "prior": (_draw_prior, (11.0, 4.6)),
    }
    paths = []
    with rc_context(STYLE):
        for name, (draw, size) in drawings.items():
            figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
            draw(figure, run, outcome)
            with PendingFile(name_of(name)) as partial:
                figure.savefig(partial, format="png", metadata={"Software": None})
            paths.append(name_of(name))
    return paths


def _draw_loss(figure: Figure, run: Run, outcome: Outcome) -> None:
    """Loss of the model and of held-out stars against the epochs of all phases."""
    history = run.state.history
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.6, 1.0))
    x = np.arange(1, len(history) + 1)

    def column(name: str) -> Float64:
        return np.array([getattr(record, name) for record in history], dtype=np.float64)

    validation, middle = column("validation_loss"), column("validation_median")
    marker = "." if len(history) < 50 else ""
    upper.plot(x, column("model_loss"), color=BLUE, lw=1.6, marker=marker, label="training stars, mean")
    upper.plot(
        x, validation, color=RED, lw=1.6, marker=marker, label="held-out stars at their optimum (Eqs. 13–14), mean"
    )
    upper.plot(x, middle, color=RED, lw=1.2, ls=(0, (4, 2)), label="the same, median")
    with_loss = [values[np.isfinite(values)] for values in (column("model_loss"), validation, middle)]
    if all((values > 0).all() for values in with_loss):
        upper.set_yscale("log")
    upper.set(
        ylabel="loss  (Eqs. 12–14)",
        title=f"Losses: recipe {run.recipe.name}, {outcome.stars['training']:,} training stars",
    )
    if len(history):
        best = np.nanmin(middle) if np.isfinite(middle).any() else 0.0
        lower.plot(x, middle - best, color=RED, lw=1.2, ls=(0, (4, 2)))
        best = np.nanmin(validation) if np.isfinite(validation).any() else 0.0
        lower.plot(x, validation - best, color=RED, lw=1.6)
        lower.set_yscale("symlog", linthresh=0.1)
        lower.set_ylim(bottom=0.0)
    lower.set(xlabel="epoch, over all phases", ylabel="held-out loss − lowest")
    for axes in (upper, lower):
        _mark_phases(axes, run, names=axes is upper)
        axes.set_xlim(0.5, len(history) + 0.5)
    lower.xaxis.get_major_locator().set_params(integer=True)
    upper.legend(loc="upper right")


def _mark_phases(axes: Axes, run: Run, *, names: bool) -> None:
    """A line before the first epoch of each phase that has epochs, and its name."""
    phases = [record.phase for record in run.state.history]
    for position, phase in enumerate(phases):
        if position and phase == phases[position - 1]:
            continue
        if position:
            axes.axvline(position + 0.5, color=QUIET, lw=0.9)
        if names:
            axes.text(
                position + 0.5, 0.02, f" {run.phases[phase][0]}", transform=axes.get_xaxis_transform(), fontsize=8.5,
                color=QUIET, va="bottom",
            )  # fmt: skip


def _draw_extinction(figure: Figure, run: Run, outcome: Outcome) -> None:
    """The learned curve beside the standard law and the start, as A per unit of E."""
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.8, 1.0))
    law = optical_depth(WAVELENGTH)
    start, learned = run.state.snapshots[0].ext_curve, outcome.model.ext_curve
    seen = ~np.asarray(outcome.model.theoretical)
    pivot = int(np.flatnonzero(WAVELENGTH == PIVOT)[0])
    place, ticks, names = places()
    for curve, colour, style, label in (
        (law, QUIET, (0, (1, 1.5)), LAW),
        (start, ORANGE, (0, (5, 2)), "start"),
        (learned, BLUE, "-", "learned"),
    ):
        upper.plot(place[:N_XP], MAGNITUDES_PER_DEPTH * curve[:N_XP], color=colour, lw=1.8, ls=style, label=label)
        bands = np.arange(len(place)) >= N_XP
        if label == "learned":
            bands &= seen
        upper.plot(
            place[bands], MAGNITUDES_PER_DEPTH * curve[bands], "o", color=colour, ms=6 if label == "start" else 4
        )
        shape = curve / curve[pivot] / (law / law[pivot]) - 1.0
        if label != LAW:
            lower.plot(place[:N_XP], 100 * shape[:N_XP], color=colour, lw=1.8, ls=style)
            lower.plot(place[bands], 100 * shape[bands], "o", color=colour, ms=6 if label == "start" else 4)
    lower.axhline(0.0, color=QUIET, lw=1.2, ls=(0, (1, 1.5)))
    upper.set(ylabel=r"$A_\lambda / E$  [mag per unit of $E$]", title="Extinction curve")
    lower.set(ylabel=f"shape − law  [%]\n(equal at {PIVOT:.0f} nm)", xlabel="wavelength  [nm]")
    lower.set_xticks(ticks, names)
    upper.legend(loc="upper right")
    if outcome.unseen:
        text = f"not learned: {', '.join(outcome.unseen)}"
        upper.text(0.99, 0.62, text, transform=upper.transAxes, ha="right", fontsize=8.5, color=QUIET)


def places() -> tuple[Float64, Float64, list[str]]:
    """Where each sample is drawn: XP at its wavelength, bands side by side to its right; ticks and their names."""
    place = WAVELENGTH.copy()
    place[N_XP:] = 1045.0 + 40.0 * np.arange(len(BANDS))
    optical = np.arange(400.0, 1001.0, 100.0)
    return place, np.concatenate([optical, place[N_XP:]]), [*(f"{tick:.0f}" for tick in optical), *BANDS]


def _draw_drift(figure: Figure, run: Run, outcome: Outcome) -> None:
    """How far the stars' parameters have moved from their labels: after each phase, and in the end."""
    over_phases, final = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    snapshots = run.state.snapshots
    for k, name in enumerate(PARAMETERS):
        colour, symbol = _PARAMETER_STYLE[name]
        low, middle, high = np.array([snapshot.drift[k] for snapshot in snapshots]).T
        x = np.arange(len(snapshots)) + 0.13 * (k - 2)
        over_phases.errorbar(
            x, middle, [middle - low, high - middle], fmt="o", ms=4.5, lw=1.6, color=colour, label=symbol
        )
    over_phases.axhline(0.0, color=QUIET, lw=1.0)
    over_phases.set_xticks(range(len(snapshots)), [snapshot.phase for snapshot in snapshots], rotation=30, ha="right")
    over_phases.set(title="After each phase: median, central 68 %", ylabel="(parameter − label) / error of the label")
    over_phases.legend(loc="upper left", ncols=5, columnspacing=1.0, handletextpad=0.2)
    over_phases.margins(y=0.14)

    rows = run.training
    stars, params = run.stars, run.state.params
    edges = np.linspace(-6.0, 6.0, 61)
    centres = 0.5 * (edges[1:] + edges[:-1])
    for k, name in enumerate(PARAMETERS):
        labelled = rows[np.isfinite(stars.sigma[rows, k])]
        if len(labelled):
            pull = (params[labelled, k] - stars.mean[labelled, k]) / stars.sigma[labelled, k]
            density, _ = np.histogram(np.clip(pull, edges[0], edges[-1]), edges)
            colour, symbol = _PARAMETER_STYLE[name]
            final.step(
                centres, np.maximum(density, 0.5) / len(labelled) / (edges[1] - edges[0]), where="mid", color=colour,
                lw=1.5, label=symbol,
            )  # fmt: skip
    normal = np.exp(-0.5 * centres**2) / np.sqrt(2.0 * np.pi)
    final.plot(centres, normal, color=QUIET, lw=1.2, ls=(0, (1, 1.5)), label="unit normal")
    final.set(
        yscale="log",
        xlabel="(parameter − label) / error of the label",
        ylabel="density of stars",
        title="In the end, all training stars",
        ylim=(0.3 / max(len(rows), 1), 3.0),
    )
    final.legend(loc="upper right")


def _draw_prior(figure: Figure, run: Run, outcome: Outcome) -> None:
    """The prior over the labels of the training stars."""
    title = f"Prior on stellar type ({run.recipe.prior.kind}, {outcome.prior.n_components} components)"
    draw_prior(figure, outcome.prior, run.stars.mean[run.training, :3], title=title, whose="training stars")


def draw_prior(figure: Figure, prior: TypePrior, labels: Float64, *, title: str, whose: str) -> None:
    """A prior as contours around shares of its mass, over labels (Fig. 5).

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    prior : TypePrior
    labels : (n, 3) float64
        teff [kK], feh, logg; n may be 0.
    title, whose : str
        The figure's title, and whose labels these are.
    """
    rng = np.random.default_rng(0)
    drawn = prior.sample(_DRAWS, rng)
    if len(labels) > _MOST_LABELS:
        labels = labels[rng.choice(len(labels), _MOST_LABELS, replace=False)]
    names = ((r"$T_\mathrm{eff}$  [kK]", True), ("[Fe/H]  [dex]", False), (r"$\log\,g$  [dex]", True))
    axes = figure.subplots(1, 3)
    for panel, (a, b) in zip(axes, ((0, 2), (0, 1), (1, 2)), strict=True):
        both = np.concatenate([labels[:, [a, b]], drawn[:, [a, b]]])
        low, high = np.quantile(both, [0.0005, 0.9995], axis=0)
        edges = [
            np.linspace(low[i] - 0.05 * (high[i] - low[i]), high[i] + 0.05 * (high[i] - low[i]), 81) for i in (0, 1)
        ]
        panel.plot(labels[:, a], labels[:, b], ".", ms=1.5, color=ORANGE, alpha=_alpha(len(labels)), rasterized=True)
        density = np.histogram2d(drawn[:, a], drawn[:, b], edges)[0]
        smooth = smoothed(density)
        levels = levels_around(smooth, _CONTOURS)
        centres = [0.5 * (edge[1:] + edge[:-1]) for edge in edges]
        panel.contour(*centres, smooth.T, levels=levels, colors=[BLUE], linewidths=[0.9, 1.3, 1.9][-len(levels) :])
        for set_limits, is_reversed, edge in (
            (panel.set_xlim, names[a][1], edges[0]),
            (panel.set_ylim, names[b][1], edges[1]),
        ):
            set_limits(*(edge[[-1, 0]] if is_reversed else edge[[0, -1]]))
        panel.set(xlabel=names[a][0], ylabel=names[b][0])
    axes[0].set_title(title)
    axes[0].plot([], [], color=BLUE, lw=1.9, label="68, 95, 99 % of its mass")
    if len(labels):
        axes[0].plot([], [], ".", ms=6, color=ORANGE, label=f"labels of the {whose}")
    figure.legend(loc="outside lower center", ncols=2)


def _alpha(points: int) -> float:
    return float(np.clip(3000.0 / max(points, 1), 0.05, 0.6))


def smoothed(density: NDArray) -> Float64:
    """A histogram, (n, m), smoothed by a normal law of one bin."""
    from scipy.ndimage import gaussian_filter

    smooth: Float64 = gaussian_filter(density.astype(np.float64), 1.0)
    return smooth


def levels_around(density: Float64, shares: tuple[float, ...]) -> list[float]:
    """Levels of a histogram above which these shares of its mass lie, increasing."""
    ordered = np.sort(density.ravel())[::-1]
    mass = np.cumsum(ordered) / ordered.sum()
    positions = np.minimum(np.searchsorted(mass, shares), len(ordered) - 1)
    return sorted(set(ordered[positions].tolist()))
