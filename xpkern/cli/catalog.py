"""``xpkern catalog``: from Gaia files to a catalogue."""

from __future__ import annotations

import argparse
import glob
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpkern.catalog.run import CatalogSummary, InputSummary
    from xpkern.model import FluxModel, TypePrior

#: Names and usual values as :class:`xpkern.observe.photometry.PhotometryCuts` has them; a test holds the two together,
#: as the help must not wait for libraries.
CUTS = """\
  twomass_quality=A        letters of ph_qual that count           twomass_norm_dg=-5     norm_dg must be below
  twomass_extended=false   whether matches with an ext_key count   unwise_norm_dg=-10     norm_dg must be below
  unwise_separation=0.25   distance [arcsec] must be below         unwise_fracflux=0.8    must be above
  unwise_error=0.2         fractional error must be below          unwise_qf=0.8          must be above"""

EPILOG = f"""\
examples
  one bulk file of the archive, with parallaxes and magnitudes from a gaia_source table:
    xpkern catalog XpContinuousMeanSpectrum_000000-003111.csv.gz --source gaia_source.csv -o catalog.h5
  many files in the layout of the published catalogue (Zhang, Green & Rix 2023):
    xpkern catalog XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv --layout zgr23 -o catalog.h5
  for TOPCAT or LSDB, with 2MASS and unWISE matches of their own, and more of unWISE than usual:
    xpkern catalog XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv --photometry two_mass.fits \\
        --photometry infrared.parquet --photometry-cut unwise_qf=0.5 -o catalog.parquet
  spectra of another release, with its design matrices:
    xpkern catalog spectra.parquet --calibration dr4.npz --source gaia_source.parquet -o catalog.h5
  read it:
    python -c "from astropy.table import Table; print(Table.read('catalog.parquet')['source_id', 'teff', 'teff_error'])"

what is written
  catalog.h5               (or .fits, .ecsv, .parquet) one row per source of the input, in its order; a source
                           that could not be fitted has NaN and a status that says why
  catalog.diagnostics.h5   the same rows: normalised residuals, loss, gradient, iterations
  catalog.reasons.csv      only if rows could not be read: file, row, field and reason of each
Nothing appears under these names before it is complete. If an input file breaks off, the rows before the break are
kept as catalog.incomplete.h5 (and its companions) and the exit code is 1.

cuts of the photometry (--photometry-cut NAME=VALUE, or NAME=off), and their usual values
{CUTS}
The summary says how many measurements each of them removed; the catalogue's attributes do, too.

exit code
  0    every source of the input was read, and found in the gaia_source table if one was given
  1    no catalogue (its name is taken, an input is unusable, ...), or none of its stars could be fitted
  3    the catalogue is complete, but some rows could not be read or have no gaia_source row: one line says how many
"""

#: Exit code of a catalogue that is complete although some of its input was unusable.
WITH_UNUSABLE_INPUT = 3


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "catalog",
        help="fit the stars of Gaia XP files and write a catalogue",
        description="Fit the stars of Gaia XP continuous spectra files and write a catalogue.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="the catalogue to write; its ending says the format: .h5, .fits, .ecsv or .parquet",
    )
    add_input_options(parser)
    parser.add_argument(
        "--layout",
        choices=("default", "zgr23"),
        default="default",
        help="columns: default (Gaia style, teff in K) or zgr23 (as published, teff in kK)",
    )
    parser.add_argument(
        "--starts",
        type=positive_integer,
        metavar="N",
        help="searches of each star at most, where unlike starts promise as much; the lowest minimum is taken and the "
        "second lowest goes into the diagnostics. 1 is a quarter faster and misses the best minimum for 1 star in 80, "
        "1 in 10 without a parallax. default: 4",
    )
    parser.add_argument(
        "--optimizer",
        choices=("newton", "zgr23"),
        default="newton",
        help="how the minimum is sought: newton, or the recipe of the published catalogue (grid of 31,232 candidates, "
        "8,192 steps of Adam, gradient descent), hundreds of times slower. default: newton",
    )
    parser.add_argument(
        "--noise",
        choices=("learned", "eq2"),
        help="learned: a second pass under the covariance that the model's residuals have taught; eq2: Eq. 2 of ZGR23 "
        "alone. default: learned where the model file has it and the optimizer is newton",
    )
    add_engine_options(parser)
    parser.set_defaults(run=run)


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of every command that reads spectra: these, tables beside them, what is made of both."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="XP spectra, continuous (or sampled, which are marked so): csv, ECSV, FITS, VOTable, HDF5, Parquet, AVRO, "
        "any of them gzipped; told apart by their content",
    )
    add_table_options(parser)


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """Declare what goes with spectra, wherever these are named: tables, how both are read, the model."""
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument(
        "--source",
        metavar="TABLE",
        help="gaia_source table (csv, or another format) with source_id, parallax, parallax_error, ra, dec, "
        "phot_g_mean_mag; 2MASS and WISE columns are used where it has them",
    )
    parser.add_argument(
        "--photometry",
        action="append",
        metavar="TABLE",
        help="2MASS and unWISE by source_id, if in another table, in the archives' names: j_m, j_msigcom, ..., "
        "ph_qual, ext_key, norm_dg; flux_w1, dflux_w1, fracflux_w1, qf_w1, ..., separation; may be repeated: the first "
        "table that has 2MASS gives it, and the first that has unWISE; that of --source is the last",
    )
    parser.add_argument(
        "--photometry-cut",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a cut on the photometry, or switch it off (NAME=off); may be repeated",
    )
    parser.add_argument(
        "--parallax-zero-point",
        choices=("lindegren2021", "none"),
        default="lindegren2021",
        help="what is subtracted from the parallaxes of sources whose gaia_source row has phot_g_mean_mag, "
        "nu_eff_used_in_astrometry, pseudocolour, ecl_lat and astrometric_params_solved; default: lindegren2021",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE.npz",
        help="design matrices of the release that the spectra are of, as xpkern.Calibration.save writes them; "
        "default: Gaia DR3",
    )
    parser.add_argument("--model", metavar="FILE", help="model file; default: the one that comes with xpkern")
    parser.add_argument(
        "--sigma",
        choices=("archive", "zgr23"),
        help="how the archive's coefficient errors are read; default: as the model file says (archive)",
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of every command that fits stars."""
    parser.add_argument(
        "--engine",
        choices=("auto", "cuda", "cpu", "reference"),
        default="auto",
        help="what computes: cuda is an NVIDIA GPU (CUDA_VISIBLE_DEVICES says which); default: the fastest there is",
    )
    parser.add_argument(
        "--threads",
        type=positive_integer,
        metavar="N",
        help="default: XPKERN_NUM_THREADS, OMP_NUM_THREADS, or every core this process may use",
    )


def input_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of :func:`add_input_options` and :func:`add_engine_options` say, as keywords of what reads."""
    from xpkern.observe.calibration import Calibration
    from xpkern.observe.photometry import PhotometryCuts

    return {
        "gaia_source": options.source,
        "photometry": options.photometry,
        "calibration": None if options.calibration is None else Calibration.load(options.calibration),
        "sigma": options.sigma,
        "engine": options.engine,
        "threads": options.threads,
        "photometry_cuts": PhotometryCuts.parse(options.photometry_cut),
        "parallax_zero_point": options.parallax_zero_point,
        "overwrite": options.overwrite,
    }


def positive_integer(text: str) -> int:
    """Parse a number of threads."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def run(options: argparse.Namespace) -> int:
    """Write the catalogue; return the exit code."""
    from tqdm import tqdm

    from xpkern.catalog import make_catalog
    from xpkern.engine.contract import FitOptions

    started = time.perf_counter()
    read = input_of(options)
    model, prior = model_beside(options.model, options.output)
    # None: silent unless standard error is a terminal
    with tqdm(unit=" stars", unit_scale=True, desc="xpkern catalog", disable=None, leave=False) as progress:
        summary = make_catalog(
            list(expand(options.files)),
            options.output,
            **read,
            model=model,
            prior=prior,
            layout=options.layout,
            optimizer=options.optimizer,
            options=None if options.starts is None else FitOptions(starts=options.starts),
            noise=options.noise,
            on_progress=progress.update,
        )
    print_summary(summary, time.perf_counter() - started)
    if summary.rows and not summary.fitted:
        print(f"xpkern: {summary.files['catalog']}: {unfitted_input(summary)}", file=sys.stderr)
        return 1
    unusable = unusable_input(summary)
    if unusable:
        print(f"xpkern: {unusable}", file=sys.stderr)
        return WITH_UNUSABLE_INPUT
    return 0


def model_beside(path: str | None, output: str) -> tuple[FluxModel, TypePrior]:
    """The model file that was asked for, or the one that comes with xpkern; it must not be the output."""
    import numpy as np

    from xpkern.catalog.output import CATALOG_KINDS, checked_output
    from xpkern.errors import ModelFileError
    from xpkern.grid import WAVELENGTH
    from xpkern.model import load_model

    if path is None:
        return load_model()
    checked_output(output, [path], kinds=CATALOG_KINDS)
    model, prior = load_model(path)
    if model.wavelength.shape != WAVELENGTH.shape or not np.allclose(model.wavelength, WAVELENGTH):
        raise ModelFileError("other wavelengths than those of the spectra", file=path, field="flux/wavelength")
    return model, prior


def unfitted_input(summary: InputSummary) -> str:
    """Say in one line why there is a catalogue or a file of spectra, but no star of it can be fitted."""
    said = "no star could be fitted; its column status says why"
    if "reasons" in summary.files:
        said += f", and {summary.files['reasons']} of rows that could not be read; the first: {summary.first_reason}"
    return said


def unusable_input(summary: InputSummary) -> str:
    """Say in one line which sources of the input were unusable in part or whole; empty if none was."""
    from xpkern.status import Status

    said = []
    if summary.status[Status.BAD_ROW]:
        where = f" ({summary.files['reasons']}); the first: {summary.first_reason}"
        said.append(f"rows that could not be read: {summary.status[Status.BAD_ROW]:,}{where}")
    if summary.status[Status.NO_GAIA_SOURCE]:
        said.append(f"sources without a row in the gaia_source table: {summary.status[Status.NO_GAIA_SOURCE]:,}")
    return "; ".join(said)


def expand(patterns: Iterable[str]) -> Iterable[str]:
    """Names of files, with wildcards that no shell has expanded."""
    for pattern in patterns:
        names = sorted(glob.glob(pattern)) if not Path(pattern).exists() else []
        yield from names or [pattern]


def print_summary(summary: CatalogSummary, seconds: float) -> None:
    """Say what was written, and how many stars have each bit of status and quality_flags."""
    from xpkern.catalog.flags import MEANING as MEANING_OF_FLAG

    share = 100.0 * summary.fitted / max(summary.rows, 1)
    files = ", ".join(str(name) for name in reversed(summary.files.values()))
    print(f"{summary.rows:,} stars, {summary.fitted:,} fitted ({share:.1f} %) in {seconds:.1f} s: {files}")
    print_input(summary)
    for flag, count in summary.quality_flags.items():
        if count:
            print(f"  {count:>10,}  quality_flags {int(flag)} {flag.name}: {MEANING_OF_FLAG[flag]}")


def print_input(summary: InputSummary) -> None:
    """Say how many stars have each bit of status, how many the tables of photometry have, what each cut removed, and
    what was corrected.
    """
    from xpkern.status import MEANING

    for bit, count in summary.status.items():
        if count:
            print(f"  {count:>10,}  status {int(bit)} {bit.name}: {MEANING[bit]}")
    for name, count in summary.counts.items():
        if name.startswith("photometry_sources_"):
            table = name.removeprefix("photometry_sources_")
            print(f"  {count:>10,}  sources with a row in photometry table {table}")
    if again := summary.counts.get("sources_in_earlier_files"):
        print(f"  {again:>10,}  rows of sources that an earlier file has, too")
    for name, setting in summary.input_rules.items():
        cut = name.removeprefix("photometry_cut_")
        if name == "parallax_zero_point":
            _print_count(summary.counts.get("parallaxes_corrected"), "parallaxes corrected, zero point", name, setting)
        elif not str(setting).startswith("not applied: no such"):
            _print_count(summary.counts.get(f"photometry_removed_{cut}"), f"measurements removed, {cut}", cut, setting)
    if unusable := summary.counts.get("photometry_removed_no_positive_flux"):
        print(f"  {unusable:>10,}  measurements without a positive flux or an error")


def _print_count(count: int | None, what: str, name: str, setting: object) -> None:
    """Print what was counted, or why nothing was."""
    print(f"  {'':>10}  {name}: {setting}" if count is None else f"  {count:>10,}  {what} = {setting}")
