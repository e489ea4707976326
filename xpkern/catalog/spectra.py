"""From files of spectra to one of calibrated spectra: fluxes, errors and whiteners, a block of stars at a time."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xpkern.catalog.output import SPECTRA_KINDS, TableOutput, checked_output
from xpkern.catalog.provenance import provenance_of_spectra
from xpkern.catalog.run import (
    InputSummary,
    check_files,
    log_reader,
    threads_and_rows,
    with_what_was_kept,
)
from xpkern.catalog.schema import SOURCE_ID, STATUS, Column
from xpkern.engine import Engine, get_engine
from xpkern.engine.contract import Float64
from xpkern.engine.packed import present_samples, sample_variance
from xpkern.errors import DeviceFailed, InputError
from xpkern.grid import N_FLUX, N_PACKED, WAVELENGTH
from xpkern.model import load_model
from xpkern.threads import in_order

if TYPE_CHECKING:
    from xpkern.model import FluxModel
    from xpkern.observe.calibration import Calibration
    from xpkern.observe.observations import Observations
    from xpkern.observe.photometry import PhotometryCuts
    from xpkern.observe.xp_block import XpBlock

log = logging.getLogger(__name__)

#: Unit of the fluxes.
UNIT = "1e-18 W m-2 nm-1"


def _of_present(values: Callable[[Observations], Float64]) -> Callable[[Observations], Float64]:
    return lambda stars: np.where(present_samples(stars.whitener), values(stars), np.nan)


def _of_measured(values: Callable[[Observations], Float64]) -> Callable[[Observations], Float64]:
    return lambda stars: np.where(np.isfinite(stars.plx_err), values(stars), np.nan)


#: Columns of a file of spectra; their values come from :class:`xpkern.Observations`.
SPECTRA = (
    SOURCE_ID,
    STATUS,
    Column(
        "parallax",
        "float64",
        "mas",
        "pos.parallax.trig",
        "parallax, zero point subtracted",
        _of_measured(attrgetter("plx")),
    ),
    Column(
        "parallax_error",
        "float64",
        "mas",
        "stat.error;pos.parallax.trig",
        "standard error of parallax",
        _of_measured(attrgetter("plx_err")),
    ),
    Column(
        "flux",
        "float32",
        UNIT,
        "phot.flux.density;em.wl",
        "flux at each wavelength of the attribute wavelength [nm], the infrared bands last; NaN where missing",
        _of_present(attrgetter("flux")),
        (N_FLUX,),
    ),
    Column(
        "flux_error",
        "float32",
        UNIT,
        "stat.error;phot.flux.density;em.wl",
        "standard error of flux: root of the diagonal of its covariance C, the noise model's terms included",
        _of_present(lambda stars: np.sqrt(sample_variance(stars.whitener))),
        (N_FLUX,),
    ),
)

#: The column that makes a file of spectra long: 8.8 kB a star.
WHITENER = Column(
    "whitener",
    "float32",
    "",
    "stat.covariance;phot.flux.density",
    "factor G of C = G G^T: lower triangle, row-major, with 1 / G_jj on the diagonal and 0 for missing samples; "
    "xpkern.Observations.from_arrays takes it as packed_factor",
    attrgetter("whitener"),
    (N_PACKED,),
)


def write_spectra(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    gaia_source: Any = None,
    photometry: Any = None,
    model: FluxModel | None = None,
    calibration: Calibration | None = None,
    sigma: str | None = None,
    engine: str | Engine = "auto",
    threads: int | None = None,
    photometry_cuts: PhotometryCuts | None = None,
    parallax_zero_point: str = "lindegren2021",
    whiteners: bool = True,
    overwrite: bool = False,
    rows: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> InputSummary:
    """Calibrate every star of XP files and write fluxes, errors and whiteners.

    Every source of the input has a row, in the order of the input. Memory is bounded by blocks of stars; the files'
    bytes depend neither on ``rows`` nor on ``threads``.

    Parameters
    ----------
    paths, gaia_source, photometry, calibration, engine, threads, photometry_cuts, parallax_zero_point
        As :func:`xpkern.make_catalog` takes them.
    output : path-like
        Name of the file; its ending says the format: ``.h5``, ``.fits``, ``.parquet`` (or ``.ecsv``, for a few stars).
        ``<name>.reasons.csv`` beside it lists rows that could not be read.
    model : FluxModel, optional
        Whose noise is added to the archive's covariance; the default model when not given.
    sigma : {"archive", "zgr23"}, optional
        How the archive's errors are read; as the model's noise says when not given.
    whiteners : bool
        Whether to write them: 8.8 kB a star, of 9.4.
    overwrite : bool
        Whether a file of that name is replaced.
    rows : int, optional
        Stars of a block.
    on_progress : callable, optional
        Called with the number of stars of each finished block.

    Returns
    -------
    InputSummary

    Raises
    ------
    InputError
        As :func:`xpkern.make_catalog`.
    """
    from xpkern.observe.calibration import Calibration
    from xpkern.observe.gaia_source import SourceTable
    from xpkern.observe.read import XpReader
    from xpkern.observe.spectra import one_by_one

    files = [Path(paths)] if isinstance(paths, (str, os.PathLike)) else [Path(path) for path in paths]
    check_files(files)
    tables = SourceTable.files_of((gaia_source, *one_by_one(photometry)))
    checked_output(output, [*files, *tables], overwrite=overwrite, kinds=SPECTRA_KINDS)
    noise = (load_model()[0] if model is None else model).noise
    noise = noise if sigma is None else replace(noise, sigma=sigma)
    calibration = Calibration.default() if calibration is None else calibration
    engine = get_engine(engine)
    reader = XpReader(files, gaia_source, photometry, calibration, noise, engine, photometry_cuts, parallax_zero_point)
    threads, rows = threads_and_rows(engine, threads, rows)
    log_reader(reader, threads, rows)
    attributes = {
        **reader.provenance,
        **provenance_of_spectra(noise, calibration, engine.name, getattr(engine, "instruction_set", "")),
        "wavelength": WAVELENGTH,
    }

    def observe(block: XpBlock | None) -> Observations:
        return reader.observe(block).on_host()

    columns = (*SPECTRA, WHITENER) if whiteners else SPECTRA
    blocks = in_order(reader.blocks(rows), observe, threads=threads)
    summary = InputSummary(input_rules=reader.provenance)
    with (
        TableOutput(output, {"spectra": (columns, attributes)}, SPECTRA_KINDS) as files_written,
        contextlib.closing(blocks),
    ):
        try:
            for observations in blocks:
                files_written.append(observations)
                files_written.append_reasons(observations.reasons)
                summary.count_input(observations, observations.status)
                if on_progress is not None:
                    on_progress(len(observations))
        except (InputError, DeviceFailed) as error:
            raise with_what_was_kept(error, files_written, summary.counts, reader.files) from error
        summary.files = files_written.commit(attributes=summary.counts)
    log.info("written: %s", ", ".join(str(name) for name in summary.files.values()))
    return summary
