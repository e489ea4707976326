"""Tables of any kind, a block of rows at a time: csv, ECSV, FITS, VOTable, HDF5, Parquet, AVRO, told apart by content.

Spectra have readers of their own for the same formats (:mod:`xpkern.observe.spectra`), of which all but that of text
serve here, too.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np

from xpkern.errors import InputError
from xpkern.observe.columns import Column, column_of_items, reason_of
from xpkern.observe.gaia_source import NULL_WORDS
from xpkern.observe.spectra import reader_of, unpacked
from xpkern.observe.spectra_columns import IDENTIFIERS, Chunk, ColumnTable
from xpkern.observe.spectra_csv import PIECE, decompressed
from xpkern.observe.text import GZIP_MAGIC, column_names, ecsv_header, units_of_ecsv

#: What may stand between two fields of text.
_SEPARATORS = (",", "|", "\t", ";", " ")

#: Bytes of text that are parsed at a time; unless an ECSV header tells them, the types of the columns are those of the
#: first of them.
_TEXT_BLOCK = 1 << 22

#: Types of numbers that an ECSV header may name; Arrow's csv reader knows no float16.
_ECSV_NUMBERS = frozenset(
    ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)

#: What is said of a column that is not there.
_NO_COLUMN = "there is no such column"


def open_table(
    path: str | os.PathLike[str], key: str | None = None, wanted: Collection[str] = frozenset()
) -> ColumnTable:
    """Open a table of any format; ``contextlib.closing`` closes it.

    Parameters
    ----------
    path : path-like
        Its content says the format; any of them may be gzipped.
    key : str, optional
        A column that it must have, in lower case: of files with several tables, the first with this column is meant.
        That by which sources are known, ``source_id`` or ``gdr3_source_id``, when not given.
    wanted : collection of str
        Other columns: among tables with the first, that with most of these is meant.

    Returns
    -------
    ColumnTable

    Raises
    ------
    InputError
        If it cannot be read, holds no table, or lacks the column; the message names the nearest one.
    """
    file, keys = os.fspath(path), IDENTIFIERS if key is None else frozenset({key})
    try:
        with open(file, "rb", buffering=0) as stream:
            head = stream.read(PIECE)
            if not head:
                raise InputError("the file is empty: it holds no header line", file=file)
            reader = reader_of(head, file, keys, frozenset(wanted))
            content: str | BinaryIO = file
            if reader is not None and head.startswith(GZIP_MAGIC):
                content = unpacked(decompressed(head, stream, file), file)
        table: ColumnTable = CsvTable(file) if reader is None else reader(content, file)
    except OSError as error:
        reason = "no such file" if not os.path.exists(file) else f"cannot be read ({error.strerror or error})"
        raise InputError(reason, file=file) from error
    if not keys & table.widths.keys():
        table.close()
        what = "missing: this is no catalogue" if key is None else _NO_COLUMN
        require(table, [min(keys, key=len)], file, what)
    return table


def require(table: ColumnTable, names: Sequence[str], file: str, what: str = _NO_COLUMN) -> None:
    """Raise an InputError that names a column which a table lacks, and the nearest one that it has."""
    for name in names:
        if name not in table.widths:
            near = difflib.get_close_matches(name, table.widths, n=1, cutoff=0.4)
            known = list(table.widths)
            there = f"did you mean {near[0]}?" if near else f"there are {', '.join(known[:12])}"
            more = ", ..." if not near and len(known) > 12 else ""
            raise InputError(f"{what}; {there}{more}", file=file, field=name)


class CsvTable:
    """Text in columns, with an ECSV header or without; see :class:`xpkern.observe.spectra_columns.ColumnTable`.

    Such a header tells the types of the columns. Without it they are those of the first values: whole numbers, numbers
    or text.
    """

    n_rows: int | None = None

    def __init__(self, file: str) -> None:
        self._name = file
        self._comments, line = _header_lines(file)
        self.names, self._separator = column_names(line, _SEPARATORS)
        self.widths: dict[str, int | None] = dict.fromkeys(name.lower() for name in self.names if name)
        for name, (_, size) in self._arrays.items():
            self.widths[name] = size

    @cached_property
    def _header(self) -> dict[str, Any]:
        """What an ECSV header says; nothing where there is none, or none that can be understood."""
        return ecsv_header(self._comments)

    @cached_property
    def attributes(self) -> dict[str, object]:
        """See :class:`ColumnTable`."""
        return dict(self._header.get("meta") or {})

    @property
    def units(self) -> dict[str, str]:
        """See :class:`ColumnTable`."""
        return units_of_ecsv(self._comments)

    @cached_property
    def _arrays(self) -> dict[str, tuple[np.dtype, int | None]]:
        """Columns in which an ECSV header announces arrays in JSON: type of the numbers, and how many if it says so."""
        arrays = {}
        for column in self._header.get("datatype", ()):
            kind, bracket, size = str(column.get("subtype", "")).partition("[")
            if bracket and kind in _ECSV_NUMBERS:
                sizes = size.rstrip("]").split(",")
                is_known = all(each.strip().isdigit() for each in sizes)
                arrays[column["name"].lower()] = np.dtype(kind), math.prod(map(int, sizes)) if is_known else None
        return arrays

    def _types(self) -> dict[str, Any]:
        """Types of columns by their names in the file, as far as they are known."""
        import pyarrow as pa

        types: dict[str, Any] = {name: pa.int64() for name in self.names if name.lower() == "source_id"}
        for column in self._header.get("datatype", ()):
            kind = str(column.get("datatype", ""))
            if kind in _ECSV_NUMBERS:
                types[column["name"]] = pa.type_for_alias("float32" if kind == "float16" else kind)
            elif kind == "string":
                types[column["name"]] = pa.string()
        return types

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`ColumnTable`."""
        import pyarrow as pa
        from pyarrow import csv

        wanted = {name.lower(): name for name in reversed(self.names)}
        names = [wanted[name] for name in columns]
        types = self._types()
        waiting, read = None, 0
        with self._stream() as stream:
            try:
                batches = csv.open_csv(
                    stream,
                    csv.ReadOptions(
                        skip_rows=len(self._comments) + 1,
                        column_names=self.names,
                        block_size=_TEXT_BLOCK,
                        use_threads=False,
                    ),
                    csv.ParseOptions(delimiter=self._separator),
                    csv.ConvertOptions(
                        include_columns=names,
                        column_types={name: types[name] for name in names if name in types},
                        null_values=NULL_WORDS,
                        strings_can_be_null=True,
                    ),
                )
                for batch in batches:
                    table = pa.Table.from_batches([batch])
                    waiting = table if waiting is None else pa.concat_tables([waiting, table])
                    while waiting.num_rows >= rows:
                        yield self._chunk(waiting[:rows], columns, names, read)
                        read += rows
                        waiting = waiting[rows:]
            except pa.ArrowException as error:
                if "Empty CSV file" in str(error):  # a header and nothing else
                    return
                message = f"cannot be read as csv ({reason_of(error)})"
                raise InputError(message, file=self._name, row=read + 1) from error
        if waiting is not None and waiting.num_rows:
            yield self._chunk(waiting, columns, names, read)

    def _chunk(self, table: Any, columns: Sequence[str], names: Sequence[str], first: int) -> dict[str, Column]:
        from xpkern.observe.spectra_parquet import column_of_arrow

        chunk = {}
        for name, values in zip(columns, (_known(table.column(each).combine_chunks()) for each in names), strict=True):
            chunk[name] = column_of_arrow(values)
            if name in self._arrays:
                chunk[name] = self._parsed(chunk[name], name, first)
        return chunk

    def _parsed(self, texts: Column, name: str, first: int) -> Column:
        """Arrays in JSON as arrays of numbers."""
        kind, items = self._arrays[name][0], []
        for row, (text, absent) in enumerate(zip(texts.values, texts.absent, strict=True)):
            try:
                items.append(None if absent else np.array(json.loads(text), kind))
            except (ValueError, TypeError) as error:
                message = f"not an array of numbers in JSON ({reason_of(error)})"
                raise InputError(message, file=self._name, row=first + row + 1, field=name) from error
        return column_of_items(items)

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


def _known(values: Any) -> Any:
    """Values of a column of text as one of the types that columns have: numbers or text."""
    import pyarrow as pa

    if pa.types.is_boolean(values.type):
        return values.cast(pa.uint8())
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
    return values if any(is_it(values.type) for is_it in is_number) else values.cast(pa.string())  # dates, too


def _header_lines(file: str) -> tuple[list[str], str]:
    """The comments before the header line, without their sign, and the line."""
    comments: list[str] = []
    with open(file, "rb") as raw:
        text = decompressed(raw.read(PIECE), raw, file)
        rest = b""
        for piece in text:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if not line.startswith(b"#"):
                    return comments, line.decode("utf-8-sig", errors="replace").rstrip("\r")
                comments.append(line[1:].decode(errors="replace").rstrip("\r"))
    if rest and not rest.startswith(b"#"):
        return comments, rest.decode("utf-8-sig", errors="replace").rstrip("\r")
    raise InputError("the file holds no header line", file=file)
