"""More records than memory holds, kept on disk so that those of a range of keys are read together: an external sort.

Records come in blocks of any order; each block is sorted by its keys and written as a run. Those of a range of keys are
one piece of each run, so that a part of the records is read with as many reads as there are runs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray


class SortedRuns:
    """Records by key, in a file without a name: whatever ends the process, nothing of it is left.

    Parameters
    ----------
    folder : Path
        Where the file is.
    dtype : dtype
        Of a record.
    n_keys : int
        Keys are from 0 to this.

    Attributes
    ----------
    counts : (n_keys,) int64
        How many records have each key.
    """

    def __init__(self, folder: Path, dtype: DTypeLike, n_keys: int) -> None:
        self.counts = np.zeros(n_keys, np.int64)
        self._folder, self._dtype = folder, np.dtype(dtype)
        self._runs: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
        self._written = 0
        self._stream = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 closed by close()

    def add(self, records: NDArray, keys: NDArray[np.int64]) -> None:
        """Write a run of records (n,) with their keys (n,).

        Raises
        ------
        OSError
            If the disk is full.
        """
        if not len(records):
            return
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        there, counts = keys[first], np.diff(np.append(first, len(keys)))
        self.counts[there] += counts
        self._runs.append((self._written, there, np.append(first, len(keys))))
        try:
            self._stream.seek(0, os.SEEK_END)
            self._stream.write(np.asarray(records, self._dtype)[order].view(np.uint8).data)
            self._stream.flush()
        except OSError as failure:
            raise OSError(failure.errno, failure.strerror, str(self._folder)) from failure
        self._written += len(records)

    def part(self, first: int, end: int) -> NDArray:
        """Records of the keys from ``first`` up to, not including, ``end``; run by run, by key within a run."""
        pieces = []
        for start, keys, positions in self._runs:
            begin, stop = positions[np.searchsorted(keys, (first, end))]
            if stop > begin:
                piece = np.empty(stop - begin, self._dtype)
                self._stream.seek(int(start + begin) * self._dtype.itemsize)
                self._stream.readinto(piece.view(np.uint8).data)
                pieces.append(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, self._dtype)

    def close(self) -> None:
        """Remove the file."""
        self._stream.close()


def key_ranges(counts: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Ranges (first, end) of keys, in order, with at most so many records each; a key alone may have more.

    Parameters
    ----------
    counts : (n_keys,) int64
        Records of each key; keys without any belong to no range or to a neighbour's.
    most : int
    """
    keys = np.flatnonzero(counts)
    before = np.append(0, np.cumsum(counts[keys]))
    start = 0
    while start < len(keys):
        stop = max(start + 1, int(np.searchsorted(before, before[start] + most, side="right")) - 1)
        yield int(keys[start]), int(keys[stop - 1]) + 1
        start = stop
