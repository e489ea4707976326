"""Columns of stars into an HDF5 file, block by block."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.rows import StarRows
from xpkern.catalog.schema import Column

#: Rows of a chunk. A file is written chunk by chunk whatever the blocks that come in, so that its bytes do not
#: depend on them. Not compressed: shuffled gzip saves 18 % (mantissas are noise) and costs half as much as the fit.
CHUNK_ROWS = 8192


class Hdf5Writer:
    """One dataset per column, in the order of the columns, each with its unit, ucd and description.

    The file carries no time stamps: equal stars give equal bytes.

    Parameters
    ----------
    path : Path
        File to create.
    columns : sequence of Column
    attributes : mapping of str to str, number or array
        Attributes of the file as a whole.
    """

    def __init__(self, path: Path, columns: Sequence[Column], attributes: Mapping[str, object]) -> None:
        self.columns = columns
        self.rows = 0
        self._rows_written = 0
        self._waiting: list[dict[str, NDArray[np.generic]]] = []
        self._stream = CheckedFile(path)
        self._file = create_file(self._stream)
        self._datasets: dict[str, h5py.Dataset] = {}
        for name, value in attributes.items():
            self._file.attrs[name] = value

    def append(self, rows: StarRows) -> None:
        """Add stars at the end."""
        self._waiting.append({column.name: column.compute(rows) for column in self.columns})
        self.rows += len(rows)
        if self.rows - self._rows_written >= CHUNK_ROWS:
            self._write_waiting(whole_chunks_only=True)

    def close(self) -> None:
        """Write what is left and close the file.

        Raises
        ------
        OSError
            If something could not be written, now or before.
        """
        self._write_waiting(whole_chunks_only=False)
        self._file.attrs["rows"] = self.rows
        self.abandon()
        self._stream.check()

    def abandon(self) -> None:
        """Close the file as it is; without effect on a closed one."""
        self._file.close()
        self._stream.close()

    def _write_waiting(self, *, whole_chunks_only: bool) -> None:
        """Write waiting rows, all columns of a chunk before the next chunk, and keep what is not written."""
        waiting = {
            column.name: np.concatenate(
                [np.empty((0, *column.shape), column.dtype), *(block[column.name] for block in self._waiting)]
            )
            for column in self.columns
        }
        first = self._rows_written
        last = self.rows - self.rows % CHUNK_ROWS if whole_chunks_only else self.rows
        for start in range(first, last, CHUNK_ROWS) or [first]:
            stop = min(start + CHUNK_ROWS, last)
            for column in self.columns:
                dataset = self._dataset(column, stop - start)
                dataset.resize(stop, axis=0)
                dataset[start:stop] = waiting[column.name][start - first : stop - first]
        self._stream.check()
        self._rows_written = last
        self._waiting = [{name: values[last - first :] for name, values in waiting.items()}]

    def _dataset(self, column: Column, count: int) -> h5py.Dataset:
        if column.name in self._datasets:
            return self._datasets[column.name]
        chunk_rows = min(CHUNK_ROWS, max(count, 1))  # a file of 30 stars need not fill a chunk of thousands
        dataset = self._file.create_dataset(
            column.name,
            shape=(0, *column.shape),
            maxshape=(None, *column.shape),
            chunks=(chunk_rows, *column.shape),
            dtype=column.dtype,
            track_times=False,
        )
        for attribute in ("unit", "ucd", "description"):
            _add_text(dataset, attribute, getattr(column, attribute))
        self._datasets[column.name] = dataset
        return dataset


def create_file(stream: CheckedFile, name: str = "catalog") -> h5py.File:
    """Return a new file that lists its datasets in the order in which they were created, and carries no times."""
    # h5py's own track_order=True also tracks the order of attributes, which older HDF5 libraries refuse beyond eight
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    creation.set_link_creation_order(h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, stream)
    return h5py.File(h5py.h5f.create(name.encode(), h5py.h5f.ACC_TRUNC, creation, access))


def _add_text(dataset: h5py.Dataset, name: str, text: str) -> None:
    """Set a new attribute to a text, as ``dataset.attrs`` does in eight times the time."""
    kind = h5py.string_dtype()
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    attribute = h5py.h5a.create(dataset.id, name.encode(), h5py.h5t.py_create(kind, logical=True), space)
    attribute.write(np.array(text, dtype=kind))


class CheckedFile(io.FileIO):
    """A file that remembers what goes wrong in writing instead of raising it.

    HDF5 cannot close a file that it cannot write (a full disk): it prints tracebacks and crashes when the process
    ends. So it never hears of an error, nor of a Ctrl-C that comes in the middle of a write; :meth:`check` raises
    them, and the file is removed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._error: BaseException | None = None

    def write(self, data: Any, /) -> int:
        """Write all of the data, or remember why not."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self._error is None:
                rest = rest[super().write(rest) :]
        except BaseException as error:
            self._error = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        """Change the length of the file, or remember why not."""
        try:
            return super().truncate(size)
        except BaseException as error:
            self._error = self._error or error
            return 0

    def check(self) -> None:
        """Raise the first error that was remembered."""
        if isinstance(self._error, OSError):
            raise OSError(self._error.errno, self._error.strerror, self.name)
        if self._error is not None:
            raise self._error
