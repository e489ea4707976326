"""The cross-match, against astropy and against all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord, search_around_sky
from astropy.time import Time

from xpkern.errors import InputError
from xpkern.observe.crossmatch import Matcher, cross_match, moved


def sky(rng: np.random.Generator, n: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Crowded coordinates: all over, around a pole, or across the seam in right ascension."""
    if where == "pole":
        return rng.uniform(0, 360, n), 90 - 0.01 * np.sqrt(rng.uniform(0, 1, n))
    if where == "seam":
        return rng.normal(0, 0.003, n) % 360, rng.normal(-30, 0.003, n)
    return rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))


def nearest_by_astropy(ra, dec, other_ra, other_dec, radius):
    """For each source with a star within the radius the nearest one, from all pairs."""
    here, there = SkyCoord(ra, dec, unit="deg"), SkyCoord(other_ra, other_dec, unit="deg")
    source, row, apart, _ = search_around_sky(here, there, radius * units.arcsec)
    apart = apart.arcsec
    order = np.lexsort((apart, source))
    first = np.append(True, np.diff(source[order]) > 0) if len(order) else np.zeros(0, bool)
    return source[order][first], row[order][first], apart[order][first]


@pytest.mark.parametrize("where", ["all over", "pole", "seam"])
@pytest.mark.parametrize("radius", [0.25, 3.0, 1000.0])
def test_the_nearest_within_the_radius(rng, where, radius):
    n, m = 300, 500
    ra, dec = sky(rng, n, where)
    other_ra, other_dec = sky(rng, m, where)
    other_ra[:100], other_dec[:100] = ra[:100], dec[:100] + rng.normal(0, 0.5 / 3600, 100)
    other_dec = np.clip(other_dec, -90, 90)
    source, row, apart = nearest_by_astropy(ra, dec, other_ra, other_dec, radius)
    found = cross_match(ra, dec, other_ra, other_dec, radius, threads=2)
    np.testing.assert_array_equal(found.source, source)
    np.testing.assert_array_equal(found.row, row)
    np.testing.assert_allclose(found.separation, apart, atol=1e-8)


def test_blocks_and_their_sizes_do_not_matter(rng):
    (ra, dec), (other_ra, other_dec) = sky(rng, 200, "seam"), sky(rng, 400, "seam")
    whole = cross_match(ra, dec, other_ra, other_dec, 5.0)
    assert len(whole) > 50
    for size in (1, 7, 400):
        matcher = Matcher(ra, dec, 5.0)
        for start in range(0, 400, size):
            matcher.add(other_ra[start : start + size], other_dec[start : start + size])
        found = matcher.result()
        for name in ("source", "row", "separation"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def test_one_to_one_pairs_are_each_others_nearest(rng):
    (ra, dec), (other_ra, other_dec) = sky(rng, 200, "seam"), sky(rng, 300, "seam")
    there = nearest_by_astropy(ra, dec, other_ra, other_dec, 20.0)
    back = nearest_by_astropy(other_ra, other_dec, ra, dec, 20.0)
    nearest_source = dict(zip(back[0], back[1], strict=True))
    mutual = [(source, row) for source, row in zip(there[0], there[1], strict=True) if nearest_source[row] == source]
    found = cross_match(ra, dec, other_ra, other_dec, 20.0, one_to_one=True)
    assert 0 < len(mutual) < len(there[0])
    assert list(zip(found.source, found.row, strict=True)) == mutual


def test_more_neighbours_than_are_asked_for_at_first(rng):
    ra, dec = 10 + rng.normal(0, 1e-5, 100), rng.normal(0, 1e-5, 100)
    _, row, _ = nearest_by_astropy(ra, dec, ra[:3], dec[:3], 10.0)
    found = cross_match(ra, dec, ra[:3], dec[:3], 10.0)
    assert len(found) == 100
    np.testing.assert_array_equal(found.row, row)


def test_unusable_coordinates_are_counted_and_match_nothing():
    found = cross_match([10.0, np.nan, 10.0, 20.0], [0.0, 0.0, 95.0, np.inf], [10.0, np.nan], [0.0, 0.0], 1.0)
    assert (found.source, found.row) == (0, 0)
    assert (found.unmatchable_sources, found.unmatchable_rows) == (3, 1)
    masked = cross_match(np.ma.array([10.0, 20.0], mask=[True, False]), [0.0, 0.0], [10.0], [0.0], 1.0)
    assert (len(masked), masked.unmatchable_sources) == (0, 1)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_nothing_to_match(n, m):
    assert len(cross_match(np.zeros(n), np.zeros(n), np.ones(m), np.ones(m), 1.0)) == 0


@pytest.mark.parametrize("radius", [0.0, -1.0, np.nan, 2000.0])
def test_wrong_radius(radius):
    with pytest.raises(InputError, match="field radius: "):
        Matcher([0.0], [0.0], radius)


def test_arrays_that_do_not_fit():
    with pytest.raises(InputError, match=r"field dec: ra has the shape \(2,\), dec \(1,\)"):
        Matcher([0.0, 1.0], [0.0], 1.0)


def test_motion_is_that_of_astropy(rng):
    ra, dec = sky(rng, 50, "all over")
    pmra, pmdec = rng.normal(0, 3000, (2, 50))  # as fast as Barnard's star: the curvature shows
    start = SkyCoord(
        ra * units.deg,
        dec * units.deg,
        pm_ra_cosdec=pmra * units.mas / units.yr,
        pm_dec=pmdec * units.mas / units.yr,
        distance=10 * np.ones(50) * units.pc,
        obstime=Time(2016.0, format="jyear", scale="tcb"),
    )
    expected = start.apply_space_motion(Time(1999.3, format="jyear", scale="tcb"))
    then = SkyCoord(*moved(ra, dec, pmra, pmdec, 1999.3 - 2016.0), unit="deg")
    assert then.separation(expected).arcsec.max() < 1e-4
    still = moved(ra, dec, np.full(50, np.nan), pmdec * 0, 10.0)
    np.testing.assert_allclose(still, (ra, dec), atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_what_has_no_place_is_not_moved_to_one():
    dec = np.array([0.0, 91.0, 95.0, -999.0, np.nan, np.inf, -90.0, 0.0, 0.0, 0.0])
    ra = np.array([10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, np.inf, np.nan, 20.0])
    pmra = np.array([np.inf, 1.0, 0.0, np.nan, 1.0, 1.0, 0.0, 1.0, 1.0, 1e300])
    then = moved(ra, dec, pmra, np.zeros(10), 10.0)
    np.testing.assert_array_equal(np.isfinite(then), [[True, *[False] * 5, True, *[False] * 3]] * 2)
    np.testing.assert_allclose((then[0][0], then[1][0], then[1][6]), (10.0, 0.0, -90.0), atol=1e-12)
    assert np.isnan(moved([10.0], [0.0], [1.0], [0.0], np.array([np.inf]))).all()
