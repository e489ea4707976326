"""Tables of any kind, a block of rows at a time: csv, ECSV, FITS, VOTable, HDF5, Parquet, told apart by their content.

Spectra have readers of their own for the same formats (:mod:`xpkern.observe.spectra`), of which all but that of text
serve here, too.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from xpkern.errors import InputError
from xpkern.observe.columns import Column, column_of, reason_of
from xpkern.observe.spectra import reader_of, unpacked
from xpkern.observe.spectra_columns import Chunk, ColumnTable
from xpkern.observe.spectra_csv import GZIP_MAGIC, PIECE, decompressed
from xpkern.observe.spectra_fits import FitsTable
from xpkern.observe.spectra_hdf5 import Hdf5Table
from xpkern.observe.spectra_votable import VOTable, check_votable

#: What may stand between two fields of text; the first of them that the header line holds does.
_SEPARATORS = (",", "|", "\t", ";", " ")

#: How the archive and others write that there is no value.
NULL_WORDS = ["", "null", "NULL", "nan", "NaN"]

#: Bytes of text that are parsed at a time; the types of the columns are those of the first of them.
_TEXT_BLOCK = 1 << 22


@contextlib.contextmanager
def open_table(path: str | os.PathLike[str], key: str) -> Iterator[ColumnTable]:
    """Open a table of any format.

    Parameters
    ----------
    path : path-like
        Its content says the format; any of them may be gzipped.
    key : str
        A column that it must have, in lower case: of files with several tables, the first with this column is meant.

    Yields
    ------
    ColumnTable

    Raises
    ------
    InputError
        If it cannot be read, holds no table, or lacks the column; the message names the nearest one.
    """
    file = os.fspath(path)
    try:
        with open(file, "rb", buffering=0) as stream:
            head = stream.read(PIECE)
            if not head:
                raise InputError("the file is empty: it holds no header line", file=file)
            reader = reader_of(head, file)
            content: str | BinaryIO = file
            if reader is not None and head.startswith(GZIP_MAGIC):
                content = unpacked(decompressed(head, stream, file), file)
        if reader is None:
            table: ColumnTable = CsvTable(file)
        elif reader is VOTable:
            table = _WholeTable(content, file)
        else:
            table = reader(content, file, key) if reader in (FitsTable, Hdf5Table) else reader(content, file)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", file=file) from error
    with contextlib.closing(table):
        require(table, [key], file)
        yield table


def require(table: ColumnTable, names: Sequence[str], file: str) -> None:
    """Raise an InputError that names a column which a table lacks, and the nearest one that it has."""
    for name in names:
        if name not in table.widths:
            near = difflib.get_close_matches(name, table.widths, n=1, cutoff=0.4)
            known = list(table.widths)
            there = f"did you mean {near[0]}?" if near else f"there are {', '.join(known[:12])}"
            more = ", ..." if not near and len(known) > 12 else ""
            raise InputError(f"there is no such column; {there}{more}", file=file, field=name)


class CsvTable:
    """Text in columns, with an ECSV header or without; see :class:`xpkern.observe.spectra_columns.ColumnTable`.

    The type of a column is that of its first values: whole numbers, numbers or text.
    """

    def __init__(self, file: str) -> None:
        self._name = file
        comments, line = _header_line(file)
        separator = next((each for each in _SEPARATORS if each in line), ",")
        self._names = [name.strip().strip('"') for name in line.split(separator)]
        self._separator, self._skip = separator, comments + 1
        self.widths: dict[str, int | None] = dict.fromkeys(name.lower() for name in self._names if name)

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`ColumnTable`."""
        import pyarrow as pa
        from pyarrow import csv

        from xpkern.observe.spectra_parquet import column_of_arrow

        wanted = {name.lower(): name for name in reversed(self._names)}
        waiting, read = None, 0
        with self._stream() as stream:
            try:
                batches = csv.open_csv(
                    stream,
                    csv.ReadOptions(
                        skip_rows=self._skip, column_names=self._names, block_size=_TEXT_BLOCK, use_threads=False
                    ),
                    csv.ParseOptions(delimiter=self._separator),
                    csv.ConvertOptions(
                        include_columns=[wanted[name] for name in columns],
                        column_types={wanted[name]: pa.int64() for name in columns if name == "source_id"},
                        null_values=NULL_WORDS,
                        strings_can_be_null=True,
                    ),
                )
                for batch in batches:
                    table = pa.Table.from_batches([batch])
                    waiting = table if waiting is None else pa.concat_tables([waiting, table])
                    while waiting.num_rows >= rows:
                        yield _chunk(waiting[:rows], columns, wanted, column_of_arrow)
                        read += rows
                        waiting = waiting[rows:]
            except pa.ArrowException as error:
                if "Empty CSV file" in str(error):  # a header and nothing else
                    return
                message = f"cannot be read as csv ({reason_of(error)})"
                raise InputError(message, file=self._name, row=read + 1) from error
        if waiting is not None and waiting.num_rows:
            yield _chunk(waiting, columns, wanted, column_of_arrow)

    @contextlib.contextmanager
    def _stream(self) -> Iterator[Any]:
        from isal import igzip

        with open(self._name, "rb") as raw:
            is_gzip = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            stream: Any = igzip.GzipFile(fileobj=raw) if is_gzip else raw
            try:
                yield stream
            except (EOFError, igzip.BadGzipFile) as error:
                raise InputError(f"the gzip data are corrupt or end too early ({error})", file=self._name) from error

    def close(self) -> None:
        """See :class:`ColumnTable`."""


class _WholeTable:
    """The first table of a VOTable, in memory; see :class:`xpkern.observe.spectra_columns.ColumnTable`."""

    def __init__(self, content: str | BinaryIO, file: str) -> None:
        from astropy.table import Table

        check_votable(content, file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # archives bend the standard
                table = Table.read(content, format="votable", table_id=0)
            self._columns = {name.lower(): column_of(table[name]) for name in table.colnames}
        except Exception as error:  # a damaged document fails in any way at any place
            raise InputError(f"not a readable VOTable ({reason_of(error)})", file=file) from error
        self._rows = len(table)
        self.widths: dict[str, int | None] = dict.fromkeys(self._columns)

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`ColumnTable`."""
        for first in range(0, self._rows, rows):
            yield {name: self._columns[name][first : first + rows] for name in columns}

    def close(self) -> None:
        """See :class:`ColumnTable`."""


def _chunk(table: Any, columns: Sequence[str], wanted: dict[str, str], column_of_arrow: Any) -> dict[str, Column]:
    import pyarrow as pa

    def column(name: str) -> Column:
        values = table.column(wanted[name]).combine_chunks()
        is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
        if pa.types.is_boolean(values.type):
            values = values.cast(pa.uint8())
        elif not any(is_it(values.type) for is_it in is_number):  # dates, too
            values = values.cast(pa.string())
        return column_of_arrow(values)

    return {name: column(name) for name in columns}


def _header_line(file: str) -> tuple[int, str]:
    """Number of lines before the header line, and the line."""
    with open(file, "rb") as raw:
        text = decompressed(raw.read(PIECE), raw, file)
        rest, number = b"", 0
        for piece in text:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if not line.startswith(b"#"):
                    return number, line.decode("utf-8-sig", errors="replace").rstrip("\r")
                number += 1
    if rest and not rest.startswith(b"#"):
        return number, rest.decode("utf-8-sig", errors="replace").rstrip("\r")
    raise InputError("the file holds no header line", file=file)
