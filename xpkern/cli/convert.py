"""``xpkern convert``: bulk files of spectra into compact HDF5."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from xpkern.cli.catalog import WITH_UNUSABLE_INPUT, expand, positive_integer
from xpkern.errors import about_file

if TYPE_CHECKING:
    from xpkern.shards.convert import Converted

EPILOG = """\
examples
  bulk files of the archive, each to compact/NAME.h5, then a catalogue of these:
    xpkern convert XpContinuousMeanSpectrum_*.csv.gz -o compact/
    xpkern catalog compact/*.h5 --source gaia_source.csv -o catalog.h5
  four files side by side, every bit of the archive's numbers:
    xpkern convert XpContinuousMeanSpectrum_*.csv.gz --lossless --processes 4 -o compact/

what is written
  NAME.h5            the archive's columns that a fit needs, a dataset each, in chunks with checksums: 12.8 kB a row,
                     13.2 with --lossless (coefficients in 64 bits; errors and correlations have 32 in the archive)
  NAME.reasons.csv   only if rows could not be read: file, row, field and reason of each; in NAME.h5 they are marked,
                     and a catalogue of it counts them again
An output appears once it is complete. One that is there, of the same input, is not made again: the same command goes
on after any break. If an input breaks off, the rows before the break are kept as NAME.incomplete.h5.

exit code
  0    every row of every file is converted
  1    no file could be
  3    some files could not, or some rows could not be read
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "convert",
        help="bulk files of spectra as compact HDF5, for fits that are made more than once; resumable",
        description="Convert files of XP spectra, in any format that is read, to compact HDF5 with checksums.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="XP spectra, as xpkern catalog reads them")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder of the HDF5 files")
    parser.add_argument("--lossless", action="store_true", help="keep coefficients in 64 bits")
    parser.add_argument(
        "--processes", type=positive_integer, default=1, metavar="N", help="files converted side by side; default: 1"
    )
    parser.add_argument(
        "--calibration", metavar="FILE.npz", help="design matrices of the spectra's release; default: Gaia DR3"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace outputs of other inputs or options")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Convert; return the exit code."""
    from tqdm import tqdm

    from xpkern.shards.convert import convert_spectra

    started = time.perf_counter()
    with tqdm(unit=" rows", unit_scale=True, desc="xpkern convert", disable=None, leave=False) as progress:

        def on_file(file: Converted) -> None:
            if file.error:
                tqdm.write(f"xpkern: failed: {about_file(file.output, file.error)}", file=sys.stderr)

        summary = convert_spectra(
            list(expand(options.files)),
            options.output,
            lossless=options.lossless,
            calibration=options.calibration,
            processes=options.processes,
            overwrite=options.overwrite,
            on_progress=progress.update,
            on_file=on_file,
        )
    failed, there = len(summary.failed), summary.total("done_before")
    made = len(summary.files) - failed - there - summary.total("elsewhere")
    print(
        f"{made:,} files converted, {there:,} were there: {summary.total('rows'):,} rows in "
        f"{time.perf_counter() - started:.1f} s: {options.output}"
    )
    if summary.total("elsewhere"):
        print(f"{summary.total('elsewhere'):,} files are being converted by another process")
    unreadable = summary.total("unreadable")
    if unreadable:
        first = next(file.first_reason for file in summary.files if file.unreadable)
        reason = f"; the first: {first}" if first else ""  # a file that was there does not tell it
        print(f"xpkern: rows that could not be read: {unreadable:,}{reason}", file=sys.stderr)
    if failed == len(summary.files):
        return 1
    return WITH_UNUSABLE_INPUT if failed or unreadable else 0
