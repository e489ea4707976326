"""Columns of stars into a text file that people can read: ECSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xpkern.catalog.metadata import empty_table, table_yaml
from xpkern.catalog.parquet_writer import arrow_batch, arrow_schema
from xpkern.catalog.schema import Column
from xpkern.catalog.table_writer import Group, TableWriter

if TYPE_CHECKING:
    import pyarrow

#: Bytes of the header that are left for the counts that come with :meth:`EcsvWriter.close`.
SPARE = 2048


class EcsvWriter(TableWriter):
    """Comma-separated values below a header in YAML, as astropy and TOPCAT read them; arrays are in JSON.

    Numbers have as many digits as it takes to read back the same.
    """

    def __init__(self, path: Path, columns: Sequence[Column], attributes: Mapping[str, object]) -> None:
        super().__init__(path, columns, attributes)
        self._schema = arrow_schema(columns, self)
        self._names = ",".join(column.name for column in columns)
        self._header_size = 0
        header = self._header()
        self._header_size = len(header) + SPARE
        self._stream.write(header.ljust(self._header_size))

    def _write_group(self, group: Group) -> None:
        import pyarrow
        from pyarrow import csv

        batch = arrow_batch(self.columns, group, self._schema)
        texts = [_json_of(array) if column.shape else array for column, array in zip(self.columns, batch, strict=True)]
        sink = pyarrow.BufferOutputStream()
        csv.write_csv(
            pyarrow.table(texts, names=batch.schema.names),
            sink,
            csv.WriteOptions(include_header=False, quoting_style="needed"),
        )
        self._stream.write(sink.getvalue())

    def _finish(self) -> None:
        self._write_header_again(self._header(), self._header_size)

    def _header(self) -> bytes:
        """The header; a comment in its YAML fills the room that it does not need."""
        table = empty_table(self.columns, self._attributes)
        for column in self.columns:
            table[column.name] = table[column.name].astype(self.dtype_of(column))
        lines = ["%ECSV 1.0", "---", *table_yaml(table, schema="astropy-2.0", delimiter=",")]
        text = "".join(f"# {line}\n" for line in lines)
        spare = self._header_size - len(text.encode()) - len(self._names) - 1
        if spare > 4:
            text += "# #" + "-" * (spare - 4) + "\n"
        return (text + self._names + "\n").encode()


def _json_of(array: pyarrow.FixedSizeListArray) -> pyarrow.StringArray:
    """Each list of numbers as text in JSON (with NaN and Infinity, which its readers in Python and Java know)."""
    import pyarrow
    from pyarrow import compute

    numbers = array.flatten().cast(pyarrow.string())
    for ours, theirs in (("nan", "NaN"), ("inf", "Infinity")):
        numbers = compute.replace_substring(numbers, ours, theirs)
    lists = pyarrow.FixedSizeListArray.from_arrays(numbers, array.type.list_size).cast(pyarrow.list_(pyarrow.string()))
    return compute.binary_join_element_wise("[", compute.binary_join(lists, ","), "]", "")
