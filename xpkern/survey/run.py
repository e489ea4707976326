"""A survey on the disk: all its files, in a folder that appears once it is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from xpkern.errors import InputError, XpkernError
from xpkern.model import load_model
from xpkern.survey import MAGNITUDES, STARS_PER_FILE, TRUTHS
from xpkern.survey.fits_writer import FitsTableWriter
from xpkern.survey.planted import NONE, Planted
from xpkern.survey.simulator import BLOCK_ROWS, SurveySimulator, cut
from xpkern.survey.spectrum_files import CLASS_OF_FORMAT, BulkFile, Hdf5File
from xpkern.survey.tables import TABLES
from xpkern.survey.truth import AtmosphereTruth, ModelTruth, Truth
from xpkern.threads import in_order, number_of_threads
from xpkern.train.atmospheres import load_atmospheres
from xpkern.train.packages import default_cache


@dataclass
class SurveySummary:
    """What was written.

    Attributes
    ----------
    folder : Path
    spectra : list of Path
        The files of spectra, in order.
    tables : dict of str to Path
        ``gaia_source``, ``labels``, ``reddening`` and ``truth``.
    rows : dict of str to int
        Rows of the spectra (``"spectra"``) and of each table.
    classes, faults : Counter
        How many rows there are of each class and with each fault.
    """

    folder: Path
    spectra: list[Path] = field(default_factory=list)
    tables: dict[str, Path] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)


def simulate_survey(
    output: str | os.PathLike[str],
    n_stars: int,
    *,
    seed: int = 0,
    truth: str | Truth = "kurucz",
    planted: Planted | None = None,
    magnitudes: tuple[float, float] = MAGNITUDES,
    format: str = "csv",  # noqa: A002 the word that everybody uses for it
    stars_per_file: int = STARS_PER_FILE,
    cache: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> SurveySummary:
    """Simulate a survey and write it into a folder.

    The same arguments give the same bytes, whatever ``threads``; a source depends on the seed and its number only, not
    on ``n_stars``, ``format`` or ``stars_per_file``. Memory is flat.

    Parameters
    ----------
    output : path-like
        Folder to make; it may exist if it is empty.
    n_stars : int
        Sources: rows of spectra.
    seed : int
    truth : {"kurucz", "model"} or Truth
        Where true spectra come from: model atmospheres, fetched from PyPI once (53 MB), or the shipped flux model.
    planted : Planted, optional
        What is planted among the stars, and how often.
    magnitudes : (float, float)
        Brightest and faintest true G.
    format : {"csv", "hdf5"}
        Of the spectra: the archive's bulk csv.gz, or HDF5 with a dataset for each column.
    stars_per_file : int
    cache : path-like, optional
        Folder of downloads; ``xpkern`` in the user's cache when not given.
    threads : int, optional
        As :func:`xpkern.threads.number_of_threads` says when not given.
    on_progress : callable, optional
        Called with the number of sources of each finished block.

    Returns
    -------
    SurveySummary

    Raises
    ------
    InputError
        If a number is out of its range, a name is unknown, or the folder cannot be made or is not empty.
    XpkernError
        If the model atmospheres cannot be had.
    """
    if n_stars < 1:
        raise InputError(f"{n_stars} is not a number of stars", field="n_stars")
    if stars_per_file < 1:
        raise InputError(f"{stars_per_file} is not a number of stars", field="stars_per_file")
    if format not in CLASS_OF_FORMAT:
        raise InputError(f"{format!r} is none of {', '.join(CLASS_OF_FORMAT)}", field="format")
    threads = number_of_threads(threads)
    folder = _checked_folder(output)
    simulator = SurveySimulator(
        load_truth(truth, default_cache() if cache is None else Path(cache)),
        seed=seed,
        planted=planted,
        magnitudes=magnitudes,
    )
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    unfinished.mkdir()
    try:
        with threadpool_limits(1):  # the blocks are dealt out to threads, and BLAS must not add its own
            summary = _write(
                simulator, unfinished, n_stars, CLASS_OF_FORMAT[format], stars_per_file, threads, on_progress
            )
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    summary.folder = folder
    summary.spectra = [folder / path.name for path in summary.spectra]
    summary.tables = {name: folder / path.name for name, path in summary.tables.items()}
    return summary


def load_truth(truth: str | Truth, cache: Path) -> Truth:
    """The truth of a name.

    Raises
    ------
    InputError
        If the name is unknown.
    XpkernError
        If the model atmospheres cannot be had.
    """
    if not isinstance(truth, str):
        return truth
    if truth == "kurucz":
        try:
            return AtmosphereTruth(load_atmospheres(cache))
        except XpkernError as error:
            raise XpkernError(f"{error}; or use the truth 'model', which needs nothing") from error
    if truth == "model":
        return ModelTruth(*load_model())
    raise InputError(f"{truth!r} is none of {', '.join(TRUTHS)}", field="truth")


def _checked_folder(output: str | os.PathLike[str]) -> Path:
    folder = Path(output).absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError("exists and is no folder", file=str(output))
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError("exists and is not empty: choose another folder, or remove it", file=str(output))
    if not folder.parent.is_dir():
        raise InputError("its folder does not exist", file=str(output))
    return folder


@dataclass(frozen=True)
class _Piece:
    """Rows of one file: some of a block, ready to be written; without the arrays that have been encoded."""

    file: int
    rows: int
    fault: NDArray[np.str_]
    tables: dict[str, dict[str, NDArray]]
    encoded: object


def _write(
    simulator: SurveySimulator,
    folder: Path,
    n_stars: int,
    file_format: type[BulkFile] | type[Hdf5File],
    stars_per_file: int,
    threads: int,
    on_progress: Callable[[int], object] | None,
) -> SurveySummary:
    def pieces_of(number: int) -> list[_Piece]:
        block = simulator.block(number)
        first = number * BLOCK_ROWS
        last = min(first + BLOCK_ROWS, n_stars)
        pieces = []
        while first < last:
            file = first // stars_per_file
            stop = min(last, (file + 1) * stars_per_file)
            part = cut(block, slice(first - number * BLOCK_ROWS, stop - number * BLOCK_ROWS))
            encoded = file_format.encode(simulator.spectrum_columns(part))
            pieces.append(_Piece(file, len(part), part.fault, part.tables, encoded))
            first = stop
        return pieces

    summary = SurveySummary(folder)
    about = (
        "Simulated by xpkern: not a Gaia product.",
        f"{n_stars} sources, seed {simulator.seed}, truth: {simulator.truth.name}.",
        "True parameters: truth.fits.",
    )
    spectra: BulkFile | Hdf5File | None = None
    tables: dict[str, FitsTableWriter] = {}
    n_blocks = -(-n_stars // BLOCK_ROWS)
    blocks: Iterator[list[_Piece]] = in_order(iter(range(n_blocks)), pieces_of, threads=threads, ahead=threads)
    try:
        for name, columns in TABLES.items():
            summary.tables[name] = folder / f"{name}.fits"
            tables[name] = FitsTableWriter(summary.tables[name], name, columns, (*about, simulator.truth.origin))
        with contextlib.closing(blocks):  # type: ignore[type-var]
            for pieces in blocks:
                for piece in pieces:
                    if piece.file == len(summary.spectra):
                        if spectra is not None:
                            spectra.close()
                        name = f"XpContinuousMeanSpectrum_simulated-{piece.file:04d}{file_format.ending}"
                        summary.spectra.append(folder / name)
                        rows = min(stars_per_file, n_stars - piece.file * stars_per_file)
                        spectra = file_format(summary.spectra[-1], rows, simulator.calibration.release, about)
                    assert spectra is not None
                    spectra.append(piece.encoded)  # type: ignore[arg-type]
                    _append_tables(tables, piece, summary)
                if on_progress is not None:
                    on_progress(sum(piece.rows for piece in pieces))
        assert spectra is not None
        spectra.close()
        for writer in tables.values():
            writer.close()
    finally:
        for open_file in (spectra, *tables.values()):
            if open_file is not None:
                with contextlib.suppress(OSError):  # what a full disk refuses is removed anyway
                    open_file.abandon()
    return summary


def _append_tables(tables: dict[str, FitsTableWriter], piece: _Piece, summary: SurveySummary) -> None:
    """Write a piece's rows of the tables, and count what is in them."""
    for name, writer in tables.items():
        writer.append(piece.tables[name])
        summary.rows[name] = writer.rows
    summary.rows["spectra"] += piece.rows
    summary.classes.update(piece.tables["truth"]["class"].tolist())
    summary.faults.update(piece.fault[piece.fault != NONE].tolist())
