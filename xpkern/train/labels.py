"""Labels of stars that other surveys have measured: stellar type and, where known, extinction.

A table with ``source_id``, ``teff``, ``feh``, ``logg`` and their errors ``teff_err``, ``feh_err``, ``logg_err``, and
perhaps ``ext``, ``ext_err`` (which may be in a table of their own, as they come from another source), ``survey``, the
name of the survey that measured a star, and the columns of :mod:`xpkern.train.cuts`. A temperature is in the unit of
its column; without one, numbers whose median is above 100 are kelvin, others kilokelvin. Its error without a unit is in
that of the temperature. :mod:`xpkern.train.label_table` makes such tables from the catalogues of surveys.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.observe.gaia_source import SourceTable, as_array, read_csv_columns
from xpkern.observe.source_files import hdf5_columns
from xpkern.train.cuts import CUT_COLUMNS

#: Labels every table has, and the one it may have; errors are called ``<label>_err``.
TYPE_LABELS = ("teff", "feh", "logg")
OPTIONAL_LABEL = "ext"

#: Column with the name of each star's survey, where there are several.
SURVEY = "survey"

#: No star is hotter than this [kK]: a median above it is in kelvin.
_HOTTEST = 100.0

_HDF5_ENDINGS = (".h5", ".hdf5")
_CSV_ENDINGS = (".csv", ".csv.gz")

#: Columns that are read from a csv file.
_KNOWN = (*(name for label in (*TYPE_LABELS, OPTIONAL_LABEL) for name in (label, f"{label}_err")), SURVEY, *CUT_COLUMNS)


@dataclass
class Labels:
    """Measured stellar types of n stars.

    Attributes
    ----------
    source_id : (n,) int64
    mean, error : (n, 4) float64
        teff [kK], feh, logg [dex], ext [mag] and their standard errors as the table has them; NaN where it has no
        number.
    table : SourceTable
        The table itself.
    has_ext : bool
        Whether extinctions are told.
    survey : (n,) str
        Which survey the labels of the stellar type are from; "" everywhere if the table does not tell.
    """

    source_id: NDArray[np.int64]
    mean: Float64
    error: Float64
    table: SourceTable
    has_ext: bool
    survey: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.source_id)

    def column(self, name: str) -> Float64 | None:
        """A column of numbers (n,), errors of the temperature in kK; None where the table has no such column."""
        names = [f"{label}_err" for label in (*TYPE_LABELS, OPTIONAL_LABEL)]
        if name in names[:-1] or (name == names[-1] and self.has_ext):
            return self.error[:, names.index(name)]
        return self.table.numbers(name, np.arange(len(self))) if name in self.table else None


def read_labels(table: Any, reddening: Any = None) -> Labels:
    """Labels from a table, or two.

    Parameters
    ----------
    table : path, astropy table or mapping
        FITS, ECSV, CSV, VOTable, Parquet, HDF5 (a table that astropy wrote, or one dataset per column).
    reddening : path, astropy table or mapping, optional
        ``source_id``, ``ext`` and ``ext_err``; stars that it lacks have no known extinction.

    Raises
    ------
    InputError
        If a table cannot be read, lacks a column, has a column that is not numbers, or a source_id twice; if both tell
        extinctions, or the second one's are of other stars.
    """
    name = str(table) if isinstance(table, (str, os.PathLike)) else "labels"
    columns, units = columns_and_units(table, name)
    source_table = SourceTable(columns, name)
    errors = [f"{label}_err" for label in TYPE_LABELS]
    source_table.require([*TYPE_LABELS, *errors])
    if (OPTIONAL_LABEL in source_table) != (f"{OPTIONAL_LABEL}_err" in source_table):
        raise InputError("ext needs ext_err, and ext_err needs ext", file=name, field=OPTIONAL_LABEL)
    source_id = np.asarray(columns["source_id"]).astype(np.int64)
    rows = np.arange(len(source_id))
    labels = TYPE_LABELS + ((OPTIONAL_LABEL,) if OPTIONAL_LABEL in source_table else ())
    mean, error = np.full((len(rows), 4), np.nan), np.full((len(rows), 4), np.nan)
    for k, label in enumerate(labels):
        mean[:, k] = source_table.numbers(label, rows)
        error[:, k] = source_table.numbers(f"{label}_err", rows)
    per_kilokelvin = kilokelvin_of(mean[:, 0], units.get("teff"), name, "teff")
    mean[:, 0] *= per_kilokelvin
    if units.get("teff_err"):
        per_kilokelvin = kilokelvin_of(error[:, 0], units["teff_err"], name, "teff_err")
    error[:, 0] *= per_kilokelvin
    has_ext = OPTIONAL_LABEL in labels
    if reddening is not None:
        if has_ext:
            raise InputError("both this table and that of the reddening have ext", file=name, field=OPTIONAL_LABEL)
        mean[:, -1], error[:, -1] = _reddening(reddening, source_id)
        has_ext = True
    mean[~np.isfinite(mean)] = np.nan
    error[~np.isfinite(error)] = np.nan
    return Labels(source_id, mean, error, source_table, has_ext, _surveys(source_table, rows))


def _surveys(table: SourceTable, rows: NDArray[np.intp]) -> NDArray[np.str_]:
    """Name of each star's survey, (n,).

    Raises
    ------
    InputError
        If the table has the column, but no name for one of the stars.
    """
    if SURVEY not in table:
        return np.full(len(rows), "")
    names = np.array([name.strip() for name in table.texts(SURVEY, rows)], dtype=np.str_)
    for row in np.flatnonzero(names == "")[:1].tolist():
        raise InputError("no name of a survey", file=table.name, row=row + 1, field=SURVEY)
    return names


def _reddening(table: Any, source_id: NDArray[np.int64]) -> tuple[Float64, Float64]:
    """Extinctions of stars and their errors, each (n,); NaN where the table lacks the star."""
    name = str(table) if isinstance(table, (str, os.PathLike)) else "reddening"
    columns, _ = columns_and_units(table, name)
    of_map = SourceTable(columns, name)
    of_map.require([OPTIONAL_LABEL, f"{OPTIONAL_LABEL}_err"])
    rows = of_map.rows_of(source_id)
    if len(source_id) and not (rows >= 0).any():
        raise InputError("has no star of the labels: are these source_ids of the same release?", file=name)
    return of_map.numbers(OPTIONAL_LABEL, rows), of_map.numbers(f"{OPTIONAL_LABEL}_err", rows)


def kilokelvin_of(values: Float64, unit: str | None, file: str, field: str) -> float:
    """What turns a column of temperatures into kK."""
    if not unit:
        finite = values[np.isfinite(values)]
        return 1e-3 if len(finite) and np.median(finite) > _HOTTEST else 1.0
    from astropy import units

    try:
        return float(units.Unit(unit).to(units.kK))
    except (ValueError, TypeError):
        raise InputError(f"its unit {unit!r} is no temperature", file=file, field=field) from None


def columns_and_units(
    table: Any, name: str, wanted: Sequence[str] = _KNOWN
) -> tuple[dict[str, NDArray], dict[str, str]]:
    """Columns by lower-case name, and the units of those that have one; of a csv file only those wanted."""
    if isinstance(table, (str, os.PathLike)):
        table = _read(Path(table), name, wanted)
    if isinstance(table, tuple):
        return table
    names = table.colnames if hasattr(table, "colnames") else list(table)
    units = {key.lower(): str(unit) for key in names if (unit := getattr(table[key], "unit", None)) is not None}
    return {key.lower(): as_array(table[key]) for key in names}, units


def _read(path: Path, name: str, wanted: Sequence[str]) -> Any:
    """An astropy table; or, of an HDF5 file with a dataset per column, columns and units."""
    from astropy.table import Table

    lower = path.name.lower()
    if not path.exists():
        raise InputError("no such file", file=name)
    try:
        if lower.endswith(_HDF5_ENDINGS) and (columns := hdf5_columns(path)) is not None:
            return columns
        if lower.endswith(".parquet"):
            import pyarrow.parquet

            parquet = pyarrow.parquet.read_table(path)
            return {column.lower(): parquet[column].to_numpy() for column in parquet.column_names}, {}
        if lower.endswith(_CSV_ENDINGS):
            is_plain = not _starts_with_ecsv(path)
            return (read_csv_columns(path, wanted), {}) if is_plain else Table.read(path, format="ascii.ecsv")
        return Table.read(path)
    except InputError:
        raise
    except Exception as error:  # each of their many readers fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot be read as a table ({reason})", file=name) from error


def _starts_with_ecsv(path: Path) -> bool:
    import gzip

    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb") as stream:
        return stream.read(6) == b"# %ECS"
