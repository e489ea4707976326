"""Spectra in tables that are in memory already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xpkern.errors import InputError
from xpkern.observe.columns import Column, column_of
from xpkern.observe.gaia_source import columns_of_table
from xpkern.observe.spectra_columns import COVARIANCES, Chunk

#: Endings of the names of columns of which spectra are made.
_ENDINGS = (
    "source_id",
    "flux",
    "flux_error",
    "_coefficients",
    "_coefficient_errors",
    "_coefficient_correlations",
    "_n_parameters",
    "_basis_function_id",
    "_standard_deviation",
    *COVARIANCES,
)


class MemoryTable:
    """An astropy or pyarrow table, pandas DataFrame, structured array or mapping; see :class:`ColumnTable`.

    Parameters
    ----------
    table
    name : str
        What to call it.
    every_column : bool
        Whether columns are looked at of which no spectra are made; if not, they are known by name alone.
    """

    def __init__(self, table: Any, name: str = "table", *, every_column: bool = False) -> None:
        self._columns: dict[str, Column] = {}
        columns: Mapping[str, Any] = columns_of_table(table, name)
        self.names = _names_of(table)
        self.widths: dict[str, int | None] = {}
        self.attributes: dict[str, object] = {}
        self.units = _units_of(table)
        n_rows = None
        for key, values in columns.items():
            self.widths[key] = None
            if unit := getattr(values, "unit", None):
                self.units[key] = str(unit)
            of_spectra = key.endswith(_ENDINGS)
            if not of_spectra and not every_column:
                continue
            try:
                column = column_of(values)
            except (TypeError, ValueError, OverflowError) as error:
                if not of_spectra:  # dates and the like: whoever asks for them hears that there are none
                    del self.widths[key]
                    continue
                raise InputError(f"cannot be read as a column ({error})", file=name, field=key) from error
            if n_rows not in (None, len(column)):
                raise InputError(f"{len(column)} rows, but {n_rows} in the columns before", file=name, field=key)
            n_rows = len(column)
            self._columns[key] = column
            if n_rows and column.starts is None and not column.is_text and not column.absent.all():
                self.widths[key] = column.values.shape[1] if column.is_array else 1
        self.n_rows = n_rows or 0

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`ColumnTable`."""
        for first in range(0, self.n_rows, rows):
            yield {name: self._columns[name][first : first + rows] for name in columns}

    def close(self) -> None:
        """See :class:`ColumnTable`."""


def _units_of(table: Any) -> dict[str, str]:
    """Units that a pyarrow table has beside its columns; those of others are with them."""
    if not hasattr(table, "column_names"):
        return {}
    from xpkern.observe.spectra_parquet import units_of_schema

    return units_of_schema(table.schema)


def _names_of(table: Any) -> list[str]:
    """Names of the columns of a table in memory as it spells them."""
    if isinstance(table, np.ndarray):
        return list(table.dtype.names or ())
    names = getattr(table, "colnames", None) or getattr(table, "column_names", None)
    return [str(name) for name in (table if names is None else names)]  # of mappings and of pandas
