"""Exact medians of cells in bounded memory: the stars wait on the disk, sorted by part of the sky.

A star takes 8 bytes there: its cell and its value in single precision, of which the medians are exact, whatever the
order of the stars.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.maps.settings import MapSettings

#: A star on the disk: its finest pixel within its tile times the number of bins plus its bin, and its value.
_STAR = np.dtype([("cell", "u4"), ("value", "f4")])

#: Stars held in memory until they are written.
_HELD = 1 << 21

#: Standard error of a median over that of a mean, of many normal numbers: sqrt(pi / 2).
_MEDIAN_OVER_MEAN = 1.2533141373155001


class WaitingStars:
    """Stars by tile; a context manager that removes them in the end.

    Parameters
    ----------
    settings : MapSettings
    tile_order : int
        Of the tiles.
    folder : Path
        On a disk with room for them.
    """

    def __init__(self, settings: MapSettings, tile_order: int, folder: Path) -> None:
        self._settings = settings
        self._shift = 2 * (settings.orders[0] - tile_order)
        self._folder = tempfile.TemporaryDirectory(prefix=".xpkern-map-", dir=folder)
        self._held: list[tuple[NDArray[np.int64], NDArray[np.void]]] = []
        self._count = 0

    def __enter__(self) -> WaitingStars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def add(self, pixel: NDArray[np.int64], bins: NDArray[np.int16], value: Float64) -> None:
        """Add stars (n,) by their finest pixels and distance bins; a bin of -1 leaves a star out."""
        used = bins >= 0
        pixel, tile = pixel[used], pixel[used] >> self._shift
        stars = np.empty(len(pixel), _STAR)
        stars["cell"] = (pixel - (tile << self._shift)) * self._settings.bins + bins[used]
        stars["value"] = value[used]
        self._held.append((tile, stars))
        self._count += len(stars)
        if self._count >= _HELD:
            self._write()

    def levels(self, tile: int) -> list[tuple[Float64, Float64, NDArray[np.int64]]]:
        """Median, its error and number of stars of the cells of a tile, (pixels, bins) each, for each nside.

        The error is 1.25 times half the width of the central 68 per cent over the root of the number of stars.
        """
        self._write()
        path = self._path(tile)
        stars = np.fromfile(path, _STAR) if path.exists() else np.empty(0, _STAR)
        pixel, k = np.divmod(stars["cell"].astype(np.int64), self._settings.bins)
        found = []
        for order in self._settings.orders:
            coarser = 2 * (self._settings.orders[0] - order)
            cells = (1 << self._shift - coarser) * self._settings.bins
            cell = (pixel >> coarser) * self._settings.bins + k
            median, error, count = _medians(cell, stars["value"], cells)
            shape = (-1, self._settings.bins)
            found.append((median.reshape(shape), error.reshape(shape), count.reshape(shape)))
        return found

    def _write(self) -> None:
        """Append what is held to the files of its tiles."""
        if not self._held:
            return
        tile = np.concatenate([each for each, _ in self._held])
        stars = np.concatenate([each for _, each in self._held])
        order = np.argsort(tile, kind="stable")
        tile, stars = tile[order], stars[order]
        starts = np.flatnonzero(np.diff(tile, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(tile)], strict=True):
            with open(self._path(int(tile[start])), "ab") as stream:
                stars[start:end].tofile(stream)
        self._held, self._count = [], 0

    def _path(self, tile: int) -> Path:
        return Path(self._folder.name) / f"{tile}.stars"


def _medians(cell: NDArray[np.int64], value: NDArray[np.float32], cells: int) -> tuple[Float64, Float64, NDArray]:
    """Median, its error and number of values of each cell."""
    count = np.bincount(cell, minlength=cells)
    ordered = value[np.lexsort((value, cell))].astype(np.float64)
    start, filled = np.cumsum(count) - count, np.flatnonzero(count)

    def quantile(share: float) -> Float64:
        place = share * (count[filled] - 1)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, count[filled] - 1)
        lower, upper = (ordered[start[filled] + each] for each in (low, high))
        return lower + (upper - lower) * (place - low)

    median, error = np.full(cells, np.nan), np.full(cells, np.nan)
    median[filled] = quantile(0.5)
    half_width = 0.5 * (quantile(0.841345) - quantile(0.158655))
    error[filled] = _MEDIAN_OVER_MEAN * half_width / np.sqrt(count[filled])
    return median, error, count
