"""A table of spectra in every format that is read: files and tables for the benchmarks and the tests of the readers."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.table import Table

from xpkern.engine.contract import Coefficients
from xpkern.grid import XP_WAVELENGTH
from xpkern.observe.calibration import Calibration

#: Few coefficients, and no two arrays of a band of the same length.
FEW = Calibration(
    release="few",
    instrument_model="none",
    bp_design=np.eye(61, 5),
    rp_design=np.eye(61, 4, -57),
    wavelength=XP_WAVELENGTH,
    bp_basis_function_id=56,
    rp_basis_function_id=57,
)

#: Type of the numbers in each kind of column, by the ending of its name.
TYPES = {
    "source_id": np.int64,
    "basis_function_id": np.int16,
    "n_parameters": np.int16,
    "standard_deviation": np.float32,
    "coefficients": np.float64,
    "coeffs": np.float64,
    "coefficient_errors": np.float32,
    "coefficient_correlations": np.float32,
    "flux": np.float32,
    "flux_error": np.float32,
    "ra": np.float64,
}

#: What stands for a missing integer in FITS and VOTable.
NULL = -32768

#: A table: for each column the values of all rows, numbers, arrays or None.
Columns = dict[str, list[Any]]


def some_columns(rng: np.random.Generator, rows: int = 5, calibration: Calibration = FEW) -> Columns:
    """Sound rows with random numbers."""
    columns: Columns = {"source_id": [int(i) for i in rng.choice(1 << 60, rows, replace=False)]}
    for band, n, basis in (
        ("bp", calibration.n_bp, calibration.bp_basis_function_id),
        ("rp", calibration.n_rp, calibration.rp_basis_function_id),
    ):
        columns[f"{band}_basis_function_id"] = [basis] * rows
        columns[f"{band}_n_parameters"] = [n] * rows
        columns[f"{band}_standard_deviation"] = list(rng.uniform(1, 2, rows).astype(np.float32))
        columns[f"{band}_coefficients"] = list(rng.normal(scale=100, size=(rows, n)))
        columns[f"{band}_coefficient_errors"] = list(rng.lognormal(size=(rows, n)).astype(np.float32))
        pairs = rng.uniform(-1, 1, (rows, n * (n - 1) // 2)).astype(np.float32)
        columns[f"{band}_coefficient_correlations"] = list(pairs)
    columns["ra"] = list(rng.uniform(0, 360, rows))
    return columns


def columns_of(source_id: np.ndarray, c: Coefficients) -> Columns:
    """A table of coefficients that have been read."""
    columns: Columns = {"source_id": source_id.tolist()}
    for band, present in (("bp", c.has_bp), ("rp", c.has_rp)):
        n = getattr(c, band).shape[1]
        columns[f"{band}_n_parameters"] = [n if there else None for there in present]
        for name, ending in (
            ("coefficients", ""),
            ("coefficient_errors", "_error"),
            ("coefficient_correlations", "_correlation"),
            ("standard_deviation", "_standard_deviation"),
        ):
            values = getattr(c, band + ending)
            columns[f"{band}_{name}"] = [v if there else None for v, there in zip(values, present, strict=True)]
    return columns


def n_rows(columns: Columns) -> int:
    """Rows of a table."""
    return len(next(iter(columns.values())))


def type_of(name: str) -> type:
    """NumPy type of the numbers in a column."""
    return next(kind for ending, kind in TYPES.items() if name.lower().endswith(ending))


def is_array(name: str) -> bool:
    """Whether a column holds arrays."""
    return name.lower().endswith(("coefficients", "coeffs", "_errors", "_correlations", "flux", "flux_error"))


def _text(value: Any, brackets: str = "[]", between: str = ",") -> str:
    if value is None:
        return ""
    if np.ndim(value):
        return f'"{brackets[0]}{between.join(str(number) for number in np.asarray(value))}{brackets[1]}"'
    return str(value)


def csv_text(
    columns: Columns, *, brackets: str = "[]", between: str = ",", separator: str = ",", before: str = ""
) -> str:
    """The text of a table, with brackets, commas and separators of any kind."""
    rows = zip(*columns.values(), strict=True)
    lines = [separator.join(_text(v, brackets, between) or '""' for v in row) for row in rows]
    return before + "\n".join([separator.join(columns), *lines, ""])


def _csv(path: Path, columns: Columns) -> None:
    path.write_text(csv_text(columns))


def _csv_gz(path: Path, columns: Columns) -> None:
    path.write_bytes(gzip.compress(csv_text(columns).encode()))


def _datalink(path: Path, columns: Columns) -> None:
    path.write_text(csv_text(columns, brackets="()", between=", "))


def _ecsv(path: Path, columns: Columns) -> None:
    lines = ["%ECSV 1.0", "---", "datatype:"]
    for name in columns:
        kind = np.dtype(type_of(name)).name
        of_array = f"string, subtype: '{kind}[null]'" if is_array(name) else kind
        lines.append(f"- {{name: {name}, datatype: {of_array}}}")
    path.write_text(csv_text(columns, separator=" ", before="".join(f"# {line}\n" for line in lines)))


def filled(columns: Columns, name: str) -> np.ndarray:
    """A column as an array, NaN or 0 where it has no value; rows of other lengths raise."""
    values, kind = columns[name], type_of(name)
    if not is_array(name):
        return np.array([(np.nan if kind is not np.int16 else 0) if v is None else v for v in values], kind)
    size = next((len(v) for v in values if v is not None), 1)
    return np.array([np.full(size, np.nan) if v is None else v for v in values], kind)


def _hdf5(path: Path, columns: Columns) -> None:
    with h5py.File(path, "w") as file:
        for name in columns:
            file[name] = filled(columns, name)


def _hdf5_compound(path: Path, columns: Columns) -> None:
    arrays = {name: filled(columns, name) for name in columns}
    kinds = [(name, a.dtype, a.shape[1:]) for name, a in arrays.items()]
    rows = np.zeros(n_rows(columns), kinds)
    for name, a in arrays.items():
        rows[name] = a
    with h5py.File(path, "w") as file:
        file.create_dataset("spectra", data=rows, compression="gzip", chunks=(2,))


def _fits(path: Path, columns: Columns) -> None:
    letters = {np.int64: "K", np.int16: "I", np.float32: "E", np.float64: "D"}
    made = []
    for name, values in columns.items():
        kind = type_of(name)
        if is_array(name):
            rows = np.empty(len(values), object)
            rows[:] = [np.empty(0, kind) if v is None else np.asarray(v, kind) for v in values]
            made.append(fits.Column(name, f"P{letters[kind]}()", array=rows))
        else:
            null = NULL if np.dtype(kind).kind == "i" else None
            data = np.array([(np.nan if null is None else null) if v is None else v for v in values], kind)
            made.append(fits.Column(name, letters[kind], array=data, null=null))
    fits.BinTableHDU.from_columns(made).writeto(path)


def _fits_fixed(path: Path, columns: Columns) -> None:
    image = fits.ImageHDU(np.zeros((3, 3)))
    table = fits.BinTableHDU(Table({name: filled(columns, name) for name in columns}))
    fits.HDUList([fits.PrimaryHDU(), image, table]).writeto(path)


def astropy_table(columns: Columns) -> Table:
    """An astropy table: arrays of numbers, of objects where their lengths vary."""
    made = {}
    for name, values in columns.items():
        absent = np.array([v is None for v in values])
        if is_array(name):
            rows = np.empty(len(values), object)
            whole = [np.asarray([] if v is None else v, type_of(name)) for v in values]
            rows[:] = [np.ma.array(v, mask=np.zeros(len(v), bool)) for v in whole]
            made[name] = rows
        else:
            made[name] = np.ma.array([0 if v is None else v for v in values], type_of(name), mask=absent)
    return Table(made)


def _votable(encoding: str) -> Callable[[Path, Columns], None]:
    def write(path: Path, columns: Columns) -> None:
        from astropy.io.votable import from_table, writeto
        from astropy.io.votable.converters import get_converter
        from astropy.io.votable.tree import TableElement

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            document = from_table(astropy_table(columns))
            table: TableElement = document.get_first_table()
            for field in table.fields:
                if is_array(field.name):
                    field.datatype = {np.float64: "double", np.float32: "float"}[type_of(field.name)]
                    field.arraysize = "*"
                elif np.dtype(type_of(field.name)).kind == "i":
                    field.values.null = NULL
                field.converter = get_converter(field, {}, None)
            writeto(document, str(path), tabledata_format=encoding)

    return write


def arrow_table(columns: Columns, kind_of_list: str = "list") -> pa.Table:
    """A pyarrow table with lists of one of three kinds."""
    made = {}
    for name, values in columns.items():
        kind = pa.from_numpy_dtype(type_of(name))
        if not is_array(name):
            made[name] = pa.array([v if v is None else type_of(name)(v) for v in values], kind)
            continue
        absent = pa.array([v is None for v in values], pa.bool_())
        size = next((len(v) for v in values if v is not None), 1)
        if kind_of_list == "fixed_size_list":
            rows = [np.zeros(size) if v is None else v for v in values]
            numbers = pa.array(np.concatenate([*rows, []]).astype(type_of(name)))
            made[name] = pa.FixedSizeListArray.from_arrays(numbers, size, mask=absent)
            continue
        rows = [np.empty(0) if v is None else v for v in values]
        offsets = np.cumsum([0, *(len(v) for v in rows)])
        numbers = pa.array(np.concatenate([*rows, []]).astype(type_of(name)))
        is_large = kind_of_list == "large_list"
        maker = pa.LargeListArray if is_large else pa.ListArray
        made[name] = maker.from_arrays(pa.array(offsets, pa.int64() if is_large else pa.int32()), numbers, mask=absent)
    return pa.table(made)


def _parquet(kind_of_list: str, **options: Any) -> Callable[[Path, Columns], None]:
    def write(path: Path, columns: Columns) -> None:
        # several row groups, as long files have
        rows = max(2, min(16384, n_rows(columns) // 3))
        pq.write_table(arrow_table(columns, kind_of_list), path, row_group_size=rows, **options)

    return write


def _avro(path: Path, columns: Columns) -> None:
    import fastavro

    names = {np.int64: "long", np.int16: "int", np.float32: "float", np.float64: "double"}

    def schema_of(name: str) -> Any:
        kind: Any = names[type_of(name)]
        return ["null", {"type": "array", "items": kind} if is_array(name) else kind]

    fields = [{"name": name, "type": schema_of(name)} for name in columns]
    rows = [
        {n: v.tolist() if isinstance(v, np.ndarray | np.generic) else v for n, v in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]
    with open(path, "wb") as stream:
        fastavro.writer(
            stream,
            {"type": "record", "name": "spectrum", "fields": fields},
            rows,
            sync_interval=16000 if n_rows(columns) > 100 else 64,
        )


#: Writers of files, by name; the ending of the name says nothing to the readers.
FILES: dict[str, Callable[[Path, Columns], None]] = {
    "csv": _csv,
    "csv.gz": _csv_gz,
    "datalink.csv": _datalink,
    "ecsv": _ecsv,
    "h5": _hdf5,
    "compound.h5": _hdf5_compound,
    "fits": _fits,
    "fixed.fits": _fits_fixed,
    "tabledata.xml": _votable("tabledata"),
    "binary.xml": _votable("binary"),
    "binary2.xml": _votable("binary2"),
    "parquet": _parquet("list"),
    "large.parquet": _parquet("large_list", use_dictionary=False, use_byte_stream_split=True, compression="zstd"),
    "fixed.parquet": _parquet("fixed_size_list", use_dictionary=False, compression="none", data_page_version="2.0"),
    "avro": _avro,
}

#: Formats of arrays of one length, whose missing rows are NaN.
FIXED = ("h5", "compound.h5", "fixed.fits", "fixed.parquet", "dict", "structured")


def pandas_frame(columns: Columns) -> Any:
    """A pandas DataFrame, arrays as objects."""
    import pandas

    return pandas.DataFrame(
        {
            name: values if is_array(name) else pandas.array(values, dtype=_pandas_type(name))
            for name, values in columns.items()
        }
    )


def _pandas_type(name: str) -> str:
    return {"int64": "Int64", "int16": "Int16"}.get(np.dtype(type_of(name)).name, np.dtype(type_of(name)).name)


def text_frame(columns: Columns) -> Any:
    """What pandas makes of a DataLink csv file: arrays are text."""
    import pandas

    made = {
        name: [None if v is None else _text(v, "()", ", ").strip('"') for v in values] if is_array(name) else values
        for name, values in columns.items()
    }
    return pandas.DataFrame(made)


def _structured(columns: Columns) -> np.ndarray:
    arrays = {name: filled(columns, name) for name in columns}
    rows = np.zeros(n_rows(columns), [(name, a.dtype, a.shape[1:]) for name, a in arrays.items()])
    for name, a in arrays.items():
        rows[name] = a
    return rows


#: Makers of tables in memory.
TABLES: dict[str, Callable[[Columns], Any]] = {
    "dict": lambda columns: {name: filled(columns, name) for name in columns},
    "lists": dict,
    "structured": _structured,
    "astropy": astropy_table,
    "arrow": arrow_table,
    "pandas": pandas_frame,
    "pandas of text": text_frame,
}

ALL = (*FILES, *TABLES)


def make(form: str, columns: Columns, folder: Path, name: str = "spectra") -> Any:
    """A source for ``read_xp``: the path of a file, or a table."""
    if form in TABLES:
        return TABLES[form](columns)
    path = folder / f"{name}.{form}"
    FILES[form](path, columns)
    return path
