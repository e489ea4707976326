"""``xpkern match``: another survey's catalogue by source_id, matched on the sky."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from xpkern.cli.catalog import expand, positive_integer
from xpkern.errors import InputError

EPILOG = """\
examples
  unWISE, then a catalogue with its photometry:
    xpkern match unwise unwise_*.fits --to gaia_source.h5 -o infrared.parquet
    xpkern catalog XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv --photometry infrared.parquet -o cat.h5
  LAMOST, then labels:
    xpkern match lamost dr8_v2.0_LRS_stellar.fits --to gaia_source.h5 -o lamost.fits
    xpkern labels lamost=lamost.fits -o labels.fits
  any catalogue, some of its columns; sources moved to the year of its positions; pairs that are each other's nearest:
    xpkern match table.csv --ra raj2000 --dec dej2000 --columns jmag,hmag --to gaia_source_*.csv.gz --epoch 2000 \\
        --radius 1 --one-to-one -o matched.ecsv

surveys
  unwise   radius 0.25 arcsec (as ZGR23's cut); its nearest star of each source; primary rows; photometry and norm_dg of
           the sources; epoch 2016.1 (mean of its images), so that motion hardly matters
  lamost   radius 0.25 arcsec (ZGR23, section 2.2); the nearest source of each spectrum, as a star may have many; no
           common epoch

what is written
  source_id, separation [arcsec] and the columns of the catalogue, by source_id, in the format of the ending: .h5,
  .fits, .ecsv or .parquet. Its own ra, dec and source_id get the survey's name: unwise_ra, ... A number that is
  missing is NaN; a whole number that is missing the least one of its type.
Printed, and among the attributes of the file: how many each rule left out. Positions that are no numbers match nothing.
Neither side need fit into memory: a gigabyte is enough; on disk both need some 100 bytes a row beside the output.
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "match",
        help="match unWISE, LAMOST or any catalogue to Gaia's sources on the sky",
        description="Match a catalogue to Gaia's sources on the sky; what it says of them is written by source_id.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument(
        "catalogue",
        nargs="+",
        metavar="FILE",
        help="unwise or lamost and the files of its catalogue, or those of any other: csv, ECSV, FITS, VOTable, HDF5, "
        "Parquet, any of them gzipped; of several files all rows",
    )
    parser.add_argument(
        "--to",
        nargs="+",
        required=True,
        metavar="TABLE",
        help="Gaia's sources, in any of these formats: source_id, ra, dec [deg]; pmra, pmdec, ref_epoch for --epoch",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="the table to write: .h5, .fits, .ecsv or .parquet"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument(
        "--radius", type=float, metavar="ARCSEC", help="largest separation; default: the survey's, see below"
    )
    parser.add_argument(
        "--nearest-of-each",
        choices=("source", "row"),
        help="source: each source with its nearest row, at most one; row: each row with its nearest source, so that a "
        "source may have several. default: the survey's, or source",
    )
    parser.add_argument("--one-to-one", action="store_true", help="only pairs of which each is the other's nearest")
    parser.add_argument(
        "--epoch",
        type=float,
        metavar="YEAR",
        help="move the sources by their proper motions to this year, of the catalogue's positions; default: not moved",
    )
    parser.add_argument("--ra", metavar="NAME", help="the catalogue's column of right ascensions [deg]; default: ra")
    parser.add_argument("--dec", metavar="NAME", help="and of declinations [deg]; default: dec")
    parser.add_argument(
        "--columns",
        metavar="NAME,NAME",
        help="what to write of it; default: all numbers and texts, or as the survey says",
    )
    parser.add_argument("--threads", type=positive_integer, metavar="N", help="default: as xpkern catalog")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Match, write and count; return the exit code."""
    from tqdm import tqdm

    from xpkern.catalog.match import SURVEYS, match_tables

    survey, files = None, list(options.catalogue)
    if files[0] in SURVEYS:
        survey, *files = files
        if not files:
            raise InputError(f"name the files of {survey}: xpkern match {survey} FILE ... --to TABLE", field="FILE")
    elif not Path(files[0]).suffix and not any(Path(file).exists() for file in expand(files[:1])):
        raise InputError(f"neither a file nor a survey that is known: {', '.join(SURVEYS)}", file=files[0])
    if options.one_to_one and options.nearest_of_each is not None:
        raise InputError("does not go with --one-to-one, which is both", field="--nearest-of-each")
    started = time.perf_counter()
    with tqdm(unit=" rows", unit_scale=True, desc="xpkern match", disable=None, leave=False) as progress:
        summary = match_tables(
            list(expand(files)),
            list(expand(options.to)),
            options.output,
            survey=survey,
            ra=options.ra,
            dec=options.dec,
            columns=None if options.columns is None else [name.strip() for name in options.columns.split(",")],
            radius=options.radius,
            nearest_of=options.nearest_of_each,
            one_to_one=options.one_to_one,
            epoch=options.epoch,
            overwrite=options.overwrite,
            threads=options.threads,
            on_rows=progress.update,
        )
    print(
        f"{summary.sources:,} sources, {summary.rows:,} rows, {summary.matches:,} matches in "
        f"{time.perf_counter() - started:.1f} s: {summary.file}"
    )
    for what, count in summary.removed.items():
        print(f"  {count:>12,}  {what}")
    if summary.left_out:
        print(f"  {'':>12}  not written, as they are arrays: {', '.join(summary.left_out)}")
    return 0
