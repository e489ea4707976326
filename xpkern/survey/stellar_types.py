"""Which stars there are: masses, ages and metallicities of three components, and what they make of a star today.

A star is born with a mass (Kroupa 2001), at an age and metallicity of its component, and stands on one of four
branches. Its place there follows from simple fits to what stars are known to do, not from tracks:

- main sequence: teff and radius by mass (Pecaut & Mamajek 2013), hotter where metals are few, growing with age;
- subgiant: on a straight line in (teff, log g) to the foot of the giant branch;
- giant branch: log g from 3.5 to 0.3 with the numbers of the luminosity function, teff by log g, metals and mass;
- clump: helium burning, log g near 2.45.

log g and mass give the radius, so that fluxes agree with teff and log g. The galaxy is reduced to what shapes a survey:
exponential layers around the plane, denser towards the centre.

How often a type is seen is its number times the volume in which it is brighter than the limit. A table over component,
branch, mass and progress holds that; types are drawn from its cells and spread within them, then placed at random
within their own volume (:class:`StellarTypes`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.train.flux_scale import DWARF_MASS, DWARF_TEFF


@dataclass(frozen=True)
class Component:
    """A part of the Galaxy: share of the local number, scale height [kpc], range of ages [Gyr], [Fe/H] and scatter."""

    name: str
    share: float
    height: float
    ages: tuple[float, float]
    feh: float
    feh_scatter: float


COMPONENTS = (
    Component("thin disc", 0.90, 0.28, (0.1, 9.0), -0.05, 0.20),
    Component("thick disc", 0.095, 0.85, (8.0, 12.0), -0.55, 0.25),
    Component("halo", 0.005, 3.0, (10.5, 13.0), -1.5, 0.45),
)

BRANCHES = ("main sequence", "subgiant", "giant branch", "clump")
MAIN_SEQUENCE, SUBGIANT, GIANT, CLUMP = range(len(BRANCHES))

#: [Fe/H] that a star may have: the model atmospheres' range.
FEH_RANGE = (-2.5, 0.5)

#: Main sequence: the typical masses and their teff continued to hotter stars, and the radii [solar] that go with them.
_MASS = np.array([*DWARF_MASS, 2.75, 3.4, 4.7, 6.6])
_TEFF = np.array([*DWARF_TEFF, 10.7, 12.5, 15.7, 19.5])
_DWARF_RADIUS = (
    *(0.115, 0.135, 0.196, 0.274, 0.36, 0.446, 0.50, 0.585, 0.63),
    *(0.70, 0.76, 0.82, 1.0, 1.12, 1.47, 1.73, 1.79, 2.15),
)
_RADIUS = np.array([*_DWARF_RADIUS, 2.35, 2.6, 3.3, 4.0])

#: log g of the Sun.
_SUN_LOGG = 4.438

#: Change of log10 teff on the main sequence per dex of [Fe/H].
_TEFF_BY_FEH = -0.045

#: Growth of log10 radius over a life on the main sequence, and at which part of it the radii above are meant.
_GROWTH, _TYPICAL_AGE = 0.2, 0.4

#: Giants: log g at the foot and at the tip, and how their number grows with log g (dex per dex).
_FOOT, _TIP, _COUNTS = 3.5, 0.3, 0.65

#: Scatter of teff at a given mass, age and metallicity, as a fraction: rotation, helium, alpha elements.
_TEFF_SCATTER = 0.008

#: Numbers of cells in mass and in progress along a branch.
_MASS_CELLS, _PROGRESS_CELLS = 48, 16

#: Distance of the Sun from the centre and scale length of the discs [kpc]; how many times the local density they reach.
_SUN_TO_CENTRE, _SCALE_LENGTH, _DENSEST = 8.2, 2.6, 2.0


@dataclass(frozen=True)
class Types:
    """n stars without a place: all arrays (n,) but ``theta`` (n, 3: teff [kK], feh, logg).

    ``mass`` is in solar units, ``age`` in Gyr, ``component`` and ``branch`` count in :data:`COMPONENTS` and
    :data:`BRANCHES`.
    """

    theta: Float64
    mass: Float64
    age: Float64
    component: NDArray[np.intp]
    branch: NDArray[np.intp]

    def __getitem__(self, stars: NDArray | slice) -> Types:
        return Types(**{field.name: getattr(self, field.name)[stars] for field in fields(self)})


def radius(mass: Float64, logg: Float64) -> Float64:
    """Radius [solar] (n,) by mass [solar] and log g."""
    return np.sqrt(mass * 10.0 ** (_SUN_LOGG - logg))


def lifetime(mass: Float64, feh: Float64) -> Float64:
    """Time on the main sequence [Gyr]."""
    return 10.0 * mass**-2.9 * 10.0 ** (0.12 * feh)


def duration(branch: int, mass: Float64, feh: Float64) -> Float64:
    """Time on another branch [Gyr]; massive stars cross the gap to the giants, and climb, in no time."""
    life = lifetime(mass, feh)
    if branch == SUBGIANT:
        return 0.12 * life * np.clip((mass / 1.3) ** -2.0, 0.2, 1.0)
    if branch == GIANT:
        return 0.06 * life * np.clip((mass / 1.8) ** -4.0, 0.1, 1.0)
    return np.full(mass.shape, 0.1)


def initial_mass_function(mass: Float64) -> Float64:
    """Stars per unit of mass (Kroupa 2001), in arbitrary units."""
    return np.where(mass < 0.5, mass**-1.3, 0.5 * mass**-2.3)


def main_sequence(mass: Float64, feh: Float64, progress: Float64) -> tuple[Float64, Float64]:
    """Temperature [kK] and log g after the fraction ``progress`` of the life on the main sequence; all (n,)."""
    ln_mass = np.log(mass)
    teff = np.exp(np.interp(ln_mass, np.log(_MASS), np.log(_TEFF))) * 10.0 ** (_TEFF_BY_FEH * feh)
    evolves = np.clip((mass - 0.6) / 0.3, 0.0, 1.0)
    log_radius = np.interp(ln_mass, np.log(_MASS), np.log10(_RADIUS)) + _GROWTH * evolves * (progress - _TYPICAL_AGE)
    cools = np.clip((mass - 1.0) / 0.5, 0.0, 1.0)
    teff = teff * 10.0 ** (-0.05 * cools * (progress - _TYPICAL_AGE))
    return teff, _SUN_LOGG + np.log10(mass) - 2.0 * log_radius


def giant_branch(logg: Float64, mass: Float64, feh: Float64) -> Float64:
    """Temperature [kK] of giants (n,)."""
    return 4.64 + 0.43 * (logg - 2.5) - 0.3 * np.maximum(feh, -2.0) + 0.13 * (mass - 1.1)


def place_on_branch(
    branch: NDArray[np.intp], mass: Float64, feh: Float64, progress: Float64
) -> tuple[Float64, Float64]:
    """Temperature [kK] and log g of stars (n,) after the fraction ``progress`` (n,) of their time on their branch."""
    teff, logg = main_sequence(mass, feh, np.where(branch == MAIN_SEQUENCE, progress, 1.0))

    foot = giant_branch(np.full(mass.shape, _FOOT), mass, feh)
    step = np.where(branch == SUBGIANT, progress, 0.0)
    teff, logg = teff + step * (foot - teff), logg + step * (_FOOT - logg)

    most, least = 10.0 ** (_COUNTS * _FOOT), 10.0 ** (_COUNTS * _TIP)
    climbing = np.log10(most - progress * (most - least)) / _COUNTS
    is_giant = branch == GIANT
    logg = np.where(is_giant, climbing, logg)
    teff = np.where(is_giant, giant_branch(climbing, mass, feh), teff)

    is_clump = branch == CLUMP
    burning = 2.38 + 0.12 * progress + 0.1 * (np.minimum(mass, 2.0) - 1.1)
    logg = np.where(is_clump, burning, logg)
    teff = np.where(is_clump, 4.8 - 0.25 * np.maximum(feh, -1.5) + 0.1 * (np.minimum(mass, 2.0) - 1.1), teff)
    return teff, logg


class StellarTypes:
    """Types as a survey limited in magnitude sees them.

    Parameters
    ----------
    absolute_g : callable
        Absolute magnitude G (n,) of theta (n, 3) and mass (n,), without dust.
    covers : callable
        Which types (n,) there are spectra for, of theta (n, 3).
    faintest : float
        Limit of the survey [mag].
    """

    def __init__(
        self,
        absolute_g: Callable[[Float64, Float64], Float64],
        covers: Callable[[Float64], NDArray[np.bool_]],
        faintest: float,
    ) -> None:
        edges = np.geomspace(DWARF_MASS[1], _MASS[-1], _MASS_CELLS + 1)
        cells = np.stack(
            np.meshgrid(
                np.arange(len(COMPONENTS)),
                np.arange(len(BRANCHES)),
                np.arange(_MASS_CELLS),
                np.arange(_PROGRESS_CELLS),
                indexing="ij",
            )
        ).reshape(4, -1)
        self._ln_edges = np.log(edges)
        self._cells = cells
        half = np.full((2, cells.shape[1]), 0.5)
        types = self._types_of(cells, half, np.array([c.feh for c in COMPONENTS])[cells[0]], np.zeros(cells.shape[1]))
        reach = distance_limit(absolute_g(types.theta, types.mass), faintest)
        volume = _volume(reach, np.array([c.height for c in COMPONENTS])[types.component])
        weight = self._number(types) * volume * covers(types.theta)
        dwarf = (types.branch == MAIN_SEQUENCE) & (types.theta[:, 0] < COOL)
        #: Cumulative weights of the cells: of stars, without the coolest giants, and of M dwarfs.
        self._cumulative = {
            False: np.cumsum(weight * (types.theta[:, 0] >= COOL)),
            True: np.cumsum(weight * dwarf),
        }

    def has(self, *, m_dwarfs: bool) -> bool:
        """Whether there is any star of the kind."""
        return bool(self._cumulative[m_dwarfs][-1] > 0)

    def draw(self, n: int, rng: np.random.Generator, *, m_dwarfs: bool = False) -> Types:
        """Draw n stars, M dwarfs or others."""
        cumulative = self._cumulative[m_dwarfs]
        cells = self._cells[:, np.searchsorted(cumulative, rng.uniform(size=n) * cumulative[-1], side="right")]
        mean, scatter = np.array([(c.feh, c.feh_scatter) for c in COMPONENTS]).T
        within = rng.uniform(size=(2, n))
        feh = np.clip(mean[cells[0]] + scatter[cells[0]] * rng.standard_normal(n), *FEH_RANGE)
        return self._types_of(cells, within, feh, _TEFF_SCATTER * rng.standard_normal(n))

    def _types_of(self, cells: NDArray[np.intp], within: Float64, feh: Float64, ln_teff_offset: Float64) -> Types:
        """Stars in cells (4, n), at the places ``within`` (2, n) of 0 to 1 in mass and progress."""
        component, branch, mass_cell, progress_cell = cells
        step = self._ln_edges[1] - self._ln_edges[0]
        mass = np.exp(self._ln_edges[mass_cell] + within[0] * step)
        progress = (progress_cell + within[1]) / _PROGRESS_CELLS
        youngest, oldest = np.array([c.ages for c in COMPONENTS])[component].T
        life = lifetime(mass, feh)
        born = youngest + progress * (oldest - youngest)
        is_main = branch == MAIN_SEQUENCE
        age = np.where(is_main, np.minimum(born, life), life)
        teff, logg = place_on_branch(branch, mass, feh, np.where(is_main, age / life, progress))
        return Types(np.column_stack([teff * np.exp(ln_teff_offset), feh, logg]), mass, age, component, branch)

    def _number(self, types: Types) -> Float64:
        """Relative number of stars in each cell, per volume in the plane near the Sun."""
        feh = types.theta[:, 1]
        youngest, oldest = np.array([c.ages for c in COMPONENTS])[types.component].T
        share = np.array([c.share for c in COMPONENTS])[types.component]
        born = initial_mass_function(types.mass) * types.mass * share
        alive = (types.age < lifetime(types.mass, feh)).astype(np.float64)
        passing = np.zeros(len(born))
        for branch in (SUBGIANT, GIANT, CLUMP):
            here = types.branch == branch
            passing[here] = duration(branch, types.mass[here], feh[here])
        passing *= ((types.age > youngest) & (types.age < oldest)) / (oldest - youngest)
        return born * np.where(types.branch == MAIN_SEQUENCE, alive, passing)


#: teff [kK] below which a star is an M star, and no ATLAS9 atmosphere is to be trusted.
COOL = 4.0


def distance_limit(absolute_g: Float64, faintest: float) -> Float64:
    """Distance [kpc] at which a star without dust has the magnitude ``faintest``."""
    return 10.0 ** (0.2 * (faintest - absolute_g) - 2.0)


def draw_positions(
    reach: Float64, component: NDArray[np.intp], rng: np.random.Generator
) -> tuple[Float64, NDArray[np.bool_]]:
    """Places of stars (n, 3) [kpc], x to the Galactic centre, and which of them (n,) are to be kept.

    Drawn in the cylinder around the sphere of radius ``reach`` (n,), whose volume :func:`_volume` states; kept within
    the sphere, and as the component's density has it.
    """
    height = np.array([c.height for c in COMPONENTS])[component]
    u, v, azimuth, w, side = rng.uniform(size=(5, len(reach)))
    z = -height * np.log1p(u * np.expm1(-reach / height))
    across = reach * np.sqrt(v)
    azimuth = 2.0 * np.pi * azimuth
    position = np.column_stack([across * np.cos(azimuth), across * np.sin(azimuth), np.where(side < 0.5, -z, z)])
    from_centre = np.hypot(position[:, 0] - _SUN_TO_CENTRE, position[:, 1])
    density = np.minimum(np.exp((_SUN_TO_CENTRE - from_centre) / _SCALE_LENGTH), _DENSEST)
    return position, (across**2 + z**2 < reach**2) & (w * _DENSEST < density)


def _volume(reach: Float64, height: Float64) -> Float64:
    """Volume [kpc3] of the cylinder of half-height and radius ``reach``, weighted with exp(-|z| / height)."""
    return 2.0 * np.pi * reach**2 * height * -np.expm1(-reach / height)
