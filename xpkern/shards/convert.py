"""Bulk files of spectra as compact columnar HDF5, once, for those who fit them more than once.

A row of the archive's csv.gz is 20 kB of text that takes 125 us to decompress and parse. The same numbers, one dataset
per column, are 13 kB and are read as they are. Each chunk has a checksum (Fletcher's), so that a file that a disk has
damaged is told from a sound one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from xpkern.catalog.hdf5_writer import ChecksummedHdf5Writer
from xpkern.catalog.output import SPECTRA_KINDS, TableOutput, file_names
from xpkern.catalog.run import with_what_was_kept
from xpkern.catalog.schema import SOURCE_ID, Column
from xpkern.errors import InputError
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks
from xpkern.observe.xp_block import XpBlock
from xpkern.processes import server_of_processes
from xpkern.shards.settings import shard_name
from xpkern.shards.work import claim, fingerprint

#: What stands in the column of the standard deviation of a row that could not be read: its reader says so again.
UNREADABLE = -1.0


@dataclass(frozen=True)
class Converted:
    """What became of one file.

    Attributes
    ----------
    source : Path
    output : Path
    rows, unreadable : int
    first_reason : str
        What is wrong with the first row that could not be read.
    done_before : bool
        Whether it was there already.
    elsewhere : bool
        Whether another process is at it.
    error : str
        Why there is no output; empty if there is.
    """

    source: Path
    output: Path
    rows: int = 0
    unreadable: int = 0
    first_reason: str = ""
    done_before: bool = False
    elsewhere: bool = False
    error: str = ""


@dataclass
class ConvertSummary:
    """What became of all files, in their order."""

    files: list[Converted] = field(default_factory=list)

    def total(self, name: str) -> int:
        """Sum of a number, or how many have a flag, over all files."""
        return sum(int(getattr(file, name)) for file in self.files)

    @property
    def failed(self) -> list[Converted]:
        """Files without an output."""
        return [file for file in self.files if file.error]


def convert_spectra(
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    lossless: bool = False,
    calibration: str | Path | None = None,
    processes: int = 1,
    overwrite: bool = False,
    on_progress: Callable[[int], object] | None = None,
    on_file: Callable[[Converted], object] | None = None,
) -> ConvertSummary:
    """Convert files of spectra, in any format that is read, into compact HDF5.

    Every row of the input has one in the output, in its order; one that could not be read is marked, so that a
    catalogue of the output has it as that of the input. An output that is there, of the same input and options, is not
    made again.

    Parameters
    ----------
    paths : sequence of path-like
    folder : path-like
        Of the outputs, which have the names of the inputs with the ending .h5; it is made if its own folder exists.
    lossless : bool
        Whether coefficients keep 64 bits; otherwise they have 32, as their errors and correlations always do.
    calibration : path-like, optional
        Design matrices of the spectra's release; Gaia DR3's when not given.
    processes : int
        Files that are converted side by side.
    overwrite : bool
        Whether to replace outputs of other inputs or options.
    on_progress : callable, optional
        Called with the number of rows of each finished block, with one process only.
    on_file : callable, optional
        Called with what became of each file.

    Returns
    -------
    ConvertSummary
        What goes wrong with one file is told there, and the others go on.

    Raises
    ------
    InputError
        If no file is given, two would have the same output, one is an input, or the folder cannot be made.
    OSError
        If the folder cannot be written to.
    """
    folder = Path(folder)
    sources = [Path(path) for path in paths]
    outputs = [folder / f"{shard_name(source)}.h5" for source in sources]
    if not sources:
        raise InputError("no file is given")
    for number, output in enumerate(outputs):
        if output in outputs[:number]:
            other = sources[outputs.index(output)]
            raise InputError(f"{other} and {sources[number]} would both be {output.name}", file=str(folder))
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file, and should be the folder of the output", file=str(folder))
    if not folder.absolute().parent.is_dir():
        raise InputError("its folder does not exist", file=str(folder))
    given = {(status.st_dev, status.st_ino) for status in map(os.stat, filter(Path.exists, sources))}
    for output in filter(Path.exists, outputs):
        if ((status := output.stat()).st_dev, status.st_ino) in given:
            raise InputError("is both input and output", file=str(output))
    folder.mkdir(exist_ok=True)
    summary = ConvertSummary()
    tasks = [
        (source, output, lossless, calibration, overwrite) for source, output in zip(sources, outputs, strict=True)
    ]
    with _converting(tasks, processes, on_progress) as done:
        for file in done:
            summary.files.append(file)
            if on_file is not None:
                on_file(file)
    return summary


@contextlib.contextmanager
def _converting(
    tasks: Sequence[tuple[Path, Path, bool, str | Path | None, bool]],
    processes: int,
    on_progress: Callable[[int], object] | None,
) -> Iterator[Iterator[Converted]]:
    """What becomes of each file, in their order, whoever converts it."""
    if processes == 1:
        yield (_convert(*task, on_progress) for task in tasks)
        return
    pool = ProcessPoolExecutor(min(processes, len(tasks)), mp_context=server_of_processes())
    try:
        yield pool.map(_convert, *zip(*tasks, strict=True))
    except BrokenProcessPool:
        raise ChildProcessError(errno.ECHILD, "a process was killed: the same command goes on") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _convert(
    source: Path,
    output: Path,
    lossless: bool,
    calibration_file: str | Path | None,
    overwrite: bool,
    on_progress: Callable[[int], object] | None = None,
) -> Converted:
    """Convert a file; whatever goes wrong with it is told in what is returned."""
    outcome = Converted(source, output)
    try:
        calibration = Calibration.default() if calibration_file is None else Calibration.load(calibration_file)
        with claim(output.parent, output.name, file_names(output).values()) as ours:
            if not ours:
                return replace(outcome, elsewhere=True)
            made_of = {
                "converted_from": fingerprint(source),
                "release": calibration.release,
                "coefficients": "float64" if lossless else "float32",
            }
            if output.exists():
                if (counts := _counts_if_made_of(output, made_of)) is not None:
                    return replace(outcome, rows=counts[0], unreadable=counts[1], done_before=True)
                if not overwrite:
                    raise InputError(
                        "exists, of another input or otherwise made; --overwrite replaces it", file=str(output)
                    )
            return _write(outcome, calibration, made_of, on_progress)
    except InputError as error:
        return replace(outcome, error=str(error))
    except OSError as error:
        parts = (error.filename, error.strerror or str(error))
        return replace(outcome, error=": ".join(str(part) for part in parts if part))


def _write(
    outcome: Converted, calibration: Calibration, made_of: dict[str, str], on_progress: Callable[[int], object] | None
) -> Converted:
    columns = _columns(calibration, made_of["coefficients"])
    counts: Any = {"unreadable": 0}
    first_reason = ""
    with (
        TableOutput(
            outcome.output, {"spectra": (columns, made_of)}, SPECTRA_KINDS, writer=ChecksummedHdf5Writer
        ) as files,
        contextlib.closing(read_blocks(outcome.source, calibration)) as blocks,
    ):
        try:
            for block in blocks:
                if block.is_sampled:
                    raise InputError("sampled spectra, which are small as they are", file=str(outcome.source))
                files.append(block)
                files.append_reasons(block.reasons)
                counts["unreadable"] += int(np.count_nonzero(block.bad))
                if block.reasons and not first_reason:
                    _, row, column, message = block.reasons[0]
                    first_reason = f"row {row}{f', {column}' if column else ''}: {message}"
                if on_progress is not None:
                    on_progress(len(block))
        except InputError as error:
            raise with_what_was_kept(error, files, counts) from error
        rows = files.rows
        files.commit(attributes=counts)
    for path in file_names(outcome.output.with_name(f"{outcome.output.stem}.incomplete.h5")).values():
        path.unlink(missing_ok=True)  # of an earlier attempt at an input that broke off
    return replace(outcome, rows=rows, unreadable=counts["unreadable"], first_reason=first_reason)


def _columns(calibration: Calibration, dtype: str) -> list[Column]:
    """The archive's columns that are read, of an :class:`XpBlock`."""
    columns = [replace(SOURCE_ID, values=attrgetter("source_id"))]
    for band, n, basis_function_id in (
        ("bp", calibration.n_bp, calibration.bp_basis_function_id),
        ("rp", calibration.n_rp, calibration.rp_basis_function_id),
    ):

        def constant(value: int) -> Callable[[XpBlock], Any]:
            return lambda block: np.full(len(block), value)

        def array(name: str, band: str = band) -> Callable[[XpBlock], Any]:
            """Arrays of a band, NaN where there is none."""

            def values(block: XpBlock) -> Any:
                found = getattr(block.coefficients, name)
                present = getattr(block.coefficients, f"has_{band}")
                return found if present.all() else np.where(present[:, None], found, np.nan)

            return values

        def deviation(block: XpBlock, band: str = band) -> Any:
            found = getattr(block.coefficients, f"{band}_standard_deviation")
            known = np.where(block.unknown_deviation[("bp", "rp").index(band)], np.nan, found)
            return np.where(block.bad, UNREADABLE, known)

        of_band = f"of the {band.upper()} spectrum"
        arrays = (
            ("coefficients", dtype, band, "stat.fit.param", (n,)),
            ("coefficient_errors", "float32", f"{band}_error", "stat.error", (n,)),
            ("coefficient_correlations", "float32", f"{band}_correlation", "stat.correlation", (n * (n - 1) // 2,)),
        )
        columns += [
            Column(
                f"{band}_basis_function_id",
                "int16",
                "",
                "meta.id",
                f"set of basis functions {of_band}",
                constant(basis_function_id),
            ),
            Column(
                f"{band}_n_parameters", "int16", "", "stat.fit.param", f"number of coefficients {of_band}", constant(n)
            ),
            Column(
                f"{band}_standard_deviation",
                "float32",
                "",
                "stat.stdev",
                f"standard deviation of the fit {of_band}; negative in a row that could not be read",
                deviation,
            ),
            *(
                Column(
                    f"{band}_{name}",
                    kind,
                    "",
                    ucd,
                    f"{name.replace('_', ' ')} {of_band}; NaN where there is none",
                    array(attribute),
                    shape,
                )
                for name, kind, attribute, ucd, shape in arrays
            ),
        ]
    return columns


def _counts_if_made_of(output: Path, made_of: dict[str, str]) -> tuple[int, int] | None:
    """Rows of a file, and how many of them could not be read, if it is complete and of this input and these options."""
    try:
        with h5py.File(output) as file:
            same = all(file.attrs.get(name) == value for name, value in made_of.items())
            return (int(file.attrs["rows"]), int(file.attrs["unreadable"])) if same else None
    except (OSError, KeyError, ValueError):
        return None
