"""A catalogue of any size, format and layout, read some rows at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.hats import hats_files
from xpkern.catalog.output import file_names
from xpkern.catalog.published import ALONE, ORDERS, check_against_single_datasets, default_columns
from xpkern.errors import InputError
from xpkern.observe.columns import Column
from xpkern.observe.spectra_columns import IDENTIFIERS, ColumnTable
from xpkern.observe.tables import open_table, require

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
        In any format that :func:`xpkern.observe.tables.open_table` reads, of most of which no more than a block is in
        memory; a folder in the HATS layout. In the default or the published layout; the published catalogue itself.
        Several are read one after the other.
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
            with closing(open_table(path)) as opened:
                found = _columns(opened, str(path))
                _check_published(opened, path)
                self._rows.append(_rows(opened))
                if index == 0:
                    self.attributes = opened.attributes
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
            with closing(open_table(path)) as opened:
                yield from _blocks(opened, str(path), wanted, rows)

    def _without(self, name: str) -> Path:
        """The first file that lacks a column."""
        for path in self.paths:
            with closing(open_table(path)) as opened:
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
        self._table = open_table(path)
        self.names = tuple(self._table.widths)
        try:
            require(self._table, columns, self._file)
        except InputError:
            self._table.close()
            raise
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


def _rows(table: ColumnTable) -> int:
    """Rows of a table, counted where only reading it tells."""
    if table.n_rows is not None:
        return table.n_rows
    identifier = next(name for name in table.widths if name in IDENTIFIERS)
    return sum(len(chunk[identifier]) for chunk in table.chunks([identifier], BLOCK_ROWS))


def _columns(table: ColumnTable, file: str) -> dict[str, tuple[tuple[str, ...], Callable[..., np.ndarray]]]:
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


def _check_published(table: ColumnTable, path: Path) -> None:
    """Where the published layout gives parameters twice, the first rows must agree on their order."""
    twice = [name for name in (_ESTIMATES, *ALONE) if name in table.widths]
    if len(twice) < 2 or "source_id" in table.widths:
        return
    for chunk in table.chunks(twice, CHECKED_ROWS):
        values = {name: _array(column, str(path), 0, name) for name, column in chunk.items()}
        check_against_single_datasets(values, ORDERS[values[_ESTIMATES].shape[1]], path)
        break


def _blocks(table: ColumnTable, file: str, wanted: Mapping[str, None], rows: int) -> Iterator[StoredRows]:
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
