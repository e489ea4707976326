"""True sources of a survey: what they are, where, behind how much dust, and their flux outside the atmosphere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.grid import N_FLUX, N_XP, XP_WAVELENGTH
from xpkern.observe.calibration import FLUX_UNIT
from xpkern.observe.population import synthetic_magnitude, to_equatorial
from xpkern.survey import impostors
from xpkern.survey.dust import DustField, direction
from xpkern.survey.planted import CLASSES, NONE, STAR, Planted
from xpkern.survey.stellar_types import (
    BRANCHES,
    COMPONENTS,
    COOL,
    StellarTypes,
    Types,
    distance_limit,
    draw_positions,
    lifetime,
    main_sequence,
    radius,
)
from xpkern.survey.truth import MODULUS_OF_1_KPC, Truth
from xpkern.train.extinction_law import STANDARD_RV
from xpkern.train.flux_scale import DWARF_MASS, ln_dilution

#: Where R(V) varies: its scatter, and its range.
RV_SCATTER, RV_RANGE = 0.5, (2.2, 5.5)

#: Binaries: range of the ratio of the masses, all equally likely.
MASS_RATIO = (0.1, 1.0)

#: White dwarfs: typical temperature [kK] of those that are seen and its scatter (ln), mean and scatter of log g, mass.
_WHITE_DWARF_TEFF, _WHITE_DWARF_RANGE = (11.0, 0.35), (5.5, 30.0)
_WHITE_DWARF_LOGG, _WHITE_DWARF_MASS = (8.0, 0.15), 0.6

#: Beyond all dust of the Galaxy [kpc].
_OUTSIDE = 100.0

#: Quasars and galaxies: how their counts grow per magnitude, how much brighter than the limit they get, shape and scale
#: of the gamma distribution of quasars' redshifts, ranges of redshifts.
_COUNTS_SLOPE, _BRIGHTEST = 0.6, 3.5
_QUASAR_REDSHIFT, _QUASAR_RANGE, _GALAXY_RANGE = (3.0, 0.55), (0.1, 4.5), (0.01, 0.3)

#: Largest part of a galaxy's light that comes from hot stars.
_MOST_YOUNG = 0.6

#: A(G) / E(B-V) is larger than this for every star and every R(V).
_LEAST_DIMMING = 1.2

#: Stars drawn for each that is wanted, and draws after which a survey is given up.
_OVERDRAW, _MOST_BATCHES = 5.0, 200

#: How the truth calls the spectrum of what has no library.
_TEMPLATE = "template"


@dataclass(frozen=True)
class Sources:
    """True sources: arrays (n,), NaN or "none" where something does not apply.

    Attributes
    ----------
    kind : str
        One of :data:`xpkern.survey.planted.CLASSES`.
    library, component, branch : str
        What the spectrum comes from; the part of the Galaxy; the state of evolution.
    theta : (n, 3)
        teff [kK], feh, logg; of a binary or blend, those of the brighter or nearer star that counts as the source.
    mass, radius, age : float64
        Solar, solar, Gyr.
    ext, rv : float64
        E(B-V) [mag] and R(V) in front.
    distance, plx : float64
        kpc, mas.
    redshift : float64
    second_theta : (n, 3)
    second_mass, second_distance, second_ext : float64
        Of the other star of a binary or blend.
    flux_ratio : float64
        Flux in G of the other star over that of the source.
    longitude, latitude : float64
        Galactic [rad].
    ra, dec : float64
        ICRS [deg].
    flux : (n, 66)
        [1e-18 W m-2 nm-1], dust included.
    g, bp, rp : float64
        True magnitudes.
    """

    kind: NDArray[np.str_]
    library: NDArray[np.str_]
    component: NDArray[np.str_]
    branch: NDArray[np.str_]
    theta: Float64
    mass: Float64
    radius: Float64
    age: Float64
    ext: Float64
    rv: Float64
    distance: Float64
    plx: Float64
    redshift: Float64
    second_theta: Float64
    second_mass: Float64
    second_distance: Float64
    second_ext: Float64
    flux_ratio: Float64
    longitude: Float64
    latitude: Float64
    ra: Float64
    dec: Float64
    flux: Float64
    g: Float64
    bp: Float64
    rp: Float64

    def __len__(self) -> int:
        return len(self.kind)


class SourcePopulation:
    """Draws sources.

    Parameters
    ----------
    truth : Truth
    planted : Planted
    magnitudes : (float, float)
        Brightest and faintest true G of the survey.
    dust : DustField, optional

    Raises
    ------
    InputError
        If the magnitudes are no range, the truth has no stars, or M dwarfs are wanted of one that has none.
    """

    def __init__(
        self, truth: Truth, planted: Planted, magnitudes: tuple[float, float], dust: DustField | None = None
    ) -> None:
        brightest, faintest = magnitudes
        if not (-30.0 < brightest < faintest < 30.0):
            raise InputError(f"{brightest:g} to {faintest:g} is not a range of magnitudes", field="magnitudes")
        self.truth = truth
        self.planted = planted
        self.magnitudes = magnitudes
        self.dust = DustField.default() if dust is None else dust
        self.types = StellarTypes(truth.absolute_g, truth.covers, faintest)
        if not self.types.has(m_dwarfs=False):
            raise InputError(f"the truth {truth.name!r} has no stars")
        if planted.m_dwarf > 0 and not self.types.has(m_dwarfs=True):
            raise InputError(f"the truth {truth.name!r} has no M dwarfs: make it 0", field="m_dwarf")

    def draw(self, n: int, rng: np.random.Generator) -> Sources:
        """Draw n sources, each class in its proportion and in random order."""
        kind = rng.choice(len(CLASSES), n, p=self.planted.class_fractions())
        columns: dict[str, NDArray] = {
            "kind": np.array(CLASSES)[kind],
            **{name: np.full(n, NONE, "U16") for name in ("library", "component", "branch")},
            **{name: np.full((n, 3), np.nan) for name in ("theta", "second_theta")},
            "flux": np.full((n, N_FLUX), np.nan),
        }
        for field in fields(Sources):
            columns.setdefault(field.name, np.full(n, np.nan))
        makers: dict[str, Callable[[int, np.random.Generator], dict[str, NDArray]]] = {
            STAR: self._stars,
            "binary": lambda count, rng: self._stars(count, rng, binary=True),
            "blend": self._blends,
            "m_dwarf": lambda count, rng: self._stars(count, rng, m_dwarfs=True),
            "white_dwarf": self._white_dwarfs,
            "quasar": self._quasars,
            "galaxy": self._galaxies,
        }
        for index, name in enumerate(CLASSES):
            rows = np.flatnonzero(kind == index)
            if rows.size:
                for column, values in makers[name](rows.size, rng).items():
                    columns[column][rows] = values
        distance = columns["distance"]
        columns["plx"] = np.where(np.isnan(distance), 0.0, 1.0 / distance)
        columns["ra"], columns["dec"] = to_equatorial(columns["longitude"], np.sin(columns["latitude"]))
        for band in ("g", "bp", "rp"):
            columns[band] = _magnitude(band, columns["flux"])
        return Sources(**columns)

    def _stars(
        self, n: int, rng: np.random.Generator, *, m_dwarfs: bool = False, binary: bool = False
    ) -> dict[str, NDArray]:
        """Columns of n stars within the range of magnitudes."""

        def batch(size: int) -> tuple[dict[str, NDArray], Float64]:
            types = self.types.draw(size, rng, m_dwarfs=m_dwarfs)
            second_theta, second_mass = self._companions(types, rng) if binary else (None, None)
            absolute = self.truth.absolute_g(types.theta, types.mass)
            position, within = draw_positions(distance_limit(absolute, self.magnitudes[1]), types.component, rng)
            keep = np.flatnonzero(within)
            place = self._places(position[keep], rng)
            if second_theta is None:
                # most giants of the plane are too faint, which is known before their spectra are
                clear = absolute[keep] + 5.0 * np.log10(place["distance"]) + MODULUS_OF_1_KPC
                seen = clear + _LEAST_DIMMING * place["ext"] < self.magnitudes[1]
            else:
                seen = self.truth.covers(second_theta[keep])
            seen &= self.truth.covers(types.theta[keep]) & ((types.theta[keep, 0] < COOL) == m_dwarfs)
            keep, place = keep[seen], {name: values[seen] for name, values in place.items()}
            types = types[keep]
            first = np.exp(self.truth.ln_flux(types.theta, types.mass))
            columns = {
                "library": self.truth.library(types.theta),
                "component": np.array([component.name for component in COMPONENTS])[types.component],
                "branch": np.array(BRANCHES)[types.branch],
                "theta": types.theta,
                "mass": types.mass,
                "radius": radius(types.mass, types.theta[:, 2]),
                "age": types.age,
                **place,
            }
            dimming = self._dimming(place)
            if second_theta is not None and second_mass is not None:
                second_theta, second_mass = second_theta[keep], second_mass[keep]
                second = np.exp(self.truth.ln_flux(second_theta, second_mass))
                columns |= {
                    "second_theta": second_theta,
                    "second_mass": second_mass,
                    "second_distance": place["distance"],
                    "second_ext": place["ext"],
                    "flux_ratio": _ratio_in_g(second * dimming, first * dimming),
                }
                first = first + second
            columns["flux"] = first * dimming
            return columns, _magnitude("g", columns["flux"])

        return self._until(n, batch)

    def _companions(self, types: Types, rng: np.random.Generator) -> tuple[Float64, Float64]:
        """Types (n, 3) and masses (n,) of companions on the main sequence, born with their stars."""
        mass = np.maximum(rng.uniform(*MASS_RATIO, len(types.mass)) * types.mass, DWARF_MASS[1])
        feh = types.theta[:, 1]
        teff, logg = main_sequence(mass, feh, np.minimum(types.age / lifetime(mass, feh), 1.0))
        return np.column_stack([teff, feh, logg]), mass

    def _blends(self, n: int, rng: np.random.Generator) -> dict[str, NDArray]:
        """Columns of n pairs: the brighter star is the source, the other one is behind or before it."""
        both = self._stars(2 * n, rng)
        order = np.argsort(_magnitude("g", both["flux"]).reshape(2, n), axis=0)
        first, second = (order[k] * n + np.arange(n) for k in range(2))
        columns = {name: values[first] for name, values in both.items()}
        other = {name: both[name][second] for name in ("theta", "mass", "distance")}
        # seen in the direction of the source, through the same kind of dust
        place = {name: columns[name] for name in ("longitude", "latitude", "rv")} | {"distance": other["distance"]}
        place["ext"] = self.dust.column(direction(place["longitude"], place["latitude"]), place["distance"])
        flux = np.exp(self.truth.ln_flux(other["theta"], other["mass"])) * self._dimming(place)
        columns |= {f"second_{name}": values for name, values in other.items()} | {"second_ext": place["ext"]}
        columns["flux_ratio"] = _ratio_in_g(flux, columns["flux"])
        columns["flux"] = columns["flux"] + flux
        return columns

    def _white_dwarfs(self, n: int, rng: np.random.Generator) -> dict[str, NDArray]:
        """Columns of n white dwarfs, evenly spread in space."""

        def batch(size: int) -> tuple[dict[str, NDArray], Float64]:
            mean, scatter = _WHITE_DWARF_TEFF
            teff = np.clip(mean * np.exp(scatter * rng.standard_normal(size)), *_WHITE_DWARF_RANGE)
            logg = _WHITE_DWARF_LOGG[0] + _WHITE_DWARF_LOGG[1] * rng.standard_normal(size)
            mass = np.full(size, _WHITE_DWARF_MASS)
            clear = impostors.white_dwarf(teff) * np.exp(ln_dilution(mass, logg))[:, None] / FLUX_UNIT
            reach = distance_limit(_magnitude("g", clear) - MODULUS_OF_1_KPC, self.magnitudes[1])
            ray = _isotropic(size, rng)
            place = self._places(ray * (reach * np.cbrt(rng.uniform(size=size)))[:, None], rng)
            flux = clear * self._dimming(place)
            columns = {
                "library": np.full(size, _TEMPLATE),
                "theta": np.column_stack([teff, np.full(size, np.nan), logg]),
                "mass": mass,
                "radius": radius(mass, logg),
                "flux": flux,
                **place,
            }
            return columns, _magnitude("g", flux)

        return self._until(n, batch)

    def _quasars(self, n: int, rng: np.random.Generator) -> dict[str, NDArray]:
        """Columns of n quasars."""

        def spectra(size: int) -> tuple[Float64, Float64]:
            shape, scale = _QUASAR_REDSHIFT
            redshift = np.clip(rng.gamma(shape, scale, size), *_QUASAR_RANGE)
            return redshift, impostors.quasar(redshift)

        return self._extragalactic(n, spectra, rng)

    def _galaxies(self, n: int, rng: np.random.Generator) -> dict[str, NDArray]:
        """Columns of n galaxies."""

        def spectra(size: int) -> tuple[Float64, Float64]:
            redshift = rng.uniform(*_GALAXY_RANGE, size)
            return redshift, impostors.galaxy(redshift, _MOST_YOUNG * rng.uniform(size=size) ** 2)

        return self._extragalactic(n, spectra, rng)

    def _extragalactic(
        self, n: int, spectra: Callable[[int], tuple[Float64, Float64]], rng: np.random.Generator
    ) -> dict[str, NDArray]:
        """Columns of n sources behind all dust, evenly spread over the sky; ``spectra`` draws redshifts and shapes."""
        brightest, faintest = self.magnitudes
        brightest = max(brightest, faintest - _BRIGHTEST)
        growth = np.log(10.0) * _COUNTS_SLOPE

        def batch(size: int) -> tuple[dict[str, NDArray], Float64]:
            redshift, shape = spectra(size)
            clear = brightest + np.log1p(rng.uniform(size=size) * np.expm1(growth * (faintest - brightest))) / growth
            place = self._places(_isotropic(size, rng) * _OUTSIDE, rng)
            flux = shape * 10.0 ** (0.4 * (_magnitude("g", shape) - clear))[:, None]
            flux *= self._dimming(place | {"distance": np.ones(size)})
            columns = {
                "library": np.full(size, _TEMPLATE),
                "redshift": redshift,
                "flux": flux,
                **place,
                "distance": np.full(size, np.nan),
            }
            return columns, _magnitude("g", flux)

        return self._until(n, batch)

    def _until(self, n: int, batch: Callable[[int], tuple[dict[str, NDArray], Float64]]) -> dict[str, NDArray]:
        """Columns of n sources within the range of magnitudes; ``batch`` draws some, and says their G."""
        batches: list[dict[str, NDArray]] = []
        found = 0
        for _ in range(_MOST_BATCHES):
            columns, g = batch(int(_OVERDRAW * (n - found)) + 64)
            inside = (g >= self.magnitudes[0]) & (g <= self.magnitudes[1])
            batches.append({name: values[inside] for name, values in columns.items()})
            found += int(inside.sum())
            if found >= n:
                return {name: np.concatenate([part[name] for part in batches])[:n] for name in batches[0]}
        raise InputError(f"hardly any star has G between {self.magnitudes[0]:g} and {self.magnitudes[1]:g}")

    def _places(self, position: Float64, rng: np.random.Generator) -> dict[str, Float64]:
        """Columns of what a position (n, 3) [kpc] tells, and R(V)."""
        distance = np.linalg.norm(position, axis=1)
        ray = position / distance[:, None]
        n = len(distance)
        varied = rng.uniform(size=n) < self.planted.varied_rv
        other = np.clip(STANDARD_RV + RV_SCATTER * rng.standard_normal(n), *RV_RANGE)
        return {
            "longitude": np.arctan2(ray[:, 1], ray[:, 0]),
            "latitude": np.arcsin(np.clip(ray[:, 2], -1.0, 1.0)),
            "distance": distance,
            "ext": self.dust.column(ray, distance),
            "rv": np.where(varied, other, STANDARD_RV),
        }

    def _dimming(self, place: dict[str, Float64]) -> Float64:
        """Flux through dust at a distance over that at 1 kpc without, (n, 66)."""
        depth = place["ext"][:, None] * self.truth.optical_depth(place["rv"])
        return np.exp(-depth) / place["distance"][:, None] ** 2


def _magnitude(band: str, flux: Float64) -> Float64:
    """Magnitude (n,) of fluxes (n, 66)."""
    return synthetic_magnitude(band, XP_WAVELENGTH, flux[:, :N_XP])


def _ratio_in_g(flux: Float64, reference: Float64) -> Float64:
    """Ratio (n,) of fluxes (n, 66) in G."""
    return 10.0 ** (0.4 * (_magnitude("g", reference) - _magnitude("g", flux)))


def _isotropic(n: int, rng: np.random.Generator) -> Float64:
    """Unit vectors (n, 3) in random directions."""
    vector = rng.standard_normal((n, 3))
    return vector / np.linalg.norm(vector, axis=1, keepdims=True)
