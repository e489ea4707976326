"""Spectra in Parquet, with arrays in columns of lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xpkern.errors import InputError
from xpkern.observe.columns import Column, attributes_of, reason_of
from xpkern.observe.spectra_columns import Chunk

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
            self._file = pq.ParquetFile(content, buffer_size=BUFFER, pre_buffer=False)
            schema, self._metadata = self._file.schema_arrow, self._file.metadata
            self._names = {field.name.lower(): field.name for field in schema}
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"not a readable Parquet file ({reason_of(error)})", file=file) from error
        self.n_rows = self._metadata.num_rows
        self.attributes = attributes_of((self._metadata.metadata or {}).get(b"XPKERN"))
        self.widths: dict[str, int | None] = {
            field.name.lower(): _width(field.type) if self.n_rows else None for field in schema
        }

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`ColumnTable`."""
        names = [self._names[name] for name in columns]
        waiting: pa.Table | None = None
        read = 0
        try:
            self._refuse_absurd(columns)
            for batch in self._file.iter_batches(batch_size=rows, columns=names, use_threads=False):
                table = pa.Table.from_batches([batch])
                waiting = table if waiting is None else pa.concat_tables([waiting, table])
                while waiting.num_rows >= rows:
                    yield self._chunk(waiting[:rows], columns)
                    read += rows
                    waiting = waiting[rows:]
            if waiting is not None and waiting.num_rows:
                yield self._chunk(waiting, columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"the Parquet data are corrupt ({reason_of(error)})", file=self._name, row=read + 1
            ) from error

    def _chunk(self, table: pa.Table, columns: Sequence[str]) -> Chunk:
        chunk = {}
        for name in columns:
            values = table.column(self._names[name])
            try:
                chunk[name] = column_of_arrow(values.chunk(0) if values.num_chunks == 1 else values.combine_chunks())
            except TypeError as error:
                raise InputError(str(error), file=self._name, field=name) from error
        return chunk

    def _refuse_absurd(self, columns: Sequence[str]) -> None:
        """Refuse what would take more memory than any table of spectra, before it is asked for."""
        wanted = {self._names[name] for name in columns}
        for index in range(self._metadata.num_row_groups):
            group = self._metadata.row_group(index)
            for number in range(group.num_columns):
                column = group.column(number)
                if column.path_in_schema.split(".")[0] not in wanted:
                    continue
                if (
                    column.num_values > MOST_NUMBERS * (group.num_rows + 1)
                    or column.total_uncompressed_size > MOST_BYTES
                ):
                    raise InputError(
                        f"{column.num_values} numbers in {group.num_rows} rows is absurd",
                        file=self._name,
                        field=column.path_in_schema.split(".")[0],
                    )

    def close(self) -> None:
        """See :class:`ColumnTable`."""
        self._file.close()


def _width(kind: pa.DataType) -> int | None:
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    return 1 if pa.types.is_integer(kind) or pa.types.is_floating(kind) else None


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
