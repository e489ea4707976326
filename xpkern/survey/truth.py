"""What a star's spectrum is in truth: that of a model atmosphere, or of a flux model.

Both give the flux at 1 kpc without dust of stars of known type and mass, and how dust of a given R(V) dims it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from xpkern.engine.contract import Float64
from xpkern.grid import N_XP, WAVELENGTH, XP_WAVELENGTH
from xpkern.model.flux_model import FluxModel
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior
from xpkern.observe.calibration import FLUX_UNIT
from xpkern.observe.population import synthetic_magnitude
from xpkern.train.atmospheres import COOLEST_ATLAS9, Atmospheres
from xpkern.train.extinction_law import STANDARD_RV, optical_depth
from xpkern.train.flux_scale import ln_dilution, ln_flux_at_1kpc
from xpkern.train.packages import ATMOSPHERES

#: Distance modulus of 1 kpc.
MODULUS_OF_1_KPC = 10.0

#: Nodes in teff, feh and log g at which the magnitudes of a flux model are tabulated; what lies beyond is not covered.
_MODEL_NODES = (np.arange(2.5, 12.1, 0.1), np.arange(-3.0, 1.1, 0.5), np.arange(-0.5, 6.1, 0.25))

#: R(V) at which curves are tabulated: linear interpolation between them is good to 1e-4.
_RV_NODES = np.linspace(2.0, 6.0, 81)


class Truth(Protocol):
    """Where true spectra come from.

    Attributes
    ----------
    name : str
    origin : str
        In words, for the tables' headers.
    noise : Noise
        Systematic errors that the observed fluxes have.
    scale_sigma : float
        Fractional error of the absolute scale that each star draws for itself.
    """

    name: str
    origin: str
    noise: Noise
    scale_sigma: float

    def covers(self, theta: Float64) -> NDArray[np.bool_]:
        """Whether there is a spectrum for the stellar types (n, 3)."""

    def ln_flux(self, theta: Float64, mass: Float64) -> Float64:
        """Logarithm of the flux [1e-18 W m-2 nm-1] (n, 66) at 1 kpc without dust; ``mass`` (n,) in solar masses."""

    def absolute_g(self, theta: Float64, mass: Float64) -> Float64:
        """Absolute magnitude G (n,), to 0.05 mag."""

    def optical_depth(self, rv: Float64) -> Float64:
        """R (n, 66) of Eq. 8 at E(B-V) = 1 mag for R(V) (n,)."""

    def library(self, theta: Float64) -> NDArray[np.str_]:
        """Name (n,) of what the spectra come from."""


class AtmosphereTruth:
    """Model atmospheres (ATLAS9; PHOENIX below 4000 K), radii by log g and mass, and a standard extinction law."""

    name = "kurucz"
    scale_sigma = 0.0

    def __init__(self, atmospheres: Atmospheres) -> None:
        self.atmospheres = atmospheres
        self.origin = (
            f"ATLAS9 (Castelli & Kurucz 2003), PHOENIX (Husser et al. 2013) below {COOLEST_ATLAS9:.0f},000 K, "
            f"from {ATMOSPHERES.requirement}; extinction: Fitzpatrick (1999)"
        )
        self.noise = Noise.eq2()
        self._curves = _ExtinctionCurves(optical_depth(WAVELENGTH))
        surface_g = synthetic_magnitude("g", XP_WAVELENGTH, np.exp(atmospheres.ln_flux[..., :N_XP].reshape(-1, N_XP)))
        axes = (atmospheres.teff, atmospheres.feh, atmospheres.logg)
        self._surface_g = RegularGridInterpolator(axes, surface_g.reshape([len(axis) for axis in axes]))

    def covers(self, theta: Float64) -> NDArray[np.bool_]:
        """See :class:`Truth`."""
        grid = self.atmospheres
        inside = (theta[:, 0] >= grid.teff[0]) & (theta[:, 0] <= grid.teff[-1])
        return inside & (theta[:, 1] >= grid.feh[0]) & (theta[:, 1] <= grid.feh[-1])

    def ln_flux(self, theta: Float64, mass: Float64) -> Float64:
        """See :class:`Truth`."""
        return ln_flux_at_1kpc(self.atmospheres, theta, mass)

    def absolute_g(self, theta: Float64, mass: Float64) -> Float64:
        """See :class:`Truth`; interpolated between the magnitudes of the nodes."""
        dilution = (ln_dilution(mass, theta[:, 2]) - np.log(FLUX_UNIT)) * (2.5 / np.log(10.0))
        return _within(self._surface_g, theta) - dilution - MODULUS_OF_1_KPC

    def optical_depth(self, rv: Float64) -> Float64:
        """See :class:`Truth`."""
        return self._curves.of(rv)

    def library(self, theta: Float64) -> NDArray[np.str_]:
        """See :class:`Truth`."""
        return np.where(theta[:, 0] < COOLEST_ATLAS9, "PHOENIX", "ATLAS9")


class ModelTruth:
    """A flux model within the types that its prior knows: the truth that a fit with the same model could find."""

    name = "model"

    def __init__(self, model: FluxModel, prior: TypePrior) -> None:
        self.model = model
        self.prior = prior
        self._curves = _ExtinctionCurves(model.ext_curve)
        nodes = np.stack(np.meshgrid(*_MODEL_NODES, indexing="ij"), axis=-1).reshape(-1, 3)
        flux = np.exp(self.ln_flux(nodes, np.ones(len(nodes)))[:, :N_XP])
        g = synthetic_magnitude("g", XP_WAVELENGTH, flux) - MODULUS_OF_1_KPC
        self._g = RegularGridInterpolator(_MODEL_NODES, g.reshape([len(axis) for axis in _MODEL_NODES]))
        self.origin = f"the flux model {model.digest}; extinction: its own curve"
        self.noise = model.noise
        self.scale_sigma = model.scale_sigma

    def covers(self, theta: Float64) -> NDArray[np.bool_]:
        """See :class:`Truth`."""
        return self.prior.ln_density(theta) > self.prior.ln_prior_threshold

    def ln_flux(self, theta: Float64, mass: Float64) -> Float64:
        """See :class:`Truth`; the model has learned the mass that goes with a type."""
        return self.model.ln_flux(np.column_stack([theta, np.zeros(len(theta)), np.ones(len(theta))]))

    def absolute_g(self, theta: Float64, mass: Float64) -> Float64:
        """See :class:`Truth`; interpolated on a regular grid."""
        return _within(self._g, theta)

    def optical_depth(self, rv: Float64) -> Float64:
        """See :class:`Truth`; for another R(V) the curve changes by as much as the standard law does."""
        return self._curves.of(rv)

    def library(self, theta: Float64) -> NDArray[np.str_]:
        """See :class:`Truth`."""
        return np.full(len(theta), "model")


def _within(grid: RegularGridInterpolator, theta: Float64) -> Float64:
    """Values (n,) at types (n, 3); beyond the grid, those of its edge."""
    low, high = np.array([(axis[0], axis[-1]) for axis in grid.grid]).T
    return grid(np.clip(theta, low, high))


class _ExtinctionCurves:
    """A curve (66,) changed to any R(V) as the standard law changes."""

    def __init__(self, standard: Float64) -> None:
        self._standard = standard
        self._at_nodes = standard * optical_depth(WAVELENGTH, _RV_NODES) / optical_depth(WAVELENGTH)

    def of(self, rv: Float64) -> Float64:
        """Curves (n, 66) for R(V) (n,), linear between nodes that are close."""
        curves = np.tile(self._standard, (len(rv), 1))
        other = np.flatnonzero(rv != STANDARD_RV)
        place = np.clip((rv[other] - _RV_NODES[0]) / (_RV_NODES[1] - _RV_NODES[0]), 0.0, len(_RV_NODES) - 1.0)
        node = np.minimum(place.astype(np.intp), len(_RV_NODES) - 2)
        share = (place - node)[:, None]
        curves[other] = (1.0 - share) * self._at_nodes[node] + share * self._at_nodes[node + 1]
        return curves
