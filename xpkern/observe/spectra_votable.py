"""Spectra in VOTable, its rows as text (TABLEDATA) or binary."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from astropy.io import votable

from xpkern.errors import InputError
from xpkern.observe.columns import reason_of
from xpkern.observe.spectra_columns import IDENTIFIERS, Chunk
from xpkern.observe.spectra_memory import MemoryTable

#: How far into a document its kind, and numbers of rows that memory would be asked for, are sought.
_HEAD = 1 << 20


class VOTable:
    """See :class:`xpkern.observe.spectra_columns.ColumnTable`: the first table with one of the columns ``keys``."""

    def __init__(self, content: str | BinaryIO, file: str, keys: frozenset[str] = IDENTIFIERS) -> None:
        _check_votable(content, file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # archives bend the standard; what matters is checked
                document = votable.parse(content, verify="ignore")
                _refuse_error_document(document, file)
                tables = [
                    {field.name.lower(): field.name for field in table.fields} for table in document.iter_tables()
                ]
                found = [(table, names) for table, names in zip(document.iter_tables(), tables, strict=True) if names]
                chosen = next((pair for pair in found if keys & pair[1].keys()), found[0] if found else None)
        except InputError:
            raise
        except Exception as error:  # a damaged document fails in any way at any place
            raise InputError(f"not a readable VOTable ({reason_of(error)})", file=file) from error
        if chosen is None:
            raise InputError("the VOTable holds no table", file=file)
        array, names = chosen[0].array, chosen[1]
        columns = array.dtype.names or ()
        # fields that are not named as the table says carry their ID
        by_name = {name: own if own in columns else columns[i] for i, (name, own) in enumerate(names.items())}
        values = {name: _masked(array, own) for name, own in by_name.items()}
        self._table = MemoryTable(values, file, every_column=True)
        self.widths, self.n_rows, self.attributes = self._table.widths, self._table.n_rows, self._table.attributes

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`ColumnTable`."""
        return self._table.chunks(columns, rows)

    def close(self) -> None:
        """See :class:`ColumnTable`."""


def _masked(array: Any, name: str) -> np.ma.MaskedArray:
    column: np.ma.MaskedArray = np.ma.asarray(array[name])
    return column


def _check_votable(content: str | BinaryIO, file: str) -> None:
    """Refuse documents that are no VOTable, and more rows than they have bytes for."""
    if isinstance(content, str):
        size = os.path.getsize(content)
        with open(content, "rb") as stream:
            head = stream.read(_HEAD)
    else:
        head, size = content.read(_HEAD), content.seek(0, os.SEEK_END)
        content.seek(0)
    if b"<VOTABLE" not in head and b":VOTABLE" not in head:
        kind = "a web page" if b"<html" in head[:4096].lower() else "an XML document"
        raise InputError(f"is {kind}, not a VOTable", file=file)
    if b"<!ENTITY" in head:
        raise InputError("defines entities, which no VOTable needs", file=file)
    for rows in re.findall(rb"""nrows\s*=\s*["']\s*(\d+)""", head):
        if int(rows) > size:
            raise InputError(f"{int(rows)} rows in a file of {size} bytes are absurd", file=file)


def _refuse_error_document(document: Any, file: str) -> None:
    for resource in document.resources:
        for info in resource.infos:
            if info.name == "QUERY_STATUS" and str(info.value).upper() == "ERROR":
                said = " ".join(str(info.content or "no reason given").split())
                raise InputError(f"holds an error in place of a table: {said}", file=file)
