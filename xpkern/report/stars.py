"""A block of a catalogue's stars as the figures see it: columns, what follows from them, and what others measured."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.flags import BASIC_CUT, FLAG_DEGREES_OF_FREEDOM
from xpkern.catalog.schema import PARAMETER_COLUMNS
from xpkern.engine.contract import Float64
from xpkern.grid import PARAMETERS
from xpkern.model.confidence import CONFIDENT_PARAMETERS
from xpkern.observe.population import ICRS_TO_GALACTIC
from xpkern.report.reference import Reference

#: Confidence above which an estimate counts (ZGR23 section 4.4).
LEAST_CONFIDENCE = 0.5

PLX = PARAMETERS.index("plx")


class Stars:
    """Some stars of a catalogue.

    Parameters
    ----------
    columns : mapping of str to (n,) or (n, 66) array
        By the names of the default layout, ``residual`` of the diagnostics companion among them where there is one.
    references : mapping of str to Reference
        By what they are: "labels" or "compare".
    total : int, optional
        Stars of the catalogue that these are a sample of.
    """

    def __init__(
        self,
        columns: Mapping[str, NDArray],
        references: Mapping[str, Reference] | None = None,
        total: int | None = None,
    ) -> None:
        self.columns = columns
        self.total = len(self) if total is None else total
        self.references = dict(references or {})
        self._numbers: dict[str, Float64] = {}
        self._matches: dict[str, NDArray[np.intp]] = {}

    def __len__(self) -> int:
        return len(self.columns["source_id"])

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def of(self, column: str) -> Float64:
        """A column of numbers, (n,); what is not finite is NaN."""
        if column not in self._numbers:
            values = self.columns[column].astype(np.float64)
            values[~np.isfinite(values)] = np.nan
            self._numbers[column] = values
        return self._numbers[column]

    def error(self, parameter: int) -> Float64:
        """Standard errors of a parameter, (n,); NaN where not positive."""
        error = self.of(f"{PARAMETER_COLUMNS[parameter].name}_error")
        return np.where(error > 0, error, np.nan)

    def estimate(self, parameter: int) -> Float64:
        """Estimates of a parameter in the catalogue's units, (n,)."""
        return self.of(PARAMETER_COLUMNS[parameter].name)

    @cached_property
    def reliable(self) -> NDArray[np.bool_]:
        """Stars that pass the basic cut, (n,)."""
        return np.asarray(self.columns["quality_flags"]) < BASIC_CUT

    def confident(self, parameter: int) -> NDArray[np.bool_]:
        """Reliable stars whose estimate of a parameter is confident, where a classifier judged it, (n,)."""
        name = PARAMETERS[parameter]
        if name not in CONFIDENT_PARAMETERS or f"{name}_confidence" not in self:
            return self.reliable
        return self.reliable & ~(self.of(f"{name}_confidence") <= LEAST_CONFIDENCE)

    @cached_property
    def parallax_snr(self) -> Float64:
        """Measured parallax over its error, (n,); NaN where there is none."""
        error = self.of("parallax_error")
        return self.of("parallax") / np.where(error > 0, error, np.nan)

    @cached_property
    def degrees_of_freedom(self) -> Float64:
        """Of chi2, (n,): those of the flags where the catalogue does not tell; NaN where not positive."""
        if "chi2_dof" not in self:
            return np.full(len(self), float(FLAG_DEGREES_OF_FREEDOM))
        dof = self.of("chi2_dof")
        return np.where(dof > 0, dof, np.nan)

    @cached_property
    def absolute_g(self) -> Float64:
        """G at 10 pc by the estimated parallax, dust included, (n,)."""
        plx = self.estimate(PLX)
        return self.of("phot_g_mean_mag") + 5.0 * np.log10(np.where(plx > 0, plx, np.nan)) - 10.0

    @cached_property
    def flux_residual(self) -> NDArray[np.float32]:
        """(predicted - observed flux) / sigma of each sample, (n, 66); NaN where a sample is missing."""
        residual = np.asarray(self.columns["residual"]).astype(np.float32)
        residual[~np.isfinite(residual) | (residual == 0.0)] = np.nan  # the companion has 0 where there is no sample
        return residual

    @cached_property
    def galactic(self) -> tuple[Float64, Float64]:
        """Galactic longitude (-180 to 180) and latitude [deg], each (n,)."""
        return galactic(self.of("ra"), self.of("dec"))

    def rows_in(self, reference: str) -> NDArray[np.intp]:
        """Row of each star in a reference, (n,); -1 where it is not in it."""
        if reference not in self._matches:
            ids = np.asarray(self.columns["source_id"], np.int64)
            self._matches[reference] = self.references[reference].rows_of(ids)
        return self._matches[reference]

    def others(self, reference: str, parameter: int) -> tuple[Float64, Float64]:
        """What a reference says of a parameter, and its error (0 where not known), each (n,).

        A parallax is Gaia's where the reference has none; NaN where there is no number.
        """
        key = f"{reference}/{parameter}"
        if f"{key}/value" not in self._numbers:
            found = self.references[reference]
            rows = self.rows_in(reference)
            there = rows >= 0
            if parameter == PLX and not found.known[PLX]:
                value, error = self.of("parallax"), self.of("parallax_error")
                value = np.where(np.isfinite(error), value, np.nan)
            elif len(found):
                value = found.values[rows, parameter].astype(np.float64)
                error = found.errors[rows, parameter].astype(np.float64)
            else:
                value = error = np.full(len(self), np.nan)
            self._numbers[f"{key}/value"] = np.where(there, value, np.nan)
            self._numbers[f"{key}/error"] = np.where(there & np.isfinite(error), error, 0.0)
        return self._numbers[f"{key}/value"], self._numbers[f"{key}/error"]

    def residual(self, reference: str, parameter: int) -> Float64:
        """Estimate minus reference, (n,)."""
        return self.estimate(parameter) - self.others(reference, parameter)[0]

    def pull(self, reference: str, parameter: int) -> Float64:
        """Residual over the root of the sum of both variances, (n,).

        Gaia's parallax went into the estimate: beside it the residual has the variance of the measurement *minus* that
        of the estimate, and the pull is by that.
        """
        error, other = self.error(parameter), self.others(reference, parameter)[1]
        if parameter == PLX and not self.references[reference].known[PLX]:
            variance = other**2 - error**2
        else:
            variance = other**2 + error**2
        with np.errstate(invalid="ignore"):
            return self.residual(reference, parameter) / np.sqrt(np.where(variance > 0, variance, np.nan))


def galactic(ra: Float64, dec: Float64) -> tuple[Float64, Float64]:
    """Galactic longitude (-180 to 180) and latitude [deg] of ICRS positions [deg], each (n,)."""
    ra, dec = np.radians(ra), np.radians(dec)
    direction = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    x, y, z = ICRS_TO_GALACTIC @ direction
    return np.degrees(np.arctan2(y, x)), np.degrees(np.arcsin(np.clip(z, -1.0, 1.0)))
