"""Two catalogues of the same stars, parameter by parameter: ours against the published one, or two of ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.published import descriptions
from xpkern.catalog.schema import DEFAULT, DIAGNOSTICS, PARAMETER_COLUMNS
from xpkern.catalog.stream import CatalogReader, StoredRows
from xpkern.engine.contract import Float64
from xpkern.errors import InputError

if TYPE_CHECKING:
    from astropy.table import Table

#: Columns without which a table is no catalogue.
NEEDED = ("source_id", "quality_flags", *(f"{p.name}{end}" for p in PARAMETER_COLUMNS for end in ("", "_error")))

#: ``quality_flags`` below this pass the basic reliability cut of ZGR23 (Eq. 26).
BASIC_CUT = 8


@dataclass(frozen=True)
class ParameterDifference:
    """How one parameter differs, first catalogue minus second.

    Attributes
    ----------
    name, unit : str
    stars : int
        That have it in both.
    median, width : float
        Of the difference; the width is half of the central 68.3 %.
    median_in_errors, width_in_errors : float
        The same of the difference over the root of the sum of both variances. Both catalogues saw the same photons, so
        that the width is below 1 where the methods agree.
    """

    name: str
    unit: str
    stars: int
    median: float
    width: float
    median_in_errors: float
    width_in_errors: float


@dataclass(frozen=True)
class CatalogDifference:
    """What two catalogues share, and how they differ there.

    Attributes
    ----------
    first, second, common : int
        Sources of each, and in both.
    compared : int
        Those in both that were compared.
    parameters : tuple of ParameterDifference
    """

    first: int
    second: int
    common: int
    compared: int
    parameters: tuple[ParameterDifference, ...]


def compare_catalogs(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    reliable: bool = True,
) -> CatalogDifference:
    """Compare a catalogue with another one of the same stars, joined by source_id.

    Parameters
    ----------
    first : path-like
        In any layout and format that xpkern writes.
    second : path-like or sequence of path-like
        The same, or files of the published catalogue, v1 or v2; of these only the first one's sources are read.
    reliable : bool
        Whether to compare only stars that pass the basic cut (``quality_flags`` below 8) in both.

    Raises
    ------
    InputError
        If a file cannot be read, is no catalogue, or the two have no source in common.
    """
    ours = read_catalog(first)
    files = [second] if isinstance(second, (str, os.PathLike)) else list(second)
    theirs = read_catalog(*files, source_id=np.asarray(ours["source_id"]))
    if len(np.unique(ours["source_id"])) < len(ours):
        raise InputError("a source occurs more than once", file=os.fspath(first), field="source_id")
    _, rows, other_rows = np.intersect1d(ours["source_id"], theirs["source_id"], return_indices=True)
    if not len(rows):
        raise InputError("no source of it is in the other catalogue", file=os.fspath(first), field="source_id")
    common = len(rows)
    if reliable:
        good = (ours["quality_flags"][rows] < BASIC_CUT) & (theirs["quality_flags"][other_rows] < BASIC_CUT)
        rows, other_rows = rows[good], other_rows[good]
    return CatalogDifference(
        first=len(ours),
        second=len(theirs),
        common=common,
        compared=len(rows),
        parameters=tuple(
            _difference(ours[rows], theirs[other_rows], column.name, column.unit) for column in PARAMETER_COLUMNS
        ),
    )


def read_catalog(*paths: str | os.PathLike[str], source_id: NDArray[np.int64] | None = None) -> Table:
    """A catalogue that xpkern wrote, or the published one, as an astropy table.

    Parameters
    ----------
    paths : path-like
        In any layout and format that :class:`xpkern.catalog.stream.CatalogReader` reads, one after the other.
    source_id : (m,) int64, optional
        Only these sources, where they are many more.

    Returns
    -------
    astropy.table.Table
        With the names and units of the default layout.

    Raises
    ------
    InputError
        If a file cannot be read or is no catalogue.
    """
    from astropy.table import Table

    reader = CatalogReader(paths)
    parts = [
        block if source_id is None else _chosen(block, np.isin(block["source_id"], source_id))
        for block in reader.blocks(NEEDED, optional=reader.names)
    ]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    table = Table(columns or {name: np.empty(0) for name in reader.names})
    about = {column.name: (column.unit, column.description) for column in (*DEFAULT, *DIAGNOSTICS)} | descriptions()
    for name in table.colnames:
        unit, description = about.get(name, ("", ""))
        table[name].unit, table[name].description = unit or None, description
    return table


def _chosen(rows: StoredRows, chosen: NDArray[np.bool_]) -> StoredRows:
    return StoredRows({name: values[chosen] for name, values in rows.items()})


def _difference(ours: Table, theirs: Table, name: str, unit: str) -> ParameterDifference:
    def column(table: Table, name: str) -> Float64:
        return np.ma.filled(np.ma.asarray(table[name]).astype(np.float64), np.nan)

    difference = column(ours, name) - column(theirs, name)
    error = np.hypot(column(ours, f"{name}_error"), column(theirs, f"{name}_error"))
    known = np.isfinite(difference) & np.isfinite(error)
    difference, error = difference[known], error[known]
    return ParameterDifference(
        name, unit, len(difference), *_median_and_width(difference), *_median_and_width(difference / error)
    )


def _median_and_width(values: Float64) -> tuple[float, float]:
    if not len(values):
        return np.nan, np.nan
    low, middle, high = np.quantile(values, (0.158655, 0.5, 0.841345))
    return float(middle), float(0.5 * (high - low))
