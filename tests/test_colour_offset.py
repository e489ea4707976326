"""What A_K by colours is too large by, from stars of which all is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mock_stars import random_model

from xpkern.observe.source_position import galactic_latitude
from xpkern.train.apogee_library import EXT_OF_AK, Library
from xpkern.train.colour_offset import COLOUR_LATITUDE, LOGG_KNOTS, MAP_LATITUDE, ColourOffset, learn_colour_offset

N = 8000

#: E by colours for an E of 1.
UNIT = 0.85


def too_large(theta):
    """What colours of cool stars say too much of E [mag]."""
    return 0.6 * np.clip(4.4 - theta[:, 0], 0.0, None) ** 1.5


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
    of_model = ext + 0.1 * np.sin(theta[:, 0]) + 0.05 * (theta[:, 2] - 2.0) * (0.5 + theta[:, 1])
    arrays = np.zeros((2, N, 1))
    return Library(source_id, *arrays, theta, np.zeros((N, 3)), label / EXT_OF_AK, np.zeros(N)), of_model


def test_the_offset_is_found_whatever_the_zero_point_of_the_model(stars):
    library, ext = stars
    offset = learn_colour_offset(library, ext)
    wrong = np.abs(offset.at(library.theta) - too_large(library.theta))
    assert np.median(wrong) < 0.02
    assert np.quantile(wrong, 0.99) < 0.15  # at the edges of the types hardly a star tells
    assert offset.unit == pytest.approx(UNIT, abs=0.02)
    known = np.isfinite(library.ak)
    latitude = np.abs(galactic_latitude(library.source_id))
    assert offset.by_colour.sum() == pytest.approx((known & (latitude < COLOUR_LATITUDE)).sum())
    assert offset.by_map.sum() == pytest.approx((known & (latitude >= MAP_LATITUDE)).sum())


def test_it_is_taken_from_colours_alone(stars):
    library, _ = stars
    offset = ColourOffset(np.full((8, 3), 0.1), UNIT, np.zeros((2, 8, 3)), *np.zeros((2, 8, 3)))
    np.testing.assert_allclose(offset.at(library.theta), 0.1)
    np.testing.assert_allclose(offset.at(np.array([[1.0, 0.0, -9.0], [99.0, 0.0, 9.0]])), 0.1)
    corrected = offset.taken_from(library).ak
    by_colour = np.abs(galactic_latitude(library.source_id)) < COLOUR_LATITUDE
    known = np.isfinite(library.ak)
    np.testing.assert_allclose((UNIT * corrected - library.ak)[known & by_colour], -0.1 / EXT_OF_AK)
    assert (corrected == library.ak)[known & ~by_colour].all()


def test_the_zero_point_is_taken_from_the_model(stars, rng):
    library, ext = stars
    model = random_model(rng)
    stars_of, params = library.theta, np.column_stack([library.theta, np.full(N, 0.3), np.ones(N)])
    offset = replace(learn_colour_offset(library, ext), of_model=np.stack([np.full((8, 3), 0.2), np.zeros((8, 3))]))
    changed = offset.taken_from_model(model, stars_of)
    # a constant is within what the last layer can do: all E are less by it then
    shifted = params - np.array([0.0, 0.0, 0.0, 0.2, 0.0])
    np.testing.assert_allclose(changed.ln_flux(shifted), model.ln_flux(params), atol=1e-6)
    rising = replace(offset, of_model=np.stack([np.tile(np.linspace(0.0, 0.3, 3), (8, 1)), np.zeros((8, 3))]))
    difference = rising.taken_from_model(model, stars_of).ln_flux(params) - model.ln_flux(params)
    said = np.interp(library.theta[:, 2], LOGG_KNOTS, [0.0, 0.15, 0.3])
    assert np.abs(difference / model.ext_curve + said[:, None]).max() < 0.1


def test_where_no_star_tells_it_is_nothing(stars):
    library, ext = stars
    unknown = replace(library, ak=np.full(N, np.nan))
    assert not learn_colour_offset(unknown, ext).value.any()
