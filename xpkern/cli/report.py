"""``xpkern report``: figures and numbers of a catalogue as one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EPILOG = """\
examples
  a catalogue by itself; open report/index.html in any browser, no network needed:
    xpkern report catalog.h5 -o report/
  beside labels (xpkern labels writes such tables), or the truth of a simulated survey:
    xpkern report catalog.h5 --labels labels.fits -o report/
    xpkern report catalog.h5 --labels survey/truth.fits -o report/
  beside another catalogue, or the published one:
    xpkern report catalog.h5 --compare stellar_params_catalog_*.h5 -o report/
  a cluster's parallaxes, a model of one's own and its training:
    xpkern report catalog.h5 --members ngc6752.ecsv --distance 4.12 -o report/
    xpkern report catalog.h5 --model model.h5 --training model.stars.h5 -o report/

what is written
  index.html     the page: needs neither network nor scripts, and nothing of the folder but for the links
  figures/       each figure as PNG and PDF          data/       what each is made of, as ECSV

labels
  source_id and any of teff, feh, logg, ext, plx; errors are called teff_err or teff_error and may be missing. A
  temperature is in the unit of its column; without one, numbers above 100 are K, else kK.

  A figure whose columns are not there says what it needs. `catalog.diagnostics.h5` beside `catalog.h5` is found by
  itself: the figures of the fluxes come from it.
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "report",
        help="figures and numbers of a catalogue as one page",
        description="Draw what a catalogue holds and how it compares with labels or another catalogue: one HTML page.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument(
        "catalog", nargs="+", metavar="CATALOG", help="a catalogue in any format and layout, or its files"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--labels", metavar="TABLE", help="what other surveys measured, by source_id")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="FILE", help="another catalogue, or files of the published one"
    )
    parser.add_argument("--members", metavar="TABLE", help="a cluster's members by source_id; perhaps with pmra, pmdec")
    parser.add_argument("--distance", type=float, metavar="KPC", help="of the cluster")
    parser.add_argument("--model", metavar="FILE", help="model to draw; the shipped one when not given")
    parser.add_argument("--training", metavar="FILE", help="model.stars.h5 of a training run")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier report of that name")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the report; return the exit code."""
    from xpkern.cli.catalog import expand
    from xpkern.report.run import write_report

    page = write_report(
        list(expand(options.catalog)),
        Path(options.output),
        labels=options.labels,
        compare=list(expand(options.compare)),
        members=options.members,
        distance=options.distance,
        model=options.model,
        training=options.training,
        overwrite=options.overwrite,
    )
    print(page)
    return 0
