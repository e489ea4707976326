"""Blocks of spectra as their readers hand them on, and what a table of spectra must hold to become one."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Coefficients, Float32
from xpkern.errors import InputError
from xpkern.observe.calibration import Calibration
from xpkern.observe.sampled import N_SAMPLES, coefficients_of_samples, sample_factors, sampled_calibration

#: Rows of a block: 14 MB of numbers. Many enough that the work on them outweighs the overhead of a block, few enough
#: that every thread can have a block of its own.
BLOCK_ROWS = 1024

#: What is wrong with a row of a block: (row, name of the column or "", what).
Problem = tuple[int, str, str]


@dataclass
class XpBlock:
    """Some rows of a file, in its order.

    Attributes
    ----------
    source_id : (n,) int64
        -1 where it cannot be read.
    coefficients : Coefficients
        Of n stars.
    calibration : Calibration
        To which the coefficients belong.
    bad : (n,) bool
        Rows that cannot be used; they have neither BP nor RP.
    reasons : list of (source_id, row, field, message)
        What is wrong with each bad row. Rows count from 1 after the header; the message begins with the file's name.
    is_sampled : bool
        Whether these are sampled spectra, whose errors are independent; their samples stand for coefficients.
    missing : (n, n_xp) bool, optional
        Samples that a sampled spectrum lacks.
    repeated : (n,) bool
        Rows whose source has occurred before in the same file.
    in_earlier_files : int
        How many other rows have a source that has occurred in an earlier file.
    unknown_deviation : (2, n) bool
        Rows of which the file does not tell the standard deviation of BP, of RP: 1 is taken.
    """

    source_id: NDArray[np.int64]
    coefficients: Coefficients
    calibration: Calibration
    bad: NDArray[np.bool_]
    reasons: list[tuple[int, int, str, str]]
    is_sampled: bool = False
    missing: NDArray[np.bool_] | None = None
    repeated: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    in_earlier_files: int = 0
    unknown_deviation: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((2, 0), np.bool_))

    def __post_init__(self) -> None:
        if len(self.repeated) != len(self):
            self.repeated = np.zeros(len(self), np.bool_)
        if self.unknown_deviation.shape[1] != len(self):
            self.unknown_deviation = np.zeros((2, len(self)), np.bool_)

    def __len__(self) -> int:
        return len(self.source_id)


class SeenSources:
    """The sources of a file, or of several, so far: 8 bytes each, in sorted runs that are merged as they grow."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.int64]] = []

    def add(self, source_id: NDArray[np.int64], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Add sources (n,), those that are known; return which of them (n,) have occurred before."""
        repeated = np.zeros(len(source_id), np.bool_)
        order = np.argsort(source_id, kind="stable")
        order = order[known[order]]
        run = source_id[order]
        repeated[order[1:]] = run[1:] == run[:-1]
        for before in self._runs:
            at = np.minimum(np.searchsorted(before, run), len(before) - 1)
            repeated[order] |= before[at] == run
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]))
        if len(run):
            self._runs.append(run)
        return repeated


@dataclass(frozen=True)
class BandColumns:
    """Columns of one band, and what is expected in them.

    Attributes
    ----------
    coefficients, errors, correlations : str
        Columns of arrays; ``correlations`` is empty where there are none, all are for a band that does not exist.
    prefix : str
        Of the columns ``_n_parameters``, ``_basis_function_id``, ``_standard_deviation``; empty where there are none.
    n_coefficients, n_pairs : int
        Lengths of the arrays.
    basis_function_id : int
    """

    coefficients: str
    errors: str
    correlations: str
    prefix: str
    n_coefficients: int
    n_pairs: int
    basis_function_id: int = 0

    @property
    def arrays(self) -> tuple[str, ...]:
        """The columns of arrays."""
        return tuple(name for name in (self.coefficients, self.errors, self.correlations) if name)


@dataclass(frozen=True)
class SpectrumTable:
    """What a table of spectra must hold: coefficients of a calibration's basis functions, or sampled fluxes.

    Attributes
    ----------
    calibration : Calibration
        To which the coefficients of its blocks belong.
    bands : (BandColumns, BandColumns)
        BP and RP; for sampled spectra the one spectrum that there is, and nothing.
    is_sampled : bool
    factors : (float, float)
        By what sampled fluxes, their errors are multiplied to be in W m-2 nm-1.
    """

    calibration: Calibration
    bands: tuple[BandColumns, BandColumns]
    is_sampled: bool
    factors: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def of(cls, columns: Collection[str], calibration: Calibration) -> SpectrumTable:
        """Tell by the names of its columns (lower case) which of the two a table holds, or was to hold."""
        with_flux = {"flux", "flux_error"}.intersection(columns)
        has_coefficients = any(name.startswith(("bp_coef", "rp_coef")) for name in columns)
        if with_flux and "bp_coefficients" not in columns and (len(with_flux) == 2 or not has_coefficients):
            of_samples = BandColumns("flux", "flux_error", "", "", N_SAMPLES, 0)
            return cls(sampled_calibration(), (of_samples, BandColumns("", "", "", "", 0, 0)), True)

        def band(prefix: str, n: int, basis_function_id: int) -> BandColumns:
            coefficients, errors, correlations = (
                f"{prefix}_coefficient{ending}" for ending in ("s", "_errors", "_correlations")
            )
            return BandColumns(coefficients, errors, correlations, prefix, n, n * (n - 1) // 2, basis_function_id)

        bp = band("bp", calibration.n_bp, calibration.bp_basis_function_id)
        return cls(calibration, (bp, band("rp", calibration.n_rp, calibration.rp_basis_function_id)), False)

    def in_units(self, units: Mapping[str, str], file: str) -> SpectrumTable:
        """The same table with fluxes in units that it names; raises as :func:`sampled.sample_factors`."""
        return replace(self, factors=sample_factors(units, file))

    @property
    def known_columns(self) -> frozenset[str]:
        """Every column that has a meaning."""
        scalars = ("n_parameters", "basis_function_id", "standard_deviation")
        of_bands = [[*band.arrays, *(f"{band.prefix}_{name}" for name in scalars)] for band in self.bands]
        return frozenset(["source_id", *of_bands[0], *of_bands[1]])

    def empty_arrays(self, rows: int) -> Coefficients:
        """Arrays for that many rows as they stand in the table, not initialised.

        Those of a sampled spectrum stand in ``bp``; :meth:`block` turns them into coefficients.
        """

        def numbers(columns: int) -> Float32:
            return np.empty((rows, columns), np.float32)

        bp, rp = self.bands
        return Coefficients(
            bp=np.empty((rows, bp.n_coefficients)),
            rp=np.empty((rows, rp.n_coefficients)),
            bp_error=numbers(bp.n_coefficients),
            rp_error=numbers(rp.n_coefficients),
            bp_correlation=numbers(bp.n_pairs),
            rp_correlation=numbers(rp.n_pairs),
            bp_standard_deviation=np.empty(rows, np.float32),
            rp_standard_deviation=np.empty(rows, np.float32),
            has_bp=np.empty(rows, np.bool_),
            has_rp=np.empty(rows, np.bool_),
        )

    def block(
        self,
        file: str,
        rows_before: int,
        source_id: NDArray[np.int64],
        arrays: Coefficients,
        bad: NDArray[np.bool_],
        problems: Sequence[Problem],
        *,
        need_standard_deviation: bool,
    ) -> XpBlock:
        """Make a block of rows that have been read.

        Parameters
        ----------
        file : str
        rows_before : int
            Rows of the file before these.
        source_id : (n,) int64
        arrays : Coefficients
            As :meth:`empty_arrays` has them; standard deviations are NaN where the file does not tell. Changed in
            place.
        bad : (n,) bool
            Changed in place.
        problems : sequence of Problem
            One for each bad row.
        need_standard_deviation : bool
            Whether a row without it is bad; otherwise it counts as 1.
        """
        problems = list(problems)
        unknown_deviation = np.isnan([arrays.bp_standard_deviation, arrays.rp_standard_deviation])
        for band, present, deviation in (
            (self.bands[0], arrays.has_bp, arrays.bp_standard_deviation),
            (self.bands[1], arrays.has_rp, arrays.rp_standard_deviation),
        ):
            unknown = np.isnan(deviation)
            if need_standard_deviation and not self.is_sampled:
                for row in np.flatnonzero(unknown & present & ~bad).tolist():
                    bad[row] = True
                    problems.append((row, f"{band.prefix}_standard_deviation", "empty, but the noise model needs it"))
            deviation[unknown] = 1.0
        arrays.has_bp[bad] = arrays.has_rp[bad] = False
        missing = None
        if self.is_sampled:
            arrays, missing = coefficients_of_samples(arrays, self.factors)
        name = os.path.basename(file)
        return XpBlock(
            source_id=source_id,
            coefficients=arrays,
            calibration=self.calibration,
            bad=bad,
            reasons=[
                (int(source_id[row]), rows_before + row + 1, column, f"{name}: {message}")
                for row, column, message in problems
            ],
            is_sampled=self.is_sampled,
            missing=missing,
            unknown_deviation=unknown_deviation,
        )


def first_rows(coefficients: Coefficients, count: int) -> Coefficients:
    """Views of the first rows of arrays."""
    return replace(
        coefficients, **{each.name: getattr(coefficients, each.name)[:count] for each in fields(Coefficients)}
    )


def missing_columns(missing: Sequence[str], names: Sequence[str], table: SpectrumTable, file: str) -> InputError:
    """Return the error that names columns which a table lacks, and what it may have in place of one of them.

    Parameters
    ----------
    missing : sequence of str
        In lower case.
    names : sequence of str
        Of the columns that it has, as it spells them.
    table : SpectrumTable
    file : str
    """
    strangers = {name.lower(): name for name in names if name and name.lower() not in table.known_columns}
    suggestion = ""
    for name in missing:
        # the other band's are nearer than abbreviations
        of_band = sorted(each for each in strangers if {each[:3], name[:3]} != {"bp_", "rp_"})
        if near := difflib.get_close_matches(name, of_band, n=1, cutoff=0.65):
            suggestion = f"; is {strangers[near[0]]} that of {name}?"
            break
    return InputError(f"there is no column {', '.join(missing)}{suggestion}", file=file, field=missing[0])


def other_calibration(message: str, release: str, rows: int, *, file: str, row: int, field: str) -> InputError:
    """Return the error of a file none of whose first rows is for the calibration at hand."""
    return InputError(
        f"{message} ({release}); no row of the first {rows} fits: give the calibration of their release",
        file=file,
        row=row,
        field=field,
    )
