"""Classifiers of confidence from a catalogue and labels of some of its stars (ZGR23 section 4.4 and Appendix B)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from xpkern.catalog.flags import BASIC_CUT, LEAST_CONFIDENCE
from xpkern.catalog.judgement import JUDGED_BY, features_of, judge
from xpkern.catalog.provenance import check_model
from xpkern.catalog.stream import CatalogReader
from xpkern.engine.confidence import confidences
from xpkern.engine.contract import Float32, Float64
from xpkern.errors import InputError
from xpkern.model.confidence import CONFIDENT_PARAMETERS, LARGEST_FEATURE, STAR_FEATURES, Confidence, feature_names
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior
from xpkern.observe.gaia_source import share_of
from xpkern.status import UNFITTED
from xpkern.train.labels import Labels
from xpkern.train.relu_network import Examples, NetworkSettings, ReluNetwork, platt, train_network

#: Errors of agreement [kK, dex, dex] that are added to those of fit and label (Eq. 27).
AGREEMENT_FLOOR = np.array([0.1, 0.1, 0.1])

#: chi_epsilon^2 (Eq. 27) below which an estimate is good, and above which it is bad.
GOOD_BELOW, BAD_ABOVE = 4.0, 9.0

#: Shares of the stars, by their source_id: held out for the report, and for the schedule and the recalibration. The
#: seed is that of the recipes of the flux model, whose held-out stars are then the same.
HELD_OUT, VALIDATION, SPLIT_SEED = 0.2, 0.1, 1

#: Stars of either class that a classifier needs for training, and for anything that is found of the other stars.
LEAST_TRAINING, LEAST_OTHER = 16, 2

#: What stands in for a missing feature, as in the code of ZGR23; for the others it is the median.
FILL = {"fidelity_v2": 0.5, "norm_dg": -45.0}

#: Bins of equal numbers of stars in which probability and frequency are compared.
_BINS = 10

#: Central 68.3 %.
_LOW, _HIGH = 0.158655, 0.841345


@dataclass
class LabelledFits:
    """Fits that have labels and pass the basic cut.

    Attributes
    ----------
    source_id : (n,) int64
    features : (n, f) float32
        As :func:`xpkern.catalog.judgement.features_of` makes them.
    difference : (n, 3) float64
        Fit minus label: teff [kK], feh, logg; NaN without a label.
    chi2 : (n, 3) float64
        chi_epsilon^2 of Eq. 27.
    counts : dict of str to int
        How many rows the catalogue has, how many are left after each condition.
    """

    source_id: NDArray[np.int64]
    features: Float32
    difference: Float64
    chi2: Float64
    counts: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source_id)

    def __getitem__(self, rows: NDArray[np.bool_]) -> LabelledFits:
        return LabelledFits(self.source_id[rows], self.features[rows], self.difference[rows], self.chi2[rows])


@dataclass(frozen=True)
class ClassifierReport:
    """What held-out stars say of one classifier.

    Attributes
    ----------
    parameter : str
    training, validation, held_out : dict of str to int
        Good and bad stars, and those in between, which are not trained on but count as not good otherwise.
    epochs : int
        Of training, to the network that was kept.
    slope, offset : float
        Of the recalibration.
    roc_auc, precision_recall_auc : float
        Of telling good held-out stars from bad ones.
    bad_precision_recall_auc : float
        The same where the bad ones, which are few, are looked for; that of guessing is their share.
    calibration_error, calibration_error_before : float
        Mean distance of probability and frequency over all held-out stars, with and without the recalibration.
    brier : float
        Mean square of confidence minus truth, over the same.
    curve, curve_before : dict of str to list
        Mean confidence and share of good stars of the bins (sklearn.calibration.calibration_curve).
    roc, precision_recall : dict of str to list
        The curves.
    scatter_confident, scatter_unsure : float
        What 68.3 % of the estimates are within of their labels [kK or dex], a bias included, with a confidence of 0.5
        or more, and less; NaN where there are none.
    confident : float
        Share of held-out stars with a confidence of 0.5 or more.
    importance : dict of str to float
        By how much the ROC AUC falls when a feature's values are dealt out anew, residuals together; by importance.
    """

    parameter: str
    training: dict[str, int]
    validation: dict[str, int]
    held_out: dict[str, int]
    epochs: int
    slope: float
    offset: float
    roc_auc: float
    precision_recall_auc: float
    bad_precision_recall_auc: float
    calibration_error: float
    calibration_error_before: float
    brier: float
    curve: dict[str, list[float]]
    curve_before: dict[str, list[float]]
    roc: dict[str, list[float]]
    precision_recall: dict[str, list[float]]
    scatter_confident: float
    scatter_unsure: float
    confident: float
    importance: dict[str, float]

    @property
    def scatter_factor(self) -> float:
        """How many times farther from their labels unsure estimates are."""
        return self.scatter_unsure / self.scatter_confident

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain types, for JSON."""
        return asdict(self) | {"scatter_factor": self.scatter_factor}


@dataclass(frozen=True)
class TrainedConfidence:
    """Classifiers, and what held-out stars say of them.

    Attributes
    ----------
    classifiers : Confidence
    reports : list of ClassifierReport
        One for each parameter.
    counts : dict of str to int
        Rows of the catalogue, and how many were left after each condition.
    settings : NetworkSettings
    seed : int
    """

    classifiers: Confidence
    reports: list[ClassifierReport]
    counts: dict[str, int]
    settings: NetworkSettings
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Everything but the networks as plain types, for JSON."""
        return {
            "digest": self.classifiers.digest,
            "seed": self.seed,
            "settings": asdict(self.settings),
            "counts": self.counts,
            "classifiers": {report.parameter: report.as_dict() for report in self.reports},
        }


def labelled_fits(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], labels: Labels, model: FluxModel, prior: TypePrior
) -> LabelledFits:
    """Fits of a catalogue's stars that have labels and pass the basic cut, from its diagnostics companion.

    Parameters
    ----------
    paths : path-like or sequence of path-like
        Catalogues; of each the companion beside it is read, block by block.
    labels : Labels
    model : FluxModel
        That the catalogue was fitted with.
    prior : TypePrior

    Raises
    ------
    InputError
        If a companion is not there or lacks a column, the catalogue was fitted with another model, or none of its stars
        has a label, is fitted or passes the cut.
    """
    reader = CatalogReader(paths, table="diagnostics")
    check_model(reader, model, prior)
    order = np.argsort(labels.source_id, kind="stable")
    known = labels.source_id[order]
    parts: list[LabelledFits] = []
    counts = dict.fromkeys(("rows", "labelled", "fitted", "pass the basic cut"), 0)
    for block in reader.blocks(["source_id", *JUDGED_BY]):
        counts["rows"] += len(block)
        place = np.searchsorted(known, block["source_id"])
        rows = np.flatnonzero(np.append(known, -1)[place] == block["source_id"])
        columns = {name: block[name][rows] for name in JUDGED_BY}
        fitted = (columns["status"].astype(np.uint32) & np.uint32(UNFITTED)) == 0
        passes = judge(columns, None, prior).quality_flags & ~np.uint8(BASIC_CUT - 1) == 0
        counts["labelled"] += len(rows)
        counts["fitted"] += int(fitted.sum())
        counts["pass the basic cut"] += int((fitted & passes).sum())
        columns = {name: values[fitted & passes] for name, values in columns.items()}
        rows = rows[fitted & passes]
        label = order[place[rows]]
        difference = columns["stellar_type"].astype(np.float64) - labels.mean[label, :3]
        variance = columns["stellar_type_error"].astype(np.float64) ** 2 + labels.error[label, :3] ** 2
        parts.append(
            LabelledFits(
                block["source_id"][rows],
                features_of(columns),
                difference,
                difference**2 / (variance + AGREEMENT_FLOOR**2),
            )
        )
    for condition, reason in (
        ("labelled", "no star of the catalogue has a label: are these source_ids of the same release?"),
        ("fitted", "no star with a label has a fit"),
        ("pass the basic cut", "no star with a label passes the basic cut (quality_flags below 8)"),
    ):
        if not counts[condition]:
            raise InputError(reason, file=str(reader.paths[0]))
    names = ("source_id", "features", "difference", "chi2")
    whole = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return LabelledFits(**whole, counts=counts)


def train_confidence(
    fits: LabelledFits,
    model: FluxModel,
    *,
    settings: NetworkSettings | None = None,
    seed: int = 0,
    on_epoch: Callable[[str, int, float], object] | None = None,
) -> TrainedConfidence:
    """Train a classifier for each of teff, feh and logg, recalibrate it, and see how it does on held-out stars.

    Parameters
    ----------
    fits : LabelledFits
    model : FluxModel
        That they are of.
    settings : NetworkSettings, optional
        The paper's when not given.
    seed : int
        Of the networks' first weights, dropout and order of stars; which stars are held out does not depend on it.
    on_epoch : callable, optional
        Called with parameter, number of epochs and validation loss after each epoch.

    Raises
    ------
    InputError
        If there are too few good or bad stars for one of them.
    """
    settings = NetworkSettings() if settings is None else settings
    share = share_of(fits.source_id, SPLIT_SEED)
    parts = {
        "training": fits[share >= HELD_OUT + VALIDATION],
        "validation": fits[(share >= HELD_OUT) & (share < HELD_OUT + VALIDATION)],
        "held_out": fits[share < HELD_OUT],
    }
    every = range(len(CONFIDENT_PARAMETERS))
    counts = {name: [_classes(part.chi2[:, k]) for k in every] for name, part in parts.items()}
    for name, of_parameters in counts.items():
        least = LEAST_TRAINING if name == "training" else LEAST_OTHER
        for parameter, classes in zip(CONFIDENT_PARAMETERS, of_parameters, strict=True):
            if min(classes["good"], classes["bad"]) < least:
                raise InputError(
                    f"{classes['good']} good and {classes['bad']} bad estimates among the {name.replace('_', '-')} "
                    f"stars, at least {least} of each are needed",
                    field=parameter,
                )
    scaling = _scaling(parts["training"].features, feature_names(model.wavelength))
    known = scaling.pop("known")
    inputs = {name: _standardised(part.features, **scaling) for name, part in parts.items()}
    networks, epochs, recalibrations = [], [], []
    with threadpool_limits(1):  # sums are then taken in one order
        for k, parameter in enumerate(CONFIDENT_PARAMETERS):
            rng = np.random.default_rng([seed, k])
            network, epoch = _train_one(parts, inputs, k, settings, rng, parameter, on_epoch)
            network.weights[0][~known] = 0.0  # nobody has taught it what they mean
            recalibrations.append(_recalibrate(network, parts["validation"], inputs["validation"], k))
            networks.append(network)
            epochs.append(epoch)
    classifiers = Confidence(
        features=feature_names(model.wavelength),
        **scaling,
        weights=[np.stack(layer) for layer in zip(*(network.weights for network in networks), strict=True)],
        biases=[np.stack(layer) for layer in zip(*(network.biases for network in networks), strict=True)],
    )
    rng = np.random.default_rng([seed, len(CONFIDENT_PARAMETERS)])
    reports = []
    for k in every:
        of_one = {name: of_parameters[k] for name, of_parameters in counts.items()}
        reports.append(_report(classifiers, parts["held_out"], k, of_one, epochs[k], recalibrations[k], rng))
    return TrainedConfidence(classifiers, reports, dict(fits.counts), settings, seed)


def _classes(chi2: Float64) -> dict[str, int]:
    good, bad = chi2 < GOOD_BELOW, chi2 > BAD_ABOVE
    between = np.isfinite(chi2) & ~good & ~bad
    return {"good": int(good.sum()), "bad": int(bad.sum()), "between": int(between.sum())}


def _scaling(features: Float32, names: Sequence[str]) -> dict[str, Any]:
    """Centre (f,), scale (f,) and fill (f,) of features, and ``known`` (f,): whether they differ between stars."""
    centre, scale, fill, known = (np.zeros(len(names), np.float32) for _ in range(4))
    for place, name in enumerate(names):
        values = features[:, place]
        values = values[np.isfinite(values)]
        fill[place] = FILL.get(name, np.median(values) if len(values) else 0.0)
        values = np.append(values, np.repeat(fill[place], len(features) - len(values)))
        low, centre[place], high = np.quantile(values, (_LOW, 0.5, _HIGH))
        scale[place] = 0.5 * (high - low) or values.std() or 1.0
        known[place] = len(np.unique(values)) > 1
    return {"centre": centre, "scale": scale, "fill": fill, "known": known > 0}


def _standardised(features: Float32, centre: Float32, scale: Float32, fill: Float32) -> Float32:
    inputs = (np.where(np.isfinite(features), features, fill) - centre) * (np.float32(1.0) / scale)
    return np.clip(inputs, -LARGEST_FEATURE, LARGEST_FEATURE).astype(np.float32)


def _train_one(
    parts: dict[str, LabelledFits],
    inputs: dict[str, Float32],
    k: int,
    settings: NetworkSettings,
    rng: np.random.Generator,
    parameter: str,
    on_epoch: Callable[[str, int, float], object] | None,
) -> tuple[ReluNetwork, int]:
    """The network of one parameter, and how many epochs it took."""
    examples = {}
    for name in ("training", "validation"):
        chi2 = parts[name].chi2[:, k]
        decided = (chi2 < GOOD_BELOW) | (chi2 > BAD_ABOVE)
        examples[name] = Examples.balanced(inputs[name][decided], chi2[decided] < GOOD_BELOW)
    told = None if on_epoch is None else lambda epoch, loss: on_epoch(parameter, epoch, loss)
    network, history = train_network(examples["training"], examples["validation"], settings, rng, told)
    return network, int(np.argmin(history)) + 1


def _recalibrate(network: ReluNetwork, part: LabelledFits, inputs: Float32, k: int) -> tuple[float, float]:
    """Put Platt's slope and offset into the last layer; they are those of all stars with a label, in between or not."""
    labelled = np.isfinite(part.chi2[:, k])
    slope, offset = platt(network.logit(inputs[labelled]), part.chi2[labelled, k] < GOOD_BELOW)
    network.weights[-1] *= np.float32(slope)
    network.biases[-1][:] = network.biases[-1] * np.float32(slope) + np.float32(offset)
    return slope, offset


def _report(
    classifiers: Confidence,
    part: LabelledFits,
    k: int,
    counts: dict[str, dict[str, int]],
    epochs: int,
    recalibration: tuple[float, float],
    rng: np.random.Generator,
) -> ClassifierReport:
    """What the held-out stars say."""
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    part = part[np.isfinite(part.chi2[:, k])]
    good = part.chi2[:, k] < GOOD_BELOW
    decided = good | (part.chi2[:, k] > BAD_ABOVE)
    confidence = confidences(classifiers, part.features)[:, k].astype(np.float64)
    with np.errstate(divide="ignore"):
        logit = np.log(confidence) - np.log1p(-confidence)
    before = expit((logit - recalibration[1]) / recalibration[0]) if recalibration[0] else np.full(len(good), 0.5)
    auc = float(roc_auc_score(good[decided], confidence[decided]))
    difference = part.difference[:, k]
    confident = confidence >= LEAST_CONFIDENCE
    false, true, _ = roc_curve(good[decided], confidence[decided])
    precision, recall, _ = precision_recall_curve(good[decided], confidence[decided])

    def curve(probability: Float64) -> dict[str, list[float]]:
        frequency, mean = calibration_curve(good, probability, n_bins=_BINS, strategy="quantile")
        return {"confidence": mean.tolist(), "good": frequency.tolist()}

    return ClassifierReport(
        parameter=CONFIDENT_PARAMETERS[k],
        **counts,
        epochs=epochs,
        slope=recalibration[0],
        offset=recalibration[1],
        roc_auc=auc,
        precision_recall_auc=float(average_precision_score(good[decided], confidence[decided])),
        bad_precision_recall_auc=float(average_precision_score(~good[decided], -confidence[decided])),
        calibration_error=calibration_error(confidence, good),
        calibration_error_before=calibration_error(before, good),
        brier=float(((confidence - good) ** 2).mean()),
        curve=curve(confidence),
        curve_before=curve(before),
        roc={"false_positive": false.tolist(), "true_positive": true.tolist()},
        precision_recall={"recall": recall.tolist(), "precision": precision.tolist()},
        scatter_confident=scatter(difference[confident]),
        scatter_unsure=scatter(difference[~confident]),
        confident=float(confident.mean()),
        importance=_importance(classifiers, part.features[decided], good[decided], k, auc, rng),
    )


def calibration_error(probability: Float64, good: NDArray[np.bool_]) -> float:
    """Mean distance of probability and frequency over bins of equal numbers of stars."""
    order = np.argsort(probability, kind="stable")
    bins = [part for part in np.array_split(order, _BINS) if len(part)]
    distances = [abs(probability[part].mean() - good[part].mean()) * len(part) for part in bins]
    return float(sum(distances) / len(order))


def scatter(difference: Float64) -> float:
    """What 68.3 % of the differences are smaller than, a bias included; NaN of none."""
    return float(np.quantile(np.abs(difference), _HIGH - _LOW)) if len(difference) else float("nan")


def _importance(
    classifiers: Confidence, features: Float32, good: NDArray[np.bool_], k: int, auc: float, rng: np.random.Generator
) -> dict[str, float]:
    """By how much the AUC falls when a feature, or all residuals together, are dealt out anew among the stars."""
    from sklearn.metrics import roc_auc_score

    first = len(STAR_FEATURES)
    groups = {name: slice(place, place + 1) for place, name in enumerate(STAR_FEATURES)}
    groups["residuals"] = slice(first, features.shape[1])
    falls = {}
    for name, group in groups.items():
        dealt = features.copy()
        dealt[:, group] = features[rng.permutation(len(features)), group]
        falls[name] = auc - float(roc_auc_score(good, confidences(classifiers, dealt)[:, k]))
    return dict(sorted(falls.items(), key=lambda item: -item[1]))
