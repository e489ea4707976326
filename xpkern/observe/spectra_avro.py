"""Spectra in AVRO, in the records of Gaia's own pipeline or with the archive's columns."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, BinaryIO

from xpkern.errors import InputError
from xpkern.observe.columns import column_of_items, reason_of
from xpkern.observe.spectra_columns import Chunk

#: Where the archive's columns are in the pipeline's records. Its covariances lack the factor s².
_PIPELINE = {"source_id": ("sourceId",)} | {
    f"{band}_{column}": (f"{band}Spec", *path)
    for band in ("bp", "rp")
    for column, path in {
        "n_parameters": ("solution", "numberOfParameters"),
        "basis_function_id": ("basisFunctionSetDefId",),
        "standard_deviation": ("solution", "standardDeviation"),
        "coefficients": ("solution", "parameters"),
        "coefficient_covariances": ("solution", "covariance"),
    }.items()
}


class AvroTable:
    """See :class:`xpkern.observe.spectra_columns.ColumnTable`."""

    def __init__(self, content: str | BinaryIO, file: str) -> None:
        try:
            import fastavro
        except ImportError:
            raise InputError("AVRO needs the package fastavro: pip install 'xpkern[avro]'", file=file) from None
        self._name = file
        self.n_rows: int | None = None
        self.attributes: dict[str, object] = {}
        self.units: dict[str, str] = {}
        self._stream = _Bounded(open(content, "rb") if isinstance(content, str) else content)  # noqa: SIM115
        self._reader = fastavro.reader
        try:
            stream: Any = self._stream
            schema: Any = self._reader(stream).writer_schema
            _refuse_empty_items(schema)
            names = [field["name"] for field in schema["fields"]]
        except Exception as error:  # a damaged file fails in any way at any place
            self.close()
            raise InputError(f"not a readable AVRO file ({reason_of(error)})", file=file) from error
        is_pipeline = "sourceId" in names
        self._paths: Mapping[str, tuple[str, ...]] = (
            _PIPELINE if is_pipeline else {name.lower(): (name,) for name in names}
        )
        self.names: list[str] = list(_PIPELINE) if is_pipeline else names
        self.widths: dict[str, int | None] = dict.fromkeys(self._paths)

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`ColumnTable`."""
        read = 0
        broken: InputError | None = None
        self._stream.rewind()
        stream: Any = self._stream
        all_records: Iterator[Any] = iter(self._reader(stream))
        while broken is None:
            records = []
            try:
                for record in islice(all_records, rows):
                    records.append(record)
            except Exception as error:  # as above
                message = f"the AVRO data are corrupt or end too early ({reason_of(error)})"
                broken = InputError(message, file=self._name, row=read + len(records) + 1)
            if records:
                chunk = {}
                for name in columns:
                    try:
                        chunk[name] = column_of_items([_value(record, self._paths[name]) for record in records])
                    except (TypeError, ValueError, OverflowError) as error:
                        raise InputError(
                            f"cannot be read as a column ({error})", file=self._name, field=name
                        ) from error
                yield chunk
                read += len(records)
            elif broken is None:
                return
        raise broken

    def close(self) -> None:
        """See :class:`ColumnTable`."""
        self._stream.close()


class _Bounded:
    """A file that never reads, or asks for the memory of, more than it has: a length in it may say anything."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._size = stream.seek(0, os.SEEK_END)
        stream.seek(0)

    def rewind(self) -> None:
        self._stream.seek(0)

    def read(self, count: int = -1) -> bytes:
        left = self._size - self._stream.tell()
        return self._stream.read(left if count < 0 else min(count, left))

    def close(self) -> None:
        self._stream.close()


def _value(record: Any, path: tuple[str, ...]) -> Any:
    """What is at a path of a record; None where a record on the way is absent."""
    for name in path:
        record = record.get(name) if isinstance(record, Mapping) else None
    return record


def _refuse_empty_items(schema: Any) -> None:
    """Refuse arrays of nothing: any number of them takes no bytes in the file, but memory here."""
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        for part in schema:
            _refuse_empty_items(part)
    elif isinstance(schema, Mapping):
        if "items" in schema and _is_empty(schema["items"]):
            raise ValueError("arrays of items without any bytes")
        for key in ("fields", "items", "values", "type"):
            if key in schema and not isinstance(schema[key], str):
                _refuse_empty_items(schema[key])


def _is_empty(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        if schema.get("type") == "record":
            return all(_is_empty(field["type"]) for field in schema.get("fields", ()))
        return schema.get("type") == "null" or (schema.get("type") == "fixed" and schema.get("size") == 0)
    return bool(schema == "null")
