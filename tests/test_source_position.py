"""Positions of sources by their identifiers."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table

from xpkern.observe.source_position import galactic_latitude, pixel_centre, pixel_of, position


def test_real_sources_lie_in_their_pixels(shared_data):
    table = Table.read(shared_data / "real" / "gaia_source_real-30.csv")
    known = ~np.ma.getmaskarray(table["ra"])
    ra, dec = position(np.asarray(table["source_id"][known], np.int64))
    apart = SkyCoord(ra, dec, unit="deg").separation(SkyCoord(table["ra"][known], table["dec"][known], unit="deg"))
    # half a pixel's diagonal, and what a source has moved since it was numbered
    assert np.median(apart.arcmin) < 0.61
    assert apart.arcmin.max() < 2.0


def test_galactic_latitude_is_that_of_astropy(rng):
    source_id = rng.integers(0, (12 << 24) << 35, 500, dtype=np.int64)
    ra, dec = position(source_id)
    np.testing.assert_allclose(galactic_latitude(source_id), SkyCoord(ra, dec, unit="deg").galactic.b.deg, atol=1e-5)


@pytest.mark.parametrize("level", [0, 1, 3])
def test_pixels_are_equal_areas_around_distinct_centres(level):
    """Each strip of sin(latitude) has its share of the pixels, and the four quadrants are alike."""
    pixels = np.arange(12 << 2 * level)
    longitude, sin_latitude = pixel_centre(pixels, level)
    direction = np.column_stack(
        [
            np.cos(longitude) * np.sqrt(1 - sin_latitude**2),
            np.sin(longitude) * np.sqrt(1 - sin_latitude**2),
            sin_latitude,
        ]
    )
    np.testing.assert_allclose(direction.sum(axis=0), 0.0, atol=1e-9 * len(pixels))
    assert len(np.unique(direction.round(9), axis=0)) == len(pixels)
    assert np.mean(np.abs(sin_latitude) <= 2.0 / 3.0) >= 2.0 / 3.0
    np.testing.assert_allclose((direction**2).mean(axis=0), 1.0 / 3.0, atol=0.12 / 4**level)


def test_parents_hold_their_children(rng):
    source_id = rng.integers(0, (12 << 24) << 35, 200, dtype=np.int64)
    parent = pixel_of(source_id, 5)
    longitude, sin_latitude = pixel_centre(parent, 5)
    ra, dec = position(source_id)
    centre = SkyCoord(np.degrees(longitude), np.degrees(np.arcsin(sin_latitude)), unit="deg")
    assert SkyCoord(ra, dec, unit="deg").separation(centre).deg.max() < 2.6  # a pixel of level 5 is 1.8 deg wide
