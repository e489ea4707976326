"""The formats of a catalogue, by the ending of its name."""

from __future__ import annotations

from pathlib import Path

from xpkern.catalog.ecsv_writer import EcsvWriter
from xpkern.catalog.fits_writer import FitsWriter
from xpkern.catalog.hdf5_writer import Hdf5Writer
from xpkern.catalog.parquet_writer import ParquetWriter
from xpkern.catalog.table_writer import TableWriter
from xpkern.errors import InputError

#: What writes a file, by the ending of its name.
WRITERS: dict[str, type[TableWriter]] = {
    ".h5": Hdf5Writer,
    ".hdf5": Hdf5Writer,
    ".fits": FitsWriter,
    ".ecsv": EcsvWriter,
    ".parquet": ParquetWriter,
}


def writer_for(path: Path) -> type[TableWriter]:
    """What writes a file of that name.

    Raises
    ------
    InputError
        If its ending is none of :data:`WRITERS`.
    """
    if path.suffix not in WRITERS:
        *others, last = WRITERS
        raise InputError(f"the name must end in {', '.join(others)} or {last}", file=str(path))
    return WRITERS[path.suffix]
