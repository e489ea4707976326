"""Columns of stars into an HDF5 file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from xpkern.catalog.checked_file import CheckedFile
from xpkern.catalog.schema import Column
from xpkern.catalog.table_writer import Group, TableWriter


class Hdf5Writer(TableWriter):
    """One dataset per column, in the order of the columns, each with its unit, ucd and description as attributes.

    A group of rows is a chunk, all columns of one before the next. Not compressed: shuffled gzip saves 18 % (mantissas
    are noise) and costs half as much as the fit.
    """

    has_half = True

    #: Whether each chunk has a checksum (Fletcher's), which its reader holds it against.
    has_checksums = False

    def __init__(self, path: Path, columns: Sequence[Column], attributes: Mapping[str, object]) -> None:
        super().__init__(path, columns, attributes)
        self._rows_written = 0
        self._file = create_file(self._stream)
        self._datasets: dict[str, _Dataset] = {}

    def abandon(self) -> None:
        """Close the file as it is; without effect on a closed one."""
        self._file.close()
        super().abandon()

    def _write_group(self, group: Group) -> None:
        start = self._rows_written
        for column in self.columns:
            values = np.ascontiguousarray(group[column.name])
            dataset = self._dataset(column, len(values))
            if start:
                dataset.id.set_extent((start + len(values), *column.shape))
            self._write_chunk(dataset, (start, *[0] * len(column.shape)), values)
        self._rows_written = start + len(values)

    def _write_chunk(self, dataset: _Dataset, place: tuple[int, ...], values: np.ndarray) -> None:
        """Write the rows of a chunk, which are fewer than it holds at the end of the file."""
        lacking = dataset.chunk_rows - len(values)
        if lacking:
            values = np.concatenate([values, np.zeros((lacking, *values.shape[1:]), values.dtype)])
        dataset.id.write_direct_chunk(place, values)

    def _finish(self) -> None:
        for column in self.columns:  # of a file without rows
            self._dataset(column, 0)
        for name, value in {**self._attributes, "rows": self.rows}.items():
            if isinstance(value, str):
                _add_text(self._file.id, name, value)
            else:
                self._file.attrs[name] = value

    def _dataset(self, column: Column, count: int) -> _Dataset:
        """The dataset of a column; a new one has so many rows."""
        if column.name in self._datasets:
            return self._datasets[column.name]
        chunk_rows = min(self._group_rows, max(count, 1))  # a file of 30 stars need not fill a chunk of thousands
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_obj_track_times(False)
        creation.set_chunk((chunk_rows, *column.shape))
        if self.has_checksums:
            creation.set_fletcher32()
        kind = _kind_of_numbers(np.dtype(column.dtype))
        space = h5py.h5s.create_simple((count, *column.shape), (h5py.h5s.UNLIMITED, *column.shape))
        made = h5py.h5d.create(self._file.id, column.name.encode(), kind, space, creation)
        for attribute in ("unit", "ucd", "description"):
            _add_text(made, attribute, getattr(column, attribute))
        self._datasets[column.name] = _Dataset(made, chunk_rows)
        return self._datasets[column.name]


@dataclass(frozen=True)
class _Dataset:
    """A dataset as HDF5 knows it, and the rows of its chunks. What h5py's own class does takes four times as long."""

    id: h5py.h5d.DatasetID
    chunk_rows: int


class ChecksummedHdf5Writer(Hdf5Writer):
    """The same with a checksum of each chunk, and as few rows in one as a reader's block has: it reads whole chunks."""

    has_checksums = True
    group_rows = 256

    def _write_chunk(self, dataset: _Dataset, place: tuple[int, ...], values: np.ndarray) -> None:
        """Write the rows of a chunk by way of what computes its checksum."""
        space = dataset.id.get_space()
        space.select_hyperslab(place, values.shape)
        dataset.id.write(h5py.h5s.create_simple(values.shape), space, values)


def create_file(stream: CheckedFile, name: str = "catalog") -> h5py.File:
    """Return a new file that lists its datasets in the order in which they were created, and carries no times."""
    # h5py's own track_order=True also tracks the order of attributes, which older HDF5 libraries refuse beyond eight
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    creation.set_link_creation_order(h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, stream)
    return h5py.File(h5py.h5f.create(name.encode(), h5py.h5f.ACC_TRUNC, creation, access))


def _add_text(of: Any, name: str, text: str) -> None:
    """Set a new attribute to a text, as ``attrs`` of h5py's classes does in ten times the time."""
    dtype, in_memory, in_file, space = _kinds_of_texts()
    h5py.h5a.create(of, name.encode(), in_file, space).write(np.array(text, dtype=dtype), in_memory)


@cache
def _kinds_of_texts() -> tuple[np.dtype, Any, Any, Any]:
    """Type of a text in an attribute, as NumPy has it and as HDF5 has it in memory and in the file, and its space."""
    dtype = h5py.string_dtype()
    in_file = h5py.h5t.py_create(dtype, logical=True)
    return dtype, h5py.h5t.py_create(dtype), in_file, h5py.h5s.create(h5py.h5s.SCALAR)


@cache
def _kind_of_numbers(dtype: np.dtype) -> Any:
    """Type of numbers in the file, as HDF5 has it."""
    return h5py.h5t.py_create(dtype, logical=True)
