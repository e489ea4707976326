"""What a simulated survey is made of: its dust, the types and places of its stars, and what is no star."""

from __future__ import annotations

import numpy as np
import pytest
from mock_atmospheres import planck
from scipy.integrate import quad, trapezoid
from scipy.stats import kstest

from xpkern.grid import N_XP, WAVELENGTH, XP_WAVELENGTH
from xpkern.survey import impostors
from xpkern.survey.dust import DustField, direction
from xpkern.survey.stellar_types import (
    CLUMP,
    COMPONENTS,
    GIANT,
    MAIN_SEQUENCE,
    SUBGIANT,
    StellarTypes,
    _volume,
    draw_positions,
    main_sequence,
    place_on_branch,
)
from xpkern.train.extinction_law import STANDARD_RV, extinction, optical_depth


def test_the_column_is_the_integral_of_the_density(rng):
    dust = DustField.default()
    aimed = dust.centre[rng.integers(len(dust.size), size=3)]
    rays = np.vstack([rng.standard_normal((4, 3)), aimed])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    for ray, distance in zip(rays, rng.uniform(0.05, 4.0, len(rays)), strict=True):
        clouds = [along for along in dust.centre @ ray if 0.0 < along < distance]
        total, _ = quad(
            lambda s, ray=ray: dust.density(s * ray[None])[0], 0.0, distance, points=sorted(clouds) or None, limit=400
        )
        assert dust.column(ray[None], np.array([distance]))[0] == pytest.approx(total, rel=1e-6)


def test_columns_grow_with_distance_from_nothing(rng):
    dust = DustField.default()
    ray = np.repeat(direction(rng.uniform(0, 2 * np.pi, 1), rng.uniform(-1.5, 1.5, 1)), 50, axis=0)
    column = dust.column(ray, np.concatenate([[0.0], np.geomspace(0.01, 30.0, 49)]))
    assert column[0] == pytest.approx(0.0, abs=1e-12)
    assert (np.diff(column) >= -1e-14).all()


def test_law_of_other_dust_has_its_ratio():
    for rv in (2.3, 3.1, 4.0, 5.3):
        b, v = extinction([440.0, 547.0], rv)
        assert v == pytest.approx(rv, abs=0.06)  # the ratio is one of broad bands
        assert b - v == pytest.approx(1.0, abs=0.08)
    np.testing.assert_array_equal(extinction(WAVELENGTH, STANDARD_RV), extinction(WAVELENGTH))


def test_infrared_extinction_is_in_proportion():
    ratio = extinction(WAVELENGTH[N_XP + 2 :], 5.0) / extinction(WAVELENGTH[N_XP + 2 :])
    np.testing.assert_allclose(ratio, 5.0 / 3.1, rtol=0.05)


def test_curves_of_many_are_those_of_each(truth, model_truth, rng):
    rv = np.append(rng.uniform(2.2, 5.5, 20), [STANDARD_RV, 2.2, 5.5])
    exact = np.array([optical_depth(WAVELENGTH, value) for value in rv])
    np.testing.assert_allclose(truth.optical_depth(rv), exact, rtol=3e-4)
    curve = model_truth.model.ext_curve
    np.testing.assert_allclose(model_truth.optical_depth(rv), curve * exact / optical_depth(WAVELENGTH), rtol=3e-4)
    np.testing.assert_array_equal(model_truth.optical_depth(rv[20:21])[0], curve)


def test_the_sun_is_on_the_main_sequence(truth):
    one, feh = np.ones(1), np.zeros(1)
    teff, logg = main_sequence(one, feh, np.array([0.46]))
    assert teff[0] == pytest.approx(5.77, abs=0.05)
    assert logg[0] == pytest.approx(4.44, abs=0.04)
    # a black body of the Sun's temperature is about as bright as the Sun, M_G = 4.67
    assert truth.absolute_g(np.array([[5.772, 0.0, 4.438]]), one)[0] == pytest.approx(4.67, abs=0.15)


def test_branches_join():
    mass = np.geomspace(0.85, 2.5, 15)
    feh = np.linspace(-1.0, 0.3, 15)

    def at(branch, progress):
        return np.stack(place_on_branch(np.full(15, branch), mass, feh, np.full(15, progress)))

    np.testing.assert_allclose(at(MAIN_SEQUENCE, 1.0), at(SUBGIANT, 0.0), rtol=1e-12)
    np.testing.assert_allclose(at(SUBGIANT, 1.0), at(GIANT, 0.0), rtol=1e-12)
    assert (np.diff([at(GIANT, progress)[1] for progress in np.linspace(0, 1, 9)], axis=0) < 0).all()
    assert (np.abs(at(CLUMP, 0.5)[1] - 2.45) < 0.15).all()


def test_counts_on_the_giant_branch_follow_the_luminosity_function(rng):
    n = 4000
    _, logg = place_on_branch(np.full(n, GIANT), np.ones(n), np.zeros(n), rng.uniform(size=n))
    grows = 0.65 * np.log(10.0)
    low, high = np.exp(grows * 0.3), np.exp(grows * 3.5)
    assert kstest(logg, lambda x: (np.exp(grows * x) - low) / (high - low)).pvalue > 1e-5


def test_dwarfs_dominate_and_every_branch_is_there(truth, rng):
    types = StellarTypes(truth.absolute_g, truth.covers, 17.65).draw(20_000, rng)
    share = np.bincount(types.branch, minlength=4) / len(types.mass)
    assert share[MAIN_SEQUENCE] > 0.4
    assert share.min() > 0.02
    assert len(np.unique(types.component)) == len(COMPONENTS)
    assert len(np.unique(types.mass)) == len(types.mass)  # no star occurs twice


def test_places_have_the_density_of_their_component(rng):
    """Near the Sun's distance from the centre, heights are exponential, and numbers grow with the volume."""
    n, reach = 200_000, 0.3
    component = rng.integers(len(COMPONENTS), size=n)
    position, kept = draw_positions(np.full(n, reach), component, rng)
    position, component = position[kept], component[kept]
    assert np.linalg.norm(position, axis=1).max() <= reach
    for index, part in enumerate(COMPONENTS):
        z = position[component == index, 2]
        heights = np.linspace(0.0, reach, 1001)
        density = np.exp(-heights / part.height) * (reach**2 - heights**2)
        cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
        uniform = np.interp(np.abs(z), heights, cumulative / cumulative[-1])
        assert kstest(uniform, "uniform").pvalue > 1e-5
        assert abs(np.mean(z > 0) - 0.5) < 5.0 * 0.5 / np.sqrt(len(z))
    # the discs grow denser towards the centre
    inward = (position[:, 0] > 0).mean()
    assert inward > 0.5 + 3.0 * 0.5 / np.sqrt(len(position))


def test_the_volume_is_that_of_the_cylinder(rng):
    reach, height = rng.uniform(0.1, 3.0, 5), rng.uniform(0.1, 3.0, 5)
    for r, h, found in zip(reach, height, _volume(reach, height), strict=True):
        expected = 2.0 * np.pi * r**2 * quad(lambda z, h=h: np.exp(-z / h), 0.0, r)[0]
        assert found == pytest.approx(expected, rel=1e-9)


def test_white_dwarfs_are_black_bodies_with_balmer_lines(rng):
    teff = rng.uniform(6.0, 30.0, 5)
    expected = np.array([planck(WAVELENGTH * 10.0, 1000.0 * value) for value in teff]) * 1e-2
    ratio = impostors.white_dwarf(teff) / expected
    np.testing.assert_allclose(ratio[:, np.abs(WAVELENGTH - 780.0) < 50.0], 1.0, rtol=1e-6)
    assert (ratio[:, np.abs(WAVELENGTH - 486.1).argmin()] < 0.98).all()


def test_black_bodies_conserve_energy(rng):
    wavelength = np.geomspace(10.0, 1e6, 20_000)
    for teff in rng.uniform(3.0, 20.0, 3):
        total = trapezoid(impostors.black_body(wavelength, teff), wavelength)
        assert total == pytest.approx(5.670374419e-8 * (1000.0 * teff) ** 4, rel=1e-4)


def test_redshifts_move_lines():
    # H alpha of a quasar stands out where it should
    for redshift in (0.1, 0.25, 0.4):
        shape = impostors.quasar(np.array([redshift]))[0, :N_XP]
        contrast = shape[2:-2] / (0.5 * (shape[:-4] + shape[4:]))
        at = XP_WAVELENGTH[2:-2][(XP_WAVELENGTH[2:-2] > 620.0)][contrast[XP_WAVELENGTH[2:-2] > 620.0].argmax()]
        assert at == pytest.approx(656.3 * (1.0 + redshift), abs=11.0)
    # the break of a galaxy: flux above over flux below, at rest 380 and 420 nm
    for redshift in (0.05, 0.2):
        shape = impostors.galaxy(np.array([redshift]), np.zeros(1))[0, :N_XP]
        below, above = np.interp(np.array([383.0, 412.0]) * (1.0 + redshift), XP_WAVELENGTH, shape)
        assert above / below > 1.3
