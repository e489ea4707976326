"""Spectra in Parquet, with arrays in columns of lists."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xpkern.errors import InputError
from xpkern.observe.columns import Column, attributes_of, joined, reason_of, some_rows
from xpkern.observe.parquet_pages import ColumnChunk, FileBytes, Irregular, ListPages
from xpkern.observe.spectra_columns import Chunk
from xpkern.observe.text import units_of_ecsv

#: Numbers that a row may have in a column, on average over a row group: a correlation matrix of 512 coefficients.
MOST_NUMBERS = 1 << 18

#: Bytes that are read of a column at a time: without it, those of a whole row group are.
BUFFER = 1 << 16

#: Bytes of a column in a row group, decompressed.
MOST_BYTES = 1 << 34


class ParquetTable:
    """See :class:`xpkern.observe.spectra_columns.ColumnTable`."""

    def __init__(self, content: str | BinaryIO, file: str) -> None:
        self._name = file
        try:
            self._file = pq.ParquetFile(content, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True)
            schema, self._metadata = self._file.schema_arrow, self._file.metadata
            self._names = {field.name.lower(): field.name for field in schema}
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"not a readable Parquet file ({reason_of(error)})", file=file) from error
        self._bytes = FileBytes(content)
        try:
            # not as Arrow tells it, which ends the whole program where some of this is damaged
            self._group_rows, self._chunks = self._bytes.row_groups(self._metadata.num_columns)
        except Irregular as error:
            self.close()
            raise InputError(f"not a readable Parquet file ({reason_of(error)})", file=file) from error
        self.n_rows = self._metadata.num_rows
        self.names: list[str] = schema.names
        self.attributes = attributes_of((self._metadata.metadata or {}).get(b"XPKERN"))
        self.widths: dict[str, int | None] = {
            field.name.lower(): _width(field.type) if self.n_rows else None for field in schema
        }

    @property
    def units(self) -> dict[str, str]:
        """See :class:`ColumnTable`."""
        return units_of_schema(self._file.schema_arrow)

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`ColumnTable`."""
        read = 0
        try:
            self._refuse_absurd(columns)
            paged = {name: lists for name in columns if (lists := self._paged(name, rows)) is not None}
            others = [name for name in columns if name not in paged]
            tables = _Rows(self._file, [self._names[name] for name in others], rows)
            while count := tables.take(rows) if others else min(rows, self.n_rows - read):
                chunk = {}
                for name in columns:
                    if name in paged:
                        chunk[name] = paged[name].take(count)
                        continue
                    try:
                        chunk[name] = tables.column(self._names[name])
                    except TypeError as error:
                        raise InputError(str(error), file=self._name, field=name) from error
                yield chunk
                read += count
            if read != self.n_rows:
                raise ValueError(f"there are {read} rows, not {self.n_rows}")
        except (pa.ArrowException, OSError, ValueError) as error:
            where = f" in {some_rows(read, min(read + rows, self.n_rows))}" if read < self.n_rows else ""
            message = f"the Parquet data{where} are corrupt ({reason_of(error)})"
            raise InputError(message, file=self._name, row=read + 1) from error

    def _paged(self, name: str, rows: int) -> _PagedLists | None:
        """A column of lists of floating-point numbers that all seem to have one length; None for any other."""
        kind = self._file.schema_arrow.field(self._names[name]).type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            return None
        schema = self._metadata.schema
        leaves = [
            index
            for index in range(self._metadata.num_columns)
            if schema.column(index).path.split(".")[0] == self._names[name]
        ]
        if kind.value_type not in (pa.float32(), pa.float64()) or len(leaves) != 1:
            return None
        chunks = [ColumnChunk(*chunk) for chunk in self._chunks[:, leaves[0]].tolist()]
        column = schema.column(leaves[0])
        try:
            pages = [
                ListPages(self._bytes, chunk, n_rows, column) if n_rows else None
                for chunk, n_rows in zip(chunks, self._group_rows, strict=True)
            ]
        except Irregular:
            return None
        return _PagedLists(self._file, self._names[name], pages, self._group_rows, rows)

    def _refuse_absurd(self, columns: Sequence[str]) -> None:
        """Refuse what would take more memory than any table of spectra, before it is asked for."""
        wanted = {self._names[name] for name in columns}
        owners = [self._metadata.schema.column(leaf).path.split(".")[0] for leaf in range(self._metadata.num_columns)]
        leaves = [leaf for leaf, owner in enumerate(owners) if owner in wanted]
        fields = (ColumnChunk._fields.index(name) for name in ("n_values", "size"))
        n_values, size = (self._chunks[:, leaves, field] for field in fields)
        most = MOST_NUMBERS * (np.array(self._group_rows, np.float64) + 1)
        absurd = np.argwhere((n_values > most[:, None]) | (size > MOST_BYTES))
        for group, index in absurd.tolist():
            message = f"{n_values[group, index]} numbers in {self._group_rows[group]} rows is absurd"
            raise InputError(message, file=self._name, field=owners[leaves[index]])

    def close(self) -> None:
        """See :class:`ColumnTable`."""
        self._file.close()
        self._bytes.close()


class _Rows:
    """Rows of some columns as Arrow reads them, as many at a time as are wanted.

    Parameters
    ----------
    file : pyarrow.parquet.ParquetFile
    names : sequence of str
        Of columns.
    rows : int
        That are read at a time.
    groups : sequence of int, optional
        Row groups, all when not given.
    """

    def __init__(self, file: Any, names: Sequence[str], rows: int, groups: Sequence[int] | None = None) -> None:
        self._batches = file.iter_batches(batch_size=rows, row_groups=groups, columns=names, use_threads=False)
        self._waiting: pa.Table | None = None
        self._taken: Any = None

    def take(self, count: int) -> int:
        """Turn to so many more rows; return how many there are."""
        while self._waiting is None or self._waiting.num_rows < count:
            batch = next(self._batches, None)
            if batch is None:
                break
            table = pa.Table.from_batches([batch])
            self._waiting = table if self._waiting is None else pa.concat_tables([self._waiting, table])
        if self._waiting is None:
            return 0
        self._taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return int(self._taken.num_rows)

    def column(self, name: str) -> Column:
        """A column of these rows; raises as :func:`column_of_arrow`."""
        values = self._taken.column(name)
        return column_of_arrow(values.chunk(0) if values.num_chunks == 1 else values.combine_chunks())


class _PagedLists:
    """A column of lists, from its pages where all lists of a row group have one length, else by Arrow.

    Parameters
    ----------
    file : pyarrow.parquet.ParquetFile
    name : str
    pages : sequence of ListPages
        Of each row group; None for those of no rows.
    group_rows : sequence of int
        Rows of each.
    rows : int
        That Arrow reads at a time.
    """

    def __init__(
        self,
        file: Any,
        name: str,
        pages: Sequence[ListPages | None],
        group_rows: Sequence[int],
        rows: int,
    ) -> None:
        self._file, self._name, self._rows = file, name, rows
        self._is_fixed = pa.types.is_fixed_size_list(file.schema_arrow.field(name).type)
        self._groups = deque(enumerate(zip(pages, group_rows, strict=True)))
        self._pages: ListPages | None = None
        self._group = self._group_rows = self._taken = 0
        self._arrow: _Rows | None = None

    def take(self, count: int) -> Column:
        """The lists of so many more rows."""
        parts: list[Column] = []
        while count:
            part = self._from_pages(count)
            if not len(part):
                part = self._from_arrow(count)
            count -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else joined(parts)

    def _pages_here(self) -> ListPages | None:
        """The pages with the next row; None where they are of another kind."""
        while self._taken == self._group_rows:
            if not self._groups:
                raise ValueError(f"{self._name} has fewer rows than other columns")
            self._group, (self._pages, self._group_rows) = self._groups.popleft()
            self._arrow, self._taken = None, 0
        return self._pages

    def _from_pages(self, count: int) -> Column:
        """The lists of at most so many rows, of several row groups if they are alike; of none where pages are not."""
        lists: np.ndarray = np.empty((0, 0))
        filled = 0
        while filled < count and (pages := self._pages_here()) is not None:
            if not filled:
                lists = np.empty((count, pages.size), pages.dtype)
            elif (pages.size, pages.dtype) != (lists.shape[1], lists.dtype):
                break
            wanted = min(count - filled, self._group_rows - self._taken)
            found = pages.fill(lists[filled : filled + wanted])
            self._taken, filled = self._taken + found, filled + found
            if found < wanted:
                self._pages = None
        lists, absent, size = lists[:filled], np.zeros(filled, bool), lists.shape[1]
        if self._is_fixed:
            return Column(lists, absent)
        return Column(lists.reshape(-1), absent, np.arange(filled) * size, np.full(filled, size))

    def _from_arrow(self, count: int) -> Column:
        """The lists of at most so many rows of one row group."""
        count = min(count, self._group_rows - self._taken)
        if self._arrow is None:
            self._arrow = _Rows(self._file, [self._name], self._rows, [self._group])
            for first in range(0, self._taken, self._rows):  # what pages have given
                self._arrow.take(min(self._rows, self._taken - first))
        if self._arrow.take(count) != count:
            raise ValueError(f"{self._name} has fewer rows than its row group")
        self._taken += count
        return self._arrow.column(self._name)


def _width(kind: pa.DataType) -> int | None:
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    return 1 if pa.types.is_integer(kind) or pa.types.is_floating(kind) else None


def units_of_schema(schema: pa.Schema) -> dict[str, str]:
    """Units of columns by lower-case name, from what this library or astropy writes of them."""
    about = (schema.metadata or {}).get(b"table_meta_yaml", b"").decode(errors="replace")
    units = units_of_ecsv(about.splitlines())
    for field in schema:
        if unit := (field.metadata or {}).get(b"unit"):
            units[field.name.lower()] = unit.decode(errors="replace")
    return units


def column_of_arrow(array: Any) -> Column:
    """A column of numbers, lists of numbers or text, without copying the numbers.

    Raises
    ------
    TypeError
        If it is none of these.
    """
    kind = array.type
    if isinstance(array, pa.ChunkedArray):  # of no chunks, or more than one array can hold
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], kind)
    if isinstance(array, pa.ExtensionArray):
        return column_of_arrow(array.storage)
    absent = array.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_dictionary(kind):
        return column_of_arrow(array.dictionary_decode())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return Column(np.array(array.fill_null("").to_pylist(), object), absent)
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        values = _numbers(array.values)[array.offset * size : (array.offset + len(array)) * size]
        return Column(values.reshape(len(array), size), absent)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = array.offsets.to_numpy().astype(np.int64)
        return Column(_numbers(array.values), absent, offsets[:-1], np.diff(offsets))
    return Column(_numbers(array), absent)


def _numbers(array: Any) -> np.ndarray:
    """The numbers of an array; where it has none, NaN, or 0 among integers."""
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_null(array.type)):
        raise TypeError(f"not a column of numbers or of lists of numbers, but of {array.type}")
    if array.null_count:
        if pa.types.is_null(array.type):
            return np.full(len(array), np.nan)
        array = array.fill_null(pa.scalar(float("nan") if pa.types.is_floating(array.type) else 0, array.type))
    return np.asarray(array.to_numpy(zero_copy_only=False))
