"""``xpkern confidence``: classifiers that say how far to trust each fitted parameter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

#: Held-out stars of a class below which figures of a classifier are called rough.
FEW_HELD_OUT = 50

EPILOG = """\
examples
  fit stars that have labels, train on them, and judge a catalogue:
    xpkern catalog XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv -o catalog.h5
    xpkern confidence train catalog.h5 labels.fits -o model.h5
    xpkern flag catalog.h5 --model model.h5
  from now on a fit with that model fills the confidences itself:
    xpkern catalog more.csv.gz --model model.h5 -o more.h5
"""

TRAIN_EPILOG = """\
examples
  xpkern confidence train catalog.h5 labels.fits -o model.h5
  xpkern confidence train catalog.h5 labels.fits --model mine.h5 --patience 128 --seed 3 -o mine-judged.h5

An estimate is good if it agrees with its label within 2 of their errors, 100 K, 0.1 dex and 0.1 dex added to them in
quadrature, and bad beyond 3. For each of teff, feh, logg a network of 64, 64, 64 relu units learns to tell them apart
(Zhang, Green & Rix 2023, section 4.4 and Appendix B), on stars that pass the basic cut. One star in five, chosen by
its source_id, is held out. The number is recalibrated (Platt scaling) on stars that the networks have not learned
from: it is the probability that the estimate is good.

what is written
  model.h5               the model the catalogue was fitted with, and the classifiers
  model.confidence.json  what held-out stars say: ROC and precision-recall, calibration, scatter, importance of features
  model.confidence.png   the same as a figure
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command and its own commands."""
    parser = commands.add_parser(
        "confidence",
        help="classifiers that say how far to trust each fitted parameter",
        description="Classifiers that say how far to trust each fitted parameter.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    inner = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train = inner.add_parser(
        "train",
        help="from a catalogue and labels of some of its stars",
        description="Train classifiers of confidence from a catalogue and labels of some of its stars.",
        epilog=TRAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    train.add_argument("catalog", metavar="CATALOG", help="a catalogue with its diagnostics companion beside it")
    train.add_argument("labels", metavar="LABELS", help="teff, feh, logg and errors by source_id (xpkern labels)")
    train.add_argument("-o", "--output", required=True, metavar="MODEL.h5", help="the model file to write")
    train.add_argument("--model", metavar="FILE", help="that the catalogue was fitted with; default: the one of xpkern")
    train.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, dropout and order; default: 0")
    train.add_argument(
        "--plateau", type=int, default=256, metavar="N", help="epochs without gain before smaller steps; default: 256"
    )
    train.add_argument(
        "--patience", type=int, default=1024, metavar="N", help="epochs without gain before the end; default: 1024"
    )
    train.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    train.set_defaults(run=run_train)


def run_train(options: argparse.Namespace) -> int:
    """Train, write and report; return the exit code."""
    from tqdm import tqdm

    from xpkern.catalog.output import file_names
    from xpkern.model import load_model
    from xpkern.train.confidence import labelled_fits, train_confidence
    from xpkern.train.confidence_files import check_output, write_confidence
    from xpkern.train.labels import read_labels
    from xpkern.train.relu_network import NetworkSettings

    companion = str(file_names(Path(options.catalog))["diagnostics"])
    check_output(options.output, [options.catalog, companion, options.labels], overwrite=options.overwrite)
    model, prior = load_model(options.model)
    labels = read_labels(options.labels)
    fits = labelled_fits(options.catalog, labels, model, prior)
    settings = NetworkSettings(plateau=options.plateau, patience=options.patience)
    # None: silent unless standard error is a terminal
    with tqdm(unit=" epochs", desc="xpkern confidence", disable=None, leave=False) as progress:

        def told(parameter: str, epoch: int, loss: float) -> None:
            progress.set_postfix_str(f"{parameter} {loss:.4f}", refresh=False)
            progress.update()

        trained = train_confidence(fits, model, settings=settings, seed=options.seed, on_epoch=told)
    files = write_confidence(options.output, trained, model, prior)
    counted = ", ".join(f"{count:,} {condition}" for condition, count in trained.counts.items())
    print(f"stars: {counted}")
    for report in trained.reports:
        factor = report.scatter_factor
        others = f"the others are off {factor:.1f} times as much" if factor > 0 else "no others to compare with"
        print(
            f"{report.parameter:<5} held out {sum(report.held_out.values()):,}: ROC AUC {report.roc_auc:.3f}, "
            f"calibration error {report.calibration_error:.3f} ({report.calibration_error_before:.3f} before), "
            f"{100.0 * report.confident:.0f} % confident, {others}"
        )
    fewest = min(min(report.held_out["good"], report.held_out["bad"]) for report in trained.reports)
    if fewest < FEW_HELD_OUT:
        print(
            f"only {fewest} held-out stars of a class: these figures are rough, and so may the classifiers be; "
            "more labels, or labels of more kinds of stars, help"
        )
    print(", ".join(str(path) for path in files))
    return 0
