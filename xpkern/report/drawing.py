"""What every part of the report is: the columns it needs, what it keeps of the stars, how it is shown, its data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xpkern.catalog.schema import PARAMETER_COLUMNS
from xpkern.report.density import Axis, Density, range_of
from xpkern.report.stars import Stars

if TYPE_CHECKING:
    from astropy.table import Table
    from matplotlib.figure import Figure

#: Of each parameter: symbol, unit, half of the widest residual that is drawn by default, decimals in tables.
SYMBOLS = {
    "teff": (r"$T_\mathrm{eff}$", "K", 300.0, 0),
    "feh": ("[Fe/H]", "dex", 0.6, 3),
    "logg": (r"$\log\,g$", "dex", 0.6, 3),
    "ext": (r"$E$", "mag", 0.2, 3),
    "parallax_est": (r"$\varpi$", "mas", 0.3, 3),
}

#: Ends of axes where the stars themselves do not tell any.
USUAL_RANGE = {"teff": (3500.0, 9000.0), "feh": (-2.5, 0.75), "logg": (0.0, 5.25), "ext": (0.0, 1.5)}

#: What a figure says it needs where something other than a column is missing.
NEEDS = {
    "residual": "the diagnostics companion beside the catalogue",
    "labels": "labels: --labels TABLE",
    "compare": "another catalogue: --compare FILE",
    "members": "a list of a cluster's members and its distance: --members TABLE --distance KPC",
    "training": "what a training run wrote: --training model.stars.h5",
}


class Part(ABC):
    """A figure or a table of the report.

    Attributes
    ----------
    name : str
        Of its files.
    section, title : str
        Where it stands, and what it is called.
    columns : tuple of str
        Columns of the catalogue that it needs, ``residual`` of the companion among them.
    optional : tuple of str
        Columns it uses where they are there.
    needs : tuple of str
        What else it needs: keys of :data:`NEEDS`.
    """

    name: str
    section: str
    title: str
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def missing(self, available: Collection[str]) -> str | None:
        """What it needs and lacks, in words; None if all is there."""
        absent = [name for name in self.columns if name not in available and name not in NEEDS]
        others = [NEEDS[name] for name in (*self.needs, *self.columns) if name in NEEDS and name not in available]
        if absent:
            others.append(f"the column{'s' if len(absent) > 1 else ''} {', '.join(absent)} of the catalogue")
        return "; ".join(dict.fromkeys(others)) or None

    def begin(self, sample: Stars) -> None:
        """Choose axes by a sample of the stars; here there are none."""
        del sample

    def add(self, stars: Stars) -> None:
        """Count a block of stars; here they do not matter."""
        del stars

    @abstractmethod
    def nothing(self) -> str | None:
        """Why there is nothing to draw though all that it needs is there; None if there is."""

    @abstractmethod
    def caption(self) -> str:
        """What is drawn, of which stars."""

    @abstractmethod
    def table(self) -> Table:
        """What is shown, as numbers."""


class Drawing(Part):
    """A figure of the report.

    Attributes
    ----------
    size : (float, float)
        In inches.
    """

    size: tuple[float, float] = (10.0, 6.4)

    @abstractmethod
    def draw(self, figure: Figure) -> None:
        """Draw it."""


class Tabulation(Part):
    """A table of the report."""

    @abstractmethod
    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Heads of the columns, and cells as they are shown."""


def parameter_label(column: str) -> str:
    """Symbol and unit of a parameter, for an axis."""
    symbol, unit, *_ = SYMBOLS[column]
    return f"{symbol}  [{unit}]"


def parameter_axis(column: str, values: Any, bins: int = 60) -> Axis:
    """Axis over a parameter's values in a sample, (n,)."""
    if column == "parallax_est":
        found = range_of(np.log10(np.where(values > 0, values, np.nan)))
        low, high = found or (-1.5, 1.5)
        return Axis(parameter_label(column), 10.0**low, 10.0**high, bins, is_log=True)
    low, high = range_of(values) or USUAL_RANGE[column]
    if column == "ext":
        low = max(low, 0.0)
    return Axis(parameter_label(column), low, high, bins, is_reversed=column == "teff")


def g_axis(values: Any, bins: int = 60) -> Axis:
    """Axis over magnitudes G in a sample, (n,)."""
    low, high = range_of(values) or (10.0, 18.0)
    return Axis(r"$G$  [mag]", low, high, bins)


def snr_axis(values: Any, bins: int = 60) -> Axis:
    """Axis over measured parallaxes over their errors in a sample, (n,)."""
    low, high = range_of(np.log10(np.where(values > 0, values, np.nan))) or (-0.5, 2.5)
    return Axis("measured parallax / error", 10.0 ** max(low, -2.0), 10.0 ** max(high, -1.0), bins, is_log=True)


def density_table(densities: Mapping[str, Density], meta: Mapping[str, object]) -> Table:
    """A row per bin of x of each density: its stars, percentiles of y, and the stars in each bin of y."""
    from astropy.table import Table

    names = list(densities)
    parts = list(densities.values())

    def stacked(arrays: Iterable[Any]) -> Any:
        return np.concatenate(list(arrays))

    columns = {
        "panel": np.repeat(names, [part.x.bins for part in parts]),
        "x_low": stacked(part.x.edges[:-1] for part in parts),
        "x_high": stacked(part.x.edges[1:] for part in parts),
        "stars": stacked(part.column_stars for part in parts),
    }
    quantiles = stacked(part.quantiles() for part in parts)
    columns |= {name: quantiles[:, k] for k, name in enumerate(("p15_9", "p50", "p84_1"))}
    for name in ("low", "high"):
        columns[f"y_{name}"] = np.repeat([getattr(part.y, name) for part in parts], [part.x.bins for part in parts])
    columns["counts"] = stacked(part.inside for part in parts)
    note = "counts: stars in bins of y of equal width from y_low to y_high; stars: whatever their y"
    return Table(columns, meta={**meta, "note": note})


def stars_text(count: int) -> str:
    """A number of stars in words."""
    return f"{count:,} star{'' if count == 1 else 's'}"


PARAMETER_NAMES = tuple(column.name for column in PARAMETER_COLUMNS)
