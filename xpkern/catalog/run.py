"""From files of spectra to a catalogue, a block of stars at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog import flags
from xpkern.catalog.output import CATALOG_KINDS, CatalogOutput, TableOutput, checked_output
from xpkern.catalog.provenance import provenance, provenance_of_fit
from xpkern.catalog.rows import StarRows, star_rows
from xpkern.catalog.schema import columns_of
from xpkern.engine import Engine, block_stars, get_engine, keeping
from xpkern.engine.contract import FitOptions, LossTerms
from xpkern.errors import DeviceFailed, DeviceOutOfMemory, InputError
from xpkern.fit.fit import default_terms, fit, noise_of, options_of
from xpkern.fit.start import start_grid
from xpkern.model import load_model
from xpkern.status import UNFITTED, Status
from xpkern.threads import in_order, number_of_threads

if TYPE_CHECKING:
    from xpkern.fit.result import Fit
    from xpkern.fit.zgr23 import Zgr23Options
    from xpkern.model import FluxModel, TypePrior
    from xpkern.observe.calibration import Calibration
    from xpkern.observe.observations import Observations
    from xpkern.observe.photometry import PhotometryCuts
    from xpkern.observe.read import XpReader
    from xpkern.observe.xp_block import XpBlock

log = logging.getLogger(__name__)

#: Stars that all threads together have in memory, and stars of a block at least and at most. Each takes 25 kB, 8.8 of
#: them its whitener: those of the largest block are 31.7 MB, and 32 are what the C library asks the system for anew
#: each time, which has to clear it.
MOST_STARS, FEWEST_STARS_OF_A_BLOCK, MOST_STARS_OF_A_BLOCK = 16384, 256, 3584

#: Threads that have a block on a GPU at a time: one reads, others copy and write, and the GPU is never without work.
MOST_GPU_THREADS = 6


@dataclass
class InputSummary:
    """What was read, and what was wrong with it.

    Attributes
    ----------
    files : dict of str to Path
        The files written by kind: ``"catalog"`` and ``"diagnostics"``, or ``"spectra"``, and ``"reasons"`` if rows
        could not be read.
    rows : int
        Stars.
    usable : int
        Stars that can be fitted: their rows could be read, and hold a spectrum or photometry.
    status : Counter
        How many stars have each bit, by the bit.
    first_reason : str
        File, row, field and message of the first row that could not be read; empty where all could.
    counts : Counter of str
        How many infrared measurements each cut removed, how many sources the tables of photometry have, how many
        parallaxes were corrected, and how many sources were in an earlier file, too (:class:`xpkern.Observations`).
    input_rules : dict of str to str or number
        Setting of each cut and name of the zero point, or why there is none.
    """

    files: dict[str, Path] = field(default_factory=dict)
    rows: int = 0
    usable: int = 0
    status: Counter[Status] = field(default_factory=Counter)
    first_reason: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    input_rules: dict[str, object] = field(default_factory=dict)

    def count_input(self, observations: Observations, status: NDArray[np.uint32]) -> None:
        """Add a block of stars, whose status may tell more than that of the observations."""
        self.rows += len(observations)
        self.usable += int(np.count_nonzero((status & np.uint32(UNFITTED)) == 0))
        some = int(np.bitwise_or.reduce(status))
        for bit in Status:
            self.status[bit] += int(np.count_nonzero(status & np.uint32(bit))) if some & bit else 0
        self.counts.update(observations.counts)
        if observations.reasons and not self.first_reason:
            _, row, name, message = observations.reasons[0]
            self.first_reason = str(InputError(message, row=row, field=name or None))

    def not_applied(self) -> dict[str, str]:
        """Why, by the names of ``input_rules``, for those that could not be applied to the measurements there are."""
        from xpkern.observe.photometry import NO_MAGNITUDES, NOT_APPLIED

        said = {name: str(setting) for name, setting in self.input_rules.items() if setting != NO_MAGNITUDES}
        return {name: why for name, why in said.items() if why.startswith(NOT_APPLIED)}


@dataclass
class CatalogSummary(InputSummary):
    """What is in a catalogue.

    Attributes
    ----------
    fitted : int
        Stars with a solution.
    quality_flags : Counter
        How many stars have each bit, by the bit.
    """

    fitted: int = 0
    quality_flags: Counter[flags.QualityFlags] = field(default_factory=Counter)

    def count(self, rows: StarRows, fitted: NDArray[np.bool_], observations: Observations) -> None:
        """Add a block of stars."""
        self.count_input(observations, rows.status)
        self.fitted += int(fitted.sum())
        for flag in flags.QualityFlags:
            self.quality_flags[flag] += int(np.count_nonzero(rows.quality_flags & np.uint8(flag)))


def make_catalog(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    gaia_source: Any = None,
    photometry: Any = None,
    model: FluxModel | None = None,
    prior: TypePrior | None = None,
    calibration: Calibration | None = None,
    layout: str = "default",
    sigma: str | None = None,
    engine: str | Engine = "auto",
    threads: int | None = None,
    terms: LossTerms | None = None,
    optimizer: str | Zgr23Options = "newton",
    options: FitOptions | None = None,
    noise: str | None = None,
    photometry_cuts: PhotometryCuts | None = None,
    parallax_zero_point: str = "lindegren2021",
    overwrite: bool = False,
    rows: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> CatalogSummary:
    """Fit every star of XP files and write a catalogue.

    Every source of the input has a row, in the order of the input; one that cannot be fitted has NaN and a status.
    Each thread has a block of stars of its own, from coefficients to the rows of the catalogue, while one of them reads
    the next from the file. Memory is bounded by these blocks. The files' bytes depend neither on ``rows`` nor on
    ``threads``.

    Parameters
    ----------
    paths : path-like or sequence of path-like
        XP continuous spectra, as :func:`xpkern.read_xp` takes them.
    output : path-like
        Name of the catalogue; its ending says the format: ``.h5``, ``.fits``, ``.ecsv`` or ``.parquet``. Beside it
        come ``<name>.diagnostics.h5`` (or another ending) and, if rows could not be read, ``<name>.reasons.csv``.
        None of them exists under its name before all are complete.
    gaia_source, photometry : path-like, table or mapping, optional
        Parallaxes, positions, magnitudes by source_id, as :func:`xpkern.read_xp` takes them; ``photometry`` may be a
        sequence of these.
    model, prior : FluxModel, TypePrior, optional
        Those of the default model file when not given.
    calibration : Calibration, optional
        The shipped one when not given.
    layout : {"default", "zgr23"}
    sigma : {"archive", "zgr23"}, optional
        How the archive's errors are read; as the model's noise says when not given.
    engine : str or Engine
    threads : int, optional
        As :func:`xpkern.threads.number_of_threads` says when not given.
    terms : LossTerms, optional
        As :func:`xpkern.fit` takes them.
    optimizer : {"newton", "zgr23"} or Zgr23Options
        As :func:`xpkern.fit` takes it.
    options : FitOptions, optional
        Of "newton".
    noise : {"learned", "eq2"}, optional
        As :func:`xpkern.fit` takes it.
    photometry_cuts, parallax_zero_point
        As :func:`xpkern.read_xp` takes them. What each cut removes is counted, in the summary and in the files.
    overwrite : bool
        Whether a catalogue of that name is replaced.
    rows : int, optional
        Stars of a block; 3,584, fewer with many threads, 16,384 on a GPU, when not given.
    on_progress : callable, optional
        Called with the number of stars of each finished block.

    Returns
    -------
    CatalogSummary

    Raises
    ------
    InputError
        If an input cannot be read, or the output exists and is not to be replaced. When a file breaks off half-way,
        the stars before the break are kept as ``<name>.incomplete.h5`` and the message says so; under the final name
        there is nothing.
    DeviceFailed
        If the GPU is lost; stars are kept in the same way.
    """
    from xpkern.observe.calibration import Calibration
    from xpkern.observe.gaia_source import SourceTable
    from xpkern.observe.read import XpReader
    from xpkern.observe.spectra import one_by_one

    files = [Path(paths)] if isinstance(paths, (str, os.PathLike)) else [Path(path) for path in paths]
    check_files(files)
    tables = SourceTable.files_of((gaia_source, *one_by_one(photometry)))
    checked_output(output, [*files, *tables], overwrite=overwrite, kinds=CATALOG_KINDS)
    columns_of(layout)
    if model is None or prior is None:
        default_model, default_prior = load_model()
        model, prior = model or default_model, prior or default_prior
    kind = noise_of(noise, model, optimizer)
    of_files = model.noise if kind == "learned" else model.noise.without_model_error()
    of_files = of_files if sigma is None else replace(of_files, sigma=sigma)
    calibration = Calibration.default() if calibration is None else calibration
    engine = get_engine(engine)
    terms = default_terms(kind) if terms is None else terms
    how = options_of(optimizer, options)
    reader = XpReader(
        files, gaia_source, photometry, calibration, of_files, engine, photometry_cuts, parallax_zero_point
    )
    attributes = reader.provenance | provenance(
        layout=layout,
        model=model,
        prior=prior,
        noise=of_files,
        calibration=calibration,
        terms=terms,
        options=how,
        engine=engine.name,
        instruction_set=getattr(engine, "instruction_set", ""),
    )
    threads, rows = threads_and_rows(engine, threads, rows)
    log_reader(reader, threads, rows)
    grid = start_grid(model, prior) if optimizer == "newton" else None

    without_room: list[DeviceOutOfMemory] = []  # said once

    def finish(
        block: XpBlock | None, bring: Callable[[np.ndarray], Any]
    ) -> tuple[StarRows, NDArray[np.bool_], Observations]:
        observations = reader.observe(block, bring=bring)
        solution = fit(
            observations,
            model,
            prior,
            engine=engine,
            threads=1,
            terms=terms,
            optimizer=optimizer,
            options=options,
            start=grid,
            noise=kind,
        )
        of_stars = star_rows(solution)
        return of_stars, (of_stars.status & np.uint32(UNFITTED)) == 0, solution.without_spectra().observations

    def rows_of(block: XpBlock | None) -> tuple[StarRows, NDArray[np.bool_], Observations]:
        try:
            with keeping(engine) as bring:
                return finish(block, bring)
        except DeviceOutOfMemory as error:
            if not without_room:
                without_room.append(error)
                stars = 0 if block is None else len(block)
                log.warning("the GPU has no room for %d stars at once: they pass through the host (%s)", stars, error)
            return finish(block, np.asarray)

    blocks = in_order(reader.blocks(rows), rows_of, threads=threads)
    summary = CatalogSummary(input_rules=reader.provenance)
    with CatalogOutput(output, layout, attributes) as files_written, contextlib.closing(blocks):
        try:
            for block, fitted, observations in blocks:
                files_written.append(block)
                files_written.append_reasons(observations.reasons)
                summary.count(block, fitted, observations)
                if on_progress is not None:
                    on_progress(len(block))
        except (InputError, DeviceFailed) as error:
            raise with_what_was_kept(error, files_written, summary.counts, reader.files) from error
        summary.files = files_written.commit(attributes=summary.counts)
    log.info("written: %s", ", ".join(str(name) for name in summary.files.values()))
    return summary


def write_fit(
    fit: Fit,
    path: str | os.PathLike[str],
    layout: str = "default",
    *,
    diagnostics: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a fit as a catalogue, which appears under its name only once it is complete.

    Parameters
    ----------
    fit : Fit
    path : path-like
        Ends in ``.h5``, ``.fits``, ``.ecsv`` or ``.parquet``.
    layout : {"default", "zgr23"}
    diagnostics : bool
        Whether to write the companion, too.
    overwrite : bool
        Whether a file of that name is replaced.

    Raises
    ------
    InputError
        If the layout or the ending is unknown, the folder does not exist, or the file exists and is not to be replaced.
    """
    checked_output(path, overwrite=overwrite, kinds=CATALOG_KINDS)
    with CatalogOutput(path, layout, provenance_of_fit(fit, layout), diagnostics=diagnostics) as files_written:
        files_written.append(star_rows(fit))
        files_written.commit(attributes=fit.observations.counts)


def log_reader(reader: XpReader, threads: int, rows: int) -> None:
    """Tell the log what is read and by what."""
    sources = [] if reader.sources is None else [reader.sources]
    for name, tables in (("gaia_source", sources), ("photometry", reader.infrared.tables)):
        log.info("%s: %s", name, "; ".join(f"{len(table):,} rows of {table.name}" for table in tables) or "none")
    log.info("engine %s, %d threads, blocks of %d stars", reader.engine.name, threads, rows)


def threads_and_rows(engine: Engine, threads: int | None, rows: int | None) -> tuple[int, int]:
    """How many threads have a block of stars each, and stars of a block: fewer with many threads, if nobody says."""
    threads, wanted = number_of_threads(threads), block_stars(engine)
    if wanted is not None:
        return min(threads, MOST_GPU_THREADS), wanted if rows is None else rows
    if rows is None:
        rows = max(FEWEST_STARS_OF_A_BLOCK, min(MOST_STARS_OF_A_BLOCK, MOST_STARS // threads))
    return min(threads, max(1, MOST_STARS // rows)), rows


def check_files(inputs: list[Path]) -> None:
    """Refuse before the first star what would fail after the last one."""
    seen: dict[str, Path] = {}
    for path in inputs:
        if not path.exists():
            raise InputError("no such file", file=str(path))
        if (other := seen.setdefault(os.path.realpath(path), path)) is not path:
            where = "" if other == path else f": it is {other}"
            raise InputError(f"given twice{where}", file=str(path))


def with_what_was_kept(
    error: InputError | DeviceFailed, files_written: TableOutput, counts: Counter[str], files: Sequence[object] = ()
) -> InputError | DeviceFailed:
    """Keep the stars before a break under a name that says so; return the error that tells, and what was not read.

    Parameters
    ----------
    error, files_written, counts
    files : sequence of path-like, optional
        All files that were to be read, in their order.
    """
    told = [error.message if isinstance(error, InputError) else str(error)]
    if files_written.rows:
        name, rows = files_written.path, files_written.rows
        *_, table = files_written.commit(name.with_name(f"{name.stem}.incomplete{name.suffix}"), counts).values()
        # the checksum stands behind all rows of a gzip member: if nothing else failed, any of them may be at fault
        doubt = ", some of which may be damaged," if re.search(r"checksum|crc", str(error), re.IGNORECASE) else ""
        told.append(f"the {rows:,} rows before it{doubt} are in {table}")
    if isinstance(error, DeviceFailed):
        return DeviceFailed("; ".join(told))
    names = [str(file) for file in files]
    unread = names[names.index(error.file) + 1 :] if error.file in names else []
    if unread:
        which = f"{unread[0]} was" if len(unread) == 1 else f"{unread[0]} and {len(unread) - 1:,} after it were"
        told.append(f"{which} not read (xpkern run goes on with other files)")
    return InputError("; ".join(told), file=error.file, row=error.row, field=error.field)
