"""The zero point of E of a model, and what E by colours is too large by, from stars of which all is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mock_stars import random_model

from xpkern.observe.source_position import galactic_latitude
from xpkern.train.apogee_library import EXT_OF_AK, Library
from xpkern.train.ext_zero_point import (
    _HOT,
    COLOUR_LATITUDE,
    LOGG_KNOTS,
    MAP_LATITUDE,
    TEFF_KNOTS,
    _in_clouds,
    find_zero_point,
)

#: So many that no draw leaves a knot without stars around it.
N = 24000

#: E by colours for an E of 1.
UNIT = 0.85


def too_large(theta):
    """What colours of cool stars say too much of E [mag]."""
    return 0.6 * np.clip(4.4 - theta[:, 0], 0.0, None) ** 1.5


def zero_point(theta):
    """That of a model's E [mag]."""
    return 0.1 * np.sin(theta[:, 0]) + 0.03 * (theta[:, 2] - 2.0) * (0.5 + theta[:, 1])


@pytest.fixture
def stars(rng):
    """A library whose A_K is by maps or by colours, and E as a model says that has a zero point of its own."""
    source_id = np.sort(rng.choice((12 << 24) << 35, N, replace=False).astype(np.int64))
    latitude = np.abs(galactic_latitude(source_id))
    theta = np.column_stack([rng.uniform(3.4, 6.5, N), rng.uniform(-2.0, 0.5, N), rng.uniform(0.5, 4.5, N)])
    ext = rng.exponential(np.where(latitude < COLOUR_LATITUDE, 0.6, 0.05))
    by_colour = np.where(latitude < 20.0, UNIT * ext + too_large(theta), ext) + 0.08 * rng.standard_normal(N)
    label = np.where(latitude < MAP_LATITUDE, by_colour, ext + 0.01 * rng.standard_normal(N))
    label += np.where(rng.random(N) < 0.05, rng.exponential(1.0, N), 0.0)  # dust around the star, or behind it
    label[::20] = np.nan
    arrays = np.zeros((2, N, 1))
    library = Library(source_id, *arrays, theta, np.zeros((N, 3)), label / EXT_OF_AK, np.zeros(N))
    return library, ext + zero_point(theta)


def test_both_are_found_and_told_apart(stars):
    library, ext = stars
    found = find_zero_point(library, ext)
    # at knots that many stars surround
    teff, logg = np.meshgrid(TEFF_KNOTS[2:-1], LOGG_KNOTS, indexing="ij")
    theta = np.stack([teff, np.full_like(teff, -0.5), logg], axis=-1)
    np.testing.assert_allclose(found.of_colours[2:-1], too_large(theta.reshape(-1, 3)).reshape(teff.shape), atol=0.1)
    np.testing.assert_allclose(found.of_model[0, 2:-1], zero_point(theta.reshape(-1, 3)).reshape(teff.shape), atol=0.05)
    assert found.unit_of_colours == pytest.approx(UNIT, abs=0.02)
    known = np.isfinite(library.ak)
    latitude = np.abs(galactic_latitude(library.source_id))
    assert found.by_colour.sum() == pytest.approx((known & (latitude < COLOUR_LATITUDE)).sum())
    of_clouds = known & (latitude >= MAP_LATITUDE) & _in_clouds(library.source_id)
    assert 0.004 * N < of_clouds.sum() < 0.04 * N  # 1 % of the sky
    assert found.by_map.sum() == pytest.approx((known & (latitude >= MAP_LATITUDE)).sum() - of_clouds.sum())


def test_the_zero_point_is_taken_from_the_model(stars, rng):
    library, ext = stars
    model = random_model(rng)
    params = np.column_stack([library.theta, np.full(N, 0.3), np.ones(N)])
    found = replace(find_zero_point(library, ext), of_model=np.stack([np.full((8, 3), 0.2), np.zeros((8, 3))]))
    cool = library.theta[:, 0] < 5.2
    changed = found.taken_from(model, library.theta)
    said = -0.2 * np.clip((6.5 - library.theta[:, 0]) / 1.3, 0.0, 1.0)
    moved = (changed.ln_flux(params) - model.ln_flux(params)) / model.ext_curve
    assert np.abs(moved - moved[:, :1]).max() < 1e-4  # along the extinction curve
    off = np.abs(moved[cool, 0] - said[cool])  # a last layer of 32 units follows a step of any kind only so far
    assert np.quantile(off, 0.999) < 0.1
    assert np.median(off) < 0.02
    hot = np.column_stack([_HOT, np.full(len(_HOT), 0.3), np.ones(len(_HOT))])
    assert np.abs((changed.ln_flux(hot) - model.ln_flux(hot)) / model.ext_curve).max() < 0.1


def test_where_no_star_tells_it_is_nothing(stars):
    library, ext = stars
    unknown = replace(library, ak=np.full(N, np.nan))
    assert not find_zero_point(unknown, ext).of_model.any()
