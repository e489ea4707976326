"""What the writers of all formats share: rows come in blocks of any size and go out in groups of one size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.checked_file import CheckedFile
from xpkern.catalog.schema import Column

#: Most bytes of a group, whatever its rows: memory stays flat where a row is long (a whitener has 9 kB).
GROUP_BYTES = 1 << 25

#: Values of the columns of some rows, by name.
Group = dict[str, NDArray[np.generic]]


class TableWriter(ABC):
    """Columns of stars into a file, block by block; equal rows give equal bytes, whatever the blocks.

    Nothing that is written carries a time, and memory does not grow with the rows.

    Parameters
    ----------
    path : Path
        File to create.
    columns : sequence of Column
        In the order of the file.
    attributes : mapping of str to str, number, bool or array
        Of the file as a whole: what made it.

    Attributes
    ----------
    rows : int
        Rows appended so far.
    """

    #: Rows that are written together, unless they are long.
    group_rows = 16384

    #: Whether the format has floats of 16 bits; where not, such columns have 32.
    has_half = False

    def __init__(self, path: Path, columns: Sequence[Column], attributes: Mapping[str, object]) -> None:
        self.columns = columns
        self.rows = 0
        self._attributes = dict(attributes)
        self._group_rows = max(1, min(self.group_rows, GROUP_BYTES // bytes_of_row(columns)))
        self._waiting: Group = {
            column.name: np.empty((self._group_rows, *column.shape), self.dtype_of(column)) for column in columns
        }
        self._waiting_rows = 0
        self._stream = CheckedFile(path)

    def append(self, rows: Any) -> None:
        """Add stars at the end: anything with a length of which the columns can be computed."""
        values = {column.name: column.compute(rows) for column in self.columns}
        self.rows += len(rows)
        first = 0
        while first < len(rows):
            begin = self._waiting_rows
            count = min(self._group_rows - begin, len(rows) - first)
            for name, waiting in self._waiting.items():
                waiting[begin : begin + count] = values[name][first : first + count]
            first += count
            self._waiting_rows += count
            if self._waiting_rows == self._group_rows:
                self._write_waiting()

    def close(self, attributes: Mapping[str, object] | None = None) -> None:
        """Write what is left and close the file.

        Parameters
        ----------
        attributes : mapping, optional
            More attributes, which are known only when all rows are: counts. They take a few hundred bytes at most.

        Raises
        ------
        OSError
            If something could not be written, now or before.
        """
        self._attributes |= attributes or {}
        if self._waiting_rows:
            self._write_waiting()
        self._finish()
        self.abandon()
        self._stream.check()

    def abandon(self) -> None:
        """Close the file as it is; without effect on a closed one."""
        self._stream.close()

    def _write_header_again(self, header: bytes, room: int) -> None:
        """Write a header in the place that was left for it at the beginning."""
        if len(header) > room:
            raise ValueError(
                f"a header of {len(header)} bytes where there is room for {room}: too many attributes late"
            )
        self._stream.seek(0)
        self._stream.write(header)

    def dtype_of(self, column: Column) -> np.dtype:
        """Data type of a column in this format."""
        dtype = np.dtype(column.dtype)
        return np.dtype(np.float32) if dtype == np.float16 and not self.has_half else dtype

    @abstractmethod
    def _write_group(self, group: Group) -> None:
        """Write so many rows as belong together; only the last group has fewer. Its arrays are used again."""

    @abstractmethod
    def _finish(self) -> None:
        """Complete the file after its last row."""

    def _write_waiting(self) -> None:
        """Write the waiting rows as a group."""
        count = self._waiting_rows
        self._write_group({name: values[:count] for name, values in self._waiting.items()})
        self._stream.check()
        self._waiting_rows = 0


def bytes_of_row(columns: Sequence[Column]) -> int:
    """Bytes that the values of one row take."""
    return sum(np.dtype(column.dtype).itemsize * int(np.prod(column.shape, dtype=int)) for column in columns)
