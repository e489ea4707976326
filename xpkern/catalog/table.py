"""A fit as an astropy table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xpkern.catalog.provenance import provenance_of_fit
from xpkern.catalog.rows import star_rows
from xpkern.catalog.schema import columns_of

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
    from astropy.table import Column as TableColumn
    from astropy.table import Table

    columns = columns_of(layout)
    rows = star_rows(fit)
    return Table(
        [
            TableColumn(
                column.compute(rows),
                name=column.name,
                unit=column.unit or None,
                description=column.description,
                meta={"ucd": column.ucd},
            )
            for column in columns
        ],
        meta=provenance_of_fit(fit, layout),
    )
