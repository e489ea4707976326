"""What the training of classifiers leaves behind: a model file with them, a report and a figure."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xpkern.catalog.pending import PendingFile, refuse_taken
from xpkern.errors import InputError
from xpkern.model import save_model
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior
from xpkern.train.confidence import AGREEMENT_FLOOR, ClassifierReport, TrainedConfidence
from xpkern.train.figures import BLUE, GREEN, ORANGE, QUIET, RED, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"teff": BLUE, "feh": ORANGE, "logg": GREEN}

#: Heading of the model card's section, which is written anew.
_HEADING = "## Confidence"

#: Features whose importance is drawn.
_SHOWN = 8


def names_of(output: str | os.PathLike[str]) -> tuple[Path, Path, Path]:
    """Model file, report and figure."""
    path = Path(output)
    return path, path.with_name(f"{path.stem}.confidence.json"), path.with_name(f"{path.stem}.confidence.png")


def check_output(output: str | os.PathLike[str], inputs: Iterable[str], *, overwrite: bool) -> None:
    """Refuse before the training what would fail after it.

    Raises
    ------
    InputError
        If the name does not end in .h5, the folder does not exist, or a file must stay.
    """
    model, *others = names_of(output)
    if model.suffix != ".h5":
        raise InputError("the name of a model file must end in .h5", file=str(model))
    PendingFile(model)
    for name in (model, *others):
        refuse_taken(name, inputs, overwrite=overwrite)


def write_confidence(
    output: str | os.PathLike[str], trained: TrainedConfidence, model: FluxModel, prior: TypePrior
) -> tuple[Path, Path, Path]:
    """Write a copy of the model with the classifiers, the report as JSON and a figure; return their names.

    Each appears under its name once it is complete, the model file last.
    """
    path, report, picture = names_of(output)
    with PendingFile(report) as partial:
        text = json.dumps(_without_nan(trained.as_dict()), indent=2, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
    draw_confidence(picture, trained)
    save_model(path, with_confidence(model, trained), prior)
    return path, report, picture


def with_confidence(model: FluxModel, trained: TrainedConfidence) -> FluxModel:
    """The model with the classifiers, a section of its card and a line of its provenance that tell of them."""
    card = model.card.partition(f"\n{_HEADING}\n")[0].rstrip("\n")
    provenance = model.provenance | {
        "confidence": f"{trained.counts['pass the basic cut']} labelled stars, seed {trained.seed}, {trained.settings}"
    }
    return replace(
        model, confidence=trained.classifiers, card=f"{card}\n\n{card_section(trained)}", provenance=provenance
    )


def card_section(trained: TrainedConfidence) -> str:
    """What the model card says of the classifiers, in Markdown."""
    floor = 1000.0 * AGREEMENT_FLOOR[0]
    head = "| parameter | held out | ROC AUC | PR AUC | calibration error | before | confident | others are off |"
    rows = [
        f"| {report.parameter} | {sum(report.held_out.values()):,} | {report.roc_auc:.3f} | "
        f"{report.precision_recall_auc:.3f} | {report.calibration_error:.3f} | {report.calibration_error_before:.3f} | "
        f"{100.0 * report.confident:.0f} % | {report.scatter_factor:.1f} |"
        for report in trained.reports
    ]
    text = (
        "Three classifiers give the probability that an estimate agrees with a label within two of their errors, "
        f"{floor:.0f} K, {AGREEMENT_FLOOR[1]} and {AGREEMENT_FLOOR[2]} dex added in quadrature, for stars that pass "
        "the basic cut. They were trained on estimates within two and beyond three of them, both classes of equal "
        "weight, and recalibrated by Platt scaling. What held-out stars say; the last column is how many times farther "
        "from their labels the others are (68 %, a bias included):"
    )
    return "\n".join([_HEADING, "", text, "", head, "|---|" + "---:|" * 7, *rows, ""])


def draw_confidence(path: Path, trained: TrainedConfidence) -> None:
    """Draw ROC, precision and recall, calibration, and what the classifiers look at, as PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(11.0, 8.2), dpi=120, facecolor="white", layout="constrained")
        _draw(figure, trained.reports)
        with PendingFile(path) as partial:
            figure.savefig(partial, format="png", metadata={"Software": None})


def _draw(figure: Figure, reports: list[ClassifierReport]) -> None:
    (roc, recall), (calibration, importance) = figure.subplots(2, 2)
    for report in reports:
        colour = _COLOURS[report.parameter]
        roc.plot(
            report.roc["false_positive"],
            report.roc["true_positive"],
            color=colour,
            label=f"{report.parameter}: AUC {report.roc_auc:.3f}",
        )
        recall.plot(
            report.precision_recall["recall"],
            report.precision_recall["precision"],
            color=colour,
            label=f"{report.parameter}: AUC {report.precision_recall_auc:.3f}",
        )
        calibration.plot(
            report.curve["confidence"], report.curve["good"], "o-", color=colour, ms=4, label=report.parameter
        )
        calibration.plot(
            report.curve_before["confidence"], report.curve_before["good"], ls=(0, (1, 2)), color=colour, lw=1.0
        )
    roc.plot([0, 1], [0, 1], color=QUIET, lw=0.8)
    calibration.plot([0, 1], [0, 1], color=QUIET, lw=0.8)
    roc.set(xlabel="bad estimates called good", ylabel="good estimates called good", title="ROC of held-out stars")
    recall.set(xlabel="share of good estimates found", ylabel="share that is good", title="Precision and recall")
    calibration.set(
        xlabel="confidence", ylabel="share of good estimates", title="Calibration (dotted: before recalibration)"
    )
    for axes in (roc, recall, calibration):
        axes.legend()
    _draw_importance(importance, reports)


def _draw_importance(axes: Axes, reports: list[ClassifierReport]) -> None:
    """Bars of the features that matter most to any of the classifiers."""
    largest = {name: max(report.importance[name] for report in reports) for name in reports[0].importance}
    names = sorted(largest, key=lambda name: -largest[name])[:_SHOWN]
    place = np.arange(len(names))
    for number, report in enumerate(reports):
        axes.barh(
            place + 0.26 * (number - 1),
            [report.importance[name] for name in names],
            height=0.24,
            color=_COLOURS[report.parameter],
            label=report.parameter,
        )
    axes.axvline(0.0, color=RED, lw=0.6)
    axes.set(yticks=place, yticklabels=names, xlabel="fall of the ROC AUC without it", title="What they look at")
    axes.invert_yaxis()
    axes.legend()


def _without_nan(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
