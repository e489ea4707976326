"""What users ask of a star beyond its fitted parameters: distance, extinctions in magnitudes, absolute magnitude.

Errors are those of the five parameters with all their correlations, to first order. Extinctions follow the model's own
curve: at 550 nm for A(V), at 440 and 550 nm for E(B-V), and through the G passband over the star's model spectrum for
A(G), within the XP range (392-992 nm), which holds nearly all of G.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from xpkern.catalog.schema import PARAMETER_COLUMNS, UPPER_TRIANGLE, Column
from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.grid import N_PARAMETERS, N_XP, PARAMETERS
from xpkern.model.flux_model import FluxModel
from xpkern.observe.population import synthetic_magnitude

if TYPE_CHECKING:
    from astropy.table import Table

_TEFF, _EXT, _PLX = (PARAMETERS.index(name) for name in ("teff", "ext", "plx"))

#: Magnitudes of an optical depth of 1.
MAGNITUDES_PER_DEPTH = 2.5 / float(np.log(10.0))

#: Wavelengths [nm] of A(V), and of the other one of E(B-V).
V, B = 550.0, 440.0

#: Distance modulus of a parallax of 1 mas.
_MODULUS_OF_1_KPC = 10.0

#: Steps in teff [kK], feh, logg by which A(G) is differentiated.
_STEP = 1e-3

#: Probabilities of the lower end of an interval, its middle, and its upper end.
INTERVAL = (0.158655, 0.5, 0.841345)


@dataclass(frozen=True)
class DerivedRows:
    """What the columns are computed of, for n stars.

    Attributes
    ----------
    model : FluxModel
    params : (n, 5) float64
        teff [kK], feh, logg, ext, plx [mas]; NaN without a fit.
    covariance : (n, 5, 5) float64
    g : (n,) float64
        G magnitude; NaN where unknown.
    """

    model: FluxModel
    params: Float64
    covariance: Float64
    g: Float64

    def __len__(self) -> int:
        return len(self.params)

    def depth(self, wavelength: float) -> float:
        """Optical depth R at a wavelength [nm] and ext = 1; ln R is linear between the XP samples."""
        curve = np.log(self.model.ext_curve[:N_XP])
        return float(np.exp(np.interp(wavelength, self.model.wavelength[:N_XP], curve)))

    def error(self, gradient: Float64) -> Float64:
        """Standard errors (n,) of something with this gradient (n, 5) in the parameters."""
        return np.sqrt(np.einsum("ni,nij,nj->n", gradient, self.covariance, gradient))

    @cached_property
    def distance(self) -> Float64:
        """Quantiles :data:`INTERVAL` of the distance [kpc], (n, 3).

        Those of 1 / plx for a normal distribution of the parallax, cut off at 0: 1 / plx is not approximated, and where
        the parallax hardly differs from 0 the upper end says so.
        """
        plx, error = self.params[:, _PLX], np.sqrt(self.covariance[:, _PLX, _PLX])
        with np.errstate(invalid="ignore", divide="ignore"):
            negative = ndtr(-plx / error)
            shares = negative[:, None] + (1.0 - negative)[:, None] * (1.0 - np.array(INTERVAL))
            parallax = plx[:, None] + error[:, None] * ndtri(shares)
        parallax[~(parallax > 0.0)] = np.nan
        return 1.0 / parallax

    def a_at(self, wavelength: float) -> Float64:
        """Extinction [mag] at a wavelength [nm], (n,)."""
        return MAGNITUDES_PER_DEPTH * self.depth(wavelength) * self.params[:, _EXT]

    @property
    def ext_error(self) -> Float64:
        """Standard error of ext, (n,)."""
        return np.sqrt(self.covariance[:, _EXT, _EXT])

    @cached_property
    def ebv_per_ext(self) -> float:
        """E(B-V) [mag] at ext = 1."""
        return MAGNITUDES_PER_DEPTH * (self.depth(B) - self.depth(V))

    @cached_property
    def a_g(self) -> tuple[Float64, Float64]:
        """A(G) [mag] (n,), and its gradient in the parameters, (n, 5)."""
        wavelength = self.model.wavelength[:N_XP]

        def magnitude(params: Float64) -> Float64:
            with np.errstate(invalid="ignore"):
                return synthetic_magnitude("g", wavelength, np.exp(self.model.ln_flux(params)[:, :N_XP]))

        def extinction(params: Float64) -> Float64:
            clear = params.copy()
            clear[:, _EXT] = 0.0
            return magnitude(params) - magnitude(clear)

        # the spectrum's brightness cancels: any distance will do
        params = np.column_stack([self.params[:, :_PLX], np.ones(len(self))])
        value, gradient = extinction(params), np.zeros((len(self), N_PARAMETERS))
        for k in range(_TEFF, _EXT):
            shifted = params.copy()
            shifted[:, k] += _STEP
            gradient[:, k] = (extinction(shifted) - value) / _STEP
        more = params.copy()
        more[:, _EXT] += _STEP
        gradient[:, _EXT] = (magnitude(more) - magnitude(params)) / _STEP
        return value, gradient

    @cached_property
    def m_g(self) -> tuple[Float64, Float64]:
        """Absolute magnitude G + 5 log10(plx / mas) - 10 - A(G), and its standard error, each (n,)."""
        a_g, gradient = self.a_g
        plx = self.params[:, _PLX]
        gradient = -gradient
        with np.errstate(invalid="ignore", divide="ignore"):
            gradient[:, _PLX] += 2.0 * MAGNITUDES_PER_DEPTH / plx
            value = self.g + 5.0 * np.log10(plx) - _MODULUS_OF_1_KPC - a_g
        return value, np.where(np.isfinite(value), self.error(gradient), np.nan)


def _interval(place: int) -> Callable[[DerivedRows], Float64]:
    return lambda rows: rows.distance[:, place]


#: The columns, in order.
DERIVED = (
    Column("distance", "float32", "kpc", "pos.distance", "distance: median of 1 / parallax_est > 0", _interval(1)),
    Column("distance_lower", "float32", "kpc", "pos.distance;stat.min", "its 16th percentile", _interval(0)),
    Column("distance_upper", "float32", "kpc", "pos.distance;stat.max", "its 84th percentile", _interval(2)),
    Column(
        "ebv",
        "float32",
        "mag",
        "phot.color.excess",
        f"E(B-V) by the model's extinction curve: A at {B:g} minus A at {V:g} nm",
        lambda rows: rows.ebv_per_ext * rows.params[:, _EXT],
    ),
    Column(
        "ebv_error",
        "float32",
        "mag",
        "stat.error;phot.color.excess",
        "standard error of ebv",
        lambda rows: rows.ebv_per_ext * rows.ext_error,
    ),
    Column(
        "a_v",
        "float32",
        "mag",
        "phys.absorption;em.opt.V",
        f"extinction at {V:g} nm by the model's extinction curve",
        lambda rows: rows.a_at(V),
    ),
    Column(
        "a_v_error",
        "float32",
        "mag",
        "stat.error;phys.absorption",
        "standard error of a_v",
        lambda rows: MAGNITUDES_PER_DEPTH * rows.depth(V) * rows.ext_error,
    ),
    Column(
        "a_g",
        "float32",
        "mag",
        "phys.absorption;em.opt",
        "extinction in G, by the model's spectrum and extinction curve within 392-992 nm",
        lambda rows: rows.a_g[0],
    ),
    Column(
        "a_g_error",
        "float32",
        "mag",
        "stat.error;phys.absorption",
        "standard error of a_g, by the covariance of all parameters",
        lambda rows: rows.error(rows.a_g[1]),
    ),
    Column(
        "m_g",
        "float32",
        "mag",
        "phys.magAbs;em.opt",
        "absolute magnitude in G: phot_g_mean_mag + 5 log10(parallax_est / mas) - 10 - a_g",
        lambda rows: rows.m_g[0],
    ),
    Column(
        "m_g_error",
        "float32",
        "mag",
        "stat.error;phys.magAbs",
        "standard error of m_g, by the covariance of all parameters; phot_g_mean_mag taken as exact",
        lambda rows: rows.m_g[1],
    ),
)


def derived_rows(columns: Mapping[str, NDArray[Any]], model: FluxModel, g: NDArray[Any] | None = None) -> DerivedRows:
    """What the derived columns are computed of, from the columns of a catalogue in either layout.

    Parameters
    ----------
    columns : mapping of str to (n, ...) array
    model : FluxModel
        That the catalogue was made with.
    g : (n,) array, optional
        G magnitudes, if they are not among the columns.

    Raises
    ------
    InputError
        If there are no errors and correlations, in the form of either layout.
    """

    def column(name: str) -> Float64:
        if name not in columns:
            raise InputError("missing: without errors and their correlations nothing can be derived", field=name)
        return np.ma.filled(np.ma.asarray(columns[name]).astype(np.float64), np.nan)

    if "stellar_params_est" in columns:
        params = column("stellar_params_est")
        covariance = np.empty((len(params), N_PARAMETERS, N_PARAMETERS))
        covariance[:, UPPER_TRIANGLE[0], UPPER_TRIANGLE[1]] = column("stellar_params_cov_triu")
        covariance[:, UPPER_TRIANGLE[1], UPPER_TRIANGLE[0]] = column("stellar_params_cov_triu")
    else:
        scale = np.array([parameter.per_unit for parameter in PARAMETER_COLUMNS])
        names = [parameter.name for parameter in PARAMETER_COLUMNS]
        params = np.column_stack([column(name) for name in names]) / scale
        error = np.column_stack([column(f"{name}_error") for name in names]) / scale
        correlation = np.ones((len(params), N_PARAMETERS, N_PARAMETERS))
        for i in range(N_PARAMETERS):
            for j in range(i + 1, N_PARAMETERS):
                correlation[:, i, j] = correlation[:, j, i] = column(f"{names[i]}_{names[j]}_corr")
        covariance = error[:, :, None] * correlation * error[:, None, :]
    if g is None and "phot_g_mean_mag" in columns:
        g = column("phot_g_mean_mag")
    g = np.full(len(params), np.nan) if g is None else np.asarray(g, np.float64)
    return DerivedRows(model, params, covariance, g)


def derived_columns(table: Table | Mapping[str, NDArray[Any]], model: FluxModel) -> Table:
    """Distance, E(B-V), A(V), A(G) and M(G) of the stars of a catalogue, with errors or intervals.

    Parameters
    ----------
    table : astropy.table.Table or mapping
        A catalogue in either layout, as ``fit.to_table()`` and :func:`xpkern.read_catalog` give it.
    model : FluxModel
        That it was made with: its extinction curve and spectra are what the extinctions in magnitudes come from.

    Returns
    -------
    astropy.table.Table
        With units and descriptions; columns of :data:`DERIVED`. NaN without a fit, M(G) without a G magnitude.

    Raises
    ------
    InputError
        If the catalogue has no errors and correlations, as the published one has none without its covariances.
    """
    from xpkern.catalog.metadata import astropy_table

    names = table.colnames if hasattr(table, "colnames") else list(table)
    rows = derived_rows({name: table[name] for name in names}, model)
    return astropy_table(DERIVED, {column.name: column.compute(rows) for column in DERIVED}, {})
