"""``xpkern reddening``: extinctions of stars from a map of dust, for training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xpkern.cli.catalog import positive_integer

EPILOG = """\
examples
  once: the reader of maps, and the maps (gigabytes) into its data folder:
    pip install "xpkern[dust]"
    python -c "import dustmaps.bayestar as map; map.fetch()"
    python -c "import dustmaps.sfd as map; map.fetch()"
  then:
    xpkern reddening gaia_source.csv -o reddening.fits
    xpkern train labels.fits --reddening reddening.fits --spectra *.csv.gz --source gaia_source.csv -o model.h5

what is written
  source_id, ext, ext_err, origin. E is that of Bayestar19 averaged over the star's distance and the map's samples, in
  the map's unit, close to E(B-V); outside the map, for stars more than 400 pc from the plane, that of SFD. The error is
  that average's, 0.03 mag and 10 % in quadrature. Other stars have no number: for training their E is unknown.
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "reddening",
        help="reddening of stars from the dust map Bayestar19, for training",
        description="Look stars up in the dust map Bayestar19 at the distances their parallaxes tell.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("source", metavar="TABLE", help="source_id, ra, dec, parallax, parallax_error")
    parser.add_argument("--map", type=Path, metavar="FILE", help="bayestar2019.h5; default: where dustmaps keeps it")
    parser.add_argument("--sfd", type=Path, metavar="FOLDER", help="of SFD_dust_4096_ngp.fits and _sgp.fits; likewise")
    parser.add_argument(
        "--samples", type=positive_integer, metavar="N", help="of the map to load, to save memory; default: all (5)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the distances drawn; default: 0")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.fits", help="the table to write")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Look up, write and count; return the exit code."""
    from tqdm import tqdm

    from xpkern.observe.reddening import DustMaps, check_name, reddening

    check_name(Path(options.output))
    maps = DustMaps(options.map, options.sfd, options.samples)
    # None: silent unless standard error is a terminal
    with tqdm(unit=" stars", unit_scale=True, desc="xpkern reddening", disable=None, leave=False) as progress:
        found = reddening(options.source, maps, seed=options.seed, on_stars=progress.update)
    found.write(Path(options.output))
    for origin, number in found.counts.items():
        print(f"{number:>12,}  {origin}")
    print(f"{len(found):,} stars: {options.output}")
    return 0
