"""``xpkern fetch``: download what a catalogue of some sources needs."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from xpkern.cli.catalog import positive_integer
from xpkern.errors import InputError

EPILOG = """\
examples
  a degree around a point, then its catalogue (with unWISE, too: xpkern match --help, and --photometry once more):
    xpkern fetch --region 'CIRCLE 180 30 1' -o region/
    xpkern catalog region/xp_continuous-*.csv.gz --source region/gaia_source.fits --photometry region/two_mass.fits \\
        -o region/catalog.h5
  the sources of one of Gaia's 3,386 files:
    xpkern fetch --range 000000-003111 -o range/
  sources of one's own: their numbers, one a line or a column source_id of a table, or a query:
    xpkern fetch --ids ids.csv -o mine/
    xpkern fetch --adql query.sql -o mine/
  from an archive that is slow today, smaller pieces, which it may take ten minutes for:
    xpkern fetch --region 'CIRCLE 180 30 1' --piece 500 --timeout 600 -o region/

what is written
  gaia_source.fits           astrometry, photometry, fidelity
  two_mass.fits              J, H, Ks of the best neighbour, where it has a band of quality A and is no extended source
  xp_continuous-NNNNN.csv.gz spectra: coefficients, errors, correlations
  missing.csv                only if something did not come: source_id and reason of each
  fetch.json                 what is complete: the same command goes on after any break, and asks once more for spectra
                             that did not come
The whole sky is better downloaded in bulk: http://cdn.gea.esac.esa.int/Gaia/gdr3/Spectroscopy/xp_continuous_mean_spectrum

exit code
  0    everything came that was asked for
  1    nothing more came: the archive refuses or does not answer, or an option is wrong; what has come so far stays
  3    complete, but some spectra did not come though gaia_source says that there are, or some of the sources that were
       named were not found (not in gaia_source, or without XP spectra): one line each says how many
"""

#: Exit code of a download that is complete although something in it did not come.
PARTIAL = 3


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "fetch",
        help="download spectra, gaia_source and 2MASS of a region or of given sources; resumable",
        description="Download XP spectra, gaia_source and 2MASS of a region or of given sources from the Gaia archive.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--region",
        metavar="SHAPE",
        help="'CIRCLE ra dec radius', 'BOX ra dec width height' or 'POLYGON ra dec ra dec …', in degrees",
    )
    which.add_argument("--range", metavar="NNNNNN-NNNNNN", help="range in the name of one of Gaia's files")
    which.add_argument("--ids", metavar="FILE", help="numbers of sources")
    which.add_argument("--adql", metavar="FILE.sql", help="a query that returns source_id")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER")
    parser.add_argument(
        "--piece", type=positive_integer, default=2000, metavar="N", help="sources asked for at a time; default: 2000"
    )
    parser.add_argument("--tap", metavar="URL", help="of another archive's TAP service")
    parser.add_argument("--datalink", metavar="URL", help="of another archive's server of spectra")
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="how long a server may be silent before it is asked again; more where it is slow to pack spectra, less "
        "where connections are lost. default: 300",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Download; return the exit code."""
    from tqdm import tqdm

    from xpkern.archive import Archive, Selection, fetch

    selection: Any
    if options.region is not None:
        selection = Selection.region(options.region)
    elif options.range is not None:
        selection = Selection.file_range(options.range)
    elif options.ids is not None:
        selection = _numbers(Path(options.ids))
    else:
        selection = _text(Path(options.adql))
    given = {"tap_url": options.tap, "data_url": options.datalink, "timeout": options.timeout}
    archive = Archive(
        tell=lambda text: tqdm.write(f"xpkern: {text}", file=sys.stderr),
        **{name: value for name, value in given.items() if value is not None},
    )
    started = time.perf_counter()
    with tqdm(unit=" sources", desc="xpkern fetch", disable=None, leave=False) as progress:
        summary = fetch(options.output, selection, archive=archive, piece=options.piece, on_sources=progress.update)
    asked = f"{summary.asked:,} asked for: " if summary.asked else ""
    print(
        f"{asked}{summary.sources:,} sources, {summary.with_spectra:,} with spectra, "
        f"{summary.with_two_mass:,} with 2MASS, in {time.perf_counter() - started:.1f} s: {summary.folder}"
    )
    lost = summary.sources - summary.with_spectra
    if lost:
        print(
            f"xpkern: no spectra of {lost:,} sources came: {summary.missing} lists them, the same command asks again",
            file=sys.stderr,
        )
    if summary.not_found:
        print(
            f"xpkern: {summary.not_found:,} of {summary.asked:,} sources were not found (not in gaia_source, or "
            f"without XP spectra): {summary.missing} lists them",
            file=sys.stderr,
        )
    return PARTIAL if summary.missing else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError("is no text", file=str(path)) from None


def _is_source_id(word: str) -> bool:
    return word.isascii() and word.isdigit() and int(word) < 1 << 63


def _numbers(path: Path) -> list[int]:
    """Numbers of sources: one a line, or the column source_id of a table."""
    if path.suffix.lower() in (".txt", ".csv", ".ids"):
        lines = [line.strip() for line in _text(path).splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if lines and not any("," in line for line in lines):
            words = [line.strip('"') for line in lines]
            words = words[1:] if words[0].lower() == "source_id" else words
            if not words:
                raise InputError("no source in it", file=str(path), field="source_id")
            wrong = next((row for row, word in enumerate(words, 1) if not _is_source_id(word)), None)
            if wrong is not None:
                raise InputError(f"{words[wrong - 1]!r} is no source_id", file=str(path), row=wrong, field="source_id")
            return [int(word) for word in words]
    from xpkern.observe.gaia_source import SourceTable

    return [int(number) for number in SourceTable.of(path, "", ()).source_id]
