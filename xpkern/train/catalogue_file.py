"""Some columns of a large catalogue, without the others: FITS tables hundreds of columns wide, csv of gigabytes."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.errors import InputError
from xpkern.observe.tables import open_table

_FITS_ENDINGS = (".fits", ".fits.gz", ".fit", ".fit.gz")
_CSV_ENDINGS = (".csv", ".csv.gz")
_COLUMNAR_ENDINGS = (".h5", ".hdf5", ".parquet")

#: Of our names, those that are read from csv as text: a guess from the first rows may be wrong about later ones, and
#: identifiers must keep every digit.
_TEXT = ("source_id", "obsdate", "planid", "specid")

#: Rows that are read at a time.
_ROWS = 1 << 18

#: What separates the values of a csv file: LAMOST's have bars in some releases.
_SEPARATORS = (",", "|", "\t", ";")


def read_catalogue(path: Path, wanted: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, NDArray], dict[str, str]]:
    """Columns of a catalogue by our names.

    Parameters
    ----------
    path : path
        FITS, csv (separated by comma, bar, tab or semicolon), HDF5, Parquet, or what astropy reads.
    wanted : mapping of str to tuple of str
        Our names, and the names in lower case the column may have; the first that is there counts.

    Returns
    -------
    dict of str to (n,) array
        The columns that are there; masked where the file says so.
    dict of str to str
        Units of those that have one.

    Raises
    ------
    InputError
        If the file cannot be read, or holds no table.
    """
    lower = path.name.lower()
    if not path.is_file():
        raise InputError("no such file", file=str(path))
    try:
        if lower.endswith(_FITS_ENDINGS):
            return _fits(path, wanted)
        if lower.endswith(_CSV_ENDINGS):
            return _csv(path, wanted), {}
        if lower.endswith(_COLUMNAR_ENDINGS):
            return _columnar(path, wanted), {}
        from astropy.table import Table

        table = Table.read(path)
        chosen = _chosen(table.colnames, wanted)
        units = {ours: str(table[theirs].unit) for ours, theirs in chosen.items() if table[theirs].unit is not None}
        return {ours: np.ma.asarray(table[theirs]) for ours, theirs in chosen.items()}, units
    except InputError:
        raise
    except Exception as error:  # each of their many readers fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot be read as a table ({reason})", file=str(path)) from error


def _chosen(names: list[str], wanted: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The file's name of each of our columns that it has."""
    there = {name.lower(): name for name in reversed(names)}
    found = {ours: next((there[name] for name in theirs if name in there), None) for ours, theirs in wanted.items()}
    return {ours: theirs for ours, theirs in found.items() if theirs is not None}


def _fits(path: Path, wanted: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, NDArray], dict[str, str]]:
    """The first table of a FITS file; the file is mapped, so that only these columns are read."""
    from astropy.io import fits

    with warnings.catch_warnings(), fits.open(path, memmap=not path.name.lower().endswith(".gz")) as hdus:
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)  # names such as [Fe/H]
        table = next((hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)), None)
        if table is None:
            raise InputError("holds no table", file=str(path))
        columns: dict[str, NDArray] = {}
        units: dict[str, str] = {}
        for ours, theirs in _chosen(table.columns.names, wanted).items():
            definition = table.columns[theirs]
            values: Any = np.array(table.data[theirs])
            values = values.astype(values.dtype.newbyteorder("="))
            if definition.null is not None and values.dtype.kind in "iu":
                values = np.ma.masked_equal(values, definition.null)
            columns[ours] = values
            if definition.unit:
                units[ours] = str(definition.unit)
    return columns, units


def _columnar(path: Path, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, NDArray]:
    """Columns of an HDF5 or Parquet file, as ``xpkern match`` writes them: numbers and texts."""
    with closing(open_table(path, "source_id")) as table:
        chosen = _chosen(list(table.widths), wanted)
        chunks = list(table.chunks(list(chosen.values()), _ROWS))
    columns = {}
    for ours, theirs in chosen.items():
        values = np.concatenate([chunk[theirs].values for chunk in chunks])
        absent = np.concatenate([chunk[theirs].absent for chunk in chunks])
        columns[ours] = np.ma.array(values, mask=absent) if absent.any() else values
    return columns


def _csv(path: Path, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, NDArray]:
    import pyarrow.csv

    opened: Any = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8-sig", errors="replace") as stream:
        comments, header = 0, stream.readline()
        while header.startswith("#"):
            comments, header = comments + 1, stream.readline()
    separator = max(_SEPARATORS, key=header.count)
    names = [name.strip().strip('"') for name in header.rstrip("\r\n").split(separator)]
    chosen = _chosen(names, wanted)
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(skip_rows=comments + 1, column_names=names),
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(chosen.values()),
            column_types={theirs: pyarrow.string() for ours, theirs in chosen.items() if ours in _TEXT},
        ),
    )
    columns = {}
    for ours, theirs in chosen.items():
        column = table.column(theirs).combine_chunks()
        values = column.to_numpy(zero_copy_only=False)
        if column.null_count and pyarrow.types.is_integer(column.type):  # as floats flags would lose bits
            values = np.ma.array(column.fill_null(0).to_numpy(), mask=column.is_null().to_numpy(zero_copy_only=False))
        columns[ours] = values
    return columns
