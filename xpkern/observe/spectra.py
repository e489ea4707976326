"""Spectra in any form: tells what a file or a table is, by its content, and hands it to the reader of that form."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from xpkern.errors import InputError
from xpkern.observe import spectra_csv
from xpkern.observe.calibration import Calibration
from xpkern.observe.source_files import is_pipe
from xpkern.observe.spectra_columns import IDENTIFIERS, SPECTRUM_COLUMNS, ColumnTable, read_columns
from xpkern.observe.spectra_csv import decompressed, lines_with, read_text
from xpkern.observe.text import GZIP_MAGIC
from xpkern.observe.xp_block import BLOCK_ROWS, XpBlock

#: Files that are not read as a stream of text are decompressed in memory, up to this size.
MOST_UNPACKED = 1 << 32

#: Beginnings of files that hold no table as they are, and what to say of them.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive (or npz): unpack it first",
    b"BZh": "compressed by bzip2: decompress it first",
    b"\xfd7zXZ": "compressed by xz: decompress it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: decompress it first",
    b"\x80\x04\x95": "a pickle, which is never loaded as it may run any program: save the table in another format",
    b"\x80\x05\x95": "a pickle, which is never loaded as it may run any program: save the table in another format",
    b"\x93NUMPY": "a NumPy array: give read_xp a dict of arrays instead",
}


def is_table(source: Any) -> bool:
    """Whether an object is a table in memory: a mapping, structured array, or one with named columns."""
    if isinstance(source, np.ndarray):
        return source.dtype.names is not None
    return isinstance(source, Mapping) or any(hasattr(source, name) for name in ("colnames", "column_names", "columns"))


def one_by_one(sources: Any) -> list[Any]:
    """What is given alone, or as a sequence, or not at all, as a list: paths, tables."""
    if sources is None:
        return []
    is_one = isinstance(sources, (str, bytes, os.PathLike)) or is_table(sources) or not isinstance(sources, Iterable)
    return [sources] if is_one else list(sources)


def read_blocks(
    source: Any,
    calibration: Calibration,
    *,
    rows: int = BLOCK_ROWS,
    need_standard_deviation: bool = False,
    source_id: int | None = None,
) -> Generator[XpBlock, None, None]:
    """Read spectra block by block.

    Parameters
    ----------
    source : path or table
        A file, or a pipe without a name: csv or ECSV, VOTable, FITS, HDF5, Parquet, AVRO, any of them gzipped,
        recognised by its first bytes; or an astropy or pyarrow table, pandas DataFrame, structured array, or mapping of
        names to arrays.
    calibration : Calibration
        Says how many coefficients each band has and to which basis functions they belong.
    rows : int
        Rows of each block but the last.
    need_standard_deviation : bool
        Whether a row without the archive's standard deviation is bad; otherwise it counts as 1.
    source_id : int, optional
        The only source wanted. Files of text are then not parsed but where it occurs, and rows are counted among those
        alone; of other files every row is read all the same.

    Yields
    ------
    XpBlock
        A row that makes no sense is marked in its block and does not stop the reading.

    Raises
    ------
    InputError
        If the file cannot be opened, is a named pipe, is empty or of no known form, lacks a column or has it twice,
        holds a line that never ends, is what a server has truncated, or if none of the rows of its first block belongs
        to the calibration. If it breaks off or is corrupt behind some of its rows, then *after* the blocks of every
        complete row before the break have been yielded, where its format allows that (csv, AVRO), or else the whole
        blocks before it (HDF5, Parquet); the error names the row reached.
    """
    if is_table(source):
        from xpkern.observe.spectra_memory import MemoryTable

        yield from read_columns(MemoryTable(source), "table", calibration, rows, need_standard_deviation)
        return
    try:
        file = os.fsdecode(source)
    except TypeError:
        raise InputError(f"a {type(source).__name__} is neither a path nor a table", field="paths") from None
    if is_pipe(os.path.realpath(file)):  # to open it might wait for ever; one without a name is open already
        raise InputError("is a named pipe: give a file, or an open pipe, as <(command) and /dev/stdin are", file=file)
    try:
        with open(file, "rb", buffering=0) as stream:
            head = stream.read(spectra_csv.PIECE)
            if not head:
                raise InputError("the file is empty: it holds no header line", file=file)
            reader = reader_of(head, file, wanted=SPECTRUM_COLUMNS)
            if reader is None:
                text = decompressed(head, stream, file)
                if source_id is not None:
                    text = lines_with(text, source_id)
                yield from read_text(
                    text, file, calibration, rows=rows, need_standard_deviation=need_standard_deviation
                )
                return
            content: str | BinaryIO = file
            if head.startswith(GZIP_MAGIC):
                content = unpacked(decompressed(head, stream, file), file)
            elif not stream.seekable():
                content = unpacked(iter([head, stream.readall()]), file)
            with contextlib.closing(reader(content, file)) as table:
                yield from read_columns(table, file, calibration, rows, need_standard_deviation)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", file=file) from error


def reader_of(
    head: bytes, file: str, keys: frozenset[str] = IDENTIFIERS, wanted: frozenset[str] = frozenset()
) -> Callable[[str | BinaryIO, str], ColumnTable] | None:
    """Return what opens a file that begins so; None for text.

    Of a file with several tables it opens the one that :func:`xpkern.observe.columns.chosen_table` chooses by its
    columns, ``keys`` and ``wanted``.
    """
    if head.startswith(GZIP_MAGIC):
        with contextlib.suppress(InputError):
            head = next(decompressed(head, io.BytesIO(), file), b"")
    for beginning, what in _FOREIGN.items():
        if head.startswith(beginning):
            raise InputError(f"is {what}", file=file)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        from xpkern.observe.spectra_hdf5 import Hdf5Table

        return partial(Hdf5Table, keys=keys, wanted=wanted)
    if head.startswith(b"PAR1"):
        from xpkern.observe.spectra_parquet import ParquetTable

        return ParquetTable
    if head.startswith(b"SIMPLE  ="):
        from xpkern.observe.spectra_fits import FitsTable

        return partial(FitsTable, keys=keys, wanted=wanted)
    if head.startswith(b"Obj\x01"):
        from xpkern.observe.spectra_avro import AvroTable

        return AvroTable
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        from xpkern.observe.spectra_votable import VOTable

        return partial(VOTable, keys=keys, wanted=wanted)
    return None


def unpacked(pieces: Iterator[bytes], file: str) -> BinaryIO:
    """The pieces of a file as one in memory; raises an InputError beyond :data:`MOST_UNPACKED`."""
    content = io.BytesIO()
    for piece in pieces:
        content.write(piece)
        if content.tell() > MOST_UNPACKED:
            raise InputError(f"more than {MOST_UNPACKED >> 30} GB when decompressed: decompress it first", file=file)
    content.seek(0)
    return content
