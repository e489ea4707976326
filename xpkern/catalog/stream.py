"""A catalogue of any size, format and layout, read some rows at a time."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.hats import hats_files
from xpkern.catalog.output import file_names
from xpkern.catalog.published import ALONE, ORDERS, check_against_single_datasets, default_columns
from xpkern.errors import InputError
from xpkern.observe.columns import Column, column_of, reason_of
from xpkern.observe.gaia_source import columns_of_table
from xpkern.observe.spectra import reader_of
from xpkern.observe.spectra_columns import IDENTIFIERS, Chunk
from xpkern.observe.spectra_csv import GZIP_MAGIC, PIECE, decompressed
from xpkern.observe.spectra_fits import FitsTable
from xpkern.observe.spectra_hdf5 import Hdf5Table
from xpkern.observe.spectra_parquet import ParquetTable

#: Rows of a block, unless told otherwise: 260,000 rows of ten columns are 10-20 MB.
BLOCK_ROWS = 1 << 18

#: Rows of a published catalogue by which the order of its parameters is checked.
CHECKED_ROWS = 1024

#: Array of the published layout whose width says which parameters there are.
_ESTIMATES = "stellar_params_est"


class StoredRows(dict[str, NDArray[Any]]):
    """Values of columns by name, as files hold them; its length is the number of rows."""

    def __len__(self) -> int:
        return len(next(iter(self.values()))) if self.keys() else 0


class CatalogReader:
    """Rows of a catalogue, or of its diagnostics companion, block by block.

    Parameters
    ----------
    paths : path-like or sequence of path-like
        HDF5, FITS or Parquet, of which no more than a block is in memory; a folder in the HATS layout; ECSV, csv or
        VOTable, which are read whole. In the default or the published layout; the published catalogue itself. Files are
        told apart by their content. Several are read one after the other.
    table : {"catalog", "diagnostics"}
        Whether to read these files, or the companions beside them; of a folder, those in it.

    Attributes
    ----------
    paths : tuple of Path
    names : tuple of str
        Columns that every file has, by their names in the default layout whatever the layout: those of the published
        one become ``source_id``, ``teff`` [K], ``teff_error``, ``teff_feh_corr``, ``chi2``, ... ``ln_prior`` stays as
        it is in the file.
    attributes : dict of str to object
        What the first file says of itself.

    Raises
    ------
    InputError
        If a file cannot be read, is no table of sources, or there is none.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        table: Literal["catalog", "diagnostics"] = "catalog",
    ) -> None:
        given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
        self.paths = tuple(file for path in given for file in _files(Path(path), table))
        if not self.paths:
            raise InputError("no catalogue given", field="paths")
        self._rows: list[int] = []
        self.attributes: dict[str, object] = {}
        common: dict[str, None] = {}
        for index, path in enumerate(self.paths):
            with closing(_opened(path)) as opened:
                self._rows.append(opened.n_rows)
                found = _columns(opened, str(path))
                _check_published(opened, path)
                if index == 0:
                    self.attributes = _attributes(path, opened)
            common = dict.fromkeys(name for name in (common if index else found) if name in found)
        self.names = tuple(common)

    def __len__(self) -> int:
        return sum(self._rows)

    def blocks(
        self, columns: Sequence[str], *, optional: Sequence[str] = (), rows: int = BLOCK_ROWS
    ) -> Iterator[StoredRows]:
        """Yield some columns of the next rows; a block ends with its file.

        Catalogue and companion, read with the same ``rows``, give blocks of the same stars.

        Parameters
        ----------
        columns : sequence of str
        optional : sequence of str
            Columns that are left out where not every file has them.
        rows : int
            Of a block at most.

        Yields
        ------
        StoredRows
            Numbers in this machine's byte order; NaN where missing, also in integers, which then become float64.

        Raises
        ------
        InputError
            If a column is missing, is none of numbers, or the file is damaged.
        """
        for name in columns:
            if name not in self.names:
                near = get_close_matches(name, self.names, 3)
                hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(self.names[:12])}, ..."
                raise InputError(f"no such column; {hint}", file=str(self._without(name)), field=name)
        wanted = dict.fromkeys([*columns, *(name for name in optional if name in self.names)])
        for path in self.paths:
            with closing(_opened(path)) as opened:
                yield from _blocks(opened, str(path), wanted, rows)

    def _without(self, name: str) -> Path:
        """The first file that lacks a column."""
        for path in self.paths:
            with closing(_opened(path)) as opened:
                if name not in _columns(opened, str(path)):
                    return path
        return self.paths[0]


class StoredBlocks(Iterator[StoredRows]):
    """Columns of one file under its own names, block by block.

    Parameters
    ----------
    path : path-like
    columns : sequence of str
    rows : int
        Of a block at most.

    Attributes
    ----------
    names : tuple of str
        Columns that the file has.

    Raises
    ------
    InputError
        If the file cannot be read, or lacks a column.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str] = (), rows: int = BLOCK_ROWS) -> None:
        self._file = os.fspath(path)
        self._table = _opened(Path(path))
        self.names = tuple(self._table.widths)
        for name in columns:
            if name not in self.names:
                self._table.close()
                raise InputError("missing", file=self._file, field=name)
        self._chunks = self._table.chunks(list(columns), rows)
        self._first = 0

    def __next__(self) -> StoredRows:
        chunk = next(self._chunks)
        block = StoredRows({name: _array(column, self._file, self._first, name) for name, column in chunk.items()})
        self._first += len(block)
        return block

    def close(self) -> None:
        """Close the file."""
        self._table.close()


class _Table(Protocol):
    """A :class:`xpkern.observe.spectra_columns.ColumnTable` that knows how many rows it has."""

    widths: dict[str, int | None]
    n_rows: int

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]: ...

    def close(self) -> None: ...


#: Name that astropy has for a format, by how a file begins; anything else is csv.
_FORMATS = {b"# %ECSV": "ascii.ecsv", b"<": "votable", b"SIMPLE": "fits"}


class _WholeTable:
    """A file that astropy reads, all of it in memory; ``head`` is how it begins, decompressed."""

    def __init__(self, file: str, head: bytes) -> None:
        from astropy.table import Table

        kind = next((name for start, name in _FORMATS.items() if head.lstrip().startswith(start)), "ascii.csv")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # units that a format does not know
                table = Table.read(file, format=kind)
        except Exception as error:  # each of astropy's readers fails in its own way
            raise InputError(f"cannot be read as a table ({reason_of(error)})", file=file) from error
        self._columns: dict[str, Column] = {}
        for name, values in columns_of_table(table, file).items():
            try:
                self._columns[name.lower()] = column_of(values)
            except (TypeError, ValueError):
                continue  # dates and the like; whoever asks for it hears that there is none
        self.n_rows = len(table)
        self.attributes = dict(table.meta)
        self.widths: dict[str, int | None] = {
            name: None if column.is_text else column.values.shape[1] if column.values.ndim == 2 else 1
            for name, column in self._columns.items()
        }

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        for first in range(0, self.n_rows, rows):
            yield {name: self._columns[name][first : first + rows] for name in columns}

    def close(self) -> None:
        """Nothing is open."""


def _files(path: Path, table: str) -> list[Path]:
    """The files that a name stands for."""
    if path.is_dir():
        return hats_files(path, table)
    if table == "catalog":
        return [path]
    companion = file_names(path)[table]
    if not companion.exists():
        raise InputError(f"has no {table} companion: {companion.name} is not beside it", file=str(path))
    return [companion]


def _opened(path: Path) -> _Table:
    file = os.fspath(path)
    try:
        with open(path, "rb") as stream:
            head = stream.read(PIECE)
    except OSError as error:
        reason = "no such file" if not path.exists() else f"cannot be read ({error.strerror or error})"
        raise InputError(reason, file=file) from error
    if not head:
        raise InputError("the file is empty", file=file)
    is_packed = head.startswith(GZIP_MAGIC)
    if is_packed:
        head = next(decompressed(head, io.BytesIO(), file), b"")
    reader = reader_of(head, file)
    if reader in (Hdf5Table, ParquetTable) and is_packed:
        raise InputError("is compressed by gzip: decompress it first", file=file)
    table: _Table
    if reader in (Hdf5Table, ParquetTable) or (reader is FitsTable and not is_packed):
        table = reader(file, file)
    else:
        table = _WholeTable(file, head)
    if not IDENTIFIERS & table.widths.keys():
        table.close()
        raise InputError("missing: this is no catalogue", file=file, field="source_id")
    return table


def _columns(table: _Table, file: str) -> dict[str, tuple[tuple[str, ...], Callable[..., np.ndarray]]]:
    """How the columns by the default layout's names come from those of a file."""
    names = table.widths
    if "source_id" in names:
        return {name: ((name,), np.asarray) for name in names}
    width = names.get(_ESTIMATES) or min(ORDERS)  # None in a file without rows
    if _ESTIMATES not in names or width not in ORDERS:
        raise InputError(
            f"neither the 5 parameters of v1 nor the 6 of v2 of the published catalogue, but {width}"
            if _ESTIMATES in names
            else "missing: this is no catalogue",
            file=file,
            field=_ESTIMATES,
        )
    return default_columns(list(names), ORDERS[width])


def _check_published(table: _Table, path: Path) -> None:
    """Where the published layout gives parameters twice, the first rows must agree on their order."""
    twice = [name for name in (_ESTIMATES, *ALONE) if name in table.widths]
    if len(twice) < 2 or "source_id" in table.widths:
        return
    for chunk in table.chunks(twice, CHECKED_ROWS):
        values = {name: _array(column, str(path), 0, name) for name, column in chunk.items()}
        check_against_single_datasets(values, ORDERS[values[_ESTIMATES].shape[1]], path)
        break


def _blocks(table: _Table, file: str, wanted: Mapping[str, None], rows: int) -> Iterator[StoredRows]:
    columns = _columns(table, file)
    needed = list(dict.fromkeys(source for name in wanted for source in columns[name][0]))
    first = 0
    for chunk in table.chunks(needed, rows):
        values = {name: _array(column, file, first, name) for name, column in chunk.items()}
        block = StoredRows(
            {name: columns[name][1](*(values[source] for source in columns[name][0])) for name in wanted}
        )
        yield block
        first += len(block)


def _array(column: Column, file: str, first: int, name: str) -> NDArray[Any]:
    """The values of a column, NaN where there is none."""
    if column.is_text:
        raise InputError("a column of text, not of numbers", file=file, field=name)
    if column.starts is not None:
        sizes = np.unique(column.array_lengths()[~column.absent])
        if len(sizes) != 1:
            raise InputError("arrays of several lengths", file=file, row=first + 1, field=name)
        values, absent = column.dense(int(sizes[0]), np.float64), column.absent[:, None]
    else:
        values = column.values
        absent = column.absent.reshape(-1, *[1] * (values.ndim - 1))
    if not absent.any():
        return values
    if name in IDENTIFIERS:
        row = first + int(np.flatnonzero(column.absent)[0]) + 1
        raise InputError("missing", file=file, row=row, field=name)
    return np.where(absent, np.nan, values if values.dtype.kind == "f" else values.astype(np.float64))


def _attributes(path: Path, table: _Table) -> dict[str, object]:
    """What a file says of itself: what its writer was told, in each format."""
    if isinstance(table, _WholeTable):
        return table.attributes
    with open(path, "rb") as stream:
        head = stream.read(8)
    if head.startswith(b"\x89HDF"):
        with h5py.File(path) as file:
            return dict(file.attrs)
    if head.startswith(b"PAR1"):
        from pyarrow import parquet

        return _of_json((parquet.read_metadata(path).metadata or {}).get(b"XPKERN"))
    if head.startswith(b"SIMPLE"):
        from astropy.io import fits

        with fits.open(path) as hdus:
            return _of_json(next((hdu.header["XPKERN"] for hdu in hdus if "XPKERN" in hdu.header), None))
    return {}


def _of_json(text: str | bytes | None) -> dict[str, object]:
    found = json.loads(text) if text else {}
    return found if isinstance(found, dict) else {}
