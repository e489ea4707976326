"""Columns of stars into a FITS binary table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xpkern.catalog.metadata import empty_table, json_text, table_yaml, unit_text
from xpkern.catalog.schema import Column
from xpkern.catalog.table_writer import Group, TableWriter

#: FITS files are made of blocks of this size [B], and headers of cards of that one.
BLOCK, CARD = 2880, 80

#: Letter of TFORM, data type in the file, and offset (TZERO) of each data type of a column. FITS has no unsigned
#: integers of more than 8 bits: they are stored minus 2^(bits - 1).
FORMS = {
    np.dtype(np.uint8): ("B", ">u1", 0),
    np.dtype(np.int16): ("I", ">i2", 0),
    np.dtype(np.int32): ("J", ">i4", 0),
    np.dtype(np.uint32): ("J", ">i4", 1 << 31),
    np.dtype(np.int64): ("K", ">i8", 0),
    np.dtype(np.float32): ("E", ">f4", 0),
    np.dtype(np.float64): ("D", ">f8", 0),
}


def form_of(dtype: np.dtype) -> tuple[str, str, int]:
    """As :data:`FORMS`, also of texts of so many bytes."""
    return (f"{dtype.itemsize}A", dtype.str, 0) if dtype.kind == "S" else FORMS[dtype]


class FitsWriter(TableWriter):
    """One binary table, with TUNIT, TUCD and TCOMM of each column for TOPCAT, and comments that astropy understands.

    What made the file is its keyword XPKERN, in JSON, and astropy's ``meta``. Rows are appended; the header, with their
    number, is written again at the end, in the place that was left for it.
    """

    def __init__(self, path: Path, columns: Sequence[Column], attributes: Mapping[str, object]) -> None:
        super().__init__(path, columns, attributes)
        self._row = np.dtype([(column.name, form_of(self.dtype_of(column))[1], column.shape) for column in columns])
        self._primary = _primary_header()
        self._column_cards = _text([c for n, column in enumerate(columns, 1) for c in self._cards_of(n, column)])
        self._header_size = 0
        header = self._header()
        self._header_size = len(header) + 2 * BLOCK  # room for the counts that come with close()
        self._stream.write(header.ljust(self._header_size))

    def _write_group(self, group: Group) -> None:
        records = np.empty(len(group[self.columns[0].name]), self._row)
        for column in self.columns:
            values, offset = group[column.name], form_of(self.dtype_of(column))[2]
            records[column.name] = values.astype(np.int64) - offset if offset else values
        self._stream.write(records.view(np.uint8))

    def _finish(self) -> None:
        self._stream.write(bytes(-self._stream.tell() % BLOCK))
        self._write_header_again(self._header(), self._header_size)

    def _header(self) -> bytes:
        """The primary header and that of the table, blank cards before its end if it has more room than it needs."""
        table = [
            ("XTENSION", "BINTABLE", "binary table"),
            ("BITPIX", 8),
            ("NAXIS", 2),
            ("NAXIS1", self._row.itemsize, "bytes of a row"),
            ("NAXIS2", self.rows, "rows"),
            ("PCOUNT", 0),
            ("GCOUNT", 1),
            ("TFIELDS", len(self.columns), "columns"),
            ("EXTNAME", "XPKERN"),
        ]
        about = table_yaml(empty_table(self.columns, {**self._attributes, "__serialized_columns__": {}}))
        comments = [("COMMENT", text) for text in _astropy_comments(about)]
        cards = _text(table) + self._column_cards + _text([("XPKERN", json_text(self._attributes)), *comments])
        size = len(self._primary) + len(cards) + CARD
        size = max(self._header_size, size + -size % BLOCK)
        return self._primary + (cards.ljust(size - len(self._primary) - CARD) + "END".ljust(CARD)).encode("ascii")

    def _cards_of(self, number: int, column: Column) -> Iterator[tuple[str, object]]:
        """What the header says of the column of that number."""
        letter, _, offset = form_of(self.dtype_of(column))
        size = int(np.prod(column.shape, dtype=int))
        yield f"TTYPE{number}", column.name
        yield f"TFORM{number}", letter if size == 1 else f"{size}{letter}"
        if offset:
            yield f"TSCAL{number}", 1
            yield f"TZERO{number}", offset
        if column.unit:
            yield f"TUNIT{number}", unit_text(column.unit, "fits")
        yield f"TUCD{number}", column.ucd
        yield f"TCOMM{number}", column.description


def _text(cards: Sequence[tuple[Any, ...]]) -> str:
    """Cards (keyword, value, comment) as FITS writes them; long ones go on in the next."""
    from astropy.io import fits

    text: str = fits.Header([fits.Card(*card) for card in cards]).tostring(endcard=False, padding=False)
    return text


def _astropy_comments(lines: Sequence[str]) -> Iterator[str]:
    """Comments from which astropy learns descriptions and UCDs; a backslash says that the next one goes on."""
    yield "--BEGIN-ASTROPY-SERIALIZED-COLUMNS--"
    for line in lines:
        pieces = [line[start : start + 70] for start in range(0, len(line), 70)]
        yield from (f"{piece}\\" for piece in pieces[:-1])
        yield pieces[-1]
    yield "--END-ASTROPY-SERIALIZED-COLUMNS--"


def _primary_header() -> bytes:
    from astropy.io import fits

    return fits.PrimaryHDU().header.tostring().encode("ascii")
