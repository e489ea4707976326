"""Some rows of a column of any table: numbers, arrays of numbers, or text."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from xpkern.errors import InputError
from xpkern.observe.gaia_source import as_array

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """Some rows of a column.

    Attributes
    ----------
    values : array
        Numbers or text (n,); arrays of one length (n, k); or, with ``starts``, the numbers of all arrays (any,).
    absent : (n,) bool
        Rows without a value.
    starts, lengths : (n,) int64, optional
        Where in ``values`` the array of each row begins, and how long it is.
    """

    values: NDArray
    absent: NDArray[np.bool_]
    starts: NDArray[np.int64] | None = None
    lengths: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.absent)

    def __getitem__(self, rows: slice) -> Column:
        if self.starts is None or self.lengths is None:
            return Column(self.values[rows], self.absent[rows])
        return Column(self.values, self.absent[rows], self.starts[rows], self.lengths[rows])

    @property
    def is_text(self) -> bool:
        """Whether its values are text."""
        return self.values.dtype.kind in "OSU"

    @property
    def is_array(self) -> bool:
        """Whether its values are arrays of numbers."""
        return self.starts is not None or self.values.ndim == 2

    def array_lengths(self) -> NDArray[np.int64]:
        """Numbers in each row, (n,); 0 where there is no array, or an empty one."""
        if self.lengths is not None:
            return np.where(self.absent, 0, self.lengths)
        return np.where(self.absent, 0, self.values.shape[1])

    def dense(self, size: int, dtype: DTypeLike) -> NDArray:
        """The arrays of ``size`` numbers as a matrix (n, size), contiguous; 0 in rows with other arrays or none."""
        fits = self.array_lengths() == size
        # what is too large for the type becomes infinite, and is refused for it; so is NaN, whatever bits it has
        with np.errstate(over="ignore", invalid="ignore"):
            if self.starts is None:
                if fits.all():
                    return np.ascontiguousarray(self.values, dtype)
                matrix = np.zeros((len(self), size), dtype)
                if fits.any():
                    matrix[fits] = self.values[fits]
                return matrix
            if fits.all() and len(self) and (np.diff(self.starts) == size).all():
                first = self.starts[0]
                return np.ascontiguousarray(self.values[first : first + len(self) * size].reshape(-1, size), dtype)
            matrix = np.zeros((len(self), size), dtype)
            for row in np.flatnonzero(fits).tolist():
                start = self.starts[row]
                matrix[row] = self.values[start : start + size]
            return matrix

    def items(self) -> list[Any]:
        """The value of each row as Python has it: a number, a text, a list of numbers."""
        if self.starts is None or self.lengths is None:
            return list(self.values.tolist())
        ends = (self.starts + self.lengths).tolist()
        return [self.values[start:end].tolist() for start, end in zip(self.starts.tolist(), ends, strict=True)]

    def numbers(self) -> NDArray[np.float64]:
        """Single numbers as float64 (n,), NaN where absent.

        Raises
        ------
        ValueError, TypeError
            If they are none.
        """
        if self.is_array:
            raise TypeError("arrays")
        with np.errstate(invalid="ignore"):  # as above
            return np.where(self.absent, np.nan, np.where(self.absent, 0, self.values).astype(np.float64))


def joined(columns: Sequence[Column]) -> Column:
    """The rows of several columns of arrays, one after the other."""
    absent = np.concatenate([column.absent for column in columns])
    if all(column.starts is None and column.values.shape[1:] == columns[0].values.shape[1:] for column in columns):
        return Column(np.concatenate([column.values for column in columns]), absent)
    parts = [_in_a_row(column) for column in columns]
    values, lengths = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Column(values, absent, np.cumsum(lengths) - lengths, lengths)


def _in_a_row(column: Column) -> tuple[NDArray, NDArray[np.int64]]:
    """The numbers of all arrays of a column without gaps between them, and how many each has."""
    if column.starts is None or column.lengths is None:
        return column.values.reshape(-1), np.full(len(column), column.values.shape[1])
    ends = column.starts + column.lengths
    if (column.starts[1:] == ends[:-1]).all():
        return column.values[column.starts[0] : ends[-1]], column.lengths
    pieces = [column.values[start:end] for start, end in zip(column.starts.tolist(), ends.tolist(), strict=True)]
    return np.concatenate(pieces), column.lengths


def column_of(values: Any) -> Column:
    """A column of any kind of table in memory.

    Raises
    ------
    TypeError, ValueError
        If it holds neither numbers nor arrays of numbers nor text.
    """
    if hasattr(values, "combine_chunks"):  # pyarrow's
        from xpkern.observe.spectra_parquet import column_of_arrow

        return column_of_arrow(values.combine_chunks())
    if isinstance(values, (list, tuple)):
        return column_of_items(values)
    array = as_array(values)
    if array.dtype.kind == "O":
        mask = np.ma.getmaskarray(array)
        masked = np.asarray(mask.all(axis=tuple(range(1, mask.ndim))))
        return column_of_items(list(np.ma.getdata(array)), masked)
    if array.dtype.kind not in "iufbSU" or array.ndim == 0:
        raise TypeError(f"not a column of numbers, arrays or text, but of {array.dtype}")
    if array.ndim > 2:
        array = array.reshape(len(array), -1)
    data, mask = np.ma.getdata(array), np.ma.getmaskarray(array)
    if data.ndim == 1:
        return Column(data, mask)
    absent = np.asarray(mask.all(axis=1)) if data.shape[1] else np.ones(len(data), bool)
    if (mask.any(axis=1) & ~absent).any():
        data = np.where(mask, np.nan, data)
    return Column(data, absent)


def column_of_items(items: Sequence[Any], absent: NDArray[np.bool_] | None = None) -> Column:
    """A column of Python objects: arrays, lists, integers of any size, text, None.

    Raises
    ------
    TypeError, ValueError
        If an item is none of these.
    """
    masked = np.zeros(len(items), bool) if absent is None else absent
    found = [None if gone or _is_nothing(item) else item for item, gone in zip(items, masked, strict=True)]
    absent = np.array([item is None for item in found], bool)
    present = [item for item in found if item is not None]
    if any(isinstance(item, (str, bytes)) for item in present):
        return Column(np.array(["" if item is None else item for item in found], object), absent)
    if present and all(isinstance(item, (int, np.integer)) for item in present):
        # what does not fit into 64 bits keeps its place as an absent value
        fits = np.array([item is not None and -(1 << 63) <= item < 1 << 63 for item in found], bool)
        numbers = [int(item) if good else 0 for item, good in zip(found, fits, strict=True)]  # type: ignore[arg-type]
        return Column(np.array(numbers, np.int64), ~fits)
    if present and all(isinstance(item, (int, float, np.number)) for item in present):
        return Column(np.array([np.nan if item is None else item for item in found], np.float64), absent)
    arrays = [np.empty(0) if item is None else _numbers_of(item) for item in found]
    lengths = np.array([array.size for array in arrays], np.int64)
    values = np.concatenate(arrays) if arrays else np.empty(0)
    return Column(values, absent, np.cumsum(lengths) - lengths, lengths)


def _is_nothing(item: Any) -> bool:
    if isinstance(item, (float, np.floating)):
        return bool(item != item)
    return item is None or item is np.ma.masked or type(item).__name__ == "NAType"


def _numbers_of(item: Any) -> NDArray[np.floating[Any]]:
    """The numbers of one array, NaN where masked or None."""
    if isinstance(item, np.ma.MaskedArray):
        return np.ma.filled(item.astype(np.float64), np.nan).ravel()
    if isinstance(item, np.ndarray) and item.dtype.kind == "f":
        return item.ravel()
    return np.array(item, np.float64).ravel()


def chosen_table(
    tables: Sequence[Collection[str]], keys: Collection[str], wanted: Collection[str], file: str
) -> int | None:
    """Which of the tables of a file is meant: of those with a key, the first of those with most of what is wanted.

    Parameters
    ----------
    tables : sequence of collection of str
        The columns of each (lower case).
    keys : collection of str
        Columns one of which it must have.
    wanted : collection of str
        Other columns, those that are asked for. One that has nothing of them is not meant if it is one of several.
    file : str

    Returns
    -------
    int or None
        None if there is none.
    """
    found = {number: len(set(wanted) & set(names)) for number, names in enumerate(tables) if set(keys) & set(names)}
    most = max(found.values(), default=0)
    if not most and wanted and len(found) > 1:
        return None
    meant = [number for number, count in found.items() if count == most]
    if wanted and len(meant) > 1:
        log.warning("%s: %d tables hold what is asked for; the first of them is read", file, len(meant))
    return meant[0] if meant else None


def no_table(
    parts: str,
    kinds: Sequence[str],
    tables: Sequence[Collection[str]],
    keys: Collection[str],
    wanted: Collection[str],
    file: str,
) -> InputError:
    """Return the error of a file of which :func:`chosen_table` has chosen none.

    Parameters
    ----------
    parts : str
        What its tables are in.
    kinds : sequence of str
        What each of these is, in words.
    tables, keys, wanted, file
        As there.
    """
    key = lacking = min(keys, key=len)
    if any(set(keys) & set(names) for names in tables):
        lacking = f"{key} and any of {some_names(sorted(wanted, key=lambda name: (len(name), name)))}"
    seen = "; ".join(f"{number} is {kind}" for number, kind in enumerate(kinds)) or "there are none"
    return InputError(f"none of its {parts} is a table with {lacking}: {seen}", file=file, field=key)


def some_names(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def some_rows(first: int, end: int) -> str:
    """Rows ``first`` to before ``end`` in words, which count them from 1."""
    return f"row {end}" if end == first + 1 else f"rows {first + 1} to {end}"


def reason_of(error: Exception) -> str:
    """The first line of what another library says of a file."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def attributes_of(text: str | bytes | None) -> dict[str, object]:
    """What a file says of itself, from the JSON in which our writers say it; nothing if it is none."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}
