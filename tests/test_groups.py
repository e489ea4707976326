"""Whiteners side by side: rows come out as they went in, batches are drawn as groups."""

from __future__ import annotations

import numpy as np
import pytest

from xpkern.engine.groups import STARS_OF_GROUP, WhitenerGroups, empty_rows, in_random_groups, whole_groups
from xpkern.train.whitener_store import bring_into_order


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 130])
def test_rows_come_out_as_they_went_in(rng, count):
    rows = rng.standard_normal((count, 153)).astype(np.float32)
    side_by_side = WhitenerGroups.of(rows)
    assert (len(side_by_side), side_by_side.shape, side_by_side.nbytes) == (count, rows.shape, rows.nbytes)
    assert side_by_side.groups.shape == (whole_groups(count) // 16, 153, 16)
    assert count == 0 or side_by_side.groups.ctypes.data % 64 == 0
    some = [slice(None), slice(3, 40, 2), rng.random(count) < 0.5, rng.permutation(count), rng.permutation(count)[:9]]
    for stars in some:
        np.testing.assert_array_equal(side_by_side[stars], rows[stars])
    for star in range(count):
        np.testing.assert_array_equal(side_by_side.groups[star // 16, :, star % 16], rows[star])
    assert not side_by_side.groups.swapaxes(1, 2).reshape(-1, 153)[count:].any()
    with pytest.raises(IndexError):
        side_by_side[np.array([count])]


@pytest.mark.parametrize("count", [0, 1, 2, 17, 500])
def test_rows_are_brought_into_order_in_place(rng, count):
    rows = empty_rows(count, 5)[:count]
    rows[:] = rng.standard_normal((count, 5))
    order = rng.permutation(count)
    order[: count // 3] = np.sort(order[: count // 3])  # some may stay where they are
    expected = rows[order]
    bring_into_order(rows, order)
    np.testing.assert_array_equal(rows, expected)


def test_groups_are_drawn_at_random_and_stay_together(rng):
    rows = np.flatnonzero(rng.random(16000) < 0.7)
    order = in_random_groups(rows, rng)
    np.testing.assert_array_equal(np.sort(order), rows)
    group = order // STARS_OF_GROUP
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    assert len(begins) == len(np.unique(group))  # none comes twice
    inside = np.setdiff1d(np.arange(1, len(order)), begins)
    assert (order[inside] > order[inside - 1]).all()
    assert abs(np.corrcoef(group[begins], np.arange(len(begins)))[0, 1]) < 0.15  # 5 sigma of 1000 groups
    assert not np.array_equal(order, in_random_groups(rows, rng))
    assert in_random_groups(rows[:0], rng).shape == (0,)
