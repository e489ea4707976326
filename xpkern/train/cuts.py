"""Cuts: which stars are trained on, and how many each of the conditions takes out (ZGR23 sections 2.5 and 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64


@dataclass(frozen=True)
class Cut:
    """A limit to one column.

    Attributes
    ----------
    name : str
        What recipes call it.
    columns : tuple of str
        Names the column may have; the first that is there counts.
    is_least : bool
        Whether values must be above the limit; else below.
    limit : float
    unit : str
    """

    name: str
    columns: tuple[str, ...]
    is_least: bool
    unit: str = ""
    limit: float = math.nan

    def at(self, limit: float) -> Cut:
        """The same cut with a limit."""
        return replace(self, limit=limit)

    def passed(self, values: Float64) -> NDArray[np.bool_]:
        """Which stars pass, (n,); a missing value (NaN) does not."""
        return np.greater(values, self.limit) if self.is_least else np.less(values, self.limit)

    def __str__(self) -> str:
        return f"{self.name} {'>' if self.is_least else '<'} {self.limit:g} {self.unit}".rstrip()


#: Every cut a recipe may name. Errors are those of the labels as they are given, before any floor.
CUTS: dict[str, Cut] = {
    cut.name: cut
    for cut in (
        Cut("snr_g", ("snr_g", "snrg"), is_least=True),
        Cut("snr_r", ("snr_r", "snrr"), is_least=True),
        Cut("snr_i", ("snr_i", "snri"), is_least=True),
        Cut("teff_err", ("teff_err",), is_least=False, unit="kK"),
        Cut("feh_err", ("feh_err",), is_least=False, unit="dex"),
        Cut("logg_err", ("logg_err",), is_least=False, unit="dex"),
        Cut("ext_err", ("ext_err",), is_least=False, unit="mag"),
        Cut("parallax_over_error", ("parallax_over_error",), is_least=True),
        Cut("fidelity_v2", ("fidelity_v2",), is_least=True),
        Cut(
            "bp_rp_flux_excess",
            ("bp_rp_flux_excess", "phot_bp_rp_excess_factor", "bp_rp_excess_factor"),
            is_least=False,
        ),
        Cut("ruwe", ("ruwe",), is_least=False),
    )
}

#: Every column that a cut may look at.
CUT_COLUMNS = tuple(dict.fromkeys(column for cut in CUTS.values() for column in cut.columns))


@dataclass(frozen=True)
class CutCount:
    """What one condition did: how many stars it took out, how many were left; None where it could not be applied."""

    condition: str
    removed: int | None
    left: int

    def __str__(self) -> str:
        if self.removed is None:
            return f"{self.left:>12,}  {self.condition}: NOT APPLIED, no such column"
        removed = f"  (−{self.removed:,})" if self.removed else ""
        return f"{self.left:>12,}  {self.condition}{removed}"


class Sieve:
    """Stars that pass one condition after the other, and the count of each.

    Parameters
    ----------
    stars : int
    what : str
        What they are at the beginning.
    """

    def __init__(self, stars: int, what: str) -> None:
        self.kept: NDArray[np.bool_] = np.ones(stars, bool)
        self.counts = [CutCount(what, 0, stars)]

    def require(self, condition: str, passed: NDArray[np.bool_]) -> None:
        """Take out the stars that do not pass."""
        before = int(self.kept.sum())
        self.kept &= passed
        left = int(self.kept.sum())
        self.counts.append(CutCount(condition, before - left, left))

    def cut(self, cuts: Sequence[Cut], column_of: Callable[[str], Float64 | None]) -> None:
        """Apply cuts, each to the first of its columns that is there; one without a column is counted as such."""
        for cut in cuts:
            found = (column_of(name) for name in cut.columns)
            values = next((column for column in found if column is not None), None)
            if values is None:
                self.counts.append(CutCount(str(cut), None, int(self.kept.sum())))
            else:
                self.require(str(cut), cut.passed(values))
