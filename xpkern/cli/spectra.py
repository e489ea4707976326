"""``xpkern spectra``: from Gaia files to calibrated spectra."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from xpkern.cli.catalog import (
    WITH_UNUSABLE_INPUT,
    add_engine_options,
    add_input_options,
    expand,
    input_of,
    print_input,
    unfitted_input,
    unusable_input,
)

EPILOG = """\
examples
  fluxes with errors, with the infrared bands of a gaia_source table, to look at in TOPCAT:
    xpkern spectra XpContinuousMeanSpectrum_000000-003111.csv.gz --source gaia_source.csv --no-whiteners -o spectra.fits
  all that a fit needs, for code of your own:
    xpkern spectra XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv -o spectra.h5
    python -c "import h5py, xpkern as xk; f = h5py.File('spectra.h5'); model, prior = xk.load_model(); print(
        xk.fit(xk.Observations.from_arrays(flux=f['flux'][:9], packed_factor=f['whitener'][:9],
        plx=f['parallax'][:9], plx_err=f['parallax_error'][:9], noise=model.noise), model, prior))"
  noise tells what noise the whiteners hold: without it the fit takes them for those of the measurement alone

what is written
  one row per source of the input, in its order: source_id, status, parallax, flux and flux_error (66 samples, in
  1e-18 W m-2 nm-1, at the wavelengths of the attribute wavelength), whitener (2,211 numbers, 8.8 kB);
  NAME.reasons.csv only if rows could not be read

exit code
  0    every source of the input was read, and found in the gaia_source table if one was given
  1    no file (its name is taken, an input is unusable, ...), or none of its stars has anything to fit
  3    the file is complete, but some rows could not be read or have no gaia_source row: one line says how many
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "spectra",
        help="calibrate the spectra of Gaia XP files: fluxes, errors, whiteners",
        description="Calibrate the spectra of Gaia XP continuous spectra files and write fluxes, errors and whiteners.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="the file to write; its ending says the format: .h5, .fits, .parquet, .ecsv",
    )
    parser.add_argument("--no-whiteners", action="store_true", help="leave out the column that takes most of the space")
    add_input_options(parser)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the spectra; return the exit code."""
    from tqdm import tqdm

    from xpkern.catalog.spectra import write_spectra
    from xpkern.cli.catalog import model_beside

    started = time.perf_counter()
    read = input_of(options)
    model, _ = model_beside(options.model, options.output)
    # None: silent unless standard error is a terminal
    with tqdm(unit=" stars", unit_scale=True, desc="xpkern spectra", disable=None, leave=False) as progress:
        summary = write_spectra(
            list(expand(options.files)),
            options.output,
            **read,
            model=model,
            whiteners=not options.no_whiteners,
            on_progress=progress.update,
        )
    *_, table = summary.files.values()
    print(f"{summary.rows:,} stars in {time.perf_counter() - started:.1f} s: {table}")
    print_input(summary)
    if summary.rows and not summary.usable:
        print(f"xpkern: {table}: {unfitted_input(summary)}", file=sys.stderr)
        return 1
    unusable = unusable_input(summary)
    if unusable:
        print(f"xpkern: {unusable}", file=sys.stderr)
        return WITH_UNUSABLE_INPUT
    return 0
