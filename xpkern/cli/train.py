"""``xpkern train``: a model from labelled stars."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from xpkern.cli.catalog import add_engine_options, expand

EPILOG = """\
examples
  a model from the stars of a label survey, by our recipe:
    xpkern train labels.fits --spectra XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv -o model.h5
  by that of Zhang, Green & Rix (2023), or by one's own:
    xpkern train labels.fits --spectra *.csv.gz --source gaia_source.csv --recipe zgr23 -o model.h5
    xpkern train labels.fits --spectra *.csv.gz --source gaia_source.csv --recipe my.toml -o model.h5
  use it:
    xpkern catalog XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv --model model.h5 -o catalog.h5

labels
  A table (FITS, ECSV, CSV, VOTable, Parquet, HDF5) with source_id, teff, teff_err (by the unit of the column; without
  one, numbers above 100 are K, else kK), feh, feh_err, logg, logg_err, and perhaps ext, ext_err and the columns of the
  recipe's cuts: snr_g, snr_r, snr_i, fidelity_v2, bp_rp_flux_excess, ruwe. The gaia_source table may have these, too.
  A cut whose column is in neither is reported as not applied. Of several surveys (a column with their names, survey)
  the offsets in teff, feh, logg are solved for. Without any parallaxes: --recipe no_parallax.

a recipe of one's own
  base = "default"          # or "zgr23": what is not said here is as there
  [cuts]
  snr_g = 30.0
  [phase.joint]
  rounds = 48

what is written
  model.h5         the model with its prior, its provenance and a model card
  model.stars.h5   the training stars, the loss of each epoch, the extinction curve after each phase
  model.*.png      loss, extinction curve, drift of the parameters from the labels, prior
  model.work/      9.3 kB a star, while the run lasts: a run that was stopped goes on there when called again
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "train",
        help="train a model on labelled stars",
        description="Train a model of XP spectra on stars whose types are known from elsewhere.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("labels", metavar="LABELS", help="table of stellar types by source_id")
    parser.add_argument(
        "--spectra", nargs="+", required=True, metavar="FILE", help="XP continuous spectra: csv or csv.gz"
    )
    parser.add_argument(
        "--source",
        required=True,
        metavar="TABLE",
        help="gaia_source table with source_id and, where known, parallax, parallax_error; 2MASS and WISE columns and "
        "those of the cuts are used where it has them",
    )
    parser.add_argument(
        "--photometry",
        action="append",
        metavar="TABLE",
        help="2MASS and WISE magnitudes by source_id, if in another table; may be repeated",
    )
    parser.add_argument(
        "--reddening", metavar="TABLE", help="ext, ext_err by source_id, if the labels have none: from a dust map, say"
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE.npz",
        help="design matrices of the release that the spectra are of, as for xpkern catalog; default: Gaia DR3",
    )
    parser.add_argument(
        "--recipe",
        default="default",
        metavar="NAME",
        help="default, large, zgr23, no_parallax or a TOML file; default: default",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE.h5", help="the model to write")
    parser.add_argument("--restart", action="store_true", help="throw away what an earlier run has left in model.work")
    parser.add_argument("--no-figures", action="store_true", help="draw nothing")
    parser.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="SECONDS", help="at most so often; default: 60"
    )
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train; return the exit code."""
    from tqdm import tqdm

    from xpkern.observe.calibration import Calibration
    from xpkern.train.phases import Progress
    from xpkern.train.run import train

    started = time.perf_counter()
    # None: silent unless standard error is a terminal
    with (
        tqdm(unit=" spectra", unit_scale=True, desc="xpkern train: reading", disable=None, leave=False) as reading,
        tqdm(unit="", desc="xpkern train", disable=None, leave=False) as training,
    ):

        def on_progress(done: Progress) -> None:
            if training.disable:
                return
            if not training.desc.startswith(done.phase):
                training.set_description(done.phase)
                training.reset(total=done.units)
                training.update(done.unit)
            if done.record is not None:
                training.set_postfix(
                    model=f"{done.record.model_loss:.4g}", validation=f"{done.record.validation_loss:.4g}"
                )
            training.update()

        outcome = train(
            options.labels,
            list(expand(options.spectra)),
            options.output,
            gaia_source=options.source,
            photometry=options.photometry,
            reddening=options.reddening,
            calibration=None if options.calibration is None else Calibration.load(options.calibration),
            recipe=options.recipe,
            engine=options.engine,
            threads=options.threads,
            restart=options.restart,
            figures=not options.no_figures,
            checkpoint_seconds=options.checkpoint_every,
            log=lambda text: tqdm.write(text, file=sys.stdout),
            on_stars=reading.update,
            on_progress=on_progress,
        )
    print(
        f"{outcome.stars['training']:,} stars trained on in {time.perf_counter() - started:.1f} s; "
        f"{outcome.stars['held_out']:,} held-out stars: mean loss {outcome.validation_loss:.2f}, "
        f"median {outcome.validation_median:.2f}: {options.output}"
    )
    if outcome.unseen:
        print(f"not learned, as hardly a star has them: {', '.join(outcome.unseen)}")
    return 0
