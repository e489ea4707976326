"""A fit as an astropy table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xpkern.catalog.metadata import astropy_table
from xpkern.catalog.provenance import provenance_of_fit
from xpkern.catalog.rows import star_rows
from xpkern.catalog.schema import DIAGNOSTICS, Column, columns_of

if TYPE_CHECKING:
    from astropy.table import Table

    from xpkern.fit.result import Fit


def to_table(fit: Fit, layout: str = "default") -> Table:
    """The rows of a catalogue in memory.

    Parameters
    ----------
    fit : Fit
    layout : {"default", "zgr23"}

    Returns
    -------
    astropy.table.Table
        With unit, description and ``meta["ucd"]`` at each column, and the provenance as ``meta``.

    Raises
    ------
    InputError
        If the layout is unknown.
    """
    return _table(columns_of(layout), fit, layout)


def to_diagnostics(fit: Fit) -> Table:
    """The diagnostics companion of a catalogue in memory, as :func:`to_table` gives the catalogue itself."""
    return _table(DIAGNOSTICS, fit, "default")


def _table(columns: Sequence[Column], fit: Fit, layout: str) -> Table:
    rows = star_rows(fit)
    values = {column.name: column.compute(rows) for column in columns}
    return astropy_table(columns, values, provenance_of_fit(fit, layout))
