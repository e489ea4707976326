"""``xpkern map``: dust in three dimensions from a catalogue, and pictures of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xpkern.cli.catalog import positive_integer

EPILOG = """\
examples
  dust in 40 distance bins to 5 kpc, as in Fig. 24 of Zhang, Green & Rix (2023), and its pictures:
    xpkern map catalog.h5 -o dust.fits
    xpkern map plot dust.fits
  their sky maps (Figs. 22, 23), of stars with precise distances; medians instead of weighted means:
    xpkern map catalog.h5 --cuts sky -o sky.fits
    xpkern map catalog.h5 --estimate median -o median.fits
  of a whole survey, reliable stars only, in bins of one's own:
    xpkern map catalog/ --cut quality_flags=8 --distances 0,0.1,0.2,0.4,0.8,1.6 -o dust.fits
  metallicity over the Galaxy:
    xpkern map catalog.h5 --quantity feh --distances 0.25,0.5,1,1.5,2,3,4,5 -o feh.fits

cuts, with the limits of --cuts birdseye; --cut NAME=LIMIT changes one, --cut NAME=off switches it off
  misfit          loss over degrees of freedom below 5
  quality_flags   off; 8 is the basic reliability cut
  confidence      off; for feh 0.5, above which feh_confidence must be
  value           E below 10 mag
  parallax_error  error of the estimated parallax below 0.33 of it; 0.1 in --cuts sky
  error           error of E below 0.04 mag

`xpkern map plot --help` explains the pictures. In Python: xpkern.read_map("dust.fits").query(coordinates).
"""

PLOT_EPILOG = """\
examples
  all three views, as dust.sky.png, dust.birdseye.png, dust.slices.png:
    xpkern map plot dust.fits
  the sky in bins of one's choice; the bird's-eye view beside Bayestar19, where dustmaps has it:
    xpkern map plot dust.fits --view sky --bins 8,12,16,20 -o sky.pdf
    xpkern map plot dust.fits --view birdseye --bayestar -o birdseye.png

views
  sky        what the dust between one panel's distance and the next adds to E; of feh, the mean in each bin
  birdseye   dE/dr averaged over |z| < 400 pc (Eq. 30); of feh, the mean
  slices     dE/dr in the planes z = 0, y = 0, x = 0
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command, and `xpkern map plot`."""
    parser = commands.add_parser(
        "map",
        help="dust in three dimensions from a catalogue, on the sky and from above; `map plot` draws it",
        description="Map the extinction (or metallicity) of a catalogue's stars in HEALPix pixels and distance bins.",
        usage="xpkern map CATALOG [CATALOG ...] -o FILE.fits [options]\n       xpkern map plot FILE.fits [options]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    _declare_map(parser)
    plot = argparse.ArgumentParser(
        prog="xpkern map plot",
        description="Draw a map that `xpkern map` made.",
        epilog=PLOT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    _declare_plot(plot)
    parser.further = (plot,)
    of_map = parser.parse_known_args

    def parse(arguments: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> Any:
        """`map plot` has options of its own: the word decides before argparse takes it for a catalogue."""
        given = list(arguments or ())
        if given[:1] == ["plot"]:
            return plot.parse_known_args(given[1:], namespace)
        return of_map(given, namespace)

    parser.parse_known_args = parse


def _declare_map(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "catalogs", nargs="+", metavar="CATALOG", help="catalogues of xpkern or published ones, in any format"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE.fits", help="the map to write")
    parser.add_argument("--quantity", choices=("ext", "feh"), default="ext", help="what to map; default: ext")
    parser.add_argument(
        "--estimate",
        choices=("weighted", "mean", "median"),
        default="weighted",
        help="of the stars of a cell: mean with weights 1 / error^2 (default), without weights, or median; stars wait "
        "for a median on the disk, 8 bytes each",
    )
    parser.add_argument(
        "--cuts", choices=("birdseye", "sky", "feh"), help="a named set of cuts; default: birdseye, of feh feh"
    )
    parser.add_argument("--cut", action="append", default=[], metavar="NAME=LIMIT", help="change one of them")
    parser.add_argument(
        "--distances",
        metavar="KPC,KPC,...",
        help="edges of the distance bins; default: 40 bins to 5 kpc, sinh(n arcsinh(5) / 40)",
    )
    parser.add_argument("--nside", default="256,128,64", metavar="N,N,...", help="finest first; default: %(default)s")
    parser.add_argument(
        "--min-stars",
        type=positive_integer,
        default=10,
        metavar="N",
        help="that a cell must have; default: %(default)s",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file of that name")
    parser.set_defaults(run=run)


def _declare_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("map", type=Path, metavar="FILE.fits", help="a map of `xpkern map`")
    parser.add_argument(
        "--view", action="append", choices=("sky", "birdseye", "slices"), help="may be repeated; default: all"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PICTURE", help=".png, .pdf or .svg, of one view; default: FILE.VIEW.png"
    )
    parser.add_argument("--bins", metavar="N,N,...", help="of the sky: distance bins, from 1; default: six or fewer")
    parser.add_argument("--extent", type=float, metavar="KPC", help="how far the views from outside reach")
    parser.add_argument(
        "--bayestar",
        nargs="?",
        const="",
        metavar="FILE",
        help="draw the map Bayestar19 beside the bird's-eye view: bayestar2019.h5; default: where dustmaps keeps it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace pictures of these names")
    parser.set_defaults(run=run_plot)


def run(options: argparse.Namespace) -> int:
    """Make the map and tell what became of the stars; return the exit code."""
    from tqdm import tqdm

    from xpkern.cli.catalog import expand
    from xpkern.maps.make import make_map
    from xpkern.maps.settings import CUTS, MapSettings

    cuts = CUTS[options.cuts] if options.cuts else MapSettings(options.quantity).limits
    chosen: dict[str, Any] = {}
    if options.distances is not None:
        chosen["edges"] = _numbers(options.distances, float, "distances")
    settings = MapSettings(
        quantity=options.quantity,
        estimate=options.estimate,
        nsides=_numbers(options.nside, int, "nside"),
        min_stars=options.min_stars,
        cuts=cuts.changed(options.cut),
        **chosen,
    )
    # None: silent unless standard error is a terminal
    with tqdm(unit=" stars", unit_scale=True, desc="xpkern map", disable=None, leave=False) as progress:
        found = make_map(
            list(expand(options.catalogs)),
            options.output,
            settings,
            overwrite=options.overwrite,
            on_rows=progress.update,
        )
    for name, number in found.outcomes.items():
        if number:
            print(f"{number:>14,}  {name}")
    if found.attributes["not_applied"]:
        print(f"NOT APPLIED, as the catalogue lacks their columns: cuts on {found.attributes['not_applied']}")
    print(f"places from {found.attributes['positions']}; misfit is {found.attributes['misfit']}")
    cells = sum(found.cells.values())
    if not cells:
        print(f"no cell has {settings.min_stars} stars: the map is empty")
    else:
        _print_biases(settings, found.per_bin)
        shares = ", ".join(f"{100 * number / cells:.0f} % nside {nside}" for nside, number in found.cells.items())
        print(f"{cells:,} cells with a number: {shares}")
    print(f"{found.rows:,} stars: {options.output}")
    return 0


def run_plot(options: argparse.Namespace) -> int:
    """Draw; return the exit code."""
    from xpkern.catalog.pending import refuse_taken
    from xpkern.errors import InputError
    from xpkern.maps.bayestar import bayestar_cube
    from xpkern.maps.figures import VIEWS, draw
    from xpkern.maps.map_file import read_map
    from xpkern.observe.reddening import DustMaps

    views = options.view or list(VIEWS)
    if options.output is not None and len(views) > 1:
        raise InputError("a picture is of one view: say which with --view", field="--output")
    if options.extent is not None and not 0 < options.extent < 100:
        raise InputError(f"{options.extent:g} kpc: not between 0 and 100", field="--extent")
    cube = read_map(options.map)
    if options.bayestar is not None and ("birdseye" not in views or cube.settings.quantity != "ext"):
        raise InputError("Bayestar19 is drawn beside the bird's-eye view of ext alone", field="--bayestar")
    bins = () if options.bins is None else _numbers(options.bins, int, "bins")
    pictures = {view: options.output or options.map.with_suffix(f".{view}.png") for view in views}
    for picture in pictures.values():
        refuse_taken(picture, [options.map], overwrite=options.overwrite)
    beside = None
    if options.bayestar is not None and cube.covered.any():
        beside = bayestar_cube(cube, DustMaps(Path(options.bayestar) if options.bayestar else None))
    for view, picture in pictures.items():
        draw(view, cube, picture, bins=bins, beside=beside, extent=options.extent)
        print(picture)
    return 0


def _print_biases(settings: Any, per_bin: Any) -> None:
    """What is known of the biases, for some of the bins that have pixels."""
    import numpy as np

    filled = np.flatnonzero(per_bin.pixels)
    shown = filled[np.unique(np.linspace(0, len(filled) - 1, min(8, len(filled))).round().astype(int))]
    print(f"mean {settings.quantity} [{settings.unit}], and what changes it (BINS in the file has all bins):")
    print(f"  {'distance [kpc]':<17}{'stars':>12}{'mean':>9}{'error cut':>11}{'weights':>9}{'scatter':>9}")
    for k in shown:
        print(
            f"  {settings.edges[k]:>7.3f} - {settings.edges[k + 1]:<7.3f}{per_bin.stars[k]:>12,}{per_bin.mean[k]:>9.4f}"
            f"{per_bin.cut[k]:>+11.4f}{per_bin.weights[k]:>+9.4f}{per_bin.scatter[k]:>+9.4f}"
        )


def _numbers(text: str, kind: type, field: str) -> tuple[Any, ...]:
    from xpkern.errors import InputError

    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{text!r} is no list of numbers, with commas between them", field=field) from None
