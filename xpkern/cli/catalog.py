"""``xpkern catalog``: from Gaia files to a catalogue."""

from __future__ import annotations

import argparse
import glob
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpkern.catalog.run import CatalogSummary

EPILOG = """\
examples
  one bulk file of the archive, with parallaxes and magnitudes from a gaia_source table:
    xpkern catalog XpContinuousMeanSpectrum_000000-003111.csv.gz --source gaia_source.csv -o catalog.h5
  many files in the layout of the published catalogue (Zhang, Green & Rix 2023):
    xpkern catalog XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv --layout zgr23 -o catalog.h5
  read it:
    python -c "import h5py; f = h5py.File('catalog.h5'); print(f['teff'][:5], f['teff'].attrs['unit'])"

what is written
  catalog.h5               one row per source of the input, in its order; a source that could not be fitted has
                           NaN and a status that says why
  catalog.diagnostics.h5   the same rows: normalised residuals, loss, gradient, iterations
  catalog.reasons.csv      only if rows could not be read: file, row, field and reason of each
Nothing appears under these names before it is complete. If an input file breaks off, the rows before the break are
kept as catalog.incomplete.h5 (and its companions) and the exit code is 1.

exit code
  0    every source of the input was read, and found in the gaia_source table if one was given
  1    no catalogue, or none of its stars could be fitted
  3    the catalogue is complete, but some rows could not be read or have no gaia_source row: one line says how many
"""

#: Exit code of a catalogue that is complete although some of its input was unusable.
WITH_UNUSABLE_INPUT = 3


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "catalog",
        help="fit the stars of Gaia XP files and write a catalogue",
        description="Fit the stars of Gaia XP continuous spectra files and write a catalogue in HDF5.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="XP continuous spectra: csv or csv.gz")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.h5", help="the catalogue to write")
    parser.add_argument(
        "--source",
        metavar="TABLE",
        help="gaia_source table (csv) with source_id, parallax, parallax_error, ra, dec, phot_g_mean_mag; "
        "2MASS and WISE columns are used where it has them",
    )
    parser.add_argument(
        "--photometry", metavar="TABLE", help="2MASS and WISE magnitudes by source_id, if in another table"
    )
    parser.add_argument("--model", metavar="FILE", help="model file; default: the one that comes with xpkern")
    parser.add_argument(
        "--layout",
        choices=("default", "zgr23"),
        default="default",
        help="columns: default (Gaia style, teff in K) or zgr23 (as published, teff in kK)",
    )
    parser.add_argument(
        "--sigma",
        choices=("archive", "zgr23"),
        help="how the archive's coefficient errors are read; default: as the model file says (archive)",
    )
    parser.add_argument(
        "--starts",
        type=positive_integer,
        metavar="N",
        help="searches of each star at most, where unlike starts promise as much; the lowest minimum is taken and the "
        "second lowest goes into the diagnostics. 1 is a quarter faster and misses the best minimum for 1 star in 80, "
        "1 in 10 without a parallax. default: 4",
    )
    parser.add_argument(
        "--optimizer",
        choices=("newton", "zgr23"),
        default="newton",
        help="how the minimum is sought: newton, or the recipe of the published catalogue (grid of 31,232 candidates, "
        "8,192 steps of Adam, gradient descent), hundreds of times slower. default: newton",
    )
    parser.add_argument(
        "--noise",
        choices=("learned", "eq2"),
        help="learned: a second pass under the covariance that the model's residuals have taught; eq2: Eq. 2 of ZGR23 "
        "alone. default: learned where the model file has it and the optimizer is newton",
    )
    add_engine_options(parser)
    parser.set_defaults(run=run)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of every command that fits stars."""
    parser.add_argument(
        "--engine",
        choices=("auto", "cuda", "cpu", "reference"),
        default="auto",
        help="what computes: cuda is an NVIDIA GPU (CUDA_VISIBLE_DEVICES says which); default: the fastest there is",
    )
    parser.add_argument(
        "--threads",
        type=positive_integer,
        metavar="N",
        help="default: XPKERN_NUM_THREADS, OMP_NUM_THREADS, or every core this process may use",
    )


def positive_integer(text: str) -> int:
    """Parse a number of threads."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def run(options: argparse.Namespace) -> int:
    """Write the catalogue; return the exit code."""
    from tqdm import tqdm

    from xpkern.catalog import make_catalog
    from xpkern.engine.contract import FitOptions
    from xpkern.model import load_model

    started = time.perf_counter()
    model, prior = load_model(options.model)
    # None: silent unless standard error is a terminal
    with tqdm(unit=" stars", unit_scale=True, desc="xpkern catalog", disable=None, leave=False) as progress:
        summary = make_catalog(
            list(expand(options.files)),
            options.output,
            gaia_source=options.source,
            photometry=options.photometry,
            model=model,
            prior=prior,
            layout=options.layout,
            optimizer=options.optimizer,
            options=None if options.starts is None else FitOptions(starts=options.starts),
            sigma=options.sigma,
            noise=options.noise,
            engine=options.engine,
            threads=options.threads,
            on_progress=progress.update,
        )
    print_summary(summary, time.perf_counter() - started)
    if summary.rows and not summary.fitted:
        print("xpkern: no star could be fitted; the status column says why", file=sys.stderr)
        return 1
    unusable = unusable_input(summary)
    if unusable:
        print(f"xpkern: {unusable}", file=sys.stderr)
        return WITH_UNUSABLE_INPUT
    return 0


def unusable_input(summary: CatalogSummary) -> str:
    """Say in one line which sources of the input were unusable in part or whole; empty if none was."""
    from xpkern.status import Status

    said = []
    if summary.status[Status.BAD_ROW]:
        where = f" ({summary.files['reasons']}); the first: {summary.first_reason}"
        said.append(f"rows that could not be read: {summary.status[Status.BAD_ROW]:,}{where}")
    if summary.status[Status.NO_GAIA_SOURCE]:
        said.append(f"sources without a row in the gaia_source table: {summary.status[Status.NO_GAIA_SOURCE]:,}")
    return "; ".join(said)


def expand(patterns: Iterable[str]) -> Iterable[str]:
    """Names of files, with wildcards that no shell has expanded."""
    for pattern in patterns:
        names = sorted(glob.glob(pattern)) if not Path(pattern).exists() else []
        yield from names or [pattern]


def print_summary(summary: CatalogSummary, seconds: float) -> None:
    """Say what was written, and how many stars have each bit of status and quality_flags."""
    from xpkern.catalog.flags import MEANING as MEANING_OF_FLAG
    from xpkern.status import MEANING

    share = 100.0 * summary.fitted / max(summary.rows, 1)
    files = ", ".join(str(name) for name in reversed(summary.files.values()))
    print(f"{summary.rows:,} stars, {summary.fitted:,} fitted ({share:.1f} %) in {seconds:.1f} s: {files}")
    for bit, count in summary.status.items():
        if count:
            print(f"  {count:>10,}  status {int(bit)} {bit.name}: {MEANING[bit]}")
    for flag, count in summary.quality_flags.items():
        if count:
            print(f"  {count:>10,}  quality_flags {int(flag)} {flag.name}: {MEANING_OF_FLAG[flag]}")
