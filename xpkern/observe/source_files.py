"""Files of sources, around the fast readers of their columns: what comes before them, and what they refused."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import os
import re
import stat
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.errors import InputError
from xpkern.observe.text import GZIP_MAGIC, column_names


def decompressed(path: Path) -> Any:
    """A file to read bytes from, decompressed if it begins as gzip does."""
    with open(path, "rb") as stream:
        is_gzip = stream.read(2) == GZIP_MAGIC
    return gzip.open(path) if is_gzip else open(path, "rb")


def is_pipe(path: str | os.PathLike[str]) -> bool:
    """Whether that is the name of a pipe; of what cannot be looked at, opening it will say why."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


def refuse_pipe(path: Path) -> None:
    """Raise an InputError if what has to be read more than once is a pipe."""
    if is_pipe(path):
        raise InputError("is a pipe, which can be read only once: give a file", file=str(path))


def csv_header(path: Path) -> tuple[int, list[str], str, bool]:
    """Number of lines before the header line, the names in it, what separates them, whether the file is gzipped."""
    try:
        with decompressed(path) as stream:
            for number, data in enumerate(stream):
                line = data.decode("utf-8-sig", errors="replace")
                if not line.startswith("#"):
                    names, delimiter = column_names(line)
                    return number, names, delimiter, isinstance(stream, gzip.GzipFile)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read ({reason})", file=str(path)) from error
    raise InputError("the file holds no header line", file=str(path))


#: What a server says of a table that it ended before all rows were in it.
_TRUNCATED = re.compile(rb"<INFO[^>]*(QUERY_STATUS[^>]*OVERFLOW|OVERFLOW[^>]*QUERY_STATUS)")


def truncated(file: str) -> InputError:
    """Return the error of a table that a server has cut."""
    return InputError(
        "rows are missing, as the server has truncated it (QUERY_STATUS is OVERFLOW): ask for it again with a larger "
        "MAXREC",
        file=file,
    )


def refuse_truncated_votable(path: Path) -> None:
    """Raise an InputError if a VOTable says that rows are missing."""
    with decompressed(path) as stream:
        if _TRUNCATED.search(stream.read()):
            raise truncated(str(path))


def names_in_file(path: Path) -> list[str]:
    """Lower-case names of all columns of a file from which some have been read."""
    with decompressed(path) as stream:
        head = stream.read(8)
    if head.startswith(b"PAR1"):
        from pyarrow import parquet

        return [name.lower() for name in parquet.read_schema(path).names]
    if head.startswith((b"\x89HDF", b"SIMPLE", b"<")):
        from xpkern.observe.tables import open_table

        with contextlib.closing(open_table(path)) as table:
            return list(table.widths)
    return [name.lower() for name in csv_header(path)[1]]


def hdf5_columns(path: Path, wanted: Collection[str] | None = None) -> tuple[dict[str, NDArray], dict[str, str]] | None:
    """Columns of an HDF5 file with a dataset for each, by lower-case name, and their units.

    Parameters
    ----------
    path : Path
    wanted : collection of str, optional
        Which of them, and source_id; all when not given.

    Returns
    -------
    tuple or None
        None if there is no ``source_id`` among its datasets: it is of another kind.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    import h5py

    try:
        with h5py.File(path) as file:
            found = {key.lower(): item for key, item in file.items() if isinstance(item, h5py.Dataset)}
            if "source_id" not in found:
                return None
            chosen = found if wanted is None else {"source_id", *wanted}
            found = {key: item for key, item in found.items() if item.ndim == 1 and key in chosen}
            units = {key: str(item.attrs["unit"]) for key, item in found.items() if item.attrs.get("unit")}
            return {key: np.asarray(item[()]) for key, item in found.items()}, units
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"cannot be read as HDF5 ({reason})", file=str(path)) from error


def csv_error(
    path: Path,
    lines_before: int,
    names: Sequence[str],
    delimiter: str,
    are_integers: Mapping[str, bool],
    null_words: Collection[str],
    refusal: Exception,
) -> InputError:
    """Return the error of a file that was refused: of its first row that does not hold what the columns are to hold.

    Parameters
    ----------
    path : Path
    lines_before : int
        Up to the header line and including it.
    names : sequence of str
        The names in the header line.
    delimiter : str
    are_integers : mapping of str to bool
        Of the columns that are to hold numbers, whether these are integers.
    null_words : collection of str
        How it is written that there is no value.
    refusal : Exception
        What is told where no such row is found.
    """
    file, row = str(path), 0
    places = [(names.index(name), name, is_integer) for name, is_integer in are_integers.items()]
    try:
        with decompressed(path) as stream, io.TextIOWrapper(stream, "utf-8", "replace", newline="") as lines:
            for fields in csv.reader(itertools.islice(lines, lines_before, None), delimiter=delimiter):
                row += bool(fields)  # an empty line is no row
                if 0 < len(fields) < len(names):
                    message = f"the row ends after {len(fields)} of {len(names)} fields"
                    return InputError(message, file=file, row=row, field=names[len(fields)])
                if len(fields) > len(names):
                    message = f"{len(fields)} fields, but the header names {len(names)} columns"
                    return InputError(message, file=file, row=row)
                for place, name, is_integer in places if fields else ():
                    text = fields[place]
                    if text not in null_words and not _is_number(text, is_integer):
                        what = "is no 64-bit integer" if is_integer else "is no number"
                        return InputError(f"{_shortened(text)} {what}", file=file, row=row, field=name)
    except (csv.Error, OSError, EOFError, zlib.error):
        pass  # the refusal tells
    return InputError(f"cannot be read as csv ({' '.join(str(refusal).split())})", file=file)


def _is_number(text: str, is_integer: bool) -> bool:
    """Whether a text is a number; Python takes more for one than files of numbers may have."""
    if not text.isascii() or "_" in text:
        return False
    try:
        return -(2**63) <= int(text) < 2**63 if is_integer else bool(float(text) or True)
    except ValueError:
        return False


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
