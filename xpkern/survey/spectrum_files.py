"""Files of spectra: the archive's bulk csv.gz, or one HDF5 dataset per column as mirrors of it have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.checked_file import CheckedFile
from xpkern.catalog.hdf5_writer import create_file
from xpkern.observe.bulk_writer import COLUMNS, format_header, format_rows
from xpkern.survey import FORMATS

#: Rows whose text is made at a time, which bounds the memory; each becomes 33 kB.
_ROWS_OF_TEXT = 256

#: Compression of igzip: its fastest, as number texts gain little from more.
_LEVEL = 1

#: How the columns' types are written in HDF5.
_TYPES = {"int64": "<i8", "int16": "<i2", "int8": "<i2", "float32": "<f4", "[float64]": "<f8", "[float32]": "<f4"}

Columns = Mapping[str, NDArray]


class SpectrumFile(Protocol):
    """A file of spectra that is being written."""

    def append(self, encoded: object) -> None:
        """Add rows that the format's ``encode`` has made ready."""

    def close(self) -> None:
        """Complete the file."""

    def abandon(self) -> None:
        """Close the file as it is; without effect on a closed one."""


class BulkFile:
    """A bulk file of the archive: gzip members, one with the header and then one for each call of :meth:`append`."""

    ending = ".csv.gz"

    def __init__(self, path: Path, rows: int, release: str, description: tuple[str, ...]) -> None:
        from isal import igzip

        self._stream: BinaryIO = open(path, "wb")  # noqa: SIM115 closed by close() or abandon()
        self._stream.write(igzip.compress(format_header(release, description), _LEVEL, mtime=0))

    @staticmethod
    def encode(columns: Columns) -> bytes:
        """Text of rows, compressed: the part of the work that threads share."""
        from isal import igzip

        n_rows = len(columns["source_id"])
        return b"".join(
            igzip.compress(
                format_rows({name: values[first : first + _ROWS_OF_TEXT] for name, values in columns.items()}),
                _LEVEL,
                mtime=0,
            )
            for first in range(0, n_rows, _ROWS_OF_TEXT)
        )

    def append(self, encoded: bytes) -> None:
        """See :class:`SpectrumFile`."""
        self._stream.write(encoded)

    def close(self) -> None:
        """See :class:`SpectrumFile`."""
        self._stream.close()

    def abandon(self) -> None:
        """See :class:`SpectrumFile`."""
        self._stream.close()


class Hdf5File:
    """One contiguous dataset per column; integers that are missing are 0, other numbers NaN."""

    ending = ".h5"

    def __init__(self, path: Path, rows: int, release: str, description: tuple[str, ...]) -> None:
        self._stream = CheckedFile(path)
        self._file = create_file(self._stream, "spectra")
        self._file.attrs["release"] = release
        self._file.attrs["description"] = "\n".join(description)
        self._n_rows = rows
        self._filled = 0

    @staticmethod
    def encode(columns: Columns) -> Columns:
        """The columns, with what stands for missing values."""
        encoded = {}
        for name, values in columns.items():
            absent = np.ma.getmaskarray(values)
            if absent.any():
                values = np.ma.filled(values, np.nan if values.dtype.kind == "f" else 0)
            encoded[name] = np.ma.getdata(values)
        return encoded

    def append(self, encoded: Columns) -> None:
        """See :class:`SpectrumFile`."""
        count = len(encoded["source_id"])
        for name, datatype, _, description in COLUMNS:
            if name not in encoded:
                continue
            values = encoded[name]
            if name not in self._file:
                dataset = self._file.create_dataset(
                    name, (self._n_rows, *values.shape[1:]), _TYPES[datatype], track_times=False
                )
                dataset.attrs["description"] = description
            self._file[name][self._filled : self._filled + count] = values
        self._filled += count
        self._stream.check()

    def close(self) -> None:
        """See :class:`SpectrumFile`."""
        self.abandon()
        self._stream.check()

    def abandon(self) -> None:
        """See :class:`SpectrumFile`."""
        self._file.close()
        self._stream.close()


#: What writes each format.
CLASS_OF_FORMAT: dict[str, type[BulkFile] | type[Hdf5File]] = dict(zip(FORMATS, (BulkFile, Hdf5File), strict=True))
