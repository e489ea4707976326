"""``xpkern compare``: a catalogue beside another one of the same stars."""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = """\
examples
  with the published catalogue (Zhang, Green & Rix 2023), or that with variable extinction curves (2025):
    xpkern compare catalog.h5 stellar_params_catalog_*.h5
    xpkern compare catalog.parquet xpparams_v2_zenodo_*.h5
  what another optimizer or model changes, in stars of any quality:
    xpkern compare catalog.h5 other.fits --all
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "compare",
        help="a catalogue beside the published one, or another one of the same stars",
        description="Join two catalogues by source_id and print how each parameter differs, first minus second.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("catalog", metavar="CATALOG", help="a catalogue of xpkern, in any format and layout")
    parser.add_argument("others", nargs="+", metavar="OTHER", help="another one, or files of the published catalogue")
    parser.add_argument(
        "--all", action="store_true", help="compare stars that do not pass quality_flags < 8 in both, too"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the comparison; return the exit code."""
    from xpkern.catalog.compare import compare_catalogs
    from xpkern.cli.catalog import expand

    found = compare_catalogs(options.catalog, list(expand(options.others)), reliable=not options.all)
    which = "all of them" if options.all else f"{found.compared:,} of them reliable in both"
    print(f"{found.common:,} of {found.first:,} sources are in both, {which}; first minus second:")
    print(f"  {'':<14}{'unit':>5}{'stars':>12}{'median':>10}{'width':>10}   {'in errors: median':>18}{'width':>7}")
    for line in found.parameters:
        digits = 1 if line.unit == "K" else 4
        print(
            f"  {line.name:<14}{line.unit:>5}{line.stars:>12,}{line.median:>10.{digits}f}{line.width:>10.{digits}f}"
            f"   {line.median_in_errors:>+18.2f}{line.width_in_errors:>7.2f}"
        )
    return 0
