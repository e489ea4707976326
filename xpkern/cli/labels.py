"""``xpkern labels``: one table of labels from the catalogues of spectroscopic surveys."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xpkern.errors import InputError

EPILOG = """\
examples
  stars of LAMOST, the hot ones by Hot Payne, as Zhang, Green & Rix (2023):
    xpkern labels lamost=dr8_v2.0_LRS_stellar.fits hot_payne=hot_payne.fits.gz --source gaia_source.csv -o labels.fits
  APOGEE, and GALAH's stars that APOGEE does not have:
    xpkern labels apogee=allStarLite-dr17-synspec_rev1.fits galah=GALAH_DR3_main_allstar_v2.fits -o labels.fits
  train on them:
    xpkern train labels.fits --spectra XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv -o model.h5

surveys
  lamost      DR8 v2.0, AFGK stars          hot_payne   Xiang et al. (2022)
  apogee      DR17 allStar or allStarLite   galah       DR3 or DR4 allstar
  table       source_id, teff, teff_err, feh, feh_err, logg, logg_err, and perhaps survey, ext, ext_err

  A star in several of them is taken from the one that is named first; by how much they differ on such stars is printed
  and kept in the table's header. LAMOST names sources by an earlier Gaia release: with --source its spectra are matched
  by position, within 0.25 arcsec.

limits (--limit NAME=VALUE, or --limit SURVEY.NAME=VALUE)
"""


def _limits() -> str:
    """The usual limits, as lines of the help."""
    from xpkern.train.label_surveys import SURVEYS

    lines = []
    for name, releases in SURVEYS.items():
        for survey in releases:
            cuts = [str(cut.at(limit)) for cut, limit in survey.cuts.values()]
            lines.append(f"  {name} {survey.release}: {', '.join([*cuts, *map(str, survey.masks)])}")
    return "\n".join([*lines, "  inf lifts a limit, -inf that of a signal-to-noise ratio, 0 that of a flag."])


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help with the usual limits at its end, which are looked up when somebody reads it, not when a command runs."""

    def add_text(self, text: str | None) -> None:
        super().add_text(EPILOG + _limits() if text is EPILOG else text)


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "labels",
        help="labels for training from catalogues of LAMOST, APOGEE, GALAH",
        description="Read catalogues of spectroscopic surveys and write one table of stellar types by source_id.",
        epilog=EPILOG,
        formatter_class=_Help,
        parents=[common],
    )
    parser.add_argument("catalogues", nargs="+", metavar="SURVEY=FILE", help="the first one that has a star counts")
    parser.add_argument(
        "--source", metavar="TABLE", help="gaia_source table with source_id, ra, dec, to match LAMOST's spectra to"
    )
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help="another limit, see below")
    parser.add_argument(
        "--floor",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="smallest error: teff_err (kK), feh_err, logg_err; default: 0.02 each",
    )
    parser.add_argument(
        "--hot-from", type=float, default=7.0, metavar="KILOKELVIN", help="where Hot Payne begins to count; default: 7"
    )
    parser.add_argument(
        "--separation", type=float, default=0.25, metavar="ARCSEC", help="of a spectrum and its source; default: 0.25"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE.fits", help="the table to write")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read, write and count; return the exit code."""
    from xpkern.train.label_table import make_label_table

    table = make_label_table(
        _pairs(options.catalogues, "SURVEY=FILE"),
        gaia_source=options.source,
        limits=_numbers(options.limit),
        floors=_numbers(options.floor),
        hot_from=options.hot_from,
        separation=options.separation,
    )
    table.write(Path(options.output))
    print("\n".join(table.lines()))
    print(f"{len(table):,} stars: {options.output}")
    return 0


def _pairs(texts: Sequence[str], form: str) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in texts]
    for text, (name, _, value) in zip(texts, pairs, strict=True):
        if not name or not value:
            raise InputError(f"{text!r} is not of the form {form}")
    return [(name, value) for name, _, value in pairs]


def _numbers(texts: Sequence[str]) -> dict[str, float]:
    numbers = {}
    for name, value in _pairs(texts, "NAME=VALUE"):
        try:
            numbers[name] = float(int(value, 0)) if value[:2].lower() == "0x" else float(value)
        except ValueError:
            raise InputError(f"{value!r} is no number", field=name) from None
    return numbers
