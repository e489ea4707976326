"""The map: mean of a quantity of the stars in cells of sky and distance, and its queries."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.errors import XpkernError
from xpkern.maps.settings import MapSettings
from xpkern.maps.sky import centres, pixels

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Tile:
    """Rows of a map: finest pixels, and what is known of each distance bin.

    Attributes
    ----------
    pixel : (n,) int64
    value, error : (n, bins) float32
        NaN where no resolution has enough stars.
    stars : (n, bins) int32
        Of the cell that the value is from; 0 where there is none.
    nside : (n, bins) int16
        Its resolution; 0 where there is none.
    """

    pixel: NDArray[np.int64]
    value: Float32
    error: Float32
    stars: NDArray[np.int32]
    nside: NDArray[np.int16]


def best_resolution(
    pixel: NDArray[np.int64], levels: Sequence[tuple[Float64, Float64, NDArray[np.int64]]], settings: MapSettings
) -> Tile:
    """Of each finest pixel and bin, the finest resolution at which there are enough stars.

    Parameters
    ----------
    pixel : (n,) int64
        All finest pixels of some coarsest ones, in order.
    levels : sequence of (value, error, stars)
        Of each nside, (pixels of it, bins) each.
    settings : MapSettings
    """
    shape = (len(pixel), settings.bins)
    value, error = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    stars, nside_used = np.zeros(shape, np.int32), np.zeros(shape, np.int16)
    for level, nside in reversed(list(zip(levels, settings.nsides, strict=True))):
        repeat = len(pixel) // len(level[0])
        finer = [np.repeat(part, repeat, axis=0) for part in level]
        enough = finer[2] >= settings.min_stars
        for kept, new in ((value, finer[0]), (error, finer[1]), (stars, finer[2])):
            kept[enough] = new[enough]
        nside_used[enough] = nside
    return Tile(pixel, value, error, stars, nside_used)


@dataclass(frozen=True)
class SkyCube:
    """A map in memory.

    Attributes
    ----------
    settings : MapSettings
        What it was made of.
    tile : Tile
        Its pixels, in order, of the finest nside, nested, on the Galactic sky.
    per_bin : mapping of str to (bins,) array
        What is known of each distance bin: ``stars``, and the biases of :mod:`xpkern.maps.bias`.
    outcomes : mapping of str to int
        What became of the stars, by the names of :data:`xpkern.maps.settings.OUTCOMES`.
    attributes : mapping of str to str
        Where it is from: digests of the model and of the catalogue, and the like.
    """

    settings: MapSettings
    tile: Tile
    per_bin: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def edges(self) -> Float64:
        """Edges of the distance bins (bins + 1,) [kpc]."""
        return np.array(self.settings.edges)

    @property
    def distance(self) -> Float64:
        """Middles of the distance bins (bins,) [kpc]: where the mean of a bin's stars is taken to be."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @property
    def order(self) -> int:
        """Order of its pixels."""
        return self.settings.orders[0]

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Which pixels (n,) have a number in any bin."""
        return np.asarray(np.isfinite(self.tile.value).any(axis=1))

    def places(self) -> tuple[Float64, Float64]:
        """Galactic longitude and latitude (n,) [rad] of the centres of its pixels."""
        return centres(self.tile.pixel, self.order)

    def rows(self, longitude: Float64, latitude: Float64) -> NDArray[np.intp]:
        """Rows (n,) of the pixels in which places [rad] lie; -1 outside of the map."""
        wanted = pixels(longitude, latitude, self.order)
        if not len(self.tile.pixel):
            return np.full(len(wanted), -1, np.intp)
        row = np.minimum(np.searchsorted(self.tile.pixel, wanted), len(self.tile.pixel) - 1)
        return np.where(self.tile.pixel[row] == wanted, row, -1)

    def query(self, coords: Any) -> Float32:
        """The map at places of the sky, as the maps of the package dustmaps are asked.

        Parameters
        ----------
        coords : astropy.coordinates.SkyCoord
            Of any shape and frame. With a distance, ``ext`` is interpolated linearly between the middles of the bins
            (and 0 at the Sun), ``feh`` is that of the bin.

        Returns
        -------
        array
            [unit of the quantity], with the shape of ``coords``; without distances a last axis more, the distance bins.
            NaN where the map has nothing.
        """
        galactic = coords.galactic
        shape = np.shape(galactic.l)
        longitude, latitude = (np.ravel(angle.rad).astype(np.float64) for angle in (galactic.l, galactic.b))
        row = self.rows(longitude, latitude)
        inside = row >= 0
        if not _has_distance(galactic):
            profile = np.full((len(row), self.settings.bins), np.nan, np.float32)
            profile[inside] = self.tile.value[row[inside]]
            return profile.reshape(*shape, self.settings.bins)
        distance = np.broadcast_to(np.ravel(galactic.distance.to_value("kpc")), row.shape)
        found = np.full(len(row), np.nan, np.float32)
        found[inside] = self._at(row[inside], distance[inside])
        return found.reshape(shape)

    def _at(self, row: NDArray[np.intp], distance: Float64) -> Float64:
        """The map in some of its pixels, at distances [kpc]."""
        edges = self.edges
        own = np.searchsorted(edges, distance, side="right") - 1
        outside = ~(distance >= 0) | (own >= self.settings.bins)
        if self.settings.quantity != "ext":
            found = self.tile.value[row, np.clip(own, 0, self.settings.bins - 1)].astype(np.float64)
            return np.where(outside | (own < 0), np.nan, found)
        middle = np.concatenate([[0.0], self.distance])
        after = np.clip(np.searchsorted(middle, distance, side="right"), 1, self.settings.bins)
        near = np.where(after > 1, self.tile.value[row, np.maximum(after - 2, 0)], 0.0)
        far = self.tile.value[row, after - 1]
        share = np.clip((distance - middle[after - 1]) / (middle[after] - middle[after - 1]), 0.0, 1.0)
        # share 0 or 1: only one of the two bins is asked
        found = np.where(share == 0, near, np.where(share == 1, far, near + share * (far - near)))
        return np.where(outside, np.nan, found)

    def to_dustmaps(self) -> Any:
        """This map as a ``dustmaps.map_base.DustMap``.

        Raises
        ------
        XpkernError
            If dustmaps is not installed.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a configuration that need not be there
                from dustmaps.map_base import DustMap
        except ImportError as error:
            raise XpkernError(f"dustmaps is not installed ({error}): pip install 'xpkern[dust]'") from None
        cube = self

        class XpkernMap(DustMap):
            """A map of xpkern, asked as those of dustmaps are."""

            def query(self, coords: Any) -> Float32:
                """Return :meth:`SkyCube.query`."""
                return cube.query(coords)

            @property
            def distances(self) -> Any:
                """Middles of the distance bins."""
                from astropy import units

                return cube.distance * units.kpc

        return XpkernMap()


def _has_distance(coords: Any) -> bool:
    """Whether places have distances; astropy gives those that have none the distance 1, without a unit."""
    from astropy import units

    return bool(coords.distance.unit != units.dimensionless_unscaled)
