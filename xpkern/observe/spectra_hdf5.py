"""Spectra in HDF5: one dataset per column, as mirrors of the archive have them, or one dataset of compound rows."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, BinaryIO

import h5py
import numpy as np

from xpkern.errors import InputError
from xpkern.observe.columns import Column, chosen_table, column_of, no_table, reason_of, some_names, some_rows
from xpkern.observe.spectra_columns import IDENTIFIERS, Chunk

#: A dataset that claims more bytes than this for each byte of the file is not read: deflate makes at most 1032 of one.
MOST_INFLATION = 2000

#: A chunk is read as a whole; larger ones are refused.
LARGEST_CHUNK = 1 << 28


class Hdf5Table:
    """See :class:`xpkern.observe.spectra_columns.ColumnTable`.

    Columns are sought in the root and in its groups; :func:`chosen_table` chooses among these.
    """

    def __init__(
        self,
        content: str | BinaryIO,
        file: str,
        keys: frozenset[str] = IDENTIFIERS,
        wanted: frozenset[str] = frozenset(),
    ) -> None:
        self._name, self._content, self._keys, self._wanted = file, content, keys, wanted
        try:
            self._file = h5py.File(content, "r")
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise InputError(f"not a readable HDF5 file ({error})", file=file) from error
        try:
            self._find_columns()
        except InputError:
            self.close()
            raise
        except Exception as error:  # a damaged file fails in any way at any place
            self.close()
            raise InputError(f"not a readable HDF5 file ({error})", file=file) from error

    def _find_columns(self) -> None:
        self._columns: dict[str, Any] = {}
        self.names: list[str] = []
        self.widths: dict[str, int | None] = {}
        self.n_rows = 0
        found: list[tuple[Any, list[str], dict[str, Any]]] = []
        for place in chain([self._file], self._file.values()):
            if isinstance(place, h5py.Dataset):
                names = list(place.dtype.names or ())
                columns = {name.lower(): (place.fields(name), place.dtype[name], place.shape) for name in names}
            elif isinstance(place, h5py.Group):
                # a name that is no text is none of ours
                datasets = {
                    name: item
                    for name, item in place.items()
                    if isinstance(name, str) and isinstance(item, h5py.Dataset)
                }
                names = list(datasets)
                columns = {name.lower(): (data, data.dtype, data.shape) for name, data in datasets.items()}
            else:
                continue
            if columns:
                found.append((place, names, columns))
        tables = [list(columns) for _, _, columns in found]
        chosen = chosen_table(tables, self._keys, self._wanted, self._name)
        if chosen is None and any(self._keys.intersection(names) for names in tables):
            kinds = [f"{place.name}: {some_names(names)}" for place, names, _ in found]
            raise no_table("groups", kinds, tables, self._keys, self._wanted, self._name)
        if chosen is None:  # the names found tell what is missing
            self.names = [name for _, names, _ in found for name in names]
            self.widths = dict.fromkeys(name for names in tables for name in names)
            return
        place, self.names, columns = found[chosen]
        n_rows = None
        for name, (data, dtype, shape) in columns.items():
            shape = (*(shape or ()), *dtype.shape)
            if len(shape) not in (1, 2, 3) or dtype.base.kind not in "iufbOSU":
                continue
            width = int(np.prod(shape[1:], dtype=object))
            is_ragged = dtype.kind in "OSU"
            self.widths[name] = None if is_ragged or shape[0] == 0 else width
            whole = data if isinstance(data, h5py.Dataset) else place
            size = whole.file.id.get_filesize()  # a link may lead to another file
            claimed, most = shape[0] * width * dtype.base.itemsize, MOST_INFLATION * (size + 4096)
            if whole.is_virtual or whole.external:  # its rows are in other files
                claimed, most = width * dtype.base.itemsize, LARGEST_CHUNK
            if claimed > most:
                raise InputError(f"its shape {shape} is absurd in a file of {size} bytes", file=self._name, field=name)
            if whole.chunks and int(np.prod(whole.chunks, dtype=object)) * whole.dtype.itemsize > LARGEST_CHUNK:
                raise InputError(f"chunks of shape {whole.chunks} are too large", file=self._name, field=name)
            if name in self._keys:
                n_rows = shape[0]
            self._columns[name] = (data, shape[0])
        self.n_rows = n_rows or 0

    @property
    def attributes(self) -> dict[str, object]:
        """See :class:`ColumnTable`."""
        return dict(self._file.attrs)

    @property
    def units(self) -> dict[str, str]:
        """See :class:`ColumnTable`; those of compound rows have no place to be named."""
        units = {}
        for name, (data, _) in self._columns.items():
            attributes = data.attrs if isinstance(data, h5py.Dataset) else {}
            unit = attributes.get("unit", attributes.get("units", ""))
            units[name] = unit.decode(errors="replace") if isinstance(unit, bytes) else str(unit)
        return units

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`ColumnTable`."""
        for name in columns:
            if (n_rows := self._columns[name][1]) != self.n_rows:
                key = next(iter(self._keys & self._columns.keys()))
                raise InputError(f"{n_rows} rows, but {self.n_rows} of {key}", file=self._name, field=name)
        sources = {name: self._mapped(self._columns[name][0]) for name in columns}
        for first in range(0, self.n_rows, rows):
            chunk, end = {}, min(first + rows, self.n_rows)
            for name, source in sources.items():
                try:
                    values = np.asarray(source[first:end])
                    chunk[name] = _native(values) if values.dtype.kind in "iufb" else column_of(values)
                except (OSError, RuntimeError, ValueError, TypeError) as error:
                    message = f"cannot be read in {some_rows(first, end)} ({reason_of(error)})"
                    raise InputError(message, file=self._name, row=first + 1, field=name) from error
            yield chunk

    def _mapped(self, data: Any) -> Any:
        """A dataset, as a :class:`_Mapped` one if its numbers lie in this very file as they do in memory."""
        if not (isinstance(data, h5py.Dataset) and isinstance(self._content, str) and data.dtype.isnative):
            return data
        handle = self._file.id.get_vfd_handle()
        if data.is_virtual or data.external or data.file.id.get_vfd_handle() != handle:
            return data
        offset = data.id.get_offset() if data.dtype.kind in "iuf" and not self._file.userblock_size else None
        if offset is None or offset % data.dtype.itemsize or 0 in data.shape:
            return data
        return _Mapped(handle, offset, data.dtype, data.shape[1:])

    def close(self) -> None:
        """See :class:`ColumnTable`."""
        self._file.close()


def _native(values: np.ndarray) -> Column:
    """Numbers or arrays of them in the byte order of this machine, with whole rows for arrays of any dimension."""
    if values.ndim > 2:
        values = values.reshape(len(values), -1)
    return Column(values.astype(values.dtype.newbyteorder("="), copy=False), np.zeros(len(values), bool))


class _Mapped:
    """Numbers at a place of an open file, which are mapped when rows are asked for, and as long as these are in use."""

    def __init__(self, file: int, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self._file, self._offset, self._dtype, self._shape = file, offset, dtype, shape
        self._numbers_of_row = int(np.prod(shape, dtype=object))

    def __getitem__(self, rows: slice) -> np.ndarray:
        count = (rows.stop - rows.start) * self._numbers_of_row
        begin = self._offset + rows.start * self._numbers_of_row * self._dtype.itemsize
        before = begin % mmap.ALLOCATIONGRANULARITY
        size = before + count * self._dtype.itemsize
        mapped = mmap.mmap(self._file, size, access=mmap.ACCESS_READ, offset=begin - before)
        return np.frombuffer(mapped, self._dtype, count, before).reshape(-1, *self._shape)
