"""Stars to train on, their whiteners sixteen side by side: as a register of a processor takes them in.

What trains on the CPU reads such a group where it stands. Everybody else asks for rows, which are copies: of a whole
group at once they cost little more than rows in memory, of a star by itself as much as of its group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpkern.engine import _cpu
from xpkern.engine.contract import Float32, Float64, StarData

#: Stars of a group: the floats of the widest register, as the kernels have it (csrc/cpu/arguments.hpp).
STARS_OF_GROUP: int = _cpu.STARS_SIDE_BY_SIDE

#: Bytes of a cache line: groups in memory begin on one.
_LINE = 64


class WhitenerGroups:
    """Packed whiteners of n stars, in groups of sixteen neighbours.

    Parameters
    ----------
    groups : (ceil(n / 16), p, 16) float32
        Element k of star i is ``groups[i // 16, k, i % 16]``; zeros beyond the last star.
    n_stars : int

    Attributes
    ----------
    groups : (ceil(n / 16), p, 16) float32
    shape : tuple of int
        (n, p), that of the rows.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, groups: Float32, n_stars: int) -> None:
        self.groups = groups
        self.shape = (n_stars, groups.shape[1])

    @classmethod
    def of(cls, rows: Float32) -> WhitenerGroups:
        """Rows (n, p), copied."""
        memory = empty_rows(len(rows), rows.shape[1])
        memory[: len(rows)] = rows
        return cls.of_memory(memory, len(rows))

    @classmethod
    def of_memory(cls, rows: Float32, n_stars: int) -> WhitenerGroups:
        """The first ``n_stars`` of rows, whose memory the groups take over.

        Parameters
        ----------
        rows : (16 ceil(n / 16), p) float32
            Contiguous and writeable; those beyond the last star become zeros.
        """
        rows[n_stars:] = 0.0
        _cpu.group_rows(rows)
        return cls(rows.reshape(-1, rows.shape[1], STARS_OF_GROUP), n_stars)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return 4 * self.shape[0] * self.shape[1]

    def __getitem__(self, stars: slice | NDArray[np.intp] | NDArray[np.bool_]) -> Float32:
        """Rows of some stars, in their order, copied."""
        rows = np.arange(*stars.indices(len(self))) if isinstance(stars, slice) else np.arange(len(self))[stars]
        return _cpu.rows_of_groups(self.groups, rows)


@dataclass
class GroupedStars:
    """As :class:`xpkern.engine.contract.StarData`, but for the whiteners.

    Attributes
    ----------
    flux : (n, m) float32
    whitener : WhitenerGroups
    mean, sigma : (n, k) float64
    """

    flux: Float32
    whitener: WhitenerGroups
    mean: Float64
    sigma: Float64

    @classmethod
    def of(cls, stars: StarData) -> GroupedStars:
        """The same stars; their whiteners are copied."""
        return cls(stars.flux, WhitenerGroups.of(stars.whitener), stars.mean, stars.sigma)

    def __len__(self) -> int:
        return len(self.flux)

    def __getitem__(self, rows: slice | NDArray[np.intp] | NDArray[np.bool_]) -> StarData:
        """Some of the stars; their whiteners are copied."""
        return StarData(self.flux[rows], self.whitener[rows], self.mean[rows], self.sigma[rows])


def whole_groups(n_stars: int) -> int:
    """Number of stars, rounded up to whole groups."""
    return -(-n_stars // STARS_OF_GROUP) * STARS_OF_GROUP


def empty_rows(n_stars: int, size: int) -> Float32:
    """Memory for rows of that size, of whole groups of stars, that begins on a cache line."""
    count = whole_groups(n_stars) * size
    memory = np.empty(count + _LINE // 4, np.float32)
    first = -memory.ctypes.data % _LINE // 4
    return memory[first : first + count].reshape(-1, size)


def in_random_groups(rows: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """Ascending rows of stars in a new order: groups at random, the stars of a group together."""
    group = rows // STARS_OF_GROUP
    begins = np.flatnonzero(np.append(True, group[1:] != group[:-1])) if len(rows) else np.empty(0, np.intp)
    new_order = np.argsort(rng.permutation(len(begins)))  # of as many groups; no sort of the stars, in every epoch
    sizes = np.diff(np.append(begins, len(rows)))[new_order]
    shift = begins[new_order] - (np.cumsum(sizes) - sizes)
    order: NDArray[np.intp] = rows[np.repeat(shift, sizes) + np.arange(len(rows))]
    return order
