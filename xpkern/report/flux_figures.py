"""Residuals of the fluxes: by wavelength and parameter (Fig. 9), and over the sky (Figs. 25, 26)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xpkern.catalog.flags import PARALLAX_SIGMAS, QualityFlags
from xpkern.engine.contract import Float64
from xpkern.grid import BANDS, N_FLUX, N_XP, WAVELENGTH
from xpkern.report.density import Axis, Density
from xpkern.report.drawing import PARAMETER_NAMES, Drawing, density_table, parameter_axis, stars_text
from xpkern.report.sky import SkyMap
from xpkern.report.stars import Stars
from xpkern.report.style import INK, PAPER, PERCENTILES, density_colours, draw_density, signed_colours
from xpkern.train.figures import places

if TYPE_CHECKING:
    from astropy.table import Table
    from matplotlib.figure import Figure

#: Samples of Fig. 9 and of Figs. 25, 26, by wavelength or band.
_FIG9_SAMPLES = ("392", "592", "792", "992", "H", "W1")
_SKY_SAMPLES = ("402", "652", "J", "W1")

_PARAMETERS = PARAMETER_NAMES[:4]

#: Residuals in standard errors that are drawn; those beyond the larger limit are left out of means.
_DRAWN, _LARGEST_IN_MEAN = 3.5, 10.0

#: Stars of the sky maps, as in Figs. 25 and 26: chi2 over degrees of freedom below, none of these flags.
_LARGEST_MISFIT, _BARRED = 5.0, QualityFlags.UNLIKELY_TYPE | QualityFlags.PARALLAX_DISAGREES

#: A cell of a map of means has at least this many stars.
_LEAST_IN_CELL = 5


def sample_index(name: str) -> int:
    """Place of a flux sample called by its band or its wavelength in nm."""
    return N_XP + BANDS.index(name) if name in BANDS else int(np.flatnonzero(float(name) == WAVELENGTH)[0])


def sample_name(index: int) -> str:
    """How a flux sample is called in figures."""
    return BANDS[index - N_XP] if index >= N_XP else f"{WAVELENGTH[index]:.0f} nm"


class ResidualSpectrum(Drawing):
    """Distribution of the residual at each wavelength, over all reliable stars."""

    name, section, title = "flux_residuals", "The fluxes", "Flux residuals by wavelength"
    columns = ("residual", "quality_flags")
    size = (10.0, 4.2)

    def begin(self, sample: Stars) -> None:
        """A column per sample."""
        samples = Axis("sample", -0.5, N_FLUX - 0.5, N_FLUX)
        self.density = Density(samples, Axis("(model − observed) / error", -_DRAWN, _DRAWN, 140))

    def add(self, stars: Stars) -> None:
        """Count a block."""
        residual = stars.flux_residual[stars.reliable]
        index = self.density.y.index(np.nan_to_num(residual))  # at once for all samples
        for sample in range(N_FLUX):
            there = np.isfinite(residual[:, sample])
            self.density.counts[sample + 1] += np.bincount(index[there, sample], minlength=self.density.y.bins + 2)

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        return None if self.density.total else "no star that passes the basic cut (quality_flags < 8) has residuals"

    def caption(self) -> str:
        """What is drawn."""
        most = stars_text(int(self.density.column_stars.max()))
        return (
            f"{most} that pass the basic cut. The errors are roots of the diagonal of C, whose samples are "
            "correlated. Shade: "
            "stars over the most in a cell of the same sample; lines: 15.9, 50 and 84.1 %; dotted: ±1."
        )

    def draw(self, figure: Figure) -> None:
        """Draw XP at its wavelengths and the bands to its right."""
        axes = figure.subplots()
        place, ticks, names = places()
        shares = np.ma.masked_equal(self.density.column_normalised(), 0.0)
        optical = np.concatenate([place[:N_XP] - 5.0, [place[N_XP - 1] + 5.0]])
        style: dict[str, Any] = {
            "cmap": density_colours(),
            "vmin": 0.0,
            "vmax": 1.0,
            "rasterized": True,
            "linewidth": 0,
        }
        axes.pcolormesh(optical, self.density.y.edges, shares[:N_XP].T, zorder=0.7, **style)
        for k in range(N_XP, N_FLUX):
            edges = np.array([place[k] - 14.0, place[k] + 14.0])
            axes.pcolormesh(edges, self.density.y.edges, shares[k : k + 1].T, zorder=0.7, **style)
        for quantile, width in zip(self.density.quantiles().T, (1.2, 2.0, 1.2), strict=True):
            axes.plot(place[:N_XP], quantile[:N_XP], color=PAPER, lw=width + 1.6, alpha=0.75)
            axes.plot(place[:N_XP], quantile[:N_XP], color=PERCENTILES, lw=width)
            for k in range(N_XP, N_FLUX):
                axes.plot([place[k] - 14.0, place[k] + 14.0], [quantile[k]] * 2, color=PERCENTILES, lw=width)
        for level in (-1.0, 0.0, 1.0):
            axes.axhline(level, color=INK, lw=0.8, ls="-" if level == 0.0 else (0, (1, 1.5)), alpha=0.8)
        axes.set_xticks(ticks, names)
        axes.set(xlabel="wavelength  [nm]", ylabel=self.density.y.label, xlim=(380.0, place[-1] + 25.0))
        axes.set_ylim(self.density.y.limits)

    def table(self) -> Table:
        """A row per sample."""
        table = density_table({"all": self.density}, {"y": self.density.y.label})
        table.replace_column("panel", [sample_name(k) for k in range(N_FLUX)])
        table["panel"].name = "sample"
        return table


class ResidualsByParameter(Drawing):
    """Residuals of six samples against the stellar parameters (Fig. 9)."""

    name, section, title = "flux_by_parameter", "The fluxes", "Flux residuals by parameter (Fig. 9)"
    columns = ("residual", *_PARAMETERS, "quality_flags")
    size = (10.0, 10.4)

    def begin(self, sample: Stars) -> None:
        """Axes by the reliable stars: labels' values where there are labels, else the catalogue's own."""
        self._by_labels = "labels" in sample.references and bool((sample.rows_in("labels") >= 0).any())
        y = Axis("", -_DRAWN, _DRAWN, 70)
        self.densities = {}
        for k, name in enumerate(_PARAMETERS):
            values = np.where(sample.reliable, self._values(sample, k), np.nan)
            for sample_of in _FIG9_SAMPLES:
                self.densities[sample_of, name] = Density(parameter_axis(name, values, 30), y)

    def _values(self, stars: Stars, k: int) -> Float64:
        if self._by_labels and stars.references["labels"].known[k]:
            return stars.others("labels", k)[0]
        return stars.estimate(k)

    def add(self, stars: Stars) -> None:
        """Count a block."""
        residual = stars.flux_residual[stars.reliable]
        for k, name in enumerate(_PARAMETERS):
            values = self._values(stars, k)[stars.reliable]
            for sample_of in _FIG9_SAMPLES:
                self.densities[sample_of, name].add(values, residual[:, sample_index(sample_of)].astype(np.float64))

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        if any(density.total for density in self.densities.values()):
            return None
        return "no star that passes the basic cut (quality_flags < 8) has residuals"

    def caption(self) -> str:
        """What is drawn."""
        by = "as the labels have them, or as estimated where they have none"
        by = by if self._by_labels else "as estimated (there are no labels)"
        most = max(density.total for density in self.densities.values())
        return (
            f"(Model − observed) / error for {stars_text(most)} that pass the basic cut, against the parameters "
            f"{by}. Shade and "
            "lines as above. Empty panels: no star has that band."
        )

    def draw(self, figure: Figure) -> None:
        """Draw a row per sample, a column per parameter."""
        axes = figure.subplots(len(_FIG9_SAMPLES), len(_PARAMETERS), sharex="col", sharey=True)
        for i, sample_of in enumerate(_FIG9_SAMPLES):
            for j, name in enumerate(_PARAMETERS):
                panel = axes[i, j]
                draw_density(panel, self.densities[sample_of, name], zero=True)
                if i < len(_FIG9_SAMPLES) - 1:
                    panel.set_xlabel("")
                if j == 0:
                    panel.set_ylabel(sample_name(sample_index(sample_of)))

    def table(self) -> Table:
        """Bins of all panels."""
        parts = {f"{sample_name(sample_index(s))},{name}": part for (s, name), part in self.densities.items()}
        return density_table(parts, {"y": "(model - observed) / error"})


class MeanResiduals(Drawing):
    """Mean residual of every sample in bins of each parameter: what the model has not learned."""

    name, section, title = "flux_means", "The fluxes", "Mean flux residuals of all samples"
    columns = ("residual", *_PARAMETERS, "quality_flags")
    size = (10.0, 7.0)

    def begin(self, sample: Stars) -> None:
        """Axes by the reliable stars."""
        self.axes = [
            parameter_axis(name, np.where(sample.reliable, sample.estimate(k), np.nan), 36)
            for k, name in enumerate(_PARAMETERS)
        ]
        self.totals = [np.zeros((axis.bins, N_FLUX)) for axis in self.axes]
        self.counted = [np.zeros((axis.bins, N_FLUX), np.int64) for axis in self.axes]

    def add(self, stars: Stars) -> None:
        """Sum over a block."""
        residual = stars.flux_residual[stars.reliable]
        there = np.isfinite(residual) & (np.abs(residual) < _LARGEST_IN_MEAN)
        residual = np.where(there, residual, 0.0)
        for k, axis in enumerate(self.axes):
            values = stars.estimate(k)[stars.reliable]
            bins = np.where(np.isfinite(values), axis.index(np.nan_to_num(values)) - 1, -1)
            order = np.argsort(bins, kind="stable")
            starts = np.searchsorted(bins[order], np.arange(axis.bins + 1))
            for one in range(axis.bins):
                rows = order[starts[one] : starts[one + 1]]
                if len(rows):
                    self.totals[k][one] += residual[rows].sum(axis=0, dtype=np.float64)
                    self.counted[k][one] += np.count_nonzero(there[rows], axis=0)

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        if any(counted.any() for counted in self.counted):
            return None
        return "no star that passes the basic cut (quality_flags < 8) has residuals"

    def caption(self) -> str:
        """What is drawn."""
        return (
            "Mean of (model − observed) / error by estimated parameter, over stars that pass the basic cut, "
            "without residuals "
            f"beyond {_LARGEST_IN_MEAN:g}; cells of {_LEAST_IN_CELL} stars or more. Blue: the model is too faint; "
            "red: too bright."
        )

    def _means(self, k: int) -> Float64:
        counted = self.counted[k]
        return np.where(counted >= _LEAST_IN_CELL, self.totals[k] / np.maximum(counted, 1), np.nan)

    def draw(self, figure: Figure) -> None:
        """Draw a map for each parameter."""
        axes = figure.subplots(2, 2, sharex=True)
        place, ticks, names = places()
        means = [self._means(k) for k in range(len(self.axes))]
        finite = np.abs(np.concatenate([mean[np.isfinite(mean)] for mean in means]))
        limit = max(float(np.quantile(finite, 0.98)), 0.1) if len(finite) else 1.0
        for panel, axis, mean in zip(axes.ravel(), self.axes, means, strict=True):
            cells = np.ma.masked_invalid(mean)
            style: dict[str, Any] = {
                "cmap": signed_colours(),
                "vmin": -limit,
                "vmax": limit,
                "rasterized": True,
                "linewidth": 0,
            }
            optical = np.concatenate([place[:N_XP] - 5.0, [place[N_XP - 1] + 5.0]])
            drawn = panel.pcolormesh(optical, axis.edges, cells[:, :N_XP], **style)
            for sample in range(N_XP, N_FLUX):
                edges = np.array([place[sample] - 14.0, place[sample] + 14.0])
                panel.pcolormesh(edges, axis.edges, cells[:, sample : sample + 1], **style)
            panel.set(ylabel=axis.label, ylim=axis.limits, xlim=(380.0, place[-1] + 25.0))
            panel.grid(False)
        for panel in axes[1]:
            # there is room for no more
            shown = [k for k, name in enumerate(names) if name in BANDS or (k % 2 == 0 and ticks[k] < 1000.0)]
            panel.set_xticks([ticks[k] for k in shown], [names[k] for k in shown], fontsize=8)
            for label in panel.get_xticklabels():
                label.set_rotation(90.0 if label.get_text() in BANDS else 0.0)
            panel.set_xlabel("wavelength  [nm]")
        bar = figure.colorbar(
            drawn, ax=axes, label="mean of (model − observed) / error", aspect=40, pad=0.01, extend="both"
        )
        bar.outline.set_visible(False)

    def table(self) -> Table:
        """A row per bin of each parameter."""
        from astropy.table import Table

        bins = [axis.bins for axis in self.axes]
        return Table(
            {
                "parameter": np.repeat(_PARAMETERS, bins),
                "low": np.concatenate([axis.edges[:-1] for axis in self.axes]),
                "high": np.concatenate([axis.edges[1:] for axis in self.axes]),
                "mean": np.concatenate([self._means(k) for k in range(len(bins))]),
                "stars": np.concatenate(self.counted),
            },
            meta={"samples": [sample_name(k) for k in range(N_FLUX)]},
        )


class ResidualsOnTheSky(Drawing):
    """Mean residual of four samples over the sky (Figs. 25, 26), with the paper's cuts."""

    name, section, title = "flux_sky", "The fluxes", "Flux residuals over the sky (Figs. 25, 26)"
    columns = ("residual", "ra", "dec", "chi2", "quality_flags")
    optional = ("chi2_dof",)
    size = (10.0, 6.6)

    def begin(self, sample: Stars) -> None:
        """The whole sky, or the region of the sample."""
        self.map = SkyMap(*sample.galactic, sample.total, sums=len(_SKY_SAMPLES))

    def add(self, stars: Stars) -> None:
        """Sum over a block."""
        longitude, latitude = stars.galactic
        flags = np.asarray(stars.columns["quality_flags"]).astype(np.int64)
        counted = (flags & int(_BARRED)) == 0
        counted &= stars.of("chi2") / stars.degrees_of_freedom < _LARGEST_MISFIT
        values = []
        for name in _SKY_SAMPLES:
            residual = stars.flux_residual[:, sample_index(name)].astype(np.float64)
            values.append(np.where(counted & (np.abs(residual) < _LARGEST_IN_MEAN), residual, np.nan))
        self.map.add(longitude, latitude, tuple(values))

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        if self.map.counted.any():
            return None
        return "no star that passes the cuts (flags 16 and 32, chi2 / degrees of freedom) has residuals and coordinates"

    def caption(self) -> str:
        """What is drawn."""
        return (
            f"Mean of (model − observed) / error in cells of equal area with {_LEAST_IN_CELL} stars or more. As in the "
            f"paper, over stars with χ² / degrees of freedom < {_LARGEST_MISFIT:g}, a type that the prior covers and a "
            f"parallax within {PARALLAX_SIGMAS:g} errors of the measured one, without residuals beyond "
            f"{_LARGEST_IN_MEAN:g}. Blue: the model is too faint; red: too bright."
        )

    def draw(self, figure: Figure) -> None:
        """Draw four maps on one scale."""
        axes = figure.subplots(2, 2)
        maps = [self.map.mean(k, _LEAST_IN_CELL) for k in range(len(_SKY_SAMPLES))]
        finite = np.abs(np.concatenate([cells[np.isfinite(cells)] for cells in maps]))
        limit = max(float(np.quantile(finite, 0.95)), 0.05) if len(finite) else 1.0
        for panel, name, cells in zip(axes.ravel(), _SKY_SAMPLES, maps, strict=True):
            drawn = self.map.draw(panel, cells, signed_colours(), vmin=-limit, vmax=limit)
            panel.set_title(sample_name(sample_index(name)))
        label = "mean of (model − observed) / error"
        bar = figure.colorbar(
            drawn, ax=axes, label=label, location="bottom", aspect=50, pad=0.02, shrink=0.6, extend="both"
        )
        bar.outline.set_visible(False)

    def table(self) -> Table:
        """The cells."""
        return self.map.table(tuple(sample_name(sample_index(name)).replace(" ", "") for name in _SKY_SAMPLES))


FLUX_FIGURES = (ResidualSpectrum, ResidualsByParameter, MeanResiduals, ResidualsOnTheSky)
