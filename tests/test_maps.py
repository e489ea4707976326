"""Maps of stars: binning against NumPy, resolutions, medians, queries, dust per distance; HEALPix against healpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from map_stars import sky_of_stars

from xpkern.errors import InputError
from xpkern.maps.bias import biases
from xpkern.maps.binning import ParallaxBins, StarBins, bin_of
from xpkern.maps.cube import SkyCube, Tile, best_resolution
from xpkern.maps.galaxy import at_positions, birdseye, density, plane_slice
from xpkern.maps.make import map_of_blocks
from xpkern.maps.median import WaitingStars
from xpkern.maps.settings import CUTS, MapCuts, MapSettings, paper_edges
from xpkern.maps.sky import centres, pixels, pixels_of_stars, to_galactic
from xpkern.observe.source_position import position

EDGES = (0.1, 0.25, 0.3, 0.9, 2.0)
SETTINGS = MapSettings(edges=EDGES, nsides=(16, 8, 2), min_stars=3, cuts=MapCuts(quality_flags=8.0, confidence=0.5))

#: Arguments of StarBins.add.
COLUMNS = ("pixel", "value", "error", "parallax", "parallax_error", "misfit", "flags", "confidence")


def some_stars(rng, n, pixels=3072):
    """Stars of every fate, in few pixels, some exactly at an edge of a bin or a limit of a cut."""
    stars = {
        "pixel": rng.integers(-1, pixels, n),
        "value": rng.normal(0.3, 0.2, n),
        "error": rng.uniform(0.005, 0.045, n),
        "parallax": 1.0 / rng.uniform(0.05, 2.2, n),
        "parallax_error": rng.uniform(0.0, 0.5, n),
        "misfit": rng.uniform(0.0, 5.5, n),
        "flags": rng.integers(0, 10, n).astype(float),
        "confidence": rng.uniform(0.4, 1.0, n),
    }
    for name, odd in (
        ("value", [np.nan, np.inf, 10.0, 11.0, -0.1]),
        ("error", [np.nan, 0.0, -1.0, np.inf, 0.04]),
        ("parallax", [np.nan, -3.0, 0.0, np.inf, 10.0, 4.0, 0.5]),
        ("parallax_error", [np.nan, 0.0, np.inf]),
        ("misfit", [np.nan, 5.0, np.inf]),
        ("confidence", [np.nan, 0.5]),
    ):
        rows = rng.random(n) < 0.1
        stars[name][rows] = rng.choice(odd, rows.sum())
    return stars


def reference(stars, settings):
    """Outcomes and cells (finest pixels, bins) by NumPy, one condition after the other."""
    cuts, edges = settings.cuts, np.array(settings.edges)
    value, error, parallax, parallax_error = (stars[name] for name in COLUMNS[1:5])
    with np.errstate(invalid="ignore", divide="ignore"):
        own = (parallax[:, None] <= 1.0 / edges).sum(axis=1) - 1  # distance >= edge, said of parallaxes
        numbers = np.isfinite([value, error, parallax, parallax_error]).all(axis=0) & (error > 0) & (parallax_error > 0)
        conditions = [
            stars["pixel"] >= 0,
            numbers,
            parallax > 0,
            (stars["misfit"] < cuts.misfit) | math.isinf(cuts.misfit),
            (stars["flags"] < cuts.quality_flags) | math.isinf(cuts.quality_flags),
            (stars["confidence"] > cuts.confidence) | math.isinf(cuts.confidence),
            value < cuts.value,
            parallax_error < cuts.parallax_error * parallax,
            error < cuts.error,
            (own >= 0) & (own < settings.bins),
        ]
    alive, outcomes = np.ones(len(value), bool), []
    for condition in conditions:
        outcomes.append(int((alive & ~condition).sum()))
        alive &= condition
    outcomes.append(int(alive.sum()))
    bins = own[alive]
    shape = (12 * settings.nsides[0] ** 2, settings.bins)
    weight = 1.0 / error[alive] ** 2 if settings.estimate == "weighted" else np.ones(alive.sum())
    sums = {name: np.zeros(shape) for name in ("weight", "weighted", "variance", "stars")}
    for name, terms in (
        ("weight", weight),
        ("weighted", weight * value[alive]),
        ("variance", error[alive] ** 2),
        ("stars", 1.0),
    ):
        np.add.at(sums[name], (stars["pixel"][alive], bins), terms)
    return outcomes, sums, alive, bins


def coarser(sums, nside, to):
    """Sums at a lower resolution."""
    return {name: part.reshape(-1, (nside // to) ** 2, part.shape[1]).sum(axis=1) for name, part in sums.items()}


@pytest.mark.parametrize("estimate", ["weighted", "mean"])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 20000])
def test_cells_are_those_of_numpy(rng, estimate, n):
    settings = replace(SETTINGS, estimate=estimate)
    stars = some_stars(rng, n)
    bins = StarBins(settings)
    found = np.concatenate(
        [bins.add(*(stars[name][part] for name in COLUMNS)) for part in (slice(0, n // 3), slice(n // 3, n))]
    )
    outcomes, sums, alive, expected_bins = reference(stars, settings)
    assert bins.outcomes.tolist() == outcomes
    assert bins.outcomes.sum() == n
    np.testing.assert_array_equal(found >= 0, alive)
    np.testing.assert_array_equal(found[alive], expected_bins)
    tiles = np.flatnonzero(bins.touched)
    assert set(stars["pixel"][alive] // bins.pixels_of_tile) == set(tiles)
    for tile in tiles:
        for nside, (value, error, count) in zip(settings.nsides, bins.levels(tile), strict=True):
            at = coarser(sums, settings.nsides[0], nside)
            rows = slice(tile * len(value), (tile + 1) * len(value))
            np.testing.assert_array_equal(count, at["stars"][rows])
            with np.errstate(invalid="ignore", divide="ignore"):
                np.testing.assert_allclose(value, at["weighted"][rows] / at["weight"][rows], rtol=1e-12, equal_nan=True)
                variance = 1.0 / at["weight"] if estimate == "weighted" else at["variance"] / at["stars"] ** 2
            np.testing.assert_allclose(error, np.sqrt(variance[rows]), rtol=1e-12)


def test_blocks_do_not_change_a_bit(rng):
    stars = some_stars(rng, 3000)
    whole, parts = StarBins(SETTINGS), StarBins(SETTINGS)
    whole.add(*(stars[name] for name in COLUMNS))
    for first in range(0, 3000, 271):
        parts.add(*(stars[name][first : first + 271] for name in COLUMNS))
    assert whole.cells.tobytes() == parts.cells.tobytes()
    assert whole.coarse.tobytes() == parts.coarse.tobytes()


@pytest.mark.parametrize("edges", [paper_edges(), EDGES, (0.0, 1e-6, 3.0, 3.0000001, 1e3), (0.5, 0.6)])
def test_bin_of_a_distance(rng, edges):
    edges = np.array(edges)
    bins = ParallaxBins(edges)
    near = np.concatenate([bins.limits, np.nextafter(bins.limits, 0), np.nextafter(bins.limits, np.inf)])
    distance = np.concatenate([rng.uniform(0, 1.1 * edges[-1], 2000), rng.uniform(0, 2 * edges[1], 500)])
    parallax = np.concatenate([near, 1.0 / distance, [np.nan, -1.0, 0.0, 1e-300, 1e7, 1e300]])
    expected = (parallax[:, None] <= bins.limits).sum(axis=1) - 1
    expected[expected == len(edges) - 1] = -1
    found = [bin_of(each, bins.limits, bins.start, bins.table) for each in parallax]
    np.testing.assert_array_equal(found, expected)
    inside = (distance > edges[0] * (1 + 1e-15)) & (distance < edges[-1])
    of_distance = [bin_of(1.0 / each, bins.limits, bins.start, bins.table) for each in distance[inside]]
    np.testing.assert_array_equal(of_distance, np.searchsorted(edges, distance[inside], side="right") - 1)


def test_bins_of_the_paper():
    edges = paper_edges()
    assert len(edges) == 41
    assert edges[-1] == pytest.approx(5.0, rel=1e-14)
    n = 7
    assert edges[n] - edges[n - 1] == pytest.approx(
        math.sinh(n * math.asinh(5) / 40) - math.sinh((n - 1) * math.asinh(5) / 40), rel=1e-12
    )


def test_finest_resolution_with_enough_stars():
    settings = MapSettings(edges=(0.0, 1.0), nsides=(4, 2), min_stars=2)
    pixel = np.arange(8)
    stars = np.array([2, 1, 0, 0, 1, 0, 0, 0])[:, None]
    fine = np.arange(8.0)[:, None], np.full((8, 1), 0.1), stars
    coarse = np.array([[10.0], [20.0]]), np.full((2, 1), 0.2), stars.reshape(2, 4, 1).sum(axis=1)
    found = best_resolution(pixel, [fine, coarse], settings)
    np.testing.assert_array_equal(found.value[:, 0], [0, 10, 10, 10, *[np.nan] * 4])
    np.testing.assert_array_equal(found.stars[:, 0], [2, 3, 3, 3, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.nside[:, 0], [4, 2, 2, 2, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.error[:, 0], np.float32([0.1, 0.2, 0.2, 0.2, *[np.nan] * 4]))


@pytest.mark.parametrize("held", [1, 1 << 21])
def test_medians_are_exact(rng, tmp_path, monkeypatch, held):
    monkeypatch.setattr("xpkern.maps.median._HELD", held)
    settings = replace(SETTINGS, estimate="median")
    n = 400
    pixel, k = rng.integers(0, 300, n), rng.integers(-1, settings.bins, n).astype(np.int16)
    value = rng.normal(size=n)
    with WaitingStars(settings, 1, tmp_path) as waiting:
        for first in range(0, n, 150):
            part = slice(first, first + 150)
            waiting.add(pixel[part], k[part], value[part])
        levels = [waiting.levels(tile) for tile in range(48)]
    assert not list(tmp_path.iterdir())
    for number, nside in enumerate(settings.nsides):
        median, error, count = (np.concatenate([level[number][part] for level in levels]) for part in range(3))
        assert count.sum() == (k >= 0).sum()
        for cell, own in np.argwhere(count > 0):
            mine = value.astype(np.float32)[(pixel // (16 // nside) ** 2 == cell) & (k == own)].astype(float)
            low, middle, high = np.quantile(mine, [0.158655, 0.5, 0.841345])
            assert median[cell, own] == pytest.approx(middle, abs=1e-12)
            assert error[cell, own] == pytest.approx(1.2533141 * 0.5 * (high - low) / len(mine) ** 0.5, abs=1e-7)


def test_places_and_healpix_pixels(rng):
    """Against astropy's frames, and against healpy where it is installed."""
    n = 2000
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    ra[:2], dec[:4] = [0.0, 360.0], [90.0, -90.0, 0.0, 89.9999]
    place = SkyCoord(ra * units.deg, dec * units.deg).galactic
    longitude, latitude = to_galactic(ra, dec)
    own = SkyCoord(longitude * units.rad, latitude * units.rad, frame="galactic")
    assert own.separation(place).arcsec.max() < 0.05
    found, named = pixels_of_stars(ra, dec, None, 8)
    assert named == 0
    np.testing.assert_array_equal(found, pixels(longitude, latitude, 8))
    middle = SkyCoord(*(angle * units.rad for angle in centres(found, 8)), frame="galactic")
    # from the middle of a pixel of this order to the farthest corner that any has: at z = 2/3
    assert middle.separation(own).arcmin.max() < 14.345
    healpy = pytest.importorskip("healpy")
    np.testing.assert_array_equal(found, healpy.ang2pix(256, 0.5 * np.pi - latitude, longitude, nest=True))


def test_places_without_coordinates(rng):
    source_id = rng.integers(1, 12 << 24, 6) << 35 | 12345
    ra, dec = position(source_id)
    ra[1], dec[2], dec[3] = np.nan, np.nan, 91.0
    known, named = pixels_of_stars(ra, dec, source_id, 6)
    assert named == 3
    ra, dec = position(source_id)
    np.testing.assert_array_equal(known, pixels(*to_galactic(ra, dec), 6))
    source_id[1] = 0
    ra[1] = np.nan
    pixel, named = pixels_of_stars(ra, dec, source_id, 6)
    assert (pixel[1], named) == (-1, 0)
    pixel, named = pixels_of_stars(None, None, source_id, 6)
    assert named == 5


def test_known_clouds_are_found(rng, tmp_path):
    """A field of clouds, stars with errors: the map is the truth where there are stars, whatever the estimate."""
    stars, truth = sky_of_stars(rng, 60000)
    for estimate in ("weighted", "mean", "median"):
        settings = MapSettings(estimate=estimate, edges=(0.1, 0.3, 0.6, 1.0), nsides=(16, 8), min_stars=10)
        cube = map_of_blocks([stars], settings, folder=tmp_path)
        longitude, latitude = cube.places()
        expected = truth(longitude, latitude, cube.distance)
        known = np.isfinite(cube.tile.value)
        assert known.mean() > 0.5
        # a pixel of 3.7 degrees blurs the clouds, and stars are not in the middle of a bin
        difference = (cube.tile.value - expected)[known]
        assert np.corrcoef(cube.tile.value[known], expected[known])[0, 1] > 0.95
        assert abs(np.median(difference)) < 0.02


def test_biases_of_a_cell_by_hand():
    settings = MapSettings(edges=(0.5, 1.5, 2.5), nsides=(1,), min_stars=1)
    bins = StarBins(settings)
    value, error = np.array([0.1, 0.4, 0.9]), np.array([0.01, 0.02, 0.05])  # the last does not pass the cut
    parallax, parallax_error = np.full(3, 0.8), np.full(3, 0.2)  # 1.25 kpc; 1 kpc and 1.67 kpc
    bins.add(np.zeros(3, int), value, error, parallax, parallax_error, np.zeros(3), np.zeros(3), np.ones(3))
    found = biases(bins)
    weighted = (0.1e4 + 0.4 * 2500) / 12500
    assert found.stars.tolist() == [2, 0]
    assert found.pixels.tolist() == [1, 0]
    assert found.mean[0] == pytest.approx(weighted)
    assert found.cut[0] == pytest.approx(0.25 - 1.4 / 3)
    assert found.weights[0] == pytest.approx(weighted - 0.25)
    assert found.scatter[0] == pytest.approx(0.0, abs=1e-12)  # half of every star leaves: their mean stays
    assert np.isnan([found.mean[1], found.cut[1], found.scatter[1]]).all()


def cube_of(value, edges, nside=1, quantity="ext", pixel=None):
    """A map whose rows have these values."""
    value = np.asarray(value, np.float32)
    settings = MapSettings(quantity=quantity, edges=tuple(edges), nsides=(nside,))
    pixel = np.arange(len(value)) if pixel is None else pixel
    nothing = np.zeros(value.shape, np.int32)
    return SkyCube(settings, Tile(pixel, value, value, nothing, nothing.astype(np.int16)))


def test_density_between_the_middles():
    """Against differences by hand, gaps and all."""
    cube = cube_of([[0.1, 0.3, 0.6, 0.6], [np.nan, 0.3, np.nan, 0.9], [np.nan] * 4], [0.0, 0.2, 0.4, 0.8, 1.6])
    middle = np.array([0.1, 0.3, 0.6, 1.2])
    np.testing.assert_allclose(
        density(cube),
        [
            [0.1 / 0.1, 0.2 / 0.2, 0.3 / 0.3, 0.0],
            [0.3 / 0.3, 0.3 / 0.3, 0.6 / 0.9, 0.6 / 0.9],
            [np.nan] * 4,
        ],
        atol=1e-6,
    )
    np.testing.assert_allclose(cube.distance, middle)


def test_integral_of_the_density_is_the_map(rng):
    value = np.cumsum(rng.uniform(0, 1, (12, 6)), axis=1)
    value[rng.random(value.shape) < 0.3] = np.nan
    cube = cube_of(value, np.cumsum(rng.uniform(0.1, 1.0, 7)))
    lengths = np.diff(cube.distance, prepend=0.0)
    known = np.isfinite(value)
    np.testing.assert_allclose(np.cumsum(density(cube) * lengths, axis=1)[known], value[known], rtol=1e-5)


def test_birdseye_of_even_dust():
    """DE/dr = 0.5 mag/kpc everywhere: so is its average over the height; and NaN beyond the map."""
    edges = np.linspace(0, 2, 9)
    middle = 0.5 * (edges[1:] + edges[:-1])
    cube = cube_of(np.tile(0.5 * middle, (12, 1)), edges)
    x, view = birdseye(cube, extent=2.5, step=0.25)
    assert view.shape == (len(x), len(x)) == (20, 20)
    far = np.hypot(x, x[:, None])
    np.testing.assert_allclose(view[far < 1.7], 0.5, rtol=1e-5)
    assert np.isnan(view[far > 1.9]).all()


def test_views_have_the_right_handedness():
    """Only the pixel around l = 90 deg, b = 0 has dust: it lies at y > 0; the plane's slices agree."""
    value = np.zeros((12, 2))
    here = int(pixels(np.array([0.5 * np.pi]), np.array([0.0]), 0)[0])
    value[here] = [0.5, 1.0]
    cube = cube_of(value, [0.0, 1.0, 2.0])
    x, view = birdseye(cube, extent=1.4, step=0.1, half_height=0.1)
    top = view[x > 1.0][:, np.abs(x) < 0.3]
    np.testing.assert_allclose(top, 0.5, atol=1e-6)
    assert np.nanmax(np.abs(view[x < -0.5])) == 0.0
    across, up, values = plane_slice(cube, "yz", extent=1.4, step=0.1, half_height=0.2)
    assert values.shape == (len(up), len(across))
    np.testing.assert_allclose(values[:, across > 0.5], 0.5, atol=1e-6)
    np.testing.assert_allclose(values[:, across < -0.5], 0.0, atol=1e-6)
    _, _, values = plane_slice(cube, "xy", extent=1.4, step=0.1)
    np.testing.assert_allclose(values, at_positions(cube, plane_positions(x), density(cube)), atol=1e-12)


def plane_positions(x):
    position = np.zeros((len(x), len(x), 3))
    position[..., 0], position[..., 1] = x, x[:, None]
    return position


def test_metallicity_is_that_of_its_bin(rng):
    value = rng.normal(size=(12, 3))
    cube = cube_of(value, [0.5, 1.0, 2.0, 3.0], quantity="feh")
    direction = rng.normal(size=(50, 3))
    direction /= np.linalg.norm(direction, axis=1)[:, None]
    distance = rng.uniform(0.1, 3.5, 50)
    found = at_positions(cube, direction * distance[:, None], value)
    longitude, latitude = np.arctan2(direction[:, 1], direction[:, 0]), np.arcsin(direction[:, 2])
    place = SkyCoord(longitude * units.rad, latitude * units.rad, distance * units.kpc, frame="galactic")
    np.testing.assert_array_equal(found.astype(np.float32), cube.query(place))
    outside = (distance < 0.5) | (distance > 3.0)
    np.testing.assert_array_equal(np.isnan(found), outside)


class TestQuery:
    @pytest.fixture
    def cube(self):
        value = np.arange(24.0).reshape(8, 3)
        value[2, 1] = np.nan
        return cube_of(value, [0.0, 1.0, 2.0, 4.0], nside=2, pixel=np.arange(8, 16))

    def at(self, cube, row, distance=None, frame="icrs"):
        longitude, latitude = cube.places()
        angles = longitude[row] * units.rad, latitude[row] * units.rad
        place = SkyCoord(*angles, *[] if distance is None else [distance], frame="galactic")
        return cube.query(place.transform_to(frame))

    def test_whole_profiles(self, cube):
        np.testing.assert_array_equal(self.at(cube, np.arange(8)), cube.tile.value)
        assert self.at(cube, 3).shape == (3,)
        assert self.at(cube, np.array([[1, 2]])).shape == (1, 2, 3)

    def test_between_the_middles(self, cube):
        kpc = units.kpc
        assert self.at(cube, 1, 0.0 * kpc, "galactic") == 0.0
        assert self.at(cube, 1, 0.25 * kpc) == pytest.approx(1.5)
        assert self.at(cube, 1, 500 * units.pc) == 3.0
        assert self.at(cube, 1, 0.75 * kpc) == pytest.approx(3.25)
        assert self.at(cube, 1, 3.0 * kpc, "fk5") == 5.0
        assert self.at(cube, 1, 3.9 * kpc) == 5.0
        assert np.isnan(self.at(cube, 1, 4.001 * kpc))

    def test_gaps_and_places_outside(self, cube):
        assert np.isnan(self.at(cube, 2, 1.2 * units.kpc))
        assert self.at(cube, 2, 0.5 * units.kpc) == 6.0
        south = SkyCoord(0 * units.deg, -89 * units.deg, frame="galactic")
        assert np.isnan(cube.query(south)).all()
        assert np.isnan(cube.query(SkyCoord(south.l, south.b, 1 * units.kpc, frame="galactic")))

    def test_as_a_map_of_dustmaps(self, cube):
        pytest.importorskip("dustmaps")
        own = cube.to_dustmaps()
        from dustmaps.map_base import DustMap

        assert isinstance(own, DustMap)
        longitude, latitude = (np.degrees(angle) for angle in cube.places())
        np.testing.assert_array_equal(own.query_gal(longitude[:2], latitude[:2]), cube.tile.value[:2])
        place = SkyCoord(longitude[:2] * units.deg, latitude[:2] * units.deg, [0.5, 1.5] * units.kpc, frame="galactic")
        np.testing.assert_array_equal(own(place), [0.0, 4.0])
        np.testing.assert_array_equal(own.distances.to_value("kpc"), [0.5, 1.5, 3.0])

    def test_without_dustmaps(self, cube, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "dustmaps.map_base", None)
        with pytest.raises(Exception, match=r"pip install 'xpkern\[dust\]'"):
            cube.to_dustmaps()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantity": "teff"}, "quantity: 'teff' is none of ext, feh"),
        ({"estimate": "mode"}, "estimate: 'mode' is none of"),
        ({"edges": (0.0, 1.0, 1.0)}, "edges: "),
        ({"edges": (-1.0, 1.0)}, "edges: "),
        ({"edges": (0.0, math.nan)}, "edges: "),
        ({"edges": (1.0,)}, "edges: "),
        ({"nsides": (3,)}, "nside: .* power of two"),
        ({"nsides": (64, 128)}, "nside: .* finest first"),
        ({"nsides": ()}, "nside: "),
        ({"min_stars": 0}, "min_stars: 0 stars"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=f"field {message}"):
        MapSettings(**changes)


def test_cuts_by_name():
    cuts = CUTS["sky"].changed(["error=0.1", "misfit=off", "confidence=off"])
    assert cuts == MapCuts(parallax_error=0.1, error=0.1, misfit=math.inf, confidence=-math.inf)
    for text, message in (("eror=1", "no cut 'eror'; there are misfit"), ("error=x", "NAME=NUMBER"), ("error", "NAME")):
        with pytest.raises(InputError, match=message):
            cuts.changed([text])
