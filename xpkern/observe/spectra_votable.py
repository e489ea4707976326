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
from xpkern.observe.columns import chosen_table, no_table, reason_of, some_names
from xpkern.observe.source_files import truncated
from xpkern.observe.spectra_columns import IDENTIFIERS, Chunk
from xpkern.observe.spectra_memory import MemoryTable

#: How far into a document its kind, and numbers of rows that memory would be asked for, are sought.
_HEAD = 1 << 20


class VOTable:
    """See :class:`xpkern.observe.spectra_columns.ColumnTable`: a table that :func:`chosen_table` chooses."""

    def __init__(
        self,
        content: str | BinaryIO,
        file: str,
        keys: frozenset[str] = IDENTIFIERS,
        wanted: frozenset[str] = frozenset(),
    ) -> None:
        _check_votable(content, file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # archives bend the standard; what matters is checked
                document = votable.parse(content, verify="ignore")
                _refuse_bad_status(document, file)
                found = [table for table in document.iter_tables() if table.fields]
        except InputError:
            raise
        except Exception as error:  # a damaged document fails in any way at any place
            raise InputError(f"not a readable VOTable ({reason_of(error)})", file=file) from error
        if not found:
            raise InputError("the VOTable holds no table", file=file)
        tables = [[field.name.lower() for field in table.fields] for table in found]
        number = chosen_table(tables, keys, wanted, file)
        if number is None and len(found) > 1:
            raise no_table("tables", [f"one of {some_names(names)}" for names in tables], tables, keys, wanted, file)
        chosen = found[number or 0]  # the names of the only one tell what is missing
        array, self.names = chosen.array, [field.name for field in chosen.fields]
        columns = array.dtype.names or ()
        # fields that are not named as the table says carry their ID
        own = [name if name in columns else columns[i] for i, name in enumerate(self.names)]
        values = {name.lower(): _masked(array, column) for name, column in zip(self.names, own, strict=True)}
        self._table = MemoryTable(values, file, every_column=True)
        self.widths, self.n_rows, self.attributes = self._table.widths, self._table.n_rows, self._table.attributes
        self.units = {field.name.lower(): str(field.unit or "") for field in chosen.fields}

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


def _refuse_bad_status(document: Any, file: str) -> None:
    """Refuse what a server says, before its table or behind it, to be an error, or not all of the rows asked for."""
    for info in document.iter_info():
        status = str(info.value).upper() if info.name == "QUERY_STATUS" else ""
        if status == "ERROR":
            said = " ".join(str(info.content or "no reason given").split())
            raise InputError(f"holds an error in place of a table: {said}", file=file)
        if status == "OVERFLOW":
            raise truncated(file)
