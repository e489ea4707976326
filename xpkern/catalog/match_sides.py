"""The two sides of a cross-match: tables of any kind, put on disk by the cells of the sky in which they may matter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.observe.columns import Column
from xpkern.observe.crossmatch import moved, unit_vectors
from xpkern.observe.sorted_runs import SortedRuns
from xpkern.observe.spectra_columns import Chunk, ColumnTable
from xpkern.observe.tables import open_table, require

#: Rows that are read at a time, and by whose values the types of columns are chosen.
BLOCK_ROWS, FIRST_ROWS = 1 << 18, 1024

#: Cells along each axis of the cube in which the sphere lies: 1.8 degrees each.
CELLS = 64

#: Letters that a column of text has room for where the file does not say how long its texts are.
TEXT_WIDTH = 40

#: Epoch of the positions in gaia_source [yr], of a table without ``ref_epoch``.
GAIA_EPOCH = 2016.0

#: Types of numbers that all formats of tables have, for those that some lack.
_WIDER = {"bool": "uint8", "int8": "int16", "uint16": "int32", "uint64": "int64", "float16": "float32"}


@dataclass(frozen=True)
class Carried:
    """A column that goes along with its row.

    Attributes
    ----------
    name : str
        For the output.
    column : str
        In the table, in lower case.
    part : int, optional
        Which number of its array, where it is one of two: unWISE's own files have W1 and W2 so.
    dtype : str
    """

    name: str
    column: str
    part: int | None
    dtype: str

    def values(self, chunk: Chunk, file: str, first: int) -> NDArray:
        """Its values in some rows, the first of which is row ``first`` + 1 of the file."""
        values = chunk[self.column]
        if values.is_array != (self.part is not None):
            raise InputError("numbers in some files, arrays in others", file=file, field=self.column)
        data = values.values if self.part is None else values.values[:, self.part]
        if np.dtype(self.dtype).kind == "S":
            return self._texts(values, file, first)
        if values.is_text:
            raise InputError("text where there were numbers before", file=file, row=first + 1, field=self.column)
        return np.where(values.absent, missing(self.dtype), np.where(values.absent, 0, data)).astype(self.dtype)

    def _texts(self, values: Column, file: str, first: int) -> NDArray:
        texts = [
            b"" if absent else (text if isinstance(text, bytes) else str(text).encode())
            for text, absent in zip(values.values.tolist(), values.absent.tolist(), strict=True)
        ]
        width = np.dtype(self.dtype).itemsize
        long = next((row for row, text in enumerate(texts) if len(text) > width), None)
        if long is not None:
            raise InputError(
                f"text of {len(texts[long])} bytes where there is room for {width}: choose columns without it",
                file=file,
                row=first + long + 1,
                field=self.column,
            )
        return np.array(texts, self.dtype)


def missing(dtype: str) -> float:
    """What stands where there is no value: NaN; of integers the least, of unsigned ones the greatest."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return np.nan
    return int(np.iinfo(kind).max if kind.kind == "u" else np.iinfo(kind).min)


def carried(table: ColumnTable, file: str, wanted: Sequence[str], *, demanded: bool) -> tuple[list[Carried], list[str]]:
    """How columns are carried, by the first rows of a table, and those that cannot be: arrays.

    Raises
    ------
    InputError
        If one that is demanded cannot be carried.
    """
    found, left_out = [], []
    for name in wanted:
        try:
            values = next(iter(table.chunks([name], FIRST_ROWS)), {}).get(name)
        except InputError:
            if demanded:
                raise
            values = None
        kinds = [] if values is None else _kinds(name, values)
        if values is not None and not kinds and demanded:
            raise InputError("an array: only numbers and texts are written", file=file, field=name)
        found += kinds
        left_out += [] if kinds else [name]
    return found, left_out


def _kinds(name: str, values: Column) -> list[Carried]:
    if values.is_text:
        width = values.values.dtype.itemsize if values.values.dtype.kind == "S" else TEXT_WIDTH
        return [Carried(name, name, None, f"S{max(width, 1)}")]
    dtype = values.values.dtype.name
    dtype = _WIDER.get(dtype, dtype)
    if not values.is_array:
        return [Carried(name, name, None, dtype)]
    if values.starts is None and values.values.shape[1] == 2:
        return [Carried(f"{name}_w{part + 1}", name, part, dtype) for part in (0, 1)]
    return []


def spread(directions: Float64, halo: float) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.bool_]]:
    """Cells in which directions lie, or from which they are less than a chord away.

    Parameters
    ----------
    directions : (n, 3) float64
        Unit vectors.
    halo : float

    Returns
    -------
    which : (m,) int
        Index of the direction, of every cell once.
    cells : (m,) int64
    own : (m,) bool
        Whether it lies in the cell.
    """

    def cell(place: Float64) -> NDArray[np.int64]:
        return np.clip(np.floor((place + 1.0) * (CELLS / 2)), 0, CELLS - 1).astype(np.int64)

    def number(places: NDArray[np.int64]) -> NDArray[np.int64]:
        return (places[:, 0] * CELLS + places[:, 1]) * CELLS + places[:, 2]

    own = number(cell(directions))
    low, high = cell(directions - halo), cell(directions + halo)
    border = np.flatnonzero((low != high).any(axis=1))
    which, cells = [np.arange(len(directions))], [own]
    widest = (high - low).max(axis=0, initial=0)
    for step in product(*(range(size + 1) for size in widest.tolist())):
        there = low[border] + step
        reached = (there <= high[border]).all(axis=1)
        others = number(there)
        reached &= others != own[border]
        which.append(border[reached])
        cells.append(others[reached])
    count = [len(directions), *map(len, which[1:])]
    return np.concatenate(which), np.concatenate(cells), np.repeat([True, *[False] * (len(count) - 1)], count)


class Side(ABC):
    """Tables of one side.

    Parameters
    ----------
    files : sequence of Path
    ra, dec : str
        Columns of the positions, in lower case.
    carried : sequence of Carried

    Attributes
    ----------
    rows, usable : int
        Read so far, and how many of them can be matched.
    removed : Counter of str
        Why rows were left out, and how many.
    runs : SortedRuns
        Records with ``ra``, ``dec`` [deg], ``index`` (counted over all files), ``cell`` in which it lies, ``own``
        (whether that is its key) and what is carried, as ``c0``, ``c1``, …
    """

    #: What a row of it is called, and a column by which its tables are known.
    what, key = "", ""

    #: Further fields of a record.
    fields: Sequence[tuple[str, type]] = ()

    def __init__(self, files: Sequence[Path], ra: str, dec: str, carried: Sequence[Carried]) -> None:
        self.files, self.ra, self.dec, self.carried = files, ra, dec, carried
        self.rows = self.usable = 0
        self.removed: Counter[str] = Counter()
        self.runs: SortedRuns

    @abstractmethod
    def fill(self, records: NDArray, chunk: Chunk, file: str, first: int) -> NDArray[np.bool_]:
        """Fill fields of records that only this side has; return which of them count."""

    def columns(self) -> list[str]:
        """What is read of each table."""
        return list(dict.fromkeys([self.ra, self.dec, *(column.column for column in self.carried)]))

    def spill(self, folder: Path, halo: float, progress: Callable[[int], object]) -> SortedRuns:
        """Put all rows on disk, those that are less than a chord from another cell in that, too.

        Raises
        ------
        InputError
            If a file cannot be read or lacks a column, or there are no rows.
        """
        dtype = [("ra", np.float64), ("dec", np.float64), ("index", np.int64), ("cell", np.int32), ("own", np.bool_)]
        dtype += self.fields
        dtype += [(f"c{number}", np.dtype(column.dtype)) for number, column in enumerate(self.carried)]  # type: ignore[misc]
        self.runs = SortedRuns(folder, dtype, CELLS**3)
        try:
            for file in self.files:
                with closing(open_table(file, self.key)) as table:
                    require(table, self.columns(), str(file))
                    first = 0
                    for chunk in table.chunks(self.columns(), BLOCK_ROWS):
                        records, counting = self._records(chunk, str(file), first, dtype)
                        self._add(records[counting], halo)
                        first += len(records)
                        self.rows += len(records)
                        progress(len(records))
            if self.rows == 0:
                raise InputError(f"no {self.what} in it", file=str(self.files[0]))
        except BaseException:
            self.runs.close()
            raise
        return self.runs

    def _records(self, chunk: Chunk, file: str, first: int, dtype: list) -> tuple[NDArray, NDArray[np.bool_]]:
        records = np.zeros(len(chunk[self.ra]), dtype)
        for name, column in (("ra", self.ra), ("dec", self.dec)):
            records[name] = numbers_of(chunk, column, file)
        records["index"] = np.arange(self.rows, self.rows + len(records))
        for number, carried in enumerate(self.carried):
            records[f"c{number}"] = carried.values(chunk, file, first)
        return records, self.fill(records, chunk, file, first)

    def _add(self, records: NDArray, halo: float) -> None:
        directions, usable = unit_vectors(records["ra"], records["dec"])
        self.removed[f"{self.what} without usable coordinates"] += int(np.count_nonzero(~usable))
        self.usable += int(np.count_nonzero(usable))
        which, cells, own = spread(directions[usable], halo)
        copies = records[usable][which]
        copies["own"], copies["cell"] = own, cells[: int(usable.sum())][which]
        self.runs.add(copies, cells)


def each_once(records: NDArray, first: int, end: int) -> NDArray:
    """Records of a range of cells, each row once; ``own`` tells of each whether it lies in them."""
    if records["own"].all():
        return records
    foreign = records[~records["own"] & ((records["cell"] < first) | (records["cell"] >= end))]
    _, once = np.unique(foreign["index"], return_index=True)
    return np.concatenate([records[records["own"]], foreign[once]])


class Sources(Side):
    """Gaia's sources: ``source_id``, ``ra``, ``dec``, and proper motions where they are to be moved.

    Parameters
    ----------
    files : sequence of Path
    epoch : float, optional
        Year to which they are moved.
    columns : sequence of str
        What is carried, as numbers, if it is there.

    Attributes
    ----------
    largest_id : int
    """

    what, key = "sources", "source_id"
    fields = (("source_id", np.int64),)

    def __init__(self, files: Sequence[Path], epoch: float | None, columns: Sequence[str]) -> None:
        self._epoch, self.largest_id = epoch, 0
        with closing(open_table(files[0], self.key)) as table:
            self._motion = [] if epoch is None else ["pmra", "pmdec"]
            require(table, self._motion, str(files[0]))
            if epoch is not None and "ref_epoch" in table.widths:
                self._motion.append("ref_epoch")
            there = [Carried(name, name, None, "float64") for name in columns if name in table.widths]
        super().__init__(files, "ra", "dec", there)

    def columns(self) -> list[str]:
        """What is read of each table."""
        return [self.key, *super().columns(), *self._motion]

    def fill(self, records: NDArray, chunk: Chunk, file: str, first: int) -> NDArray[np.bool_]:
        """Fill in ``source_id`` and move the positions; every source counts."""
        column = chunk[self.key]
        if column.is_array or column.values.dtype.kind not in "iu":
            message = f"must be 64-bit integers, not {column.values.dtype}; other types lose digits"
            raise InputError(message, file=file, field=self.key)
        if column.absent.any():
            raise InputError("empty", file=file, row=first + int(np.argmax(column.absent)) + 1, field=self.key)
        records["source_id"] = column.values
        self.largest_id = max(self.largest_id, int(records["source_id"].max(initial=0)))
        if self._epoch is not None:
            motion = [numbers_of(chunk, name, file) for name in self._motion]
            self.removed["sources without a proper motion, not moved"] += int(
                np.count_nonzero(~(np.isfinite(motion[0]) & np.isfinite(motion[1])))
            )
            years = self._epoch - (motion[2] if len(motion) > 2 else GAIA_EPOCH)
            records["ra"], records["dec"] = moved(records["ra"], records["dec"], motion[0], motion[1], years)
        return np.ones(len(records), bool)


class Rows(Side):
    """Rows of the other catalogue.

    Parameters
    ----------
    files : sequence of Path
    ra, dec : str
    columns : sequence of str, optional
        What is carried; all that can be when not given.
    usual : sequence of str, optional
        What is carried if ``columns`` is not given, if it is there.
    only : mapping of str to int
        Rows without this value of a column do not count, if the column is there.

    Attributes
    ----------
    left_out : list of str
        Columns that cannot be carried: arrays.
    """

    what = "rows"

    def __init__(
        self,
        files: Sequence[Path],
        ra: str,
        dec: str,
        columns: Sequence[str] | None,
        usual: Sequence[str] | None,
        only: Mapping[str, int],
    ) -> None:
        self.key = ra
        found: list[Carried] = []
        for file in files:  # the first that has rows says what there is
            with closing(open_table(file, ra)) as table:
                wanted = None if columns is None else list(dict.fromkeys(name.lower() for name in columns))
                require(table, [ra, dec, *(wanted or ())], str(file))
                names = list(table.widths) if wanted is None else wanted
                if wanted is None and usual is not None:
                    pairs = {name.rpartition("_")[0] for name in usual if name.endswith(("_w1", "_w2"))}
                    names = [name for name in names if name in {ra, dec, *usual, *pairs}]
                self._only = {name: value for name, value in only.items() if name in table.widths}
                found, self.left_out = carried(table, str(file), names, demanded=wanted is not None)
            if found or wanted == []:
                break
        super().__init__(files, ra, dec, found)

    def columns(self) -> list[str]:
        """What is read of each table."""
        return list(dict.fromkeys([*super().columns(), *self._only]))

    def fill(self, records: NDArray, chunk: Chunk, file: str, first: int) -> NDArray[np.bool_]:
        """Tell which rows count."""
        counting = np.ones(len(records), bool)
        for name, value in self._only.items():
            passing = numbers_of(chunk, name, file) == value
            self.removed[f"rows that are not {name}"] += int(np.count_nonzero(counting & ~passing))
            counting &= passing
        return counting


def numbers_of(chunk: Chunk, name: str, file: str) -> Float64:
    """A column of numbers (n,), NaN where absent; raises an InputError if it is none."""
    try:
        return chunk[name].numbers()
    except (TypeError, ValueError) as error:
        raise InputError(f"not a column of numbers ({error})", file=file, field=name) from None
