"""Cross-match on the sphere: for each source the nearest star of another catalogue, which may be larger than memory.

Directions are unit vectors u; stars less than an angle r apart are less than the chord 2 sin(r / 2) apart, so that a
k-d tree of the sources in three dimensions knows neither poles nor a seam in right ascension. Memory holds the sources;
the other catalogue comes block by block. Both are put in an order in which neighbours on the sky are neighbours in
memory, which makes the tree and the search in it four times as fast. The separation is 2 atan2(|u - v|, |u + v|), exact
to 1e-9 arcsec.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from xpkern.engine.contract import Float64
from xpkern.errors import InputError

#: Arcseconds of a radian, milliarcseconds of one.
ARCSEC, MAS = np.degrees(1.0) * 3600.0, np.degrees(1.0) * 3.6e6

#: Largest radius of a match [arcsec].
LARGEST_RADIUS = 1800.0

#: Cells along each axis of the grid by which directions are ordered.
_GRID = 1024

#: Neighbours that are asked for at first; more only around a star with as many within the radius.
_FIRST_NEIGHBOURS = 4


@dataclass(frozen=True)
class Matches:
    """Which star of the other catalogue belongs to which source.

    Attributes
    ----------
    source : (p,) int64
        Index of the source, ascending.
    row : (p,) int64
        Index of the star, counted over all blocks.
    separation : (p,) float64
        Angle between them [arcsec].
    mutual : (p,) bool
        Whether the source is also the nearest of the star, in its block.
    unmatchable_sources, unmatchable_rows : int
        Sources and stars without usable coordinates; they have no match.
    """

    source: NDArray[np.int64]
    row: NDArray[np.int64]
    separation: Float64
    mutual: NDArray[np.bool_]
    unmatchable_sources: int
    unmatchable_rows: int

    def __len__(self) -> int:
        return len(self.source)


class Matcher:
    """Finds the nearest star of another catalogue within a radius of each source.

    Parameters
    ----------
    ra, dec : (n,) array_like
        Of the sources [deg].
    radius : float
        Largest separation of a match [arcsec].
    one_to_one : bool
        Only pairs of which each is the other's nearest; otherwise a star may belong to several sources.
    threads : int

    Raises
    ------
    InputError
        If the arrays differ in length, or the radius is not between 0 and half a degree.
    """

    def __init__(
        self, ra: ArrayLike, dec: ArrayLike, radius: float, *, one_to_one: bool = False, threads: int = 1
    ) -> None:
        if not 0 < radius <= LARGEST_RADIUS:
            raise InputError(f"{radius} arcsec is not between 0 and {LARGEST_RADIUS:g}", field="radius")
        directions, usable = unit_vectors(ra, dec)
        self._rows_of_tree = _by_place(directions, usable)
        self._tree = cKDTree(directions[self._rows_of_tree], balanced_tree=False)
        self._chord = 2.0 * np.sin(0.5 * radius / ARCSEC) * (1 + 1e-14)
        self._one_to_one = one_to_one
        self._threads = threads
        self._row = np.full(len(self._rows_of_tree), -1, np.int64)
        self._mutual = np.zeros(len(self._rows_of_tree), bool)
        self._separation = np.full(len(self._rows_of_tree), np.inf)
        self._seen = 0
        self._unmatchable_sources = len(usable) - len(self._rows_of_tree)
        self._unmatchable_rows = 0

    def add(self, ra: ArrayLike, dec: ArrayLike) -> None:
        """Compare all sources with a block of stars of the other catalogue, [deg]."""
        directions, usable = unit_vectors(ra, dec)
        rows = _by_place(directions, usable)
        self._unmatchable_rows += len(usable) - len(rows)
        first, self._seen = self._seen, self._seen + len(usable)
        if len(rows) == 0 or self._tree.n == 0:
            return
        star, source, apart = self._pairs(directions[rows])
        nearest_source = _first_of_each(star, apart, self._rows_of_tree[source])
        mutual = np.zeros(len(star), bool)
        mutual[nearest_source] = True
        # of equally near stars the first, so that blocks do not matter
        nearest = _first_of_each(source, apart, rows[star])
        better = nearest[apart[nearest] < self._separation[source[nearest]]]
        sources = source[better]
        self._row[sources] = first + rows[star[better]]
        self._separation[sources] = apart[better]
        self._mutual[sources] = mutual[better]

    def result(self) -> Matches:
        """All matches so far."""
        matched = np.flatnonzero(self._mutual if self._one_to_one else self._row >= 0)
        matched = matched[np.argsort(self._rows_of_tree[matched])]
        return Matches(
            source=self._rows_of_tree[matched],
            row=self._row[matched],
            separation=self._separation[matched],
            mutual=self._mutual[matched],
            unmatchable_sources=self._unmatchable_sources,
            unmatchable_rows=self._unmatchable_rows,
        )

    def _pairs(self, directions: Float64) -> tuple[NDArray[np.intp], NDArray[np.intp], Float64]:
        """Stars, sources and separations of all pairs within the radius, (p,) each."""
        stars, count = np.arange(len(directions)), _FIRST_NEIGHBOURS
        found: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
        while len(stars):
            count = min(count, self._tree.n)
            chord, source = self._tree.query(
                directions[stars], k=[*range(1, count + 1)], distance_upper_bound=self._chord, workers=self._threads
            )
            near = np.isfinite(chord)
            full = near[:, -1] & (count < self._tree.n)  # there may be more
            which, neighbour = np.nonzero(near & ~full[:, None])
            found.append((stars[which], source[which, neighbour]))
            stars, count = stars[full], 4 * count
        star, source = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return star, source, separation(directions[star], np.asarray(self._tree.data)[source])


def _first_of_each(group: NDArray[np.intp], apart: Float64, then: NDArray[np.intp]) -> NDArray[np.intp]:
    """Index of the least separation in each group, of the first by ``then`` where several are the least."""
    order = np.argsort(group, kind="stable")
    begins = _begins(group[order])
    alone = begins & np.append(begins[1:], True)[: len(order)]
    several = order[~alone]  # few
    several = several[np.lexsort((then[several], apart[several], group[several]))]
    return np.concatenate([order[alone], several[_begins(group[several])]])


def _begins(values: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Where a value differs from the one before it."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]


def _by_place(directions: Float64, usable: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Indices of those that are usable, by cells of a cubic grid, 0.1 degrees wide."""
    which = np.flatnonzero(usable)
    cell = ((directions[which] + 1.0) * (_GRID / 2)).astype(np.int64)
    return which[np.argsort((cell[:, 0] * _GRID + cell[:, 1]) * _GRID + cell[:, 2], kind="stable")]


def cross_match(
    ra: ArrayLike,
    dec: ArrayLike,
    other_ra: ArrayLike,
    other_dec: ArrayLike,
    radius: float,
    *,
    one_to_one: bool = False,
    threads: int = 1,
) -> Matches:
    """The nearest star of another catalogue within a radius of each source, for catalogues in memory.

    Parameters
    ----------
    ra, dec : (n,) array_like
        Of the sources [deg].
    other_ra, other_dec : (m,) array_like
        Of the stars [deg].
    radius, one_to_one, threads
        As for :class:`Matcher`.

    Returns
    -------
    Matches
    """
    matcher = Matcher(ra, dec, radius, one_to_one=one_to_one, threads=threads)
    matcher.add(other_ra, other_dec)
    return matcher.result()


def unit_vectors(ra: ArrayLike, dec: ArrayLike) -> tuple[Float64, NDArray[np.bool_]]:
    """Directions (n, 3) of coordinates [deg], and which of these are usable: finite, and between the poles.

    Raises
    ------
    InputError
        If the two differ in length.
    """
    longitude = np.radians(np.ma.filled(np.ma.asarray(ra, np.float64), np.nan))
    latitude = np.radians(np.ma.filled(np.ma.asarray(dec, np.float64), np.nan))
    if longitude.shape != latitude.shape or longitude.ndim != 1:
        raise InputError(f"ra has the shape {longitude.shape}, dec {latitude.shape}", field="dec")
    usable = np.isfinite(longitude) & (np.abs(latitude) <= np.radians(90.0))
    with np.errstate(invalid="ignore"):
        across = np.cos(latitude)
        vectors = np.column_stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)])
    return vectors, usable


def separation(directions: Float64, others: Float64) -> Float64:
    """Angle [arcsec] between unit vectors, (n, 3) each; exact for small angles and large ones."""
    apart = np.linalg.norm(directions - others, axis=1)
    together = np.linalg.norm(directions + others, axis=1)
    return 2.0 * np.arctan2(apart, together) * ARCSEC


def moved(
    ra: ArrayLike, dec: ArrayLike, pmra: ArrayLike, pmdec: ArrayLike, years: ArrayLike
) -> tuple[Float64, Float64]:
    """Coordinates after some years of uniform motion along a straight line in space, without a radial velocity.

    ::

        u(t) = (u + t (pmra e_ra + pmdec e_dec)) / |...|      e_ra, e_dec the unit vectors to the east and north

    Parameters
    ----------
    ra, dec : (n,) array_like
        [deg]
    pmra, pmdec : (n,) array_like
        Proper motions [mas/yr], that in right ascension times cos(dec), as Gaia gives it; what is no number counts as
        none.
    years : (n,) array_like or float

    Returns
    -------
    ra, dec : (n,) float64
        [deg], ra from 0 to 360; NaN where the coordinates were not usable, or lead nowhere.
    """
    longitude, latitude = np.radians(np.asarray(ra, np.float64)), np.radians(np.asarray(dec, np.float64))
    start, usable = unit_vectors(ra, dec)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found below
        angles = [
            np.nan_to_num(np.ma.filled(np.ma.asarray(motion, np.float64), np.nan), posinf=0.0, neginf=0.0) / MAS * years
            for motion in (pmra, pmdec)
        ]
        east = np.column_stack([-np.sin(longitude), np.cos(longitude), np.zeros_like(longitude)])
        north = np.column_stack(
            [-np.sin(latitude) * np.cos(longitude), -np.sin(latitude) * np.sin(longitude), np.cos(latitude)]
        )
        there = start + angles[0][:, None] * east + angles[1][:, None] * north
        there[~usable | ~np.isfinite(np.linalg.norm(there, axis=1))] = np.nan
    return (
        np.degrees(np.arctan2(there[:, 1], there[:, 0])) % 360.0,
        np.degrees(np.arctan2(there[:, 2], np.hypot(there[:, 0], there[:, 1]))),
    )
