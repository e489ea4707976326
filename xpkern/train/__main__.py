"""``python -m xpkern.train default -o default.h5`` makes the model that comes with the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xpkern.errors import XpkernError
from xpkern.train.default_model import PARTS, make_default_model
from xpkern.train.packages import default_cache


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m xpkern.train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    default = commands.add_parser("default", help="fetch the stars (160 MB), learn, judge, write model and card")
    default.add_argument("-o", "--output", type=Path, default=Path("default.h5"), help="model file (default.h5)")
    default.add_argument("--cache", type=Path, default=default_cache(), help="folder for downloads (%(default)s)")
    default.add_argument(
        "--held-out",
        choices=sorted(PARTS),
        default="test",
        help="stars the card's residuals are from: test, or validation while settings are being chosen (test)",
    )
    options = parser.parse_args(arguments)
    try:
        make_default_model(options.output, options.cache, part=options.held_out)
    except XpkernError as error:
        print(f"xpkern.train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
