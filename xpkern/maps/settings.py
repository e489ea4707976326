"""What a map is made of: distance bins, resolutions, estimate, and the cuts of ZGR23 section 5.4 by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.errors import InputError

Quantity = Literal["ext", "feh"]
Estimate = Literal["weighted", "mean", "median"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
ESTIMATES: tuple[Estimate, ...] = get_args(Estimate)

#: Unit of each quantity.
UNITS: dict[str, str] = {"ext": "mag", "feh": "dex"}

#: Degrees of freedom of a catalogue that does not tell: 66 fluxes less 5 parameters, as the published one has it.
USUAL_DOF = 61


def paper_edges(bins: int = 40, farthest: float = 5.0) -> Float64:
    """Edges (bins + 1,) [kpc] of the bins of ZGR23's map in three dimensions: sinh(n arcsinh(farthest) / bins)."""
    return np.sinh(np.arange(bins + 1) * np.arcsinh(farthest) / bins)


@dataclass(frozen=True)
class MapCuts:
    """Which stars make a map; a limit of ``inf`` (``-inf`` for the confidence) is no cut.

    Attributes
    ----------
    misfit : float
        Loss over degrees of freedom is below; chi2 stands in where a catalogue has no loss.
    quality_flags : float
        Flags, as a number, are below; 8 is the basic reliability cut.
    confidence : float
        Confidence in feh is above (maps of feh alone).
    value : float
        The quantity is below [mag or dex].
    parallax_error : float
        Error of the estimated parallax over that parallax is below.
    error : float
        Error of the quantity is below [mag or dex].
    """

    misfit: float = 5.0
    quality_flags: float = math.inf
    confidence: float = -math.inf
    value: float = 10.0
    parallax_error: float = 0.33
    error: float = 0.04

    def changed(self, texts: Iterable[str]) -> MapCuts:
        """These cuts, with some changed as ``NAME=LIMIT`` or ``NAME=off`` says.

        Raises
        ------
        InputError
            If a name is unknown or a limit no number.
        """
        names = {item.name: item.default for item in fields(self)}
        changes: dict[str, float] = {}
        for text in texts:
            name, _, limit = text.partition("=")
            if name not in names:
                raise InputError(f"there is no cut {name!r}; there are {', '.join(names)}", field="cut")
            if limit == "off":
                changes[name] = -math.inf if name == "confidence" else math.inf
                continue
            try:
                changes[name] = float(limit)
            except ValueError:
                changes[name] = math.nan
            if math.isnan(changes[name]):
                raise InputError(f"{text!r}: a cut is NAME=NUMBER or NAME=off", field="cut")
        return replace(self, **changes)

    def as_dict(self) -> dict[str, float]:
        """Limits by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


#: Named sets of cuts: those of ZGR23 for the bird's-eye view (Fig. 24), for sky maps (Figs. 22, 23), and for [Fe/H].
CUTS: Mapping[str, MapCuts] = {
    "birdseye": MapCuts(),
    "sky": MapCuts(parallax_error=0.1),
    "feh": MapCuts(quality_flags=8.0, confidence=0.5, value=math.inf, error=0.2),
}

#: What becomes of a star, in the order in which it is asked; a star counts under the first that applies.
OUTCOMES = (
    "no position",
    "no estimate with an error",
    "parallax not positive",
    "misfit",
    "quality_flags",
    "confidence",
    "value",
    "parallax_error",
    "error",
    "outside the distance bins",
    "used",
)

#: Distance bins of one map at most (they are numbered in 16 bits).
_MOST_BINS = 1000


@dataclass(frozen=True)
class MapSettings:
    """What a map is made of.

    Attributes
    ----------
    quantity : str
        "ext" or "feh".
    estimate : str
        Of the stars of a cell: "weighted", the mean with weights 1 / error^2 of the paper; "mean"; "median".
    edges : tuple of float
        Of the distance bins [kpc], increasing.
    nsides : tuple of int
        Resolutions of HEALPix, finest first: a cell has the finest one at which it has enough stars.
    min_stars : int
        Stars that a cell must have.
    cuts : MapCuts, optional
        The named ones "birdseye", of feh "feh", when not given.

    Raises
    ------
    InputError
        If one of them is none that a map can have; the message names it.
    """

    quantity: Quantity = "ext"
    estimate: Estimate = "weighted"
    edges: tuple[float, ...] = field(default_factory=lambda: tuple(paper_edges().tolist()))
    nsides: tuple[int, ...] = (256, 128, 64)
    min_stars: int = 10
    cuts: MapCuts | None = None

    def __post_init__(self) -> None:
        edges, nsides = np.asarray(self.edges, np.float64), self.nsides
        if self.quantity not in QUANTITIES:
            raise InputError(f"{self.quantity!r} is none of {', '.join(QUANTITIES)}", field="quantity")
        if self.estimate not in ESTIMATES:
            raise InputError(f"{self.estimate!r} is none of {', '.join(ESTIMATES)}", field="estimate")
        if len(edges) < 2 or not np.isfinite(edges).all() or edges[0] < 0 or not (np.diff(edges) > 0).all():
            raise InputError("edges of distance bins are two or more numbers [kpc] from 0 on that grow", field="edges")
        if len(edges) - 1 > _MOST_BINS:
            raise InputError(f"{len(edges) - 1} distance bins are more than {_MOST_BINS}", field="edges")
        if not nsides or any(nside < 1 or nside & (nside - 1) or nside > 2048 for nside in nsides):
            raise InputError(f"{nsides}: an nside is a power of two from 1 to 2048", field="nside")
        if sorted(set(nsides), reverse=True) != list(nsides):
            raise InputError(f"{nsides}: nsides are given once each, the finest first", field="nside")
        if self.min_stars < 1:
            raise InputError(f"{self.min_stars} stars are too few for a cell", field="min_stars")

    @property
    def limits(self) -> MapCuts:
        """Its cuts."""
        return self.cuts or CUTS["feh" if self.quantity == "feh" else "birdseye"]

    @property
    def bins(self) -> int:
        """Number of distance bins."""
        return len(self.edges) - 1

    @property
    def orders(self) -> tuple[int, ...]:
        """Orders of HEALPix, nside = 2^order, finest first."""
        return tuple(nside.bit_length() - 1 for nside in self.nsides)

    @property
    def unit(self) -> str:
        """Unit of the quantity."""
        return UNITS[self.quantity]
