"""The published catalogues of Zhang, Green & Rix, read by name.

Two of them are out, in HDF5 with one dataset per column, and they put the fitted parameters into one array,
``stellar_params_est``, whose order the files do not state:

v1
    ``stellar_params_catalog_*.h5`` (Zhang, Green & Rix 2023; Zenodo 7692680, 7811871): teff [kK], feh, logg, E,
    parallax [mas]; five columns. So say the paper's Table 2, the README that comes with the files, and the authors'
    example, which unpacks the array. Covariances are in files of their own, ``stellar_covariances_catalog_*.h5``, row
    for row.
v2
    ``xpparams_v2_zenodo_*.h5`` (Zhang & Green 2025; Zenodo 10719756, 11394477): teff [kK], feh, logg, **xi**, E,
    parallax [mas]; six columns. xi, the shape of the extinction curve, stands where v1 has E. So says the authors'
    public code, which joins ``stellar_type_est``, ``xi_est``, ``stellar_ext_est`` and ``plx_est`` in that order; GAVO's
    table of covariances (``xpparams2.covs``), whose fourth element is that of teff and xi, agrees.

Nothing is read by position alone: the array must have the width of one of the two. Where a file also has a parameter as
a dataset of its own (``xi_est``, ...), or the diagonal of the covariance, it must agree with the array.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from xpkern.catalog.schema import PARAMETER_COLUMNS, ZGR23, ParameterColumn
from xpkern.errors import InputError

if TYPE_CHECKING:
    from astropy.table import Table

_TEFF, _FEH, _LOGG, _EXT, _PARALLAX = PARAMETER_COLUMNS
_XI = ParameterColumn("xi", "", 1.0, "phys.absorption", "shape of the extinction curve of Zhang & Green (2025)")

#: Order of the parameters by how many there are: v1 and v2.
ORDERS: dict[int, tuple[ParameterColumn, ...]] = {
    5: (_TEFF, _FEH, _LOGG, _EXT, _PARALLAX),
    6: (_TEFF, _FEH, _LOGG, _XI, _EXT, _PARALLAX),
}

#: Datasets in which a file may give parameters once more, by the parameters that they hold.
ALONE = {
    "stellar_type_est": (_TEFF, _FEH, _LOGG),
    "xi_est": (_XI,),
    "stellar_ext_est": (_EXT,),
    "plx_est": (_PARALLAX,),
}

_ID, _ESTIMATES, _ERRORS = "gdr3_source_id", "stellar_params_est", "stellar_params_err"
_COVARIANCE, _PRECISION = "stellar_params_cov_triu", "stellar_params_icov_triu"
_READ_HERE = (_ID, _ESTIMATES, _ERRORS, _COVARIANCE, _PRECISION, *ALONE)

#: Names that the default layout has for columns of the published one.
_NAMES = {"chi2_opt": "chi2"}

#: Rows read at a time.
_PIECE = 1 << 20


def read_zgr23_catalog(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    source_id: ArrayLike | None = None,
    covariances: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
) -> Table:
    """Read the published catalogue, v1 or v2, or one of our own in its layout, into named columns with units.

    Parameters
    ----------
    paths : path-like or sequence of path-like
        Files in HDF5.
    source_id : (m,) array_like of int, optional
        Only these sources; memory then grows with their number, not with the catalogue's.
    covariances : path-like or sequence of path-like, optional
        v1's files of covariances, one for each of ``paths``.

    Returns
    -------
    astropy.table.Table
        In the order of the files. Parameters have the names and units of our default layout: ``teff`` [K], ``feh``,
        ``logg`` [dex], ``xi`` (v2 only), ``ext`` [mag], ``parallax_est`` [mas], each with ``*_error``; where there are
        covariances ``*_corr`` of each pair. ``chi2`` is ``chi2_opt``. ``ln_prior`` is as published: 2.757 more than
        that of a normalised density. Every other column keeps its name. ``meta["version"]`` is ``"v1"`` or ``"v2"``.

    Raises
    ------
    InputError
        If a file cannot be read, lacks a column, has columns of different lengths, or another number of parameters.
    """
    from astropy.table import vstack

    names, others = _as_list(paths), None if covariances is None else _as_list(covariances)
    if others is not None and len(others) != len(names):
        raise InputError(f"{len(others)} files for {len(names)} of the catalogue", field="covariances")
    wanted = None if source_id is None else np.unique(np.asarray(source_id))
    tables = [_read_file(name, wanted, None if others is None else others[index]) for index, name in enumerate(names)]
    if len({table.meta["version"] for table in tables}) > 1:
        raise InputError("files of v1 and of v2 together: read them one after the other", file=str(names[0]))
    table: Table = vstack(tables, metadata_conflicts="silent")
    for name, (unit, description) in descriptions().items():
        if name in table.colnames:
            table[name].unit, table[name].description = unit or None, description
    return table


def _as_list(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    found = [Path(paths)] if isinstance(paths, (str, os.PathLike)) else [Path(path) for path in paths]
    if not found:
        raise InputError("no file of the published catalogue given", field="paths")
    return found


def _read_file(path: Path, wanted: NDArray[np.int64] | None, covariances: Path | None) -> Table:
    from astropy.table import Table

    with _opened(path) as file:
        for name in (_ID, _ESTIMATES, _ERRORS):
            if name not in file:
                raise InputError(f"no such dataset; it has {', '.join(file) or 'none'}", file=str(path), field=name)
        ids = file[_ID][()]
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InputError(f"shape {ids.shape} of {ids.dtype}, expected (n,) integers", file=str(path), field=_ID)
        rows = np.arange(len(ids)) if wanted is None else np.flatnonzero(np.isin(ids, wanted))
        order = _order(file, path)
        columns: dict[str, np.ndarray] = {"source_id": ids[rows].astype(np.int64)}
        every = [name for name in file if isinstance(file[name], h5py.Dataset)]
        values = {name: _rows_of(file, name, rows, len(ids), path) for name in every if name != _ID}
    if covariances is not None:
        with _opened(covariances) as file:
            for name in (_COVARIANCE, _PRECISION):
                if name in file:
                    values[name] = _rows_of(file, name, rows, len(ids), covariances)
    check_against_single_datasets(values, order, path)
    if _COVARIANCE in values:
        _check_covariance(values, order, covariances or path)
    columns |= {
        name: column(*(values[dataset] for dataset in datasets))
        for name, (datasets, column) in default_columns(values, order).items()
        if name != "source_id"
    }
    return Table(columns, meta={"version": f"v{len(order) - 4}"})


def default_columns(
    datasets: Collection[str], order: Sequence[ParameterColumn]
) -> dict[str, tuple[tuple[str, ...], Callable[..., np.ndarray]]]:
    """How columns by the default layout's names come from datasets of the published one.

    Parameters
    ----------
    datasets : collection of str
        Those there are.
    order : sequence of ParameterColumn
        The parameters that the arrays hold (:data:`ORDERS`).

    Returns
    -------
    dict of str to (tuple of str, callable)
        By column: the datasets it needs, and what makes it of them.
    """
    found: dict[str, tuple[tuple[str, ...], Callable[..., np.ndarray]]] = {
        "source_id": ((_ID,), lambda ids: ids.astype(np.int64))
    }
    found |= {name: ((name,), np.asarray) for name in ("ra", "dec") if name in datasets}
    for index, parameter in enumerate(order):
        found[parameter.name] = ((_ESTIMATES,), _element(index, parameter.per_unit))
        found[f"{parameter.name}_error"] = ((_ERRORS,), _element(index, parameter.per_unit))
    if _COVARIANCE in datasets:
        first, second = np.triu_indices(len(order))
        for index, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
            if i < j:
                variances = np.flatnonzero((first == second) & ((first == i) | (first == j)))
                found[f"{order[i].name}_{order[j].name}_corr"] = ((_COVARIANCE,), _correlation(index, *variances))
    others = [name for name in datasets if name not in (*_READ_HERE, *found)]
    return found | {_NAMES.get(name, name): ((name,), np.asarray) for name in others}


def _element(index: int, factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: factor * array[:, index]


def _correlation(element: int, first: int, second: int) -> Callable[[np.ndarray], np.ndarray]:
    """From the upper triangle of the covariance: an element of it over the roots of two others."""

    def correlation(triangle: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(triangle[:, element] / (np.sqrt(triangle[:, first]) * np.sqrt(triangle[:, second])))

    return correlation


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path)
    except OSError as error:
        reason = "no such file" if not path.exists() else f"not a readable HDF5 file ({error})"
        raise InputError(reason, file=str(path)) from error


def _order(file: h5py.File, path: Path) -> tuple[ParameterColumn, ...]:
    """The parameters in the order of the file's array."""
    shapes = {name: file[name].shape for name in (_ESTIMATES, _ERRORS)}
    for name, shape in shapes.items():
        if len(shape) != 2 or shape[1] not in ORDERS:
            raise InputError(
                f"shape {shape}: neither the 5 parameters of v1 nor the 6 of v2 (which has xi)",
                file=str(path),
                field=name,
            )
    if shapes[_ESTIMATES] != shapes[_ERRORS]:
        raise InputError(
            f"shape {shapes[_ERRORS]}, that of {_ESTIMATES} is {shapes[_ESTIMATES]}", file=str(path), field=_ERRORS
        )
    return ORDERS[shapes[_ESTIMATES][1]]


def _rows_of(file: h5py.File, name: str, rows: NDArray[np.intp], length: int, path: Path) -> np.ndarray:
    """Some rows of a dataset, which is read piece by piece unless all of it is wanted."""
    dataset: Any = file[name]
    if dataset.shape[:1] != (length,):
        raise InputError(f"shape {dataset.shape}, but there are {length:,} sources", file=str(path), field=name)
    if len(rows) == length:
        return np.asarray(dataset[()])
    pieces = [
        dataset[start : start + _PIECE][rows[(rows >= start) & (rows < start + _PIECE)] - start]
        for start in range(int(rows[0]) if len(rows) else length, int(rows[-1]) + 1 if len(rows) else length, _PIECE)
    ]
    return np.concatenate([np.empty((0, *dataset.shape[1:]), dataset.dtype), *pieces])


def check_against_single_datasets(
    values: Mapping[str, np.ndarray], order: tuple[ParameterColumn, ...], path: Path
) -> None:
    """Where parameters are there once more, the array must be these: the test of what this module says of its order."""
    for name, parameters in ALONE.items():
        if name not in values:
            continue
        alone = values[name].reshape(len(values[name]), -1)
        for index, parameter in enumerate(parameters):
            if parameter not in order or alone.shape[1] != len(parameters):
                raise InputError(
                    f"shape {values[name].shape} beside {len(order)} parameters", file=str(path), field=name
                )
            joined = values[_ESTIMATES][:, order.index(parameter)]
            if not np.allclose(joined, alone[:, index], rtol=1e-5, equal_nan=True):
                raise InputError(
                    f"{_ESTIMATES} has other values of {parameter.name}: an order unknown here",
                    file=str(path),
                    field=name,
                )


def _check_covariance(values: Mapping[str, np.ndarray], order: Sequence[ParameterColumn], path: Path) -> None:
    """The upper triangle, row-major, of the covariance must be that of these parameters, row for row."""
    first, second = np.triu_indices(len(order))
    triangle = values[_COVARIANCE]
    if triangle.shape[1:] != first.shape:
        raise InputError(
            f"shape {triangle.shape}, expected {len(first)} columns for {len(order)} parameters",
            file=str(path),
            field=_COVARIANCE,
        )
    error = np.sqrt(np.where(triangle[:, first == second] >= 0, triangle[:, first == second], np.nan))
    agrees = np.isclose(error, values[_ERRORS], rtol=1e-3, equal_nan=True).all(axis=1)
    if 2 * np.count_nonzero(agrees) < len(agrees):
        raise InputError(
            f"its diagonal is not that of {_ERRORS}: other rows, or another order", file=str(path), field=_COVARIANCE
        )


def descriptions() -> dict[str, tuple[str, str]]:
    """Unit and description of each column, by its name in the table."""
    about = {_NAMES.get(column.name, column.name): (column.unit, column.description) for column in ZGR23}
    about["source_id"] = about.pop(_ID)
    for parameter in ORDERS[6]:
        about[parameter.name] = (parameter.unit, parameter.description)
        about[f"{parameter.name}_error"] = (parameter.unit, f"standard error of {parameter.name}")
    return about
