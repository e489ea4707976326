"""Spectra in FITS binary tables, with arrays of fixed or variable length.

The header is astropy's to read; the rows are taken from the file itself, a few at a time, as astropy reads the whole
of a column whose arrays vary in length.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from xpkern.errors import InputError
from xpkern.observe.columns import Column, attributes_of, chosen_table, no_table, reason_of, some_names
from xpkern.observe.spectra_columns import IDENTIFIERS, Chunk

#: Types of FITS columns as NumPy's, big-endian; of a logical value the letter T or F.
_TYPES = {"L": "S1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}

#: A column's format: how often, what, and for the descriptor of an array of what.
_FORMAT = re.compile(r"(\d*)([A-Z])([A-Z]?)")


class FitsTable:
    """See :class:`xpkern.observe.spectra_columns.ColumnTable`: a binary table that :func:`chosen_table` chooses.

    Attributes
    ----------
    units : dict of str to str
        Of each column, as the header has it; empty where it has none.
    """

    def __init__(
        self,
        content: str | BinaryIO,
        file: str,
        keys: frozenset[str] = IDENTIFIERS,
        wanted: frozenset[str] = frozenset(),
    ) -> None:
        self._name, self._keys, self._wanted = file, keys, wanted
        self.names: list[str] = []
        self.widths: dict[str, int | None] = {}
        self.units: dict[str, str] = {}
        self._columns: dict[str, _FitsColumn] = {}
        self._content: str | NDArray[np.uint8]
        self._content = content if isinstance(content, str) else np.frombuffer(content.read(), np.uint8)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what they say is checked below
                opened = self._content if isinstance(self._content, str) else io.BytesIO(self._content.data)
                with fits.open(opened, memmap=True, lazy_load_hdus=False) as hdus:
                    self._choose(hdus)
        except InputError:
            raise
        except Exception as error:  # a damaged file fails in any way at any place
            raise InputError(f"not a readable FITS file ({reason_of(error)})", file=file) from error
        size = os.path.getsize(self._content) if isinstance(self._content, str) else self._content.size
        if size < self._heap_end:
            raise InputError(f"the file ends too early: it has {size} bytes of at least {self._heap_end}", file=file)

    def _choose(self, hdus: Any) -> None:
        tables = [
            [(name or "").lower() for name in hdu.columns.names] if isinstance(hdu, fits.BinTableHDU) else []
            for hdu in hdus
        ]
        chosen = chosen_table(tables, self._keys, self._wanted, self._name)
        if chosen is None:
            kinds = [
                f"a table of {some_names(names)}" if names else type(hdu).__name__
                for names, hdu in zip(tables, hdus, strict=True)
            ]
            raise no_table("HDUs", kinds, tables, self._keys, self._wanted, self._name)
        hdu, names = hdus[chosen], tables[chosen]
        self.names = list(hdu.columns.names)
        header = hdu.header
        self.attributes = attributes_of(header.get("XPKERN"))
        self._row_size, self.n_rows = int(header["NAXIS1"]), int(header["NAXIS2"])
        self._start = int(hdu.fileinfo()["datLoc"])
        size = self._row_size * self.n_rows
        self._heap = self._start + int(header.get("THEAP", size))
        self._heap_end = self._start + size + int(header.get("PCOUNT", 0))
        if min(self._row_size, self.n_rows, self._heap, self._heap_end - self._start) < 0:
            raise InputError("a negative size in its header", file=self._name)
        place = 0
        for name, column in zip(names, hdu.columns, strict=True):
            width = hdu.columns.dtype[column.name].itemsize
            self._columns[name] = _FitsColumn(column, place, self._name)
            self.widths[name] = self._columns[name].width if self.n_rows else None
            self.units[name] = column.unit or ""
            place += width
        if place != self._row_size:
            raise InputError(f"its columns take {place} bytes of rows of {self._row_size}", file=self._name)

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`ColumnTable`."""
        for first in range(0, self.n_rows, rows):
            count = min(rows, self.n_rows - first)
            begin = self._start + first * self._row_size
            table = self._bytes(begin, begin + count * self._row_size).reshape(count, self._row_size)
            yield {name: self._columns[name].read(table, self._of_heap, first) for name in columns}

    def _bytes(self, begin: int, end: int) -> NDArray[np.uint8]:
        """A part of the file; mapped only as long as it is used, or the memory would seem to grow with the file."""
        if not isinstance(self._content, str):
            return self._content[begin:end]
        if end <= begin:
            return np.empty(0, np.uint8)
        return np.asarray(np.memmap(self._content, np.uint8, "r", begin, (end - begin,)))

    def _of_heap(self, begin: int, end: int) -> NDArray[np.uint8] | None:
        """A part of the arrays of variable length; None if it lies outside."""
        inside = 0 <= begin <= end <= self._heap_end - self._heap
        return self._bytes(self._heap + begin, self._heap + end) if inside else None

    def close(self) -> None:
        """See :class:`ColumnTable`."""


_Heap = Callable[[int, int], "NDArray[np.uint8] | None"]


class _FitsColumn:
    """Where a column is in a row, and how it is read.

    Attributes
    ----------
    width : int or None
        Numbers of a row; None where rows differ.
    """

    def __init__(self, column: Any, place: int, file: str) -> None:
        self._file, self._field, self._place = file, column.name, place
        found = _FORMAT.match(str(column.format).strip().upper())
        repeat, letter, of_array = found.groups() if found else ("", "", "")
        self._is_ragged = letter in "PQ" and letter != ""
        self._count = int(repeat) if repeat else 1
        kind = _TYPES.get(of_array if self._is_ragged else letter)
        self._type = None if kind is None else np.dtype(kind)
        self._is_logical = letter == "L"
        if letter == "A" and self._count:  # so many letters
            self._type, self._count = np.dtype(f"S{self._count}"), 1
        self._descriptor = np.dtype(">i8" if letter == "Q" else ">i4")
        self._null = column.null
        self._scale, self._zero = column.bscale or 1, column.bzero or 0
        self.width = None if self._is_ragged or self._type is None else self._count

    def read(self, table: NDArray[np.uint8], heap: _Heap, first: int) -> Column:
        """Read the column's part of some rows; ``first`` is the number of the first of them."""
        if self._type is None:
            raise InputError("not a column of numbers", file=self._file, field=self._field)
        nothing = np.zeros(len(table), bool)
        if self._is_ragged:
            if self._count == 0:
                return Column(np.empty((len(table), 0)), ~nothing)
            return self._arrays(self._cut(table, self._descriptor, 2), heap, first)
        values = self._cut(table, self._type, self._count)
        if self._count != 1:
            return Column(self._scaled(values), nothing)
        values = values[:, 0]
        if self._is_logical:
            return Column((values == b"T").astype(np.uint8), np.asarray(values == b"\0"))
        if values.dtype.kind == "S":
            return Column(np.char.rstrip(values), nothing)
        absent = nothing if self._null is None or values.dtype.kind == "f" else values == self._null
        return Column(self._scaled(values), absent)

    def _cut(self, table: NDArray[np.uint8], kind: np.dtype, count: int) -> NDArray:
        width = kind.itemsize * count
        cut = np.ascontiguousarray(table[:, self._place : self._place + width])
        return cut.view(kind).reshape(len(table), count)

    def _arrays(self, descriptors: NDArray, heap: _Heap, first: int) -> Column:
        assert self._type is not None
        size = self._type.itemsize
        lengths, places = descriptors.astype(np.int64).T
        # in Python's integers, as a product of what the file says may be larger than 64 bits
        spans = [
            (place, place + length * size) for place, length in zip(places.tolist(), lengths.tolist(), strict=True)
        ]
        used = [span for span in spans if span[1] > span[0]]
        begin, end = min((span[0] for span in used), default=0), max((span[1] for span in used), default=0)
        data = heap(begin, end) if (lengths >= 0).all() else None
        if data is None:
            row = next(row for row, span in enumerate(spans) if span[1] < span[0] or heap(*span) is None)
            raise InputError(
                f"its array of {lengths[row]} numbers lies outside the file's data",
                file=self._file,
                row=first + row + 1,
                field=self._field,
            )
        if sum(b - a for a, b in used) > end - begin:
            raise InputError("its arrays overlap", file=self._file, row=first + 1, field=self._field)
        starts = np.cumsum(lengths) - lengths
        values = np.empty(int(lengths.sum()), self._type)
        into = values.view(np.uint8)
        for start, (a, b) in zip((starts * size).tolist(), spans, strict=True):
            into[start : start + b - a] = data[a - begin : b - begin]
        return Column(self._scaled(values), np.zeros(len(lengths), bool), starts, lengths)

    def _scaled(self, values: NDArray) -> NDArray:
        """Values in this machine's byte order, with the column's scale applied."""
        native = values.astype(values.dtype.newbyteorder("="))
        if self._scale == 1 and self._zero == 0:
            return native
        half = 1 << 8 * native.itemsize - 1
        if (
            native.dtype.kind in "iu"
            and self._scale == 1
            and self._zero == (half if native.dtype.kind == "i" else -half)
        ):
            # how FITS has integers of the other sign: the highest bit says it
            unsigned = native.view(f"u{native.itemsize}") ^ np.array(half, f"u{native.itemsize}")
            return unsigned if native.dtype.kind == "i" else unsigned.view(np.int8)
        with np.errstate(over="ignore", invalid="ignore"):  # what is no finite number is refused for it
            return native * np.float64(self._scale) + np.float64(self._zero)
