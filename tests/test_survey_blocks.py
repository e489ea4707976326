"""How the sources of a simulated survey are observed: coefficients, and blocks of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest

import xpkern as xk
from xpkern.engine.contract import Coefficients
from xpkern.grid import N_XP
from xpkern.observe.calibration import Calibration
from xpkern.observe.error_model import ErrorModel, photometer_fluxes
from xpkern.observe.gaia_source import SourceTable
from xpkern.observe.photometry import COLUMN_NAMES, infrared_flux
from xpkern.observe.spectra import read_blocks
from xpkern.observe.synthesis import BRIGHTNESS_NODES, SpectrumSynthesis
from xpkern.survey.planted import MISSING, NONE, Planted
from xpkern.survey.simulator import BLOCK_ROWS, SurveySimulator, cut
from xpkern.survey.tables import TRUTH

LIMITS = (8.0, 17.0)
MANY = Planted(
    binary=0.2, blend=0.1, m_dwarf=0.1, white_dwarf=0.1, quasar=0.1, galaxy=0.1, varied_rv=0.5, no_2mass=0.1, no_bp=0.1
)


@pytest.fixture(scope="module")
def simulator(truth) -> SurveySimulator:
    return SurveySimulator(truth, seed=4, planted=replace(MANY, bad_row=0.1), magnitudes=LIMITS)


@pytest.fixture(scope="module")
def block(simulator):
    return simulator.block(2)


def test_tabulated_inverses_reproduce_every_flux(rng):
    calibration = Calibration.default()
    synthesis = SpectrumSynthesis(calibration, ErrorModel.default())
    design = np.hstack([calibration.bp_design, calibration.rp_design])
    assert len(synthesis.inverse_designs) == len(BRIGHTNESS_NODES)
    for inverse in synthesis.inverse_designs:
        flux = rng.lognormal(size=N_XP)
        np.testing.assert_allclose(design @ (inverse @ flux), flux, rtol=1e-9)


def test_errors_and_correlations_of_faint_stars_are_those_of_real_ones(shared_data, rng):
    """By magnitude: medians of the errors within 5 %, the scatter that a star's coefficients share within a tenth."""
    calibration, model = Calibration.default(), ErrorModel.default()
    with np.load(shared_data / "real" / "xp_coefficients_faint-1000.npz") as stored:
        real = {name: stored[name].astype(float) for name in stored.files if name.startswith(("bp_c", "rp_c"))}
    flux = real["bp_coefficients"] @ calibration.bp_design.T + real["rp_coefficients"] @ calibration.rp_design.T
    brightness = photometer_fluxes(calibration, flux)
    usable = (brightness[0] > 0.3) & (brightness[1] > 0.3)
    # Many of each star: the scatter of one draw of 120 stars is itself uncertain by 9 %, and by 40 % once in a while.
    many = np.tile(np.flatnonzero(usable), 50)
    drawn = model.draw_errors(brightness[0][many], brightness[1][many], rng)
    for name, mean_flux, simulated in zip(("bp", "rp"), brightness, drawn, strict=True):
        photometer = getattr(model, name)
        for low, high in ((0.3, 3.0), (3.0, 10.0), (10.0, 100.0)):  # G of about 19, 17.5, 15.5
            shared = []
            for errors, flux_of_rows in (
                (real[f"{name}_coefficient_errors"][usable], mean_flux[usable]),
                (simulated, mean_flux[many]),
            ):
                rows = (flux_of_rows >= low) & (flux_of_rows < high)
                assert rows.sum() > 100
                typical = photometer.draw_errors(flux_of_rows[rows], np.zeros(rows.sum()))
                deviation = np.log(errors[rows] / typical)
                assert np.abs(np.median(deviation, axis=0)).mean() < 0.05
                shared.append(np.subtract(*np.percentile(np.median(deviation, axis=1), [84, 16])))
            assert shared[1] == pytest.approx(shared[0], rel=0.1)


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
    fit = xk.fit(obs, model_truth.model, model_truth.prior, noise="eq2")
    truth = block.tables["truth"]
    true = np.column_stack([truth["teff"] / 1000.0, *(truth[name] for name in ("feh", "logg", "ext", "plx"))])
    error = np.sqrt(np.diagonal(fit.cov, axis1=1, axis2=2))
    certain = (fit.params[:, 3] > 10 * error[:, 3]) & (fit.params[:, 4] > 10 * error[:, 4])
    pull = ((fit.params - true) / error)[certain]
    assert len(pull) > 100
    low, middle, high = np.percentile(pull, [16, 50, 84], axis=0)
    assert np.abs(middle).max() < 0.4
    assert np.abs(0.5 * (high - low) - 1.0).max() < 0.25
