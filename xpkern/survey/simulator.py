"""Sources and their observations, block by block, in memory.

Each block has a fixed number of rows and random numbers of its own, so that a row depends on the seed and its number
only: not on how many rows there are, on threads, or on how the rows are dealt out to files.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Coefficients
from xpkern.errors import InputError
from xpkern.grid import N_XP
from xpkern.observe.calibration import Calibration
from xpkern.observe.error_model import ErrorModel
from xpkern.observe.simulate import bulk_columns, draw_systematics
from xpkern.observe.synthesis import SpectrumSynthesis
from xpkern.survey import MAGNITUDES
from xpkern.survey.planted import BAD_ROWS, NONE, Planted
from xpkern.survey.sources import SourcePopulation
from xpkern.survey.tables import gaia_source_columns, label_columns, reddening_columns, truth_columns
from xpkern.survey.truth import Truth

#: Rows of a block. The bytes of every survey depend on it.
BLOCK_ROWS = 4096

#: Source identifiers: that of the first source is larger than this; how far apart they are at most; room of a block.
_FIRST_ID, _LARGEST_GAP, _IDS_OF_A_BLOCK = 4_000_000_000_000_000_000, 1 << 32, 1 << 44


@dataclass(frozen=True)
class SurveyBlock:
    """n rows of a survey.

    Attributes
    ----------
    source_id : (n,) int64
        As in the file of spectra: where ``fault`` says "duplicate_id", that of the row before.
    fault : (n,) str
        See :data:`xpkern.survey.planted.BAD_ROWS`.
    coefficients : Coefficients
        As observed, faults included; in rows without BP its arrays are NaN and ``has_bp`` is false.
    tables : dict of str to dict of str to array
        Columns of the tables by name (:data:`xpkern.survey.tables.TABLES`); ``truth`` has n rows.
    """

    source_id: NDArray[np.int64]
    fault: NDArray[np.str_]
    coefficients: Coefficients
    tables: dict[str, dict[str, NDArray]]

    def __len__(self) -> int:
        return len(self.source_id)


class SurveySimulator:
    """Makes the blocks of a survey, any of them at any time.

    Parameters
    ----------
    truth : Truth
    seed : int
    planted : Planted, optional
    magnitudes : (float, float)
        Brightest and faintest true G.
    calibration, error_model : optional
        The shipped ones by default.

    Raises
    ------
    InputError
        If the seed is negative, or as :class:`xpkern.survey.sources.SourcePopulation`.
    """

    def __init__(
        self,
        truth: Truth,
        *,
        seed: int = 0,
        planted: Planted | None = None,
        magnitudes: tuple[float, float] = MAGNITUDES,
        calibration: Calibration | None = None,
        error_model: ErrorModel | None = None,
    ) -> None:
        if seed < 0:
            raise InputError(f"{seed} is negative", field="seed")
        self.truth = truth
        self.seed = seed
        self.planted = Planted() if planted is None else planted
        self.calibration = Calibration.default() if calibration is None else calibration
        error_model = ErrorModel.default() if error_model is None else error_model
        self.population = SourcePopulation(truth, self.planted, magnitudes)
        self._synthesis = SpectrumSynthesis(self.calibration, error_model)

    def block(self, number: int) -> SurveyBlock:
        """Rows ``number * BLOCK_ROWS`` and following, :data:`BLOCK_ROWS` of them."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))
        sources = self.population.draw(BLOCK_ROWS, rng)
        gaps = rng.integers(1, _LARGEST_GAP, BLOCK_ROWS, dtype=np.int64)
        source_id = _FIRST_ID + number * _IDS_OF_A_BLOCK + np.cumsum(gaps)
        fractions = self.planted.fault_fractions()
        fault = rng.choice(np.array(list(fractions)), BLOCK_ROWS, p=list(fractions.values()))
        # the row before, whose identifier a duplicate has, must exist and have its own
        duplicate = fault == "duplicate_id"
        duplicate[1:] &= ~duplicate[:-1]
        duplicate[0] = False
        fault[(fault == "duplicate_id") & ~duplicate] = NONE

        flux, sides = draw_systematics(self.truth.noise, self.truth.scale_sigma, sources.flux, rng)
        coefficients = self._synthesis.observe(flux[:, :N_XP], sides, rng)
        gaia_source = gaia_source_columns(source_id, sources, flux, fault, rng)
        labels, label = label_columns(source_id, sources, rng)
        reddening = reddening_columns(source_id, sources, rng)
        written_id = np.where(duplicate, np.roll(source_id, 1), source_id)
        _spoil(coefficients, fault, rng)
        return SurveyBlock(
            source_id=written_id,
            fault=fault,
            coefficients=coefficients,
            tables={
                "gaia_source": {name: values[~duplicate] for name, values in gaia_source.items()},
                "labels": _without(labels, source_id[duplicate]),
                "reddening": _without(reddening, source_id[duplicate]),
                "truth": truth_columns(written_id, sources, fault, np.where(duplicate, NONE, label)),
            },
        )

    def spectrum_columns(self, block: SurveyBlock) -> dict[str, NDArray]:
        """Columns of the archive's table; masked where there is no value, and where an array is too short."""
        columns = bulk_columns(block.source_id, block.coefficients, self.calibration)
        without_bp = ~block.coefficients.has_bp
        short = block.fault == "wrong_length"
        if not (without_bp.any() or short.any()):
            return columns
        for name, values in columns.items():
            if name.startswith("bp_"):
                columns[name] = np.ma.array(values, mask=np.zeros(values.shape, bool))
                columns[name][without_bp] = np.ma.masked
        rp = np.ma.array(columns["rp_coefficients"], mask=np.zeros(columns["rp_coefficients"].shape, bool))
        rp[short, -1] = np.ma.masked
        columns["rp_coefficients"] = rp
        return columns


def cut(block: SurveyBlock, rows: slice) -> SurveyBlock:
    """Some rows of a block, and what the tables have of their sources."""
    source_id = block.source_id[rows]
    coefficients = Coefficients(**{f.name: getattr(block.coefficients, f.name)[rows] for f in fields(Coefficients)})
    tables = {}
    for name, table in block.tables.items():
        kept = rows if name == "truth" else np.isin(table["source_id"], source_id[block.fault[rows] != "duplicate_id"])
        tables[name] = {column: values[kept] for column, values in table.items()}
    return SurveyBlock(source_id, block.fault[rows], coefficients, tables)


def _without(table: dict[str, NDArray], source_id: NDArray[np.int64]) -> dict[str, NDArray]:
    kept = ~np.isin(table["source_id"], source_id)
    return {name: values[kept] for name, values in table.items()}


def _spoil(coefficients: Coefficients, fault: NDArray[np.str_], rng: np.random.Generator) -> None:
    """Write the faults into the rows that have them."""
    without = fault == "no_bp"
    for values in (
        coefficients.bp,
        coefficients.bp_error,
        coefficients.bp_correlation,
        coefficients.bp_standard_deviation,
    ):
        values[without] = np.nan
    coefficients.has_bp[without] = False
    for name, array, change in (
        (BAD_ROWS[0], coefficients.bp, lambda value: np.nan),
        (BAD_ROWS[2], coefficients.bp_correlation, lambda value: 1.5),
        (BAD_ROWS[3], coefficients.rp_error, lambda value: -value),
    ):
        rows = np.flatnonzero(fault == name)
        columns = rng.integers(array.shape[1], size=rows.size)
        array[rows, columns] = change(array[rows, columns])
