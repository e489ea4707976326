"""Columns of stars into a Parquet file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xpkern.catalog.metadata import json_text, votable_document, yaml_of_columns
from xpkern.catalog.schema import Column
from xpkern.catalog.table_writer import Group, TableWriter

if TYPE_CHECKING:
    import pyarrow


class ParquetWriter(TableWriter):
    """One column each; arrays are lists of one length.

    Unit, UCD and description are metadata of the columns' fields. Those of the file are: a VOTable document that
    describes the columns (``IVOA.VOTable-Parquet.content``, which TOPCAT and astropy's ``parquet.votable`` read), the
    lines in which astropy describes a table (``table_meta_yaml``, without attributes that come with :meth:`close`),
    and what made the file (``XPKERN``, in JSON).
    """

    group_rows = 65536

    def __init__(self, path: Path, columns: Sequence[Column], attributes: Mapping[str, object]) -> None:
        super().__init__(path, columns, attributes)
        from pyarrow import parquet

        about = yaml_of_columns(tuple(columns), json_text(attributes))
        self._schema = arrow_schema(columns, self).with_metadata({"table_meta_yaml": about})
        # few values, often the same, are in a dictionary; the mantissas of floats are noise
        few_values = [column.name for column in columns if self.dtype_of(column).kind in "iu" and column.unit == ""]
        self._writer = parquet.ParquetWriter(
            self._stream,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in few_values if name not in ("source_id", "gdr3_source_id")],
            write_statistics=True,
        )

    def abandon(self) -> None:
        """Close the file as it is; without effect on a closed one."""
        if self._writer.is_open:
            with contextlib.suppress(Exception):  # what cannot be closed is thrown away
                self._writer.close()
        super().abandon()

    def _write_group(self, group: Group) -> None:
        batch = arrow_batch(self.columns, group, self._schema)
        self._writer.write_batch(batch, row_group_size=self._group_rows)

    def _finish(self) -> None:
        self._writer.add_key_value_metadata(
            {
                "IVOA.VOTable-Parquet.version": "1.0",
                "IVOA.VOTable-Parquet.content": votable_document(self.columns, self._attributes),
                "XPKERN": json_text(self._attributes),
            }
        )
        self._writer.close()


def arrow_schema(columns: Sequence[Column], writer: TableWriter) -> pyarrow.Schema:
    """The columns as Arrow sees them."""
    import pyarrow

    def field(column: Column) -> pyarrow.Field:
        dtype = writer.dtype_of(column)
        kind = pyarrow.string() if dtype.kind == "S" else pyarrow.from_numpy_dtype(dtype)
        for size in reversed(column.shape):
            kind = pyarrow.list_(kind, size)
        about = {name: getattr(column, name) for name in ("unit", "ucd", "description")}
        return pyarrow.field(column.name, kind, nullable=False, metadata=about)

    return pyarrow.schema([field(column) for column in columns])


def arrow_batch(columns: Sequence[Column], group: Group, schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    """Rows as Arrow holds them, without copies of the values."""
    import pyarrow

    def array(column: Column) -> pyarrow.Array:
        values = np.ascontiguousarray(group[column.name]).reshape(-1)
        if values.dtype.kind == "S":
            return pyarrow.array(values, pyarrow.binary()).cast(pyarrow.string())
        values = pyarrow.array(values)
        for size in reversed(column.shape):
            values = pyarrow.FixedSizeListArray.from_arrays(values, size)
        return values

    return pyarrow.record_batch([array(column) for column in columns], schema=schema)
