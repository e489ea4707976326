"""Figures of a model: its spectra along main sequence and giant branch, extinction curve, prior, self-cleaning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.errors import InputError, XpkernError
from xpkern.grid import N_XP, PARAMETERS
from xpkern.model import FluxModel, TypePrior
from xpkern.report.catalogue_figures import giant_branch_teff, main_sequence_logg
from xpkern.report.drawing import Drawing, stars_text
from xpkern.report.reference import Reference
from xpkern.report.spectrum_plot import FLUX_LABEL
from xpkern.report.stars import Stars
from xpkern.report.style import PAPER, QUIET
from xpkern.train.extinction_comparison import COMPARED, LAWS, RV_RANGE, curve_shape, draw_curves, published_curves
from xpkern.train.figures import BLUE, RED, draw_prior
from xpkern.train.outcome import USED

if TYPE_CHECKING:
    from astropy.table import Table
    from matplotlib.figure import Figure

SECTION = "The model"

#: Degree of the polynomial that stands for the continuum (Fig. 12).
CONTINUUM_DEGREE = 5

#: Lines that XP spectra show [nm]: Balmer and Paschen series in vacuum, Ca I, Mg b, the Ca II triplet as one.
LINES = {
    "H": (410.3, 434.2, 486.3, 656.5, 866.7, 875.3, 886.5, 901.8, 923.2, 954.9),
    "Ca": (422.8, 858.0),
    "Mg": (517.5,),
}
#: Sun-like stars, Eq. 16: middle, half of the width, largest error of the label, in kK and dex.
_SUN_LIKE = {"teff": (5.7, 0.05, 0.1), "logg": (4.5, 0.1, 0.1), "feh": (0.0, 0.1, 0.1)}

_LINE_STYLES: dict[str, Any] = {"H": (0, (1, 1.5)), "Ca": (0, (5, 2)), "Mg": (0, (5, 2, 1, 2))}


def continuum_normalised(wavelength: Float64, flux: Float64) -> Float64:
    """Spectra (n, w) over their continua, polynomials of :data:`CONTINUUM_DEGREE` in the wavelength (w,)."""
    scaled = 2.0 * (wavelength - wavelength[0]) / (wavelength[-1] - wavelength[0]) - 1.0
    polynomials = np.polynomial.legendre.legvander(scaled, CONTINUUM_DEGREE)
    scale = flux.mean(axis=1, keepdims=True)
    coefficients = np.linalg.lstsq(polynomials, (flux / scale).T, rcond=None)[0]
    continuum: Float64 = (polynomials @ coefficients).T * scale
    return flux / continuum


class ModelSpectra(Drawing):
    """Spectra of a model along a track of stellar types, without dust, at 1 kpc; and over their continua."""

    size = (10.0, 4.6)

    def __init__(self, name: str, model: FluxModel, prior: TypePrior) -> None:
        self.section = SECTION
        self.model = model
        along, self.title, values, self._fixed = _TRACKS[name]
        self.name = f"model_{name}"
        teff, feh, logg = along(values)
        theta = np.stack(np.broadcast_arrays(teff / 1000.0, feh, logg), axis=1)
        self.covered = prior.ln_density(theta) >= prior.ln_prior_threshold
        self._symbol = {"main_sequence": r"$T_\mathrm{eff}$  [K]", "metallicity": "[Fe/H]  [dex]"}.get(
            name, r"$\log\,g$"
        )
        self.values, self.theta = values[self.covered], theta[self.covered]
        self.flux = model.predict(
            teff=self.theta[:, 0], feh=self.theta[:, 1], logg=self.theta[:, 2], ext=0.0, plx=1.0
        ).reshape(-1, model.n_samples)

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        return None if len(self.values) else "the model's prior covers none of these stellar types"

    def caption(self) -> str:
        """What is drawn."""
        left_out = len(self.covered) - len(self.values)
        beyond = (
            f" {left_out} of {len(self.covered)} types, which the model has not learned, left out." if left_out else ""
        )
        theory = " Open circles: bands that are theory alone." if np.asarray(self.model.theoretical).any() else ""
        return (
            f"{self._fixed} Flux at 1 kpc without dust, infrared bands at their wavelengths.{theory} Right: XP over a "
            f"polynomial of degree {CONTINUUM_DEGREE}; dotted: hydrogen, dashed: Ca, dash-dotted: Mg.{beyond}"
        )

    def draw(self, figure: Figure) -> None:
        """Draw spectra and normalised spectra."""
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, Normalize

        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
        wavelength = self.model.wavelength
        spread = Normalize(self.values.min() - 1e-6, self.values.max() + 1e-6)
        colours = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.88, 256)))  # without yellow on white
        theoretical = np.asarray(self.model.theoretical)
        normalised = continuum_normalised(wavelength[:N_XP], self.flux[:, :N_XP])
        for value, flux, line in zip(self.values, self.flux, normalised, strict=True):
            colour = colours(spread(value))
            left.plot(wavelength[:N_XP], flux[:N_XP], color=colour, lw=1.2)
            for k in range(N_XP, len(wavelength)):
                face = PAPER if theoretical[k] else colour
                left.plot(wavelength[k], flux[k], "o", ms=3.5, color=colour, markerfacecolor=face)
            right.plot(wavelength[:N_XP], line, color=colour, lw=1.2)
        for element, places in LINES.items():
            for place in places:
                right.axvline(place, color=QUIET, lw=0.8, ls=_LINE_STYLES[element], zorder=0)
        left.set(xscale="log", yscale="log", xlabel="wavelength  [nm]", ylabel=FLUX_LABEL)
        left.set_xticks([400, 600, 1000, 2000, 4500], ["400", "600", "1000", "2000", "4500"])
        left.minorticks_off()
        right.set(xlabel="wavelength  [nm]", ylabel="flux / continuum", xlim=(wavelength[0], wavelength[N_XP - 1]))
        right.grid(False)
        bar = figure.colorbar(ScalarMappable(spread, colours), ax=right, label=self._symbol, aspect=30, pad=0.01)
        bar.outline.set_visible(False)

    def table(self) -> Table:
        """A row per type."""
        from astropy.table import Table

        normalised = continuum_normalised(self.model.wavelength[:N_XP], self.flux[:, :N_XP])
        table = Table(
            {"teff": 1000.0 * self.theta[:, 0], "feh": self.theta[:, 1], "logg": self.theta[:, 2], "flux": self.flux},
            meta={"wavelength": self.model.wavelength.tolist(), "flux_unit": "1e-18 W m-2 nm-1"},
        )
        table["flux_over_continuum"] = normalised
        return table


_TRACKS: dict[str, tuple[Any, str, Float64, str]] = {
    "main_sequence": (
        lambda teff: (teff, np.zeros_like(teff), main_sequence_logg(teff)),
        "Model spectra along the main sequence (Fig. 12)",
        np.linspace(4000.0, 11000.0, 15),
        "[Fe/H] = 0, log g by Eq. 28.",
    ),
    "metallicity": (
        lambda feh: (np.full_like(feh, 5500.0), feh, np.full_like(feh, 4.6)),
        "Model spectra by metallicity (Fig. 13)",
        np.linspace(-1.5, 0.5, 11),
        "5500 K, log g = 4.6.",
    ),
    "giant_branch": (
        lambda logg: (giant_branch_teff(logg), np.zeros_like(logg), logg),
        "Model spectra along the giant branch (Fig. 14)",
        np.linspace(1.0, 4.1, 13),
        "[Fe/H] = 0, temperature by Eq. 29.",
    ),
}


class ExtinctionCurve(Drawing):
    """The extinction curve of the model beside published laws (Fig. 15)."""

    name, section, title = "extinction", SECTION, "Extinction curve (Fig. 15)"
    size = (7.6, 5.2)

    def __init__(self, model: FluxModel) -> None:
        self.model = model

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        try:
            published_curves()
        except XpkernError as error:
            return str(error)
        return None

    def caption(self) -> str:
        """What is drawn."""
        return (
            "In a form that neither unit nor zero point of E enters: E(λ − Ks) / E(552 nm − Ks), at the XP "
            f"samples and J, H, Ks. Below: laws less the learned curve; shade: {LAWS[0]} for R(V) from "
            f"{RV_RANGE[0]:g} to {RV_RANGE[1]:g}. Unit of E: {self.model.ext_unit}."
        )

    def draw(self, figure: Figure) -> None:
        """Draw the curves."""
        draw_curves(figure, self.model.ext_curve)

    def table(self) -> Table:
        """A row per sample."""
        from astropy.table import Table

        columns = {"wavelength": self.model.wavelength[:COMPARED], "learned": curve_shape(self.model.ext_curve)}
        columns |= {name: curve_shape(curve) for name, curve in published_curves().items()}
        for rv in RV_RANGE:
            columns[f"{LAWS[0]} R(V)={rv:g}"] = curve_shape(published_curves(rv)[LAWS[0]])
        return Table(columns)


class PriorContours(Drawing):
    """The prior over stellar types as contours, over labels where there are some (Fig. 5)."""

    name, section, title = "prior", SECTION, "Prior over stellar types (Fig. 5)"
    size = (10.0, 4.3)

    def __init__(self, prior: TypePrior, references: Mapping[str, Reference]) -> None:
        self.prior = prior
        self.labels = np.empty((0, 3))
        if "labels" in references:
            values = references["labels"].values[:, :3].astype(np.float64)
            values[:, 0] /= 1000.0
            self.labels = values[np.isfinite(values).all(axis=1)]

    def nothing(self) -> str | None:
        """There always is a prior."""
        return None

    def caption(self) -> str:
        """What is drawn."""
        over = f" over {stars_text(len(self.labels))} of the label table" if len(self.labels) else ""
        return (
            f"Contours around 68, 95 and 99 % of the prior's mass{over}. It weighs stellar types in every fit (Eq. 18)."
        )

    def draw(self, figure: Figure) -> None:
        """Draw the contours."""
        title = f"{self.prior.n_components} components"
        draw_prior(figure, self.prior, self.labels, title=title, whose="label table")

    def table(self) -> Table:
        """A row per component."""
        from astropy.table import Table

        names = {"weight": self.prior.weights, "mean": self.prior.means, "covariance": self.prior.covariances}
        return Table(names, meta={"order": "teff [kK], feh [dex], logg [dex]"})


class SelfCleaning(Drawing):
    """What self-cleaning took out of the Sun-like stars of a training run (Fig. 4, Eq. 16)."""

    name, section, title = "self_cleaning", SECTION, "Self-cleaning (Fig. 4)"
    columns = ("source_id",)
    optional = ("phot_g_mean_mag",)
    needs = ("training",)
    size = (10.0, 4.6)

    def __init__(self, path: Path | None) -> None:
        self._stars = None if path is None else _read_training(path)
        self._g: Float64 = np.empty(0)

    def begin(self, sample: Stars) -> None:
        """The stars of Eq. 16."""
        if self._stars is None:
            return
        chosen = _sun_like(self._stars)
        self._stars = {name: values[chosen] for name, values in self._stars.items()}
        order = np.argsort(self._stars["source_id"])
        self._stars = {name: values[order] for name, values in self._stars.items()}
        self._g = np.full(len(order), np.nan)

    def add(self, stars: Stars) -> None:
        """Take the magnitudes of a block of the catalogue."""
        if self._stars is None or "phot_g_mean_mag" not in stars or not len(self._g):
            return
        ids = np.asarray(stars.columns["source_id"], np.int64)
        place = np.minimum(np.searchsorted(self._stars["source_id"], ids), len(self._g) - 1)
        there = self._stars["source_id"][place] == ids
        self._g[place[there]] = stars.of("phot_g_mean_mag")[there]

    def nothing(self) -> str | None:
        """Why there is nothing to draw."""
        if self._stars is not None and len(self._stars["source_id"]):
            return None
        return "no star of the training run is Sun-like with little dust (Eq. 16)"

    def caption(self) -> str:
        """What is drawn."""
        assert self._stars is not None
        n, removed = len(self._g), int(np.count_nonzero(~self._clean))
        known = int(np.isfinite(self._g).sum())
        return (
            f"{stars_text(n)} like the Sun and with E < 0.05 by their labels (Eq. 16); "
            f"self-cleaning took out {removed:,}. Right: absolute magnitudes of the {known:,} of them in the "
            "catalogue; a "
            "population 0.75 mag brighter is binaries of equal stars."
        )

    @property
    def _clean(self) -> Any:
        assert self._stars is not None
        return (self._stars["used"] & USED["clean"]) != 0

    def _pulls(self, name: str) -> Float64:
        assert self._stars is not None
        stars = self._stars
        pull: Float64 = (stars[name] - stars[f"{name}_label"]) / stars[f"{name}_label_err"]
        return pull

    def _absolute_g(self) -> Float64:
        assert self._stars is not None
        plx = self._stars["plx"]
        return self._g + 5.0 * np.log10(np.where(plx > 0, plx, np.nan)) - 10.0

    def draw(self, figure: Figure) -> None:
        """Draw both panels."""
        left, right = figure.subplots(1, 2)
        clean = self._clean
        for chosen, colour, label in ((clean, BLUE, "kept"), (~clean, RED, "taken out")):
            left.plot(
                self._pulls("plx")[chosen], self._pulls("logg")[chosen], ".", ms=3, color=colour, alpha=0.6,
                label=label, rasterized=True,
            )  # fmt: skip
        left.set(xlabel=r"$\Delta\varpi$ / error", ylabel=r"$\Delta\log\,g$ / error", xlim=(-12, 12), ylim=(-12, 12))
        left.legend(loc="upper right")
        magnitude = self._absolute_g()
        known = np.isfinite(magnitude)
        if not known.any():
            right.text(0.5, 0.5, "none of them is in the catalogue with a G", ha="center", color=QUIET)
            right.set_axis_off()
            return
        low, high = np.quantile(magnitude[known], (0.002, 0.998))
        apart = 0.02 * (high - low) + 0.02  # few stars have none between these quantiles
        edges = np.linspace(low - apart, high + apart, 61)
        right.hist(magnitude[known], edges, color=BLUE, alpha=0.65, label="all")
        right.hist(magnitude[known & ~clean], edges, histtype="step", lw=1.8, color=RED, label="taken out")
        right.set(xlabel=r"$M_G$  [mag]", ylabel="stars")
        right.legend()

    def table(self) -> Table:
        """A row per star."""
        from astropy.table import Table

        assert self._stars is not None
        return Table(
            {
                "source_id": self._stars["source_id"],
                "plx_pull": self._pulls("plx"),
                "logg_pull": self._pulls("logg"),
                "clean": self._clean,
                "absolute_g": self._absolute_g(),
            }
        )


def _read_training(path: Path) -> dict[str, Any]:
    """Columns of the stars of a training run (``model.stars.h5``)."""
    import h5py

    names = ["source_id", "used", *(f"{name}{end}" for name in PARAMETERS for end in ("", "_label", "_label_err"))]
    try:
        with h5py.File(path) as file:
            lacking = [name for name in names if f"stars/{name}" not in file]
            if lacking:
                raise InputError(
                    "missing: this is no file on the stars of xpkern train", file=str(path), field=lacking[0]
                )
            return {name: file[f"stars/{name}"][()] for name in names}
    except OSError as error:
        reason = "no such file" if not path.exists() else f"not a readable HDF5 file ({error})"
        raise InputError(reason, file=str(path)) from error


def _sun_like(stars: Mapping[str, Any]) -> Any:
    """Sun-like training stars with little dust, Eq. 16, by their labels: a mask (n,)."""
    ext = np.where(np.isfinite(stars["ext_label"]), stars["ext_label"], stars["ext"])
    ext_error = np.where(np.isfinite(stars["ext_label"]), stars["ext_label_err"], 0.0)
    chosen = (ext < 0.05) & (ext_error < 0.05) & (stars["plx_label_err"] < 0.1 * np.abs(stars["plx_label"]))
    for name, (middle, half, error) in _SUN_LIKE.items():
        chosen &= (np.abs(stars[f"{name}_label"] - middle) < half) & (stars[f"{name}_label_err"] < error)
    return chosen


def model_figures(
    model: FluxModel, prior: TypePrior, references: Mapping[str, Reference], training: Path | None
) -> list[Drawing]:
    """All figures of a model."""
    return [
        *(ModelSpectra(name, model, prior) for name in _TRACKS),
        ExtinctionCurve(model),
        PriorContours(prior, references),
        SelfCleaning(training),
    ]
