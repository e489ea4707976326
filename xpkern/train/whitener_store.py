"""Where a training set keeps its whiteners: one file that is mapped into memory, or memory alone.

It is filled with rows as they come, and in the end brought into the order of the set and put side by side, in place:
there is never a second copy.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float32
from xpkern.engine.groups import STARS_OF_GROUP, WhitenerGroups, empty_rows, whole_groups
from xpkern.engine.packed import packed_size
from xpkern.grid import N_FLUX

#: Bytes of a star's whitener.
WHITENER_BYTES = 4 * packed_size(N_FLUX)


class WhitenerStore:
    """Rows of whiteners that grow by blocks and become groups in the end.

    Parameters
    ----------
    n_rows : int
        As many as there may be.
    path : Path or None
        The file; in memory where there is none.
    """

    def __init__(self, n_rows: int, path: Path | None) -> None:
        self.path, self.filled = path, 0
        if path is None or n_rows == 0:
            self.rows = empty_rows(n_rows, packed_size(N_FLUX))
        if path is not None:
            with open(path, "wb") as file:
                # asked for now: a full disk is an error here, and not the end of the process in the middle of a write
                os.posix_fallocate(file.fileno(), 0, max(whole_groups(n_rows) * WHITENER_BYTES, 1))
            if n_rows:
                shape = (whole_groups(n_rows), packed_size(N_FLUX))
                self.rows = np.asarray(np.memmap(path, np.float32, "r+", shape=shape))

    def append(self, rows: Float32) -> None:
        """Put rows (b, p) behind those that are there."""
        self.rows[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)

    def finish(self, order: NDArray[np.intp]) -> WhitenerGroups:
        """The filled rows in another order, side by side; a file is cut to their size."""
        bring_into_order(self.rows[: self.filled], order)
        size = whole_groups(self.filled)
        whiteners = WhitenerGroups.of_memory(self.rows[:size], self.filled)
        if self.path is None:
            return whiteners
        with open(self.path, "r+b") as file:
            file.truncate(size * WHITENER_BYTES)
            os.fsync(file.fileno())
        return map_whiteners(self.path, self.filled)


def bring_into_order(rows: NDArray, order: NDArray[np.intp]) -> None:
    """Row i becomes what row ``order[i]`` was: in place, with room for one row besides."""
    comes_from = order.tolist()
    for first in range(len(comes_from)):
        held, place = None, first
        while comes_from[place] != place:
            held = rows[first].copy() if held is None else held
            source, comes_from[place] = comes_from[place], place
            rows[place] = held if source == first else rows[source]
            place = source


def map_whiteners(path: Path, n_stars: int) -> WhitenerGroups:
    """A finished file of whiteners, read only."""
    shape = (whole_groups(n_stars) // STARS_OF_GROUP, packed_size(N_FLUX), STARS_OF_GROUP)
    groups = np.memmap(path, np.float32, "r", shape=shape) if n_stars else np.empty(shape, np.float32)
    return WhitenerGroups(np.asarray(groups), n_stars)
