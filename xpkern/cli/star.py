"""``xpkern star``: everything about one star."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xpkern.cli.catalog import add_engine_options, add_table_options, expand, input_of
from xpkern.errors import InputError

EPILOG = """\
examples
  a star of a survey, beside its row of the catalogue:
    xpkern star 4295806720 --spectra XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv \\
        --catalog catalog.h5 -o star/
  beside the published catalogue (Zhang, Green & Rix 2023), with more samples:
    xpkern star 4295806720 --spectra XpContinuousMeanSpectrum_000000-003111.csv.gz --source gaia_source.csv \\
        --catalog stellar_params_catalog_*.h5 --samples 40000 -o star/
  priors of the dust and of the distance in place of uniform ones:
    xpkern star 4295806720 --spectra spectra.parquet --ext-scale 0.3 --distance-scale 1.35 -o star/

where the star is looked for
  The archive names files by the pixels of their sources (000000-003111), and a source_id tells its pixel: only files
  that can have the star are opened. Files of other names are searched; text is parsed only where the number occurs.

what is written
  spectrum.png      spectrum with errors, best fit, what is left of it, infrared bands
  corner.png        the posterior: each parameter, each pair; beside it the fit's error, other modes, the catalogue
  profiles.png      the loss around the optimum: others held, others at their best, what the fit's error makes of it
  parameters.ecsv   optimum, its error, quantiles, the catalogue's values and the difference
  modes.ecsv        every minimum that was found: where, how low, and its weight
  samples.ecsv      the samples with their weights
  summary.txt       all of it in words, as it is printed

what the posterior is
  exp(-chi2/2) with the measured parallax, times priors that end at the edge of a box: p_GMM for the stellar type; for E
  and the parallax uniform ones, which is what Eq. 19 means, or --ext-scale and --distance-scale. All modes that many
  searches find count by their weight. "ratio" is half of the central 68.3 % over the error of the fit: above 1.25 that
  error is too small for this star.
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "star",
        help="one star: spectrum, fit, posterior, modes, beside a catalogue",
        description="Find one star in files of spectra, fit it, sample its posterior, draw and tabulate all of it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("source_id", type=_source_id, metavar="SOURCE_ID", help="Gaia's identifier of the star")
    parser.add_argument(
        "--spectra",
        nargs="+",
        required=True,
        metavar="FILE",
        help="files of XP spectra, of any form that catalog reads",
    )
    parser.add_argument(
        "--catalog", nargs="+", default=[], metavar="FILE", help="a catalogue whose values stand beside"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where pictures and tables are written")
    parser.add_argument("--samples", type=int, default=10_000, metavar="N", help="of the posterior; default: 10000")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples; default: 0")
    parser.add_argument(
        "--ext-scale", type=float, metavar="MAG", help="prior exp(-E / MAG) of the extinction; default: uniform"
    )
    parser.add_argument(
        "--distance-scale",
        type=float,
        metavar="KPC",
        help="prior of an exponentially decreasing space density of that scale; default: uniform in parallax",
    )
    parser.add_argument(
        "--noise", choices=("learned", "eq2"), help="as xpkern catalog; default: learned where there is one"
    )
    add_table_options(parser)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Find, fit, sample, write; return the exit code."""
    import math

    from xpkern.fit.posterior import posterior
    from xpkern.fit.sightline_prior import SightlinePrior
    from xpkern.model import load_model
    from xpkern.observe.find_star import read_star
    from xpkern.report.star import FILES, catalog_row, check_folder, summary, write_star

    folder = Path(options.output)
    check_folder(folder, overwrite=options.overwrite)
    if options.samples < 1:
        raise InputError(f"{options.samples} is not a positive number", field="samples")
    sightline = SightlinePrior(math.inf if options.ext_scale is None else options.ext_scale, options.distance_scale)
    read = input_of(options)
    del read["overwrite"]
    sigma = read.pop("sigma")
    model, prior = load_model(options.model)
    noise = model.noise if sigma is None else _with_sigma(model.noise, sigma)
    row = None
    if options.catalog:
        row = catalog_row(options.source_id, list(expand(options.catalog)))
    observations = read_star(options.source_id, list(expand(options.spectra)), noise=noise, **read)
    found = posterior(
        observations,
        model,
        prior,
        samples=options.samples,
        seed=options.seed,
        sightline=sightline,
        noise=options.noise,
        engine=options.engine,
        threads=options.threads,
    )
    write_star(folder, found, row, overwrite=options.overwrite)
    print(summary(found, row), end="")
    print()
    for name, what in FILES.items():
        print(f"{folder / name!s:<28} {what}")
    return 0


def _with_sigma(noise: Any, sigma: str) -> Any:
    from dataclasses import replace

    return replace(noise, sigma=sigma)


def _source_id(text: str) -> int:
    """Parse an identifier of Gaia's."""
    number = int(text)
    if not 0 < number < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text} is no identifier of Gaia's")
    return number
