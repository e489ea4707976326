"""A catalogue of simulated stars against the truth: bias, scatter and pulls of each parameter."""

from __future__ import annotations

import os
from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.flags import QualityFlags
from xpkern.catalog.schema import PARAMETER_COLUMNS
from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.grid import PARAMETERS
from xpkern.status import UNFITTED, Status

#: High-quality stars, the cuts of ZGR23: largest errors of teff [K], feh, logg, ext, smallest parallax over error.
LARGEST_ERRORS = (200.0, 0.2, 0.2, 0.1)
SMALLEST_PARALLAX_SNR = 10.0


@dataclass(frozen=True)
class ParameterStatistics:
    """One line of the table: medians, and half of the central 68.3 % as a robust standard deviation."""

    stars: int
    bias: float
    scatter: float
    error: float
    pull: float
    pull_width: float


@dataclass(frozen=True)
class Comparison:
    """Fitted and true parameters of the same n stars, in the catalogue's units (teff in K).

    Attributes
    ----------
    names, units : tuple of str
        Of the parameters, as in the catalogue.
    truth, estimate, error : (n, 5) float64
        NaN in the latter two for a star without a fit.
    g : (n,) float64
        Magnitude G, NaN where the catalogue has none.
    parallax_snr : (n,) float64
        Measured parallax over its error; NaN where there is none.
    chi2_per_dof : (n,) float64
    status, quality_flags : (n,) unsigned
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    truth: Float64
    estimate: Float64
    error: Float64
    g: Float64
    parallax_snr: Float64
    chi2_per_dof: Float64
    status: NDArray[np.uint32]
    quality_flags: NDArray[np.uint8]

    @classmethod
    def read(cls, catalog: str | os.PathLike[str], truth: str | os.PathLike[str]) -> Comparison:
        """Join a catalogue (default layout) with a csv of true parameters by source_id.

        Raises
        ------
        InputError
            If a star of the catalogue has no truth.
        """
        columns = np.genfromtxt(truth, delimiter=",", names=True, dtype=None, encoding="utf-8", ndmin=1)
        with h5py.File(catalog) as stored:
            table = {name: stored[name][:] for name in stored}
        order = np.argsort(columns["source_id"])
        position = np.searchsorted(columns["source_id"], table["source_id"], sorter=order)
        rows = order[np.minimum(position, len(order) - 1)]
        if not np.array_equal(columns["source_id"][rows], table["source_id"]):
            raise InputError("a star of the catalogue is missing", file=os.fspath(truth), field="source_id")
        per_unit = [column.per_unit for column in PARAMETER_COLUMNS]
        with np.errstate(divide="ignore", invalid="ignore"):
            chi2_per_dof = table["chi2"] / np.where(table["chi2_dof"] > 0, table["chi2_dof"], np.nan)
        return cls(
            names=tuple(column.name for column in PARAMETER_COLUMNS),
            units=tuple(column.unit for column in PARAMETER_COLUMNS),
            truth=np.stack([columns[name][rows] for name in PARAMETERS], axis=1) * per_unit,
            estimate=np.stack([table[column.name] for column in PARAMETER_COLUMNS], axis=1).astype(float),
            error=np.stack([table[f"{column.name}_error"] for column in PARAMETER_COLUMNS], axis=1).astype(float),
            g=table["phot_g_mean_mag"].astype(float),
            parallax_snr=table["parallax"] / table["parallax_error"],
            chi2_per_dof=chi2_per_dof,
            status=table["status"],
            quality_flags=table["quality_flags"],
        )

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def residual(self) -> Float64:
        """Estimate minus truth, (n, 5)."""
        return self.estimate - self.truth

    @property
    def pull(self) -> Float64:
        """Residual over the standard error, (n, 5)."""
        return self.residual / self.error

    @property
    def fitted(self) -> NDArray[np.bool_]:
        """Stars with a solution, (n,)."""
        return (self.status & np.uint32(UNFITTED)) == 0

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Stars whose search ended at an optimum inside its box, (n,)."""
        return (self.status & np.uint32(UNFITTED | Status.NOT_CONVERGED | Status.ON_BOX_EDGE)) == 0

    @property
    def reliable(self) -> NDArray[np.bool_]:
        """Stars that converged and pass the catalogue's flags on fit, prior and parallax, (n,)."""
        bad = QualityFlags.POOR_FIT | QualityFlags.UNLIKELY_TYPE | QualityFlags.PARALLAX_DISAGREES
        return self.converged & ((self.quality_flags & np.uint8(bad)) == 0)

    @property
    def high_quality(self) -> NDArray[np.bool_]:
        """Reliable stars within the cuts of ZGR23, (n,)."""
        small = (self.error[:, :4] < LARGEST_ERRORS).all(axis=1)
        return self.reliable & small & (self.parallax_snr > SMALLEST_PARALLAX_SNR)

    def statistics(self, stars: NDArray[np.bool_]) -> dict[str, ParameterStatistics]:
        """Statistics of each parameter over a mask of stars (n,); NaN where there are none."""
        lines = {}
        for k, name in enumerate(self.names):
            bias, scatter = median_and_width(self.residual[stars, k])
            pull, pull_width = median_and_width(self.pull[stars, k])
            error = median_and_width(self.error[stars, k])[0]
            lines[name] = ParameterStatistics(int(stars.sum()), bias, scatter, error, pull, pull_width)
        return lines

    def table(self) -> str:
        """Print-ready statistics of the reliable and of the high-quality stars."""
        blocks = []
        for title, stars in (("reliable", self.reliable), ("high-quality", self.high_quality)):
            lines = [
                f"{stars.sum():,} {title} stars",
                f"  {'':<14}{'unit':>5}{'bias':>10}{'scatter':>10}{'error':>10}{'pull':>9}{'width':>7}",
            ]
            for (name, line), unit in zip(self.statistics(stars).items(), self.units, strict=True):
                digits = 0 if unit == "K" else 3
                numbers = "".join(f"{number:>{10}.{digits}f}" for number in (line.bias, line.scatter, line.error))
                lines.append(f"  {name:<14}{unit:>5}{numbers}{line.pull:>+9.2f}{line.pull_width:>7.2f}")
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)


def median_and_width(values: Float64) -> tuple[float, float]:
    """Median, and half of the distance between the quantiles at -1 and +1 standard deviation of a normal law."""
    if not len(values):
        return np.nan, np.nan
    low, middle, high = np.quantile(values, (0.158655, 0.5, 0.841345))
    return float(middle), float(0.5 * (high - low))
