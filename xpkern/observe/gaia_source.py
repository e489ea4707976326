"""Tables that tell more about the sources: Gaia's ``gaia_source``, or a survey matched to it, joined by source_id."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.observe.source_files import (
    csv_error,
    csv_header,
    decompressed,
    hdf5_columns,
    names_in_file,
    refuse_pipe,
    refuse_truncated_votable,
)
from xpkern.observe.text import refuse_repeated
from xpkern.units import factor_to

if TYPE_CHECKING:
    import pyarrow

#: Columns of gaia_source that travel with the stars into the catalogue, NaN where absent.
GAIA_COLUMNS = (
    "ra",
    "dec",
    "parallax",
    "parallax_error",
    "phot_g_mean_mag",
    "phot_bp_mean_mag",
    "phot_rp_mean_mag",
    *(f"phot_{band}_mean_flux{end}" for band in ("g", "bp", "rp") for end in ("", "_error")),
    "phot_bp_rp_excess_factor",
    "ruwe",
    "fidelity_v2",
    "norm_dg",
    "bp_chi_squared",
    "rp_chi_squared",
)

#: Units in which columns are meant. Where a table says another one, they are converted.
UNITS = {
    **dict.fromkeys(("ra", "dec", "ecl_lat"), "deg"),
    **dict.fromkeys(("parallax", "parallax_error"), "mas"),
    **dict.fromkeys(("separation", "unwise_separation"), "arcsec"),
}

#: Columns that are text; all others but source_id are numbers.
_TEXT_COLUMNS = ("ph_qual", "survey")

#: How the archive and others write that there is no value.
NULL_WORDS = ["", "null", "NULL", "nan", "NaN"]

#: How files begin that are left to astropy, and endings of files that are left to it whatever they hold. What begins
#: and ends otherwise is csv, with an ECSV header or without.
_FITS = b"SIMPLE  ="
_OF_ASTROPY, _ENDINGS_OF_ASTROPY = (_FITS, b"<"), (".fits", ".fits.gz", ".vot", ".xml")

#: What an archive answers in place of a table.
_ERROR_OF_ARCHIVE = re.compile(rb"""<INFO\b[^>]*["']QUERY_STATUS["'][^>]*["']ERROR["'][^>]*>([^<]*)""")


class SourceTable:
    """Columns of a table, found by source_id.

    Parameters
    ----------
    columns : mapping of str to (n,) array
        Columns by lower-case name, ``source_id`` (integers) among them.
    name : str
        Of the file or the table, for messages.
    file : path-like, optional
        From which it was read.

    Raises
    ------
    InputError
        If there is no ``source_id``, it is not made of integers, one occurs twice, or columns differ in length.
    """

    def __init__(self, columns: Mapping[str, NDArray], name: str, file: Path | None = None) -> None:
        self.name = name
        self.file = file
        self._columns = dict(columns)
        for column, values in columns.items():
            if values.ndim == 2 and values.shape[1] == 2:  # unWISE's own files have W1 and W2 in one column
                self._columns |= {f"{column}_w1": values[:, 0], f"{column}_w2": values[:, 1]}
        source_id = self._column("source_id")
        if np.ma.is_masked(source_id) or source_id.dtype.kind not in "iu":
            raise no_integers(source_id, name)
        for column, values in columns.items():
            if values.shape[:1] != source_id.shape:
                found = len(values) if values.ndim else "no"
                raise InputError(f"{found} rows, but {len(source_id)} of source_id", file=name, field=column)
        source_id = np.asarray(source_id).astype(np.int64)
        self._order = np.argsort(source_id, kind="stable")
        self._sorted_id = source_id[self._order]
        twice = np.flatnonzero(self._sorted_id[1:] == self._sorted_id[:-1])
        if twice.size:
            raise InputError(
                f"{self._sorted_id[twice[0]]} occurs more than once, and so do {twice.size - 1} others",
                file=name,
                row=int(self._order[twice[0] + 1]) + 1,
                field="source_id",
            )

    @classmethod
    def of(cls, table: Any, name: str, wanted: Collection[str]) -> SourceTable:
        """Return any table as a SourceTable.

        Parameters
        ----------
        table : SourceTable, path, astropy or pyarrow table, pandas DataFrame, structured array, or mapping
            A file is csv (with an ECSV header or without), Parquet, HDF5 with a dataset for each column, or another
            format that astropy reads; text, FITS and VOTable may be gzipped. Its content says what it is.
        name : str
            What to call it in messages, if it is not a file.
        wanted : collection of str
            Columns to read from a csv, Parquet or HDF5 file; any others in it are skipped.

        Raises
        ------
        InputError
            If it cannot be read, or is none of these.
        """
        if isinstance(table, SourceTable):
            return table
        if isinstance(table, (str, os.PathLike)):
            path = Path(table)
            refuse_pipe(path)
            return cls(_read_columns(path, wanted), str(path), path)
        return cls({key: as_array(column) for key, column in columns_of_table(table, name).items()}, name)

    @staticmethod
    def files_of(tables: Iterable[Any]) -> list[Path]:
        """Files among these tables, and files that any of them was read from."""
        files = [table.file if isinstance(table, SourceTable) else table for table in tables]
        return [Path(file) for file in files if isinstance(file, (str, os.PathLike))]

    def __len__(self) -> int:
        return len(self._sorted_id)

    @property
    def source_id(self) -> NDArray[np.int64]:
        """Identifiers in the order of the rows, (n,)."""
        return self._column("source_id").astype(np.int64)

    def __contains__(self, column: str) -> bool:
        return column in self._columns

    def require(self, columns: Collection[str]) -> None:
        """Raise an InputError if a column is missing; it names what the table may have in place of the first."""
        missing = [column for column in columns if column not in self]
        if missing:
            near = self.nearest(missing[:1])
            suggestion = f"is {near[0]} that of {missing[0]}?" if near else self.content
            message = f"the table has no column {', '.join(missing)}; {suggestion}"
            raise InputError(message, file=self.name, field=missing[0])

    def nearest(self, columns: Collection[str]) -> list[str]:
        """Of each of some columns the name in the table that is most like it, if any is, and has no other meaning."""
        strangers = [name for name in self._all_names() if name not in ("source_id", *GAIA_COLUMNS)]
        near = [difflib.get_close_matches(column, strangers, n=1, cutoff=0.5) for column in columns]
        return [*dict.fromkeys(name for found in near for name in found)]

    @property
    def content(self) -> str:
        """The first names in the table, for messages."""
        names = self._all_names()
        return f"there are {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"

    def _all_names(self) -> list[str]:
        """Names of its columns, those of its file that were not wanted included."""
        names = list(self._columns)
        with contextlib.suppress(InputError):
            names = names if self.file is None else names_in_file(self.file)
        return [name for name in names if name]

    def completed(self, columns: Collection[str]) -> SourceTable:
        """The same table, with columns of no value in place of those that are missing."""
        lacking = {column: np.full(len(self), np.nan) for column in columns if column not in self}
        return SourceTable({**self._columns, **lacking}, self.name) if lacking else self

    def with_column(self, column: str, values: NDArray) -> SourceTable:
        """The same table with one more column, (n,)."""
        return SourceTable({**self._columns, column: values}, self.name)

    def rows_of(self, source_id: NDArray[np.int64]) -> NDArray[np.intp]:
        """Row of each source, (n,); -1 where the table does not have it."""
        if len(self) == 0:
            return np.full(len(source_id), -1, np.intp)
        position = np.minimum(np.searchsorted(self._sorted_id, source_id), len(self) - 1)
        return np.where(self._sorted_id[position] == source_id, self._order[position], -1)

    def numbers(self, column: str, rows: NDArray[np.intp]) -> Float64:
        """Values of a column at some rows, (n,) float64; NaN where the row is -1 or the table has no value.

        Raises
        ------
        InputError
            If the table has no such column, or it does not hold numbers.
        """
        found = self._column(column)[np.maximum(rows, 0)] if len(self) else np.full(len(rows), np.nan)
        try:
            values = found.astype(np.float64)
            values = np.ma.filled(values, np.nan) if np.ma.isMaskedArray(values) else values
        except (TypeError, ValueError) as error:
            raise InputError(f"not a column of numbers ({error})", file=self.name, field=column) from None
        if values.ndim != 1:
            raise InputError("not a column of numbers, but of arrays", file=self.name, field=column)
        return np.where(rows >= 0, values, np.nan)

    def texts(self, column: str, rows: NDArray[np.intp]) -> NDArray[np.str_]:
        """Values of a column at some rows as text, (n,); empty where the row is -1 or the table has no value."""
        found = self._column(column)[np.maximum(rows, 0)] if len(self) else np.full(len(rows), "")
        masked = np.ma.getmaskarray(found) | (rows < 0)
        if found.dtype.kind == "U":
            return np.where(masked, "", np.ma.getdata(found))
        texts = ["" if absent else _text(value) for value, absent in zip(np.ma.getdata(found), masked, strict=True)]
        return np.array(texts, np.str_)

    def _column(self, name: str) -> NDArray:
        self.require([name])
        values = self._columns[name]
        if (plain := _without_mask(values)) is not values:
            self._columns[name] = values = plain
        return values


def _without_mask(values: NDArray) -> NDArray:
    """A column that many stars are looked up in, as what takes no time there: NaN or no text where it has no value.

    Integers stay masked: they have no such value.
    """
    if values.dtype.kind == "S":
        texts = np.ma.getdata(values)
        try:
            texts = texts.astype(np.str_)
        except UnicodeDecodeError:
            texts = np.char.decode(texts, "ascii", "replace")
        values = np.ma.array(texts, mask=np.ma.getmask(values))
    if not np.ma.isMaskedArray(values):
        return values
    if not np.ma.is_masked(values):
        return np.ma.getdata(values)
    if values.dtype.kind == "U":
        return np.ma.filled(values, "")
    return np.ma.filled(values, np.nan) if values.dtype.kind == "f" else values


def share_of(source_id: NDArray[np.int64], seed: int) -> Float64:
    """A number from 0 to 1 for each source, (n,), that nothing but its identifier and the seed decides."""
    # the finaliser of splitmix64: every bit of the number decides
    with np.errstate(over="ignore"):
        mixed = source_id.astype(np.uint64) + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    share: Float64 = mixed.astype(np.float64) / 2.0**64
    return share


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("ascii", errors="replace")
    return value if isinstance(value, str) else ""


def columns_of_table(table: Any, name: str) -> dict[str, Any]:
    """The columns of a table in memory by lower-case name, as it has them.

    Raises
    ------
    InputError
        If it is none, or an angle has a unit of something else; ``name`` is what to call it.
    """
    if isinstance(table, np.ndarray) and table.dtype.names is not None:
        names: Collection[Any] = table.dtype.names
    elif isinstance(table, Mapping):
        names = table.keys()
    elif hasattr(table, "colnames"):  # astropy
        names = table.colnames
    elif hasattr(table, "column_names"):  # pyarrow
        names = table.column_names
    elif hasattr(table, "columns"):  # pandas
        names = list(table.columns)
    else:
        raise InputError(f"a {type(table).__name__} is no table: give a path, table, array or dict", field=name)
    columns = {str(key).lower(): table[key] for key in names}
    return {
        key: in_usual_unit(column, getattr(column, "unit", None), key, name) if key in UNITS else column
        for key, column in columns.items()
    }


def in_usual_unit(column: Any, unit: Any, field: str, name: str) -> Any:
    """A column as it is, or converted from the unit that it has to that of :data:`UNITS`.

    Raises
    ------
    InputError
        If an angle has a unit of something else.
    """
    if field not in UNITS:
        return column
    factor = factor_to(UNITS[field], unit, field, name)
    return column if factor == 1.0 else as_array(column) * factor


def no_integers(values: NDArray, file: str) -> InputError:
    """Return the error of a column source_id that is made of something else."""
    is_text = values.dtype.kind in "SU" or all(isinstance(value, (str, bytes)) for value in values[:100].tolist())
    message = f"must be 64-bit integers, not {'text' if is_text else values.dtype}; "
    message += "convert it, not by way of floats, which lose digits" if is_text else "other types lose digits"
    return InputError(message, file=file, field="source_id")


def as_array(column: Any) -> NDArray:
    """A column of any kind of table as an array, masked where it has no value."""
    if isinstance(column, np.ma.MaskedArray):
        return column
    if hasattr(column, "unit") and hasattr(column, "value"):  # astropy's quantities
        column = column.value
    if hasattr(column, "unmasked"):  # and its own kind of masks
        return np.ma.array(column.unmasked, mask=column.mask)
    if hasattr(column, "to_numpy") and hasattr(column, "isna"):  # pandas, whose own integers may be missing
        absent = column.isna().to_numpy()
        if absent.any() and column.dtype.kind in "iu":
            return np.ma.array(column.to_numpy(dtype=column.dtype.numpy_dtype, na_value=0), mask=absent)
        if absent.any() and column.dtype.kind in "fb":
            return np.ma.masked_invalid(column.to_numpy(dtype=np.float64, na_value=np.nan))
        return np.ma.array(column.to_numpy(), mask=absent) if absent.any() else column.to_numpy()
    return np.asarray(column)


def _read_columns(path: Path, wanted: Collection[str]) -> dict[str, NDArray]:
    name = path.name.lower()
    try:
        with decompressed(path) as stream:
            head = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read ({reason})", file=str(path)) from error
    if head.startswith(b"PAR1") or name.endswith(".parquet"):
        return _read_parquet(path, wanted)
    is_hdf5 = head.startswith(b"\x89HDF") or name.endswith((".h5", ".hdf5"))
    if is_hdf5 and (found := hdf5_columns(path, wanted)) is not None:
        return {key: in_usual_unit(values, found[1].get(key), key, str(path)) for key, values in found[0].items()}
    if b"<html" in head.lower():
        raise InputError("is a web page, not a table", file=str(path))
    if refusal := _ERROR_OF_ARCHIVE.search(head):
        said = " ".join(refusal.group(1).decode(errors="replace").split())
        raise InputError(f"holds an error in place of a table: {said or 'no reason given'}", file=str(path))
    if head.startswith(_FITS):
        with contextlib.suppress(InputError):  # astropy may know more of it
            if columns := _read_table(path, wanted):
                return columns
    if is_hdf5 or head.startswith(_OF_ASTROPY) or name.endswith(_ENDINGS_OF_ASTROPY):
        if head.startswith(b"<"):
            refuse_truncated_votable(path)
        try:
            return _read_with_astropy(path, "votable" if head.startswith(b"<") else None)
        except InputError as of_astropy:
            if head.startswith((b"\x89HDF", b"<")) and (columns := _read_one_of_several(path, wanted, of_astropy)):
                return columns
            raise
    return read_csv_columns(path, wanted)


def _read_parquet(path: Path, wanted: Collection[str]) -> dict[str, NDArray]:
    """Some columns of a Parquet file, and source_id, without pandas, which astropy needs for it."""
    import pyarrow
    from pyarrow import parquet

    try:
        written = parquet.read_schema(path).names
        refuse_repeated(("source_id", *wanted), written, str(path))
        names = {name.lower(): name for name in written}
        found = [names[name] for name in dict.fromkeys(("source_id", *wanted)) if name in names]
        table = parquet.read_table(path, columns=found)
    except (pyarrow.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"cannot be read as Parquet ({reason})", file=str(path)) from error
    return {name.lower(): _without_nulls(table.column(name)) for name in found}


def _without_nulls(column: pyarrow.ChunkedArray) -> NDArray:
    """A column of Arrow as an array, masked where it has no value: integers stay integers, texts are empty."""
    import pyarrow

    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        # the same few texts over and over: each becomes one of NumPy's only once
        encoded = column.combine_chunks().dictionary_encode()
        if isinstance(encoded, pyarrow.ChunkedArray):
            encoded = encoded.combine_chunks()
        texts = np.array([*encoded.dictionary.to_pylist(), ""], np.str_)
        return texts[encoded.indices.fill_null(len(texts) - 1).to_numpy()]
    if not column.null_count:
        return np.asarray(column.to_numpy())
    absent = column.is_null().to_numpy()
    if pyarrow.types.is_integer(column.type):
        return np.ma.array(column.fill_null(0).to_numpy(), mask=absent)
    return np.ma.array(column.to_numpy(), mask=absent)


def read_csv_columns(path: Path, wanted: Collection[str]) -> dict[str, NDArray]:
    """Some columns of a csv file, and source_id; those that it does not have are left out."""
    import pyarrow
    import pyarrow.csv

    n_comments, names, delimiter, is_gzip = csv_header(path)
    refuse_repeated(("source_id", *wanted), names, str(path))
    types = {name: pyarrow.string() if name in _TEXT_COLUMNS else pyarrow.float64() for name in wanted}
    types["source_id"] = pyarrow.int64()
    types = {name: types[name.lower()] for name in names if name.lower() in types}
    try:
        table = pyarrow.csv.read_csv(
            pyarrow.input_stream(str(path), compression="gzip" if is_gzip else None),
            read_options=pyarrow.csv.ReadOptions(skip_rows=n_comments + 1, column_names=names),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(types), column_types=types, null_values=NULL_WORDS, strings_can_be_null=True
            ),
        )
    except OSError as error:
        raise InputError(f"cannot be read as csv ({error})", file=str(path)) from error
    except pyarrow.ArrowException as error:
        is_text = pyarrow.types.is_string
        kinds = {name: pyarrow.types.is_integer(kind) for name, kind in types.items() if not is_text(kind)}
        raise csv_error(path, n_comments + 1, names, delimiter, kinds, NULL_WORDS, error) from error
    columns = {}
    for name in types:
        column = table.column(name)
        if name.lower() == "source_id" and column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0]) + 1
            raise InputError("empty", file=str(path), row=row, field=name)
        columns[name.lower()] = _without_nulls(column) if pyarrow.types.is_string(column.type) else column.to_numpy()
    return columns


def _read_table(path: Path, wanted: Collection[str]) -> dict[str, NDArray]:
    """Some columns of that table of a FITS, VOTable or HDF5 file which has most of them; none if one is unusual.

    astropy's tables read all columns, and to import them takes as long as a shard's fit.
    """
    from xpkern.observe.tables import open_table

    columns = {}
    with contextlib.closing(open_table(path, "source_id", wanted)) as table:
        names = [name for name in table.widths if name == "source_id" or name in wanted]
        for name, column in next(table.chunks(names, table.n_rows or 1), {}).items():
            if column.starts is not None or column.values.ndim > 1:
                return {}
            values = column.values.astype(str) if column.values.dtype.kind == "O" else column.values
            values = np.ma.array(values, mask=column.absent) if column.absent.any() else values
            columns[name] = in_usual_unit(values, table.units.get(name), name, str(path))
    return columns


def _read_one_of_several(path: Path, wanted: Collection[str], of_astropy: InputError) -> dict[str, NDArray]:
    """The same, of a file that astropy has refused as it holds several tables, or in HDF5 one in a group."""
    try:
        return _read_table(path, wanted)
    except InputError as error:
        # it says what is missing; or what the file is
        raise (error if error.field else of_astropy) from error


def _read_with_astropy(path: Path, kind: str | None) -> dict[str, NDArray]:
    """The columns of a file in a format that astropy has this name for, or recognises."""
    from astropy.table import Table

    try:
        table = Table.read(path, format=kind)
    except Exception as error:  # each of its many readers fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot be read as a table ({reason})", file=str(path)) from error
    return {name: as_array(column) for name, column in columns_of_table(table, str(path)).items()}
