"""Spectra in HDF5: one dataset per column, as mirrors of the archive have them, or one dataset of compound rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import h5py
import numpy as np

from xpkern.errors import InputError
from xpkern.observe.columns import Column, column_of
from xpkern.observe.spectra_columns import IDENTIFIERS, Chunk

#: A dataset that claims more bytes than this for each byte of the file is not read: deflate makes at most 1032 of one.
MOST_INFLATION = 2000

#: A chunk is read as a whole; larger ones are refused.
LARGEST_CHUNK = 1 << 28


class Hdf5Table:
    """See :class:`xpkern.observe.spectra_columns.ColumnTable`. Columns are sought in the root, then in its groups."""

    def __init__(self, content: str | BinaryIO, file: str) -> None:
        self._name, self._content = file, content
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
        self.widths: dict[str, int | None] = {}
        self.n_rows = 0
        places = [self._file, *(item for item in self._file.values() if isinstance(item, (h5py.Group, h5py.Dataset)))]
        for place in places:
            if isinstance(place, h5py.Dataset):
                names = place.dtype.names or ()
                columns = {name.lower(): (place.fields(name), place.dtype[name], place.shape) for name in names}
            else:
                # a name that is no text is none of ours
                items = {name.lower(): item for name, item in place.items() if isinstance(name, str)}
                datasets = {name: item for name, item in items.items() if isinstance(item, h5py.Dataset)}
                columns = {name: (data, data.dtype, data.shape) for name, data in datasets.items()}
            self.widths |= dict.fromkeys(columns)
            if IDENTIFIERS & columns.keys():
                break
        else:
            return  # the names found tell what is missing
        size = self._file.id.get_filesize()
        self.widths = {}
        n_rows = None
        for name, (data, dtype, shape) in columns.items():
            shape = (*(shape or ()), *dtype.shape)
            if len(shape) not in (1, 2, 3) or dtype.base.kind not in "iufbOSU":
                continue
            width = int(np.prod(shape[1:], dtype=object))
            is_ragged = dtype.kind in "OSU"
            self.widths[name] = None if is_ragged or shape[0] == 0 else width
            whole = data if isinstance(data, h5py.Dataset) else place
            claimed = shape[0] * width * dtype.base.itemsize
            if claimed > MOST_INFLATION * (size + 4096):
                raise InputError(f"its shape {shape} is absurd in a file of {size} bytes", file=self._name, field=name)
            if whole.chunks and int(np.prod(whole.chunks, dtype=object)) * whole.dtype.itemsize > LARGEST_CHUNK:
                raise InputError(f"chunks of shape {whole.chunks} are too large", file=self._name, field=name)
            if name in IDENTIFIERS:
                n_rows = shape[0]
            self._columns[name] = (data, shape[0])
        self.n_rows = n_rows or 0

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`ColumnTable`."""
        for name in columns:
            if (n_rows := self._columns[name][1]) != self.n_rows:
                raise InputError(f"{n_rows} rows, but {self.n_rows} of source_id", file=self._name, field=name)
        for first in range(0, self.n_rows, rows):
            chunk = {}
            for name in columns:
                try:
                    values = self._rows(self._columns[name][0], first, min(first + rows, self.n_rows))
                    chunk[name] = _native(values) if values.dtype.kind in "iufb" else column_of(values)
                except (OSError, RuntimeError, ValueError, TypeError) as error:
                    raise InputError(f"cannot be read ({error})", file=self._name, row=first + 1, field=name) from error
            yield chunk

    def _rows(self, data: Any, begin: int, end: int) -> np.ndarray:
        """Some rows of a dataset; those that lie in the file as they are in memory are mapped, not copied."""
        if isinstance(data, h5py.Dataset) and isinstance(self._content, str) and data.dtype.isnative:
            offset = data.id.get_offset() if data.dtype.kind in "iuf" and not self._file.userblock_size else None
            size = int(np.prod(data.shape[1:], dtype=object)) * data.dtype.itemsize
            if offset is not None and offset % data.dtype.itemsize == 0 and size > 0:
                shape = (end - begin, *data.shape[1:])
                return np.asarray(np.memmap(self._content, data.dtype, "r", offset + begin * size, shape))
        return np.asarray(data[begin:end])

    def close(self) -> None:
        """See :class:`ColumnTable`."""
        self._file.close()


def _native(values: np.ndarray) -> Column:
    """Numbers or arrays of them in the byte order of this machine, with whole rows for arrays of any dimension."""
    if values.ndim > 2:
        values = values.reshape(len(values), -1)
    return Column(values.astype(values.dtype.newbyteorder("="), copy=False), np.zeros(len(values), bool))
