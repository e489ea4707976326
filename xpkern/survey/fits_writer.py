"""A FITS table written row by row: memory does not grow with it, and equal rows give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpkern.survey.tables import TableColumn, as_records

#: FITS files are made of blocks of this size [B].
_BLOCK = 2880


class FitsTableWriter:
    """One binary table, with units and descriptions.

    Parameters
    ----------
    path : Path
        File to create.
    name : str
        Of the table (EXTNAME).
    columns : sequence of TableColumn
    comments : sequence of str
        Go into the header.
    """

    def __init__(self, path: Path, name: str, columns: Sequence[TableColumn], comments: Sequence[str] = ()) -> None:
        self.rows = 0
        self._columns = tuple(columns)
        self._name = name
        self._comments = comments
        self._stream = open(path, "wb")  # noqa: SIM115 closed by close() or abandon()
        self._stream.write(self._header(0))

    def append(self, table: Mapping[str, NDArray]) -> None:
        """Add rows: a mapping with an array (n,) for each column."""
        records = as_records(table, self._columns)
        self._stream.write(records.tobytes())
        self.rows += len(records)

    def close(self) -> None:
        """Complete the last block, and state the number of rows."""
        self._stream.write(bytes(-self._stream.tell() % _BLOCK))
        self._stream.seek(0)
        self._stream.write(self._header(self.rows))
        self._stream.close()

    def abandon(self) -> None:
        """Close the file as it is; without effect on a closed one."""
        self._stream.close()

    def _header(self, rows: int) -> bytes:
        """The primary header and that of the table; its length does not depend on the number of rows."""
        from astropy.io import fits

        nothing = {column.name: np.empty(0, column.dtype) for column in self._columns}
        table = fits.BinTableHDU(as_records(nothing, self._columns), name=self._name)
        for number, column in enumerate(self._columns, 1):
            if column.unit:
                table.header.set(f"TUNIT{number}", column.unit, after=f"TFORM{number}")
            table.header[f"TCOMM{number}"] = column.description
        for comment in self._comments:
            table.header["COMMENT"] = comment
        table.header["NAXIS2"] = rows
        return (fits.PrimaryHDU().header.tostring() + table.header.tostring()).encode("ascii")
