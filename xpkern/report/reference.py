"""What a catalogue is compared with: labels of other surveys, a truth, or another catalogue, by source_id."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.compare import read_catalog
from xpkern.catalog.flags import BASIC_CUT
from xpkern.catalog.schema import PARAMETER_COLUMNS
from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.grid import N_PARAMETERS, PARAMETERS
from xpkern.train.labels import columns_and_units, kilokelvin_of

#: Names that a column of a parameter may have, and endings of that of its error.
_NAMES = {name: (name,) for name in PARAMETERS} | {"plx": ("plx", "parallax_est", "parallax")}
_ERROR_ENDINGS = ("_err", "_error")
_WANTED = [name + ending for names in _NAMES.values() for name in names for ending in ("", *_ERROR_ENDINGS)]


@dataclass(frozen=True)
class Reference:
    """Parameters of m other measurements of stars, in the catalogue's units (teff in K), ordered by source_id.

    Attributes
    ----------
    name : str
        How figures call it.
    source_id : (m,) int64
        Increasing, each once.
    values, errors : (m, 5) float32
        NaN where it has no number; an error that is not known is NaN and counts as 0.
    repeated : int
        Rows left out as an earlier one has the same source.
    """

    name: str
    source_id: NDArray[np.int64]
    values: NDArray[np.float32]
    errors: NDArray[np.float32]
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.source_id)

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Which of the parameters it has for any star, (5,)."""
        return np.asarray(np.isfinite(self.values).any(axis=0))

    def rows_of(self, source_id: NDArray[np.int64]) -> NDArray[np.intp]:
        """Row of each of n sources, (n,); -1 where it has none."""
        if not len(self):
            return np.full(len(source_id), -1, np.intp)
        place = np.minimum(np.searchsorted(self.source_id, source_id), len(self) - 1)
        return np.where(self.source_id[place] == source_id, place, -1)


def read_label_reference(path: str | os.PathLike[str]) -> Reference:
    """Labels as ``xpkern labels`` writes them, the truth of a simulated survey, or any table with such columns.

    ``source_id`` and at least one of teff, feh, logg, ext, plx; errors are called ``<name>_err`` or ``<name>_error``
    and may be missing. Temperatures are in the unit of their column; see :mod:`xpkern.train.labels`.

    Raises
    ------
    InputError
        If the table cannot be read, has none of these columns, or one that is not numbers.
    """
    file = os.fspath(path)
    columns, units = columns_and_units(path, file, _WANTED)
    if "source_id" not in columns:
        raise InputError("the table has no such column", file=file, field="source_id")
    source_id = columns["source_id"]
    if np.ma.is_masked(source_id) or source_id.dtype.kind not in "iu":
        raise InputError(f"must be 64-bit integers, not {source_id.dtype}", file=file, field="source_id")
    values, errors = (np.full((len(source_id), N_PARAMETERS), np.nan, np.float32) for _ in range(2))
    for k, parameter in enumerate(PARAMETERS):
        name = next((name for name in _NAMES[parameter] if name in columns), None)
        if name is None:
            continue
        error_name = next((name + ending for ending in _ERROR_ENDINGS if name + ending in columns), None)
        numbers = _numbers(columns[name], file, name)
        error = (
            np.full(len(source_id), np.nan) if error_name is None else _numbers(columns[error_name], file, error_name)
        )
        if parameter == "teff":
            to_kelvin = 1000.0 * kilokelvin_of(numbers, units.get(name), file, name)
            numbers = numbers * to_kelvin
            unit = None if error_name is None else units.get(error_name)
            error = error * (1000.0 * kilokelvin_of(error, unit, file, str(error_name)) if unit else to_kelvin)
        values[:, k], errors[:, k] = numbers, error
    if not np.isfinite(values).any():
        raise InputError(f"has no numbers in any of the columns {', '.join(PARAMETERS)}", file=file)
    return _ordered(Path(path).name, np.asarray(source_id).astype(np.int64), values, errors)


def read_catalog_reference(paths: Sequence[str | os.PathLike[str]]) -> Reference:
    """Another catalogue, ours or the published one; its stars that pass the basic cut.

    Raises
    ------
    InputError
        If a file cannot be read or is no catalogue.
    """
    table = read_catalog(*paths)
    good = np.asarray(table["quality_flags"]) < BASIC_CUT
    values, errors = (
        np.stack(
            [
                np.ma.filled(np.ma.asarray(table[f"{column.name}{end}"], np.float32), np.nan)
                for column in PARAMETER_COLUMNS
            ],
            axis=1,
        )[good]
        for end in ("", "_error")
    )
    name = Path(paths[0]).name + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    return _ordered(name, np.asarray(table["source_id"], np.int64)[good], values, errors)


def _numbers(column: NDArray[np.generic], file: str, name: str) -> Float64:
    try:
        numbers: Float64 = np.ma.filled(np.ma.asarray(column).astype(np.float64), np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(f"not a column of numbers ({error})", file=file, field=name) from None
    return numbers


def _ordered(
    name: str, source_id: NDArray[np.int64], values: NDArray[np.float32], errors: NDArray[np.float32]
) -> Reference:
    """By source_id; of several rows of a source the first one counts."""
    unique, first = np.unique(source_id, return_index=True)
    errors = np.where(errors[first] >= 0, errors[first], np.nan)
    return Reference(name, unique, values[first], errors, len(source_id) - len(unique))
