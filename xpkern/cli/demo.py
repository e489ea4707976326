"""``xpkern demo``: a small survey, simulated, fitted and drawn."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xpkern.cli.catalog import positive_integer

EPILOG = """\
example
  xpkern demo --output-dir xpkern-demo
writes into that folder the simulated survey in Gaia's own bulk format with its gaia_source table, the catalogue that
`xpkern catalog` makes of them, and a page that compares it with the truth.
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "demo",
        help="simulate a small survey, fit it, compare with the truth",
        description="Simulate a small survey in Gaia's bulk format, run it through the whole path, draw what came out. "
        "Downloads nothing and takes seconds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("--output-dir", default="xpkern-demo", metavar="FOLDER", help="default: xpkern-demo")
    parser.add_argument("--stars", type=positive_integer, default=2000, metavar="N", help="default: 2000")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the simulated survey; default: 1")
    parser.add_argument(
        "--threads",
        type=positive_integer,
        metavar="N",
        help="default: XPKERN_NUM_THREADS, OMP_NUM_THREADS, or every core this process may use",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demonstration; return the exit code."""
    from xpkern import demo

    return demo.run(Path(options.output_dir), n_stars=options.stars, seed=options.seed, threads=options.threads)
