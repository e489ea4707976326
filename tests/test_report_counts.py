"""What the report keeps of the stars: streaming histograms, maps, references, and what follows from columns."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from xpkern.errors import InputError
from xpkern.report.catalogue_figures import giant_branch_teff, main_sequence_logg, without_parallax
from xpkern.report.density import Axis, Density, Spread, range_of, symmetric_range
from xpkern.report.model_figures import continuum_normalised
from xpkern.report.reference import Reference, read_label_reference
from xpkern.report.sky import SkyMap
from xpkern.report.stars import PLX, Stars, galactic


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize("n", [0, 1, 17, 4000])
def test_density_counts_as_numpy_does(rng, n, is_log):
    x = Axis("x", 0.5, 4.0, 7, is_log=is_log)
    y = Axis("y", -2.0, 2.0, 9)
    values = np.exp(rng.normal(0.3, 0.7, n)), rng.normal(0.0, 1.2, n)
    if n:
        values[0][rng.integers(n)] = np.nan
    density = Density(x, y)
    for part in np.array_split(np.arange(n), 3):
        density.add(values[0][part], values[1][part])
    known = np.isfinite(values[0])
    expected = np.histogram2d(values[0][known], values[1][known], (x.edges, y.edges))[0]
    np.testing.assert_array_equal(density.inside, expected)
    assert density.total == known.sum()
    assert density.outside == known.sum() - expected.sum()
    columns = np.histogram(values[0][known], x.edges)[0]
    np.testing.assert_array_equal(density.column_stars, columns)


def test_edges_belong_to_their_bins():
    axis = Axis("", -1.0, 3.0, 4)
    given = np.array([-1.0, -1.0001, 0.0, 2.9999, 3.0, 3.0001, 1e300, -1e300])
    np.testing.assert_array_equal(axis.index(given), [1, 0, 2, 4, 4, 5, 5, 0])
    assert Axis("", 1.0, 10.0, 3, is_log=True).index(np.array([-5.0, 0.0])).tolist() == [0, 0]


def test_quantiles_of_columns_lie_within_a_bin_of_the_exact_ones(rng):
    density = Density(Axis("x", 0.0, 3.0, 3), Axis("y", -6.0, 6.0, 240))
    x = rng.uniform(0.0, 3.0, 30_000)
    y = rng.normal(x, 0.5 + x)
    density.add(x, y)
    for column in range(3):
        inside = (x >= column) & (x < column + 1)
        exact = np.quantile(y[inside], (0.158655, 0.5, 0.841345))
        np.testing.assert_allclose(density.quantiles()[column], exact, atol=0.05)


def test_quantiles_are_not_drawn_where_they_are_not_known():
    few = Density(Axis("x", 0.0, 1.0, 1), Axis("y", 0.0, 1.0, 10))
    few.add(np.full(9, 0.5), np.full(9, 0.5))
    assert np.isnan(few.quantiles()).all()
    beyond = Density(Axis("x", 0.0, 1.0, 1), Axis("y", 0.0, 1.0, 10))
    beyond.add(np.full(100, 0.5), np.linspace(-1.0, 3.0, 100))
    low, middle, high = beyond.quantiles()[0]
    assert np.isnan([low, high]).all()
    assert middle == pytest.approx(1.0, abs=0.05) or np.isnan(middle)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_spread_of_any_scale(rng, scale):
    spread = Spread(3, 0.01)
    values = scale * rng.normal(0.4, 1.0, 40_000)
    values[rng.uniform(size=len(values)) < 0.1] = np.nan
    group = rng.integers(0, 2, len(values))
    spread.add(group, values)
    spread.add(np.full(5, -1), np.ones(5))
    for one in (0, 1):
        low, middle, high = np.nanquantile(values[group == one], (0.158655, 0.5, 0.841345))
        found = spread.median_and_width(one)
        np.testing.assert_allclose(found, (middle, 0.5 * (high - low)), rtol=0.01, atol=1e-4)
    assert spread.stars(2) == 0
    assert np.isnan(spread.median_and_width(2)).all()


def test_ranges():
    assert range_of(np.full(3, np.nan)) is None
    assert symmetric_range(np.empty(0)) is None
    low, high = range_of(np.array([5.0]))
    assert low < 5.0 < high
    assert symmetric_range(np.zeros(4)) > 0


def test_cells_of_a_map_have_equal_areas(rng):
    longitude = rng.uniform(-180.0, 180.0, 400_000)
    latitude = np.degrees(np.arcsin(rng.uniform(-1.0, 1.0, len(longitude))))
    sky = SkyMap(longitude[:1000], latitude[:1000], total=2000, sums=1)
    assert sky.is_whole
    sky.add(longitude, latitude, (np.sin(np.radians(latitude)),))
    assert sky.stars.sum() == len(longitude)
    table = sky.table(("sine",))
    np.testing.assert_allclose(table["sine"], np.sin(np.radians(table["b"])), atol=0.1)
    inner = sky.stars[20:28, 8:16]
    expected = len(longitude) * sky.cell_area / 41252.96
    assert np.abs(inner / expected - 1.0).max() < 0.25
    assert sky.stars.size * sky.cell_area == pytest.approx(41252.96 * 4.0 / np.pi, rel=1e-6)


@pytest.mark.parametrize("centre", [(0.0, 0.0), (179.9, 10.0), (-60.0, -89.5), (120.0, 45.0)])
def test_a_region_is_mapped_alone(rng, centre):
    radius = np.radians(2.0) * np.sqrt(rng.uniform(size=5000))
    turn = rng.uniform(0.0, 2 * np.pi, 5000)
    latitude = centre[1] + np.degrees(radius * np.sin(turn))
    latitude = np.where(latitude < -90, -180 - latitude, latitude)
    longitude = centre[0] + np.degrees(radius * np.cos(turn)) / np.cos(np.radians(centre[1]))
    if abs(centre[1]) > 80:
        longitude = rng.uniform(-180, 180, 5000)
    sky = SkyMap(longitude, latitude, total=5000)
    assert not sky.is_whole
    sky.add(longitude, latitude)
    assert sky.stars.sum() == 5000
    table = sky.table()
    assert np.average(table["b"], weights=table["stars"]) == pytest.approx(np.mean(latitude), abs=0.1)


def test_places_without_numbers_are_left_out():
    sky = SkyMap(np.array([np.nan]), np.array([np.nan]), total=1)
    sky.add(np.array([np.nan, 0.0]), np.array([1.0, np.nan]))
    assert sky.is_whole
    assert not sky.stars.any()


def test_galactic_coordinates_are_astropys(rng):
    from astropy.coordinates import SkyCoord

    ra, dec = rng.uniform(0, 360, 50), rng.uniform(-90, 90, 50)
    expected = SkyCoord(ra, dec, unit="deg").galactic
    longitude, latitude = galactic(ra, dec)
    found = SkyCoord(longitude, latitude, unit="deg", frame="galactic")  # near a pole longitudes differ by more
    np.testing.assert_allclose(found.separation(expected).deg, 0.0, atol=1e-5)
    assert (np.abs(longitude) <= 180).all()


def test_correlations_without_the_parallax_are_those_of_the_spectrums_fisher_matrix(rng):
    n = 200
    root = rng.normal(size=(n, 5, 5))
    fisher = root @ root.swapaxes(1, 2) + 0.1 * np.eye(5)
    sigma = 10.0 ** rng.uniform(-1, 1, n)
    whole = fisher.copy()
    whole[:, 4, 4] += 1.0 / sigma**2

    def correlation(covariance):
        error = np.sqrt(np.einsum("nii->ni", covariance))
        return covariance / (error[:, :, None] * error[:, None, :])

    covariance = np.linalg.inv(whole)
    found, known = without_parallax(correlation(covariance), covariance[:, 4, 4] / sigma**2)
    expected = correlation(np.linalg.inv(fisher))
    assert known.all()
    np.testing.assert_allclose(found, expected, atol=1e-9)
    _, known = without_parallax(np.tile(np.eye(5), (3, 1, 1)), np.array([1.0, np.nan, 1.2]))
    assert not known.any()


def test_tracks_of_the_paper():
    np.testing.assert_allclose(
        main_sequence_logg(np.array([4000.0, 5000.0, 6000.0, 6300.0, 9000.0])), [4.6, 4.6, 4.1, 3.95, 3.95]
    )
    np.testing.assert_allclose(giant_branch_teff(np.array([4.15, 3.65, 2.65])), [5900.0, 5200.0, 4758.14])


def test_a_polynomial_is_its_own_continuum(rng):
    wavelength = np.arange(392.0, 993.0, 10.0)
    x = (wavelength - 700.0) / 300.0
    flux = np.stack([np.polynomial.polynomial.polyval(x, [3.0, *rng.normal(0, 0.2, 5)]) for _ in range(4)])
    np.testing.assert_allclose(continuum_normalised(wavelength, 1e-17 * flux), 1.0, atol=1e-9)
    line = 1.0 - 0.2 * np.exp(-0.5 * ((wavelength - 656.0) / 10.0) ** 2)
    assert continuum_normalised(wavelength, flux * line).min() < 0.9


def columns_of(n, rng):
    columns = {"source_id": np.arange(10, 10 + n), "quality_flags": rng.integers(0, 64, n).astype(np.uint8)}
    for name in ("teff", "feh", "logg", "ext", "parallax_est", "parallax"):
        columns[name] = rng.normal(5.0, 1.0, n).astype(np.float32)
        columns[f"{name}_error"] = rng.uniform(0.1, 0.2, n).astype(np.float32)
    return columns


def test_residuals_and_pulls(rng):
    columns = columns_of(30, rng)
    chosen = np.arange(12, 30)
    values = rng.normal(5.0, 1.0, (18, 5)).astype(np.float32)
    values[:, PLX] = np.nan
    errors = np.full((18, 5), 0.3, np.float32)
    errors[0] = np.nan
    stars = Stars(columns, {"labels": Reference("t", chosen, values, errors)})
    residual, pull = stars.residual("labels", 0), stars.pull("labels", 0)
    assert np.isfinite(residual).sum() == 18
    np.testing.assert_allclose(residual[2:20], columns["teff"][2:20] - values[:, 0], rtol=1e-6)
    sigma = columns["teff_error"].astype(float)
    assert pull[2] == pytest.approx(residual[2] / sigma[2])
    np.testing.assert_allclose(pull[3:20], residual[3:20] / np.hypot(sigma[3:20], np.float32(0.3)), rtol=1e-6)
    # without a parallax of its own Gaia's stands in, whose error is the estimate's and what the spectrum adds
    measured = columns["parallax_est"].astype(float) - columns["parallax"]
    np.testing.assert_allclose(stars.residual("labels", PLX)[2:20], measured[2:20], rtol=1e-6)
    difference = columns["parallax_error"].astype(float) ** 2 - columns["parallax_est_error"].astype(float) ** 2
    with np.errstate(invalid="ignore"):
        expected = np.where(difference > 0, measured / np.sqrt(np.abs(difference)), np.nan)
    np.testing.assert_allclose(stars.pull("labels", PLX)[2:20], expected[2:20], rtol=1e-5)
    assert stars.reliable.sum() == (columns["quality_flags"] < 8).sum()


@pytest.mark.parametrize(("unit", "factor"), [("K", 1000.0), ("kK", 1.0), (None, 1000.0), (None, 1.0)])
def test_labels_in_any_unit(tmp_path, unit, factor):
    table = Table(
        {"source_id": [7, 3, 5, 3], "teff": factor * np.array([5.0, 6.0, 7.0, 9.0]), "feh": [0.1, np.nan, 0.3, 0.4]}
    )
    table["teff_error"] = factor * np.array([0.1, 0.2, -1.0, 0.3])
    if unit:
        table["teff"].unit = unit
    table.write(tmp_path / "labels.ecsv")
    found = read_label_reference(tmp_path / "labels.ecsv")
    assert found.source_id.tolist() == [3, 5, 7]
    assert found.repeated == 1
    np.testing.assert_allclose(found.values[:, 0], [6000.0, 7000.0, 5000.0], rtol=1e-6)
    np.testing.assert_allclose(found.errors[:, 0], [200.0, np.nan, 100.0], rtol=1e-6)
    np.testing.assert_allclose(found.values[:, 1], [np.nan, 0.3, 0.1], rtol=1e-6)
    assert found.known.tolist() == [True, True, False, False, False]
    assert found.rows_of(np.array([5, 4, 7])).tolist() == [1, -1, 2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"source_id": [1, 2], "colour": [0.1, 0.2]}, "has no numbers in any of the columns"),
        ({"source_id": ["a", "b"], "teff": [5.0, 6.0]}, "must be 64-bit integers"),
        ({"star": [1, 2], "teff": [5.0, 6.0]}, "no such column"),
        ({"source_id": [1, 2], "teff": ["hot", "cool"]}, "not a column of numbers"),
    ],
)
def test_labels_that_cannot_be_read(tmp_path, columns, message):
    Table(columns).write(tmp_path / "labels.ecsv")
    with pytest.raises(InputError, match=message):
        read_label_reference(tmp_path / "labels.ecsv")
