"""How many stars pass each cut on quality_flags: Table 3 of ZGR23, for any catalogue."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.flags import BASIC_CUT, QualityFlags
from xpkern.catalog.stream import CatalogReader

_UNSURE = {"teff": QualityFlags.TEFF_UNSURE, "logg": QualityFlags.LOGG_UNSURE, "feh": QualityFlags.FEH_UNSURE}
_BAD = int(sum(QualityFlags)) & ~(BASIC_CUT - 1)

#: Cuts by name in the order of the table, and the bits that must not be set.
CUTS: dict[str, int] = {
    "all stars": 0,
    "basic cut": _BAD,
    **{f"basic cut + confident in {name}": _BAD | bit for name, bit in _UNSURE.items()},
    "basic cut + confident in teff, feh, logg": _BAD | sum(_UNSURE.values()),
}


@dataclass
class CutCounts:
    """How many stars pass each cut.

    Attributes
    ----------
    stars : dict of str to int
        By the names of :data:`CUTS`.
    """

    stars: dict[str, int]

    @classmethod
    def none(cls) -> CutCounts:
        """Of no stars."""
        return cls(dict.fromkeys(CUTS, 0))

    def add(self, quality_flags: NDArray[np.uint8]) -> None:
        """Count more stars by their ``quality_flags`` (n,)."""
        for name, bits in CUTS.items():
            self.stars[name] += int(np.count_nonzero(quality_flags & np.uint8(bits) == 0))

    def lines(self) -> list[str]:
        """The table as text."""
        everything = max(self.stars["all stars"], 1)
        return [f"{name:<42}{count:>14,}{100.0 * count / everything:>8.1f} %" for name, count in self.stars.items()]

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Number and share of each cut, for JSON; the share of none is NaN, written as null."""
        everything = self.stars["all stars"]
        return {
            name: {"stars": count, "share": count / everything if everything else None}  # type: ignore[dict-item]
            for name, count in self.stars.items()
        }


def count_cuts(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> CutCounts:
    """Count the stars of a catalogue, of any form that :class:`xpkern.catalog.stream.CatalogReader` reads.

    Raises
    ------
    InputError
        If it cannot be read or has no ``quality_flags``.
    """
    counts = CutCounts.none()
    for block in CatalogReader(paths).blocks(["quality_flags"]):
        counts.add(block["quality_flags"].astype(np.uint8))
    return counts
