"""``xpkern predict``: the model's spectrum of one star."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpkern.errors import InputError

if TYPE_CHECKING:
    from astropy.table import Table

    from xpkern.model import FluxModel

EPILOG = """\
examples
  the Sun at 100 pc behind a little dust, as a table on standard output (ECSV):
    xpkern predict --teff 5.77 --feh 0 --logg 4.44 --ext 0.1 --plx 10
  a red giant, as a table in a file and as a plot:
    xpkern predict --teff 4.6 --feh -0.3 --logg 2.4 --ext 0.5 --plx 0.8 -o giant.ecsv --plot giant.png
"""

#: Formats of ``-o`` by the ending of the name, as astropy calls them.
FORMATS = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".fits": "fits"}


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "predict",
        help="the model spectrum of a star, as a table or a plot",
        description="Predict the flux of a star at the 61 XP samples and in the bands J, H, Ks, W1, W2.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("--teff", type=float, required=True, metavar="KILOKELVIN", help="effective temperature in kK")
    parser.add_argument("--feh", type=float, required=True, metavar="DEX", help="metallicity [Fe/H]")
    parser.add_argument("--logg", type=float, required=True, metavar="DEX", help="log10 of surface gravity in cm s-2")
    parser.add_argument("--ext", type=float, default=0.0, metavar="E", help="extinction E, close to E(B-V); default: 0")
    parser.add_argument("--plx", type=float, default=1.0, metavar="MAS", help="parallax; default: 1 (at 1 kpc)")
    parser.add_argument("--model", metavar="FILE", help="model file; default: the one that comes with xpkern")
    parser.add_argument("-o", "--output", metavar="FILE", help=f"write the table to a file: {', '.join(FORMATS)}")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the spectrum")
    parser.add_argument("--overwrite", action="store_true", help="replace these files if they exist")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Predict, then print, write and draw what was asked for; return the exit code."""
    import numpy as np

    from xpkern.catalog.pending import PendingFile, refuse_taken
    from xpkern.grid import PARAMETERS
    from xpkern.model import load_model

    if options.output is not None and Path(options.output).suffix not in FORMATS:
        raise InputError(f"the name must end in one of {', '.join(FORMATS)}", file=options.output)
    for name in (options.output, options.plot):
        if name is not None:
            refuse_taken(Path(name), [] if options.model is None else [options.model], overwrite=options.overwrite)
    model, prior = load_model(options.model)
    star = {name: getattr(options, name) for name in PARAMETERS}
    table = spectrum_table(model, star)
    stellar_type = np.array([[star[name] for name in PARAMETERS[: model.n_inputs]]])
    if prior.ln_density(stellar_type)[0] < prior.ln_prior_threshold:
        print("xpkern: this stellar type lies outside the region the model was trained on", file=sys.stderr)
    if options.output is not None:
        with PendingFile(Path(options.output)) as partial:
            table.write(partial, format=FORMATS[Path(options.output).suffix])
    elif options.plot is None:
        table.write(sys.stdout, format="ascii.ecsv")
    if options.plot is not None:
        from xpkern.report.spectrum_plot import plot_spectrum

        plot_spectrum(Path(options.plot), model, star)
    return 0


def spectrum_table(model: FluxModel, star: dict[str, float]) -> Table:
    """Return the spectrum as a table: wavelength, flux, where the sample belongs, whether it rests on theory alone."""
    from astropy import units
    from astropy.table import Column, Table

    from xpkern.grid import BANDS, N_XP

    table = Table(
        [
            Column(model.wavelength, "wavelength", unit=units.nm),
            Column(
                model.predict(**star)[0],
                "flux",
                unit=1e-18 * units.W / units.m**2 / units.nm,
                description="predicted flux density",
            ),
            Column(["XP"] * N_XP + list(BANDS), "band"),
            Column(model.theoretical, "theoretical", description="the model of this sample was not learned from data"),
        ]
    )
    table.meta.update(star, units="teff in kK, plx in mas", model=model.digest)
    return table
