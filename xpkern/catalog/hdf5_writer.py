"""Columns of stars into an HDF5 file, block by block."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.schema import Column, StarRows

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
        self._file = _create(path)
        for name, value in attributes.items():
            self._file.attrs[name] = value

    def append(self, rows: StarRows) -> None:
        """Add stars at the end."""
        self._waiting.append({column.name: column.compute(rows) for column in self.columns})
        self.rows += len(rows)
        if self.rows - self._rows_written >= CHUNK_ROWS:
            self._write_waiting(whole_chunks_only=True)

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._file:
            self._write_waiting(whole_chunks_only=False)
            self._file.attrs["rows"] = self.rows
            self._file.close()

    def abandon(self) -> None:
        """Close the file as it is; without effect on a closed one."""
        # what cannot be written (a full disk, say) is about to be removed anyway
        with contextlib.suppress(OSError, RuntimeError):
            self._file.close()

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
        self._rows_written = last
        self._waiting = [{name: values[last - first :] for name, values in waiting.items()}]

    def _dataset(self, column: Column, count: int) -> h5py.Dataset:
        if column.name in self._file:
            return self._file[column.name]
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
            dataset.attrs[attribute] = getattr(column, attribute)
        return dataset


def _create(path: Path) -> h5py.File:
    """Return a new file that lists its datasets in the order in which they were created."""
    # h5py's own track_order=True also tracks the order of attributes, which older HDF5 libraries refuse beyond eight
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    creation.set_link_creation_order(h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED)
    return h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, creation))
