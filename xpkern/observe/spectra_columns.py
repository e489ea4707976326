"""From tables whose columns are arrays of numbers to blocks of spectra: one way for every format but text."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from xpkern.engine.contract import Coefficients
from xpkern.errors import InputError
from xpkern.observe import _csv
from xpkern.observe.calibration import Calibration
from xpkern.observe.columns import Column
from xpkern.observe.gaia_source import no_integers
from xpkern.observe.spectra_csv import read_text
from xpkern.observe.text import refuse_repeated
from xpkern.observe.xp_block import BandColumns, SpectrumTable, XpBlock, missing_columns, other_calibration

#: Endings of columns that hold the covariance matrix of the coefficients (packed lower triangle with its diagonal, or
#: square) where there are no errors and correlations. They do not contain the standard deviation s of the solution,
#: which multiplies them as s² to the covariance that the archive's errors and correlations mean.
COVARIANCES = ("_coefficient_covariances", "_covariance_matrix")

#: Names of the column by which a table of sources is known: the archive's, and the published catalogue's.
IDENTIFIERS = frozenset({"source_id", "gdr3_source_id"})

#: Columns by which a table of spectra is known among the tables of a file.
SPECTRUM_COLUMNS = frozenset(
    [
        *(f"{band}_coefficient{ending}" for band in ("bp", "rp") for ending in ("s", "_errors", "_correlations")),
        *("flux", "flux_error"),
    ]
)

Chunk = Mapping[str, Column]


class ColumnTable(Protocol):
    """A table that is read some rows at a time.

    Attributes
    ----------
    names : list of str
        Its columns as it spells them; one that occurs twice, in any case, is one of ``widths``.
    widths : dict of str to (int or None)
        Its columns by lower-case name, each with the length of its arrays where the table has one for all rows, 1 for
        single numbers, and None where rows may differ.
    """

    names: list[str]
    widths: dict[str, int | None]

    @property
    def n_rows(self) -> int | None:
        """Rows; None where only reading the table tells."""

    @property
    def attributes(self) -> dict[str, object]:
        """What its writer says of the table as a whole."""

    @property
    def units(self) -> Mapping[str, str]:
        """Units of its columns by lower-case name, as it spells them; empty or left out where it names none."""

    def chunks(self, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """Yield some columns of all rows, so many rows at a time; the last chunk may be shorter, none is empty."""

    def close(self) -> None:
        """Close its file."""


def read_columns(
    source: ColumnTable, file: str, calibration: Calibration, rows: int, need_standard_deviation: bool
) -> Generator[XpBlock, None, None]:
    """Read a table of spectra; parameters and what is yielded as :func:`xpkern.observe.spectra.read_blocks`."""
    table = SpectrumTable.of(source.widths, calibration)
    units = {name: source.units.get(name, "") for name in table.bands[0].arrays} if table.is_sampled else {}
    table = table.in_units(units, file)
    covariances = [_covariance_column(band, source.widths) for band in table.bands]
    wanted = _wanted_columns(table, covariances, source, file)
    refuse_repeated(wanted, source.names, file)
    chunks = source.chunks(wanted, rows)
    first = next(chunks, None)
    if first is None:
        return
    chunks = chain([first], chunks)
    if not first["source_id"].is_text:
        _require_integers(first["source_id"], file)
    if any(first[name].is_text for band in table.bands for name in band.arrays if name in first):
        yield from read_text(
            _as_text(wanted, chunks),
            file,
            calibration,
            rows=rows,
            need_standard_deviation=need_standard_deviation,
            units=units,
        )
        return
    rows_before = 0
    try:
        for chunk in chunks:
            reading = _Rows(table, chunk, file)
            coefficients = reading.coefficients(table.bands, covariances)
            if rows_before == 0:
                reading.refuse_other_calibration(calibration.release)
            yield table.block(
                file,
                rows_before,
                reading.source_id,
                coefficients,
                reading.bad,
                [(row, field, message) for row, (field, message, _) in sorted(reading.problems.items())],
                need_standard_deviation=need_standard_deviation,
            )
            rows_before += len(reading)
    except InputError as error:
        if error.row is not None or not rows_before:
            raise
        raise InputError(error.message, file=file, row=rows_before + 1, field=error.field) from error


def _covariance_column(band: BandColumns, columns: Mapping[str, int | None]) -> str:
    """The column that stands in for errors and correlations; empty if these are there, or nothing is."""
    if not band.prefix or band.errors in columns or band.correlations in columns:
        return ""
    return next((name for name in (band.prefix + ending for ending in COVARIANCES) if name in columns), "")


def _wanted_columns(table: SpectrumTable, covariances: Sequence[str], source: ColumnTable, file: str) -> list[str]:
    """The columns to read; raises an InputError if one is not there, or of no possible shape."""
    columns = source.widths
    needed, optional = {"source_id": {1}}, []
    for band, covariance in zip(table.bands, covariances, strict=True):
        n = band.n_coefficients
        if covariance:
            needed |= {band.coefficients: {n}, covariance: {n * (n + 1) // 2, n * n}}
            needed[f"{band.prefix}_standard_deviation"] = {1}
        elif band.arrays:
            needed |= {name: {n} for name in band.arrays}
            if band.correlations:
                needed[band.correlations] = {band.n_pairs, n * n}
        if band.prefix:
            optional += [
                f"{band.prefix}_{name}" for name in ("n_parameters", "basis_function_id", "standard_deviation")
            ]
    missing = [name for name in needed if name not in columns]
    if missing:
        raise missing_columns(missing, source.names, table, file)
    for name, sizes in needed.items():
        width = columns[name]
        if width not in (None, 0, *sizes):
            found = "single numbers" if width == 1 else f"arrays of {width} numbers"
            raise InputError(
                f"{found}, but the calibration ({table.calibration.release}) is for {min(sizes)}", file=file, field=name
            )
    return list(dict.fromkeys([*needed, *(name for name in optional if name in columns)]))


def _require_integers(source_id: Column, file: str) -> None:
    if source_id.is_array or source_id.values.dtype.kind not in "iu":
        raise no_integers(source_id.values, file)


class _Rows:
    """The arrays of some rows and what is wrong with each: the first problem found, unless a later one says that the
    row is of another calibration.
    """

    def __init__(self, table: SpectrumTable, chunk: Chunk, file: str) -> None:
        self._chunk, self._file, self._gaps = chunk, file, table.is_sampled
        self.source_id = np.full(len(chunk["source_id"]), -1, np.int64)
        self.bad = np.zeros(len(self), np.bool_)
        self.problems: dict[int, tuple[str, str, bool]] = {}
        self._read_source_id()

    def __len__(self) -> int:
        return len(self.source_id)

    def _fail(self, rows: NDArray[np.bool_], field: str, message: str, other_calibration: bool = False) -> None:
        """Note a problem of some rows (n,)."""
        for row in np.flatnonzero(rows).tolist():
            if not self.bad[row] or (other_calibration and not self.problems[row][2]):
                self.problems[row] = (field, message, other_calibration)
            self.bad[row] = True

    def _read_source_id(self) -> None:
        column = self._chunk["source_id"]
        _require_integers(column, self._file)
        # as a signed number, an unsigned one that is too large for it is negative
        as_signed = column.values.astype(np.int64)
        too_large = ~column.absent & (column.values.dtype.kind == "u") & (as_signed < 0)
        self.source_id = np.where(column.absent | too_large, -1, as_signed)
        self._fail(column.absent, "source_id", "empty, or not a 64-bit integer")
        self._fail(too_large, "source_id", "not a 64-bit integer")

    def _numbers(self, name: str) -> NDArray[np.float64]:
        """Single numbers (n,), NaN where absent or where there is no such column."""
        if name not in self._chunk:
            return np.full(len(self), np.nan)
        try:
            return self._chunk[name].numbers()
        except (TypeError, ValueError) as error:
            raise InputError(f"not a column of numbers ({error})", file=self._file, field=name) from None

    def coefficients(self, bands: Sequence[BandColumns], covariances: Sequence[str]) -> Coefficients:
        """Arrays of all rows, as :meth:`SpectrumTable.empty_arrays` has them, and 0 where there is nothing."""
        bp, rp = (self._band(band, covariance) for band, covariance in zip(bands, covariances, strict=True))
        for band in (bp, rp):
            band.present &= ~self.bad
            if not band.present.all():
                # copies: the arrays may be those of the table
                for name in ("coefficients", "errors", "correlations"):
                    setattr(band, name, np.where(band.present[:, None], getattr(band, name), 0))
        return Coefficients(
            bp=bp.coefficients,
            rp=rp.coefficients,
            bp_error=bp.errors,
            rp_error=rp.errors,
            bp_correlation=bp.correlations,
            rp_correlation=rp.correlations,
            bp_standard_deviation=bp.deviation,
            rp_standard_deviation=rp.deviation,
            has_bp=bp.present,
            has_rp=rp.present,
        )

    def _band(self, band: BandColumns, covariance: str) -> _Band:
        rows, n = len(self), band.n_coefficients
        if not band.arrays:
            nothing = np.empty((rows, 0), np.float32)
            return _Band(np.empty((rows, 0)), nothing, nothing, np.full(rows, np.nan, np.float32), np.zeros(rows, bool))
        deviation = self._numbers(f"{band.prefix}_standard_deviation") if band.prefix else np.full(rows, np.nan)
        fields: list[_Field] = [(band.coefficients, np.float64, (n,))]
        if covariance:
            fields.append((covariance, np.float64, (n * (n + 1) // 2, n * n)))
        else:
            fields.append((band.errors, np.float32, (n,)))
            if band.correlations:
                fields.append((band.correlations, np.float32, (band.n_pairs, n * n)))
        lengths = np.stack([self._lengths(name) for name, _, _ in fields])
        matrices = [self._matrix(*field, length, n) for field, length in zip(fields, lengths, strict=True)]
        fitting = [_is_any(length, sizes) for length, (_, _, sizes) in zip(lengths, fields, strict=True)]
        lengths[:, np.all(fitting, axis=0) & _filled_up(matrices)] = 0
        self._check_calibration(band, np.asarray((lengths > 0).any(axis=0)))
        self._check_lengths(fields, lengths)
        with np.errstate(over="ignore", invalid="ignore"):
            in_float32 = deviation.astype(np.float32)
        wrong = ~np.isnan(deviation) & ~((in_float32 > 0) & np.isfinite(in_float32))
        # whether the band is there or not: so converted files keep the rows that could not be read
        self._fail(wrong, f"{band.prefix}_standard_deviation", "the standard deviation is not positive")
        names = [name for name, _, _ in fields]
        if covariance:
            unknown = np.isnan(deviation) & (lengths > 0).all(axis=0)
            self._fail(unknown, f"{band.prefix}_standard_deviation", "empty, but covariances need it")
            matrices[1:] = _errors_of(matrices[1], deviation, n)
            names.append(covariance)
        elif not band.correlations:
            matrices.append(np.empty((rows, 0), np.float32))
        present = (lengths > 0).all(axis=0) & ~self.bad
        coefficients, errors, correlations = matrices
        for row, array, message in _csv.check_rows(coefficients, errors, correlations, present, self._gaps):
            self._fail(np.arange(rows) == row, names[array], message)
        in_float32[wrong] = np.nan
        return _Band(coefficients, errors, correlations, in_float32, present)

    def _lengths(self, name: str) -> NDArray[np.int64]:
        column = self._chunk[name]
        if column.is_array:
            return column.array_lengths()
        if not column.absent.all():
            raise InputError("not a column of arrays of numbers", file=self._file, field=name)
        return np.zeros(len(self), np.int64)

    def _matrix(
        self, name: str, dtype: DTypeLike, sizes: tuple[int, ...], lengths: NDArray[np.int64], n: int
    ) -> NDArray:
        """The arrays of a column as a matrix of ``sizes[0]`` columns; 0 in rows whose length is none of ``sizes``.

        A second size is that of a square matrix, of which the lower triangle is taken.
        """
        column = self._chunk[name]
        if not column.is_array:
            return np.zeros((len(self), sizes[0]), dtype)
        matrix: NDArray = column.dense(sizes[0], dtype)
        is_square = lengths == sizes[-1]
        if len(sizes) > 1 and is_square.any():
            row, col = np.tril_indices(n, 0 if sizes[0] > n * (n - 1) // 2 else -1)
            matrix = matrix.copy()
            matrix[is_square] = column.dense(sizes[1], dtype)[is_square].reshape(-1, n, n)[:, row, col]
        return matrix

    def _check_calibration(self, band: BandColumns, some: NDArray[np.bool_]) -> None:
        if not band.prefix:
            return
        for name, expected in (("n_parameters", band.n_coefficients), ("basis_function_id", band.basis_function_id)):
            values = self._numbers(f"{band.prefix}_{name}")
            other = some & ~np.isnan(values) & (values != expected)
            for value in sorted(set(values[other].tolist())):
                message = f"'{value:g}', but the calibration is for {expected}"
                self._fail(other & (values == value), f"{band.prefix}_{name}", message, other_calibration=True)

    def _check_lengths(self, fields: Sequence[_Field], lengths: NDArray[np.int64]) -> None:
        some = (lengths > 0).any(axis=0)
        for (name, _, sizes), length in zip(fields, lengths, strict=True):
            self._fail(some & (length == 0), name, "empty, although the other arrays of the band are there")
            wrong = (length > 0) & ~_is_any(length, sizes)
            for found in sorted(set(length[wrong].tolist())):
                self._fail(wrong & (length == found), name, f"expected {sizes[0]} numbers, found {found}")

    def refuse_other_calibration(self, release: str) -> None:
        """Raise if no row at all is for this calibration: the table is of another release, not damaged."""
        if sum(other for _, _, other in self.problems.values()) < len(self):
            return
        row, (field, message, _) = min(self.problems.items())
        raise other_calibration(message, release, len(self), file=self._file, row=row + 1, field=field)


#: Column of arrays, type of their numbers, lengths that they may have.
_Field = tuple[str, type[np.floating[Any]], tuple[int, ...]]


@dataclass
class _Band:
    coefficients: NDArray[np.float64]
    errors: NDArray[np.float32]
    correlations: NDArray[np.float32]
    deviation: NDArray[np.float32]
    present: NDArray[np.bool_]


def _is_any(lengths: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.bool_]:
    return np.asarray(np.any([lengths == size for size in sizes], axis=0))


def _filled_up(matrices: Sequence[NDArray]) -> NDArray[np.bool_]:
    """Rows that hold nothing but NaN, or nothing but 0: how tables whose arrays have one length leave them out."""
    first = matrices[0][:, 0]
    empty = (first == 0) | np.isnan(first)
    for row in np.flatnonzero(empty).tolist():
        arrays = [matrix[row] for matrix in matrices]
        empty[row] = all(np.isnan(array).all() for array in arrays) or not any(array.any() for array in arrays)
    return empty


def _errors_of(
    covariance: NDArray[np.float64], deviation: NDArray[np.float64], n: int
) -> tuple[NDArray[np.float32], ...]:
    """Errors (n_rows, n) and correlations of packed covariances that lack the factor s²."""
    i, j = np.tril_indices(n)
    with np.errstate(all="ignore"):
        root = np.sqrt(covariance[:, i == j])
        errors = root * deviation[:, None]
        below = i > j
        correlations = covariance[:, below] / (root[:, i[below]] * root[:, j[below]])
        return tuple(np.ascontiguousarray(values, np.float32) for values in (errors, correlations))


def _as_text(columns: Sequence[str], chunks: Iterator[Chunk]) -> Iterator[bytes]:
    """A table some of whose arrays are text, as the csv file that it may have come from."""

    def field(value: object) -> str:
        if isinstance(value, list):
            return f'"{value}"'
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        return '"' + text.replace('"', "").replace("\n", " ") + '"' if "[" in text or "(" in text else text

    yield (",".join(columns) + "\n").encode()
    for chunk in chunks:
        parts = [
            ["" if absent else field(value) for value, absent in zip(column.items(), column.absent, strict=True)]
            for column in (chunk[name] for name in columns)
        ]
        yield "".join(",".join(row) + "\n" for row in zip(*parts, strict=True)).encode()
