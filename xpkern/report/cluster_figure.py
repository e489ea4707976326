"""Parallaxes of a cluster's members beside its known distance (Fig. 19)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.observe.gaia_source import SourceTable
from xpkern.report.comparison import median_and_width
from xpkern.report.drawing import Drawing, stars_text
from xpkern.report.stars import Stars
from xpkern.report.style import QUIET
from xpkern.train.figures import BLUE, ORANGE, RED
from xpkern.train.labels import columns_and_units

if TYPE_CHECKING:
    from astropy.table import Table
    from matplotlib.figure import Figure

#: Low signal-to-noise: an error of the measured parallax above this share of the cluster's parallax.
_LOW_SNR = 0.2


@dataclass(frozen=True)
class Members:
    """Stars of a cluster, and where it is.

    Attributes
    ----------
    name : str
        Of the list.
    source_id : (m,) int64
        Increasing.
    proper_motion : (m, 2) float64
        pmra, pmdec [mas/yr]; NaN where the list has none.
    distance : float
        [kpc].
    """

    name: str
    source_id: NDArray[np.int64]
    proper_motion: Float64
    distance: float


def read_members(path: Path, distance: float) -> Members:
    """A table with ``source_id``, and perhaps ``pmra`` and ``pmdec``.

    Parameters
    ----------
    path : Path
        FITS, ECSV, CSV, VOTable, Parquet, HDF5.
    distance : float
        Of the cluster [kpc].

    Raises
    ------
    InputError
        If the distance is not positive, or the table cannot be read or names a source twice.
    """
    if not (np.isfinite(distance) and distance > 0):
        raise InputError(f"{distance:g} kpc: must be positive", field="distance")
    columns, _ = columns_and_units(path, str(path), ("pmra", "pmdec"))
    if "source_id" not in columns:
        raise InputError("the table has no column source_id", file=str(path), field="source_id")
    table = SourceTable(columns, str(path))
    rows = np.argsort(table.source_id)
    motions = [table.numbers(name, rows) if name in table else np.full(len(rows), np.nan) for name in ("pmra", "pmdec")]
    return Members(path.stem, table.source_id[rows], np.stack(motions, axis=1), distance)


class ClusterParallaxes(Drawing):
    """Members on the sky, in proper motion, and their parallaxes: measured, and estimated with the spectrum."""

    name, section, title = "cluster", "A cluster", "Parallaxes of a cluster's members (Fig. 19)"
    columns = (
        "source_id",
        "ra",
        "dec",
        "parallax",
        "parallax_error",
        "parallax_est",
        "parallax_est_error",
        "quality_flags",
    )
    optional = ("teff_confidence", "feh_confidence", "logg_confidence")
    needs = ("members",)
    size = (10.0, 3.8)

    def __init__(self, members: Members | None) -> None:
        self.members = members

    def begin(self, sample: Stars) -> None:
        """A row per member."""
        n = 0 if self.members is None else len(self.members.source_id)
        self.found = np.zeros(n, bool)
        self.counted = np.zeros(n, bool)
        self.values = {name: np.full(n, np.nan) for name in self.columns[1:-1]}

    def add(self, stars: Stars) -> None:
        """Take the members among a block."""
        if self.members is None or not len(self.found):
            return
        ids = np.asarray(stars.columns["source_id"], np.int64)
        place = np.minimum(np.searchsorted(self.members.source_id, ids), len(self.found) - 1)
        rows = np.flatnonzero(self.members.source_id[place] == ids)
        self.found[place[rows]] = True
        confident = np.logical_and.reduce([stars.confident(k) for k in range(3)])
        for name, values in self.values.items():
            values[place[rows]] = stars.of(name)[rows]
        self.counted[place[rows]] = confident[rows]

    @property
    def _parallax(self) -> float:
        assert self.members is not None
        return 1.0 / self.members.distance

    @property
    def _low_snr(self) -> NDArray[np.bool_]:
        both = np.isfinite(self.values["parallax"]) & np.isfinite(self.values["parallax_est"])
        return self.counted & both & (self.values["parallax_error"] > _LOW_SNR * self._parallax)

    @property
    def _chosen(self) -> NDArray[np.bool_]:
        """Members of low signal-to-noise; all that count where there are none."""
        if self._low_snr.any():
            return self._low_snr
        return self.counted & np.isfinite(self.values["parallax"]) & np.isfinite(self.values["parallax_est"])

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        if not self.found.any():
            return f"none of {len(self.found):,} members is in the catalogue: are these source_ids of the same release?"
        if not self._chosen.any():
            return f"of {int(self.found.sum()):,} members in the catalogue none passes the basic cut with a parallax"
        return None

    def caption(self) -> str:
        """What is drawn."""
        assert self.members is not None
        which = (
            f"whose parallax error exceeds {_LOW_SNR:g} of the cluster's parallax"
            if self._low_snr.any()
            else "of any parallax error"
        )
        (gaia, gaia_width), (ours, our_width) = (
            median_and_width(self.values[name][self._chosen]) for name in ("parallax", "parallax_est")
        )
        return (
            f"{self.members.name}: {int(self.found.sum()):,} of {len(self.found):,} members are in the catalogue. "
            "Right: "
            f"{stars_text(int(self._chosen.sum()))} that pass the basic cut {which}. Median and half of the "
            "central 68 %: Gaia "
            f"{gaia:.3f} ± {gaia_width:.3f} mas, with the spectrum {ours:.3f} ± {our_width:.3f} mas; dotted: 1 / "
            f"{self.members.distance:g} kpc = {self._parallax:.3f} mas."
        )

    def draw(self, figure: Figure) -> None:
        """Draw the three panels."""
        assert self.members is not None
        sky, motion, parallax = figure.subplots(1, 3)
        ra, dec = self.values["ra"], self.values["dec"]
        middle = float(np.nanmedian(ra[self.found])) if np.isfinite(ra[self.found]).any() else 0.0
        away = (ra - middle + 180.0) % 360.0 - 180.0
        for chosen, colour, label in (
            (self.found & ~self._chosen, QUIET, "other"),
            (self._chosen, BLUE, "counted"),
        ):
            sky.plot(away[chosen], dec[chosen], ".", ms=3, color=colour, alpha=0.7, label=label, rasterized=True)
            motion.plot(*self.members.proper_motion[chosen].T, ".", ms=3, color=colour, alpha=0.7, rasterized=True)
        sky.set(xlabel=f"α − {middle:.2f}°  [deg]", ylabel="δ  [deg]")
        sky.invert_xaxis()
        boxed: dict[str, Any] = {"frameon": True, "framealpha": 0.85, "edgecolor": "none"}  # there may be stars below
        sky.legend(loc="upper right", markerscale=2.5, **boxed)
        if np.isfinite(self.members.proper_motion[self.found]).any():
            motion.set(xlabel=r"$\mu_{\alpha*}$  [mas/yr]", ylabel=r"$\mu_\delta$  [mas/yr]")
        else:
            motion.text(0.5, 0.5, "the list has no\npmra, pmdec", ha="center", va="center", color=QUIET)
            motion.set_axis_off()
        shown = np.concatenate([self.values[name][self._chosen] for name in ("parallax", "parallax_est")])
        low, high = np.quantile(shown, (0.005, 0.995))
        apart = 0.05 * (high - low) + 1e-3
        edges = np.linspace(min(low, self._parallax) - apart, max(high, self._parallax) + apart, 41)
        for name, colour, label in (("parallax", ORANGE, "Gaia"), ("parallax_est", BLUE, "Gaia and spectrum")):
            values = self.values[name][self._chosen]
            parallax.hist(values, edges, histtype="step", lw=1.8, color=colour, label=label)
        parallax.axvline(self._parallax, color=RED, lw=1.6, ls=(0, (1, 1.2)), label="known distance")
        parallax.set(xlabel=r"$\varpi$  [mas]", ylabel="stars")
        parallax.set_ylim(0.0, 1.35 * parallax.get_ylim()[1])  # room for the legend
        parallax.legend(loc="upper right", **boxed)

    def table(self) -> Table:
        """A row per member in the catalogue."""
        from astropy.table import Table

        assert self.members is not None
        columns: dict[str, NDArray[np.generic]] = {"source_id": self.members.source_id[self.found]}
        columns |= {name: values[self.found] for name, values in self.values.items()}
        columns["counted"] = self._chosen[self.found]
        return Table(columns, meta={"distance_kpc": self.members.distance})
