"""The simulator: what it writes reads as Gaia's, and what it draws has the distribution it claims."""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest
import yaml

from xpkern.engine.contract import Coefficients
from xpkern.errors import InputError
from xpkern.grid import BANDS, N_XP
from xpkern.observe.bulk_writer import header, write_bulk_file
from xpkern.observe.calibration import Calibration
from xpkern.observe.error_model import ErrorModel, fit_error_model, photometer_fluxes
from xpkern.observe.photometry import magnitude_of_flux
from xpkern.observe.population import DISTANCE_RANGE, G_RANGE, draw_population, synthetic_magnitude
from xpkern.observe.simulate import parallax_error, simulate
from xpkern.observe.spectra import read_blocks
from xpkern.observe.synthesis import BRIGHTNESS_NODES, SpectrumSynthesis

REAL_30 = "real/XpContinuousMeanSpectrum_real-30.csv.gz"


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration.default()


@pytest.fixture(scope="module")
def error_model() -> ErrorModel:
    return ErrorModel.default()


@pytest.fixture
def survey_model(optimum_model):
    return optimum_model


@pytest.fixture
def survey(survey_model):
    return simulate(*survey_model, 40, seed=3)


def flux_of(calibration: Calibration, spectra: Coefficients) -> np.ndarray:
    return spectra.bp @ calibration.bp_design.T + spectra.rp @ calibration.rp_design.T


# The error model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometer", ["bp", "rp"])
def test_correlations_are_positive_definite_at_every_brightness(error_model, photometer):
    correlation = getattr(error_model, photometer).correlation(np.geomspace(1e-3, 1e6, 25))
    assert np.linalg.eigvalsh(correlation).min() > 0.05
    np.testing.assert_allclose(np.diagonal(correlation, axis1=1, axis2=2), 1.0)


@pytest.mark.parametrize("photometer", ["bp", "rp"])
def test_noise_has_the_covariance_of_the_model(error_model, photometer, rng):
    errors, n = getattr(error_model, photometer), 40_000
    mean_flux = np.full(n, 60.0)
    noise = errors.draw_noise(mean_flux, rng)
    # A sample correlation of n stars has a standard deviation of at most n^-1/2 (2 n^-1)^1/2 on the diagonal).
    assert np.abs(noise.T @ noise / n - errors.correlation(mean_flux[:1])[0]).max() < 7.0 * np.sqrt(2.0 / n)


def test_default_errors_match_real_stars(error_model, calibration, shared_data):
    with np.load(shared_data / "real" / "xp_coefficients_faint-1000.npz") as stored:
        real = dict(stored)
    bp, rp = (real[f"{name}_coefficients"].astype(float) for name in ("bp", "rp"))
    brightness = photometer_fluxes(calibration, bp @ calibration.bp_design.T + rp @ calibration.rp_design.T)
    for name, mean_flux in zip(("bp", "rp"), brightness, strict=True):
        usable = (mean_flux > 0.5) & (mean_flux < 3e3)
        typical = getattr(error_model, name).draw_errors(mean_flux[usable], np.zeros(usable.sum()))
        ratio = np.log(real[f"{name}_coefficient_errors"][usable] / typical)
        assert np.abs(np.median(ratio, axis=0)).max() < 0.1
        assert np.median(np.abs(ratio)) < 0.15


def test_fit_recovers_an_error_model(error_model, rng):
    brightness = 10.0 ** rng.uniform(-0.3, 4.3, (2, 1500))
    bp_error, rp_error = error_model.draw_errors(*brightness, rng)
    few = 10.0 ** np.linspace(0.0, 4.0, 12)
    rows, columns = np.tril_indices(bp_error.shape[1], -1)
    correlations = [getattr(error_model, name).correlation(few)[:, rows, columns] for name in ("bp", "rp")]
    fitted = fit_error_model(*brightness, bp_error.astype(float), rp_error.astype(float), (few, few, *correlations))
    test_flux = np.geomspace(1.0, 300.0, 9)
    for name in ("bp", "rp"):
        expected = getattr(error_model, name).draw_errors(test_flux, np.zeros(9))
        found = getattr(fitted, name).draw_errors(test_flux, np.zeros(9))
        assert np.abs(np.log(found / expected)).max() < 0.1
    assert fitted.coupling == pytest.approx(error_model.coupling, abs=0.15)


def test_error_model_survives_its_file(error_model, tmp_path):
    error_model.save(tmp_path / "model.npz")
    again = ErrorModel.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(again.bp.variance, error_model.bp.variance)
    np.testing.assert_array_equal(again.rp.correlation_bright, error_model.rp.correlation_bright)
    assert again.coupling == error_model.coupling


# The population ------------------------------------------------------------------------------------------------------


def test_population_keeps_its_ranges_and_agrees_with_the_model(survey_model, rng):
    model, prior = survey_model
    stars = draw_population(model, prior, 300, rng)
    assert stars.params.shape == (300, 5)
    assert G_RANGE[0] - 1e-3 < stars.g.min() < stars.g.max() < G_RANGE[1] + 1e-3
    distance = 1.0 / stars.params[:, 4]
    assert DISTANCE_RANGE[0] < distance.min() < distance.max() < DISTANCE_RANGE[1]
    assert (stars.params[:, 3] > 0).all()
    np.testing.assert_allclose(stars.flux, np.exp(model.ln_flux(stars.params)), rtol=1e-12)


def test_population_says_when_the_models_scale_is_off(survey_model, rng):
    model, prior = survey_model
    biases = [*model.biases[:-1], model.biases[-1] + 60.0]
    far_too_bright = type(model)(
        model.weights, biases, model.ext_curve, model.input_zp, model.input_scale, model.wavelength
    )
    with pytest.raises(InputError, match="scale"):
        draw_population(far_too_bright, prior, 10, rng)


def test_synthetic_magnitudes_of_real_stars(calibration, shared_data):
    spectra = next(read_blocks(shared_data / REAL_30, calibration)).coefficients
    flux = flux_of(calibration, spectra)
    with open(shared_data / "real" / "gaia_source_real-30.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for band in ("g", "bp", "rp"):
        measured = np.array([float(row[f"phot_{band}_mean_mag"] or "nan") for row in rows])
        known = np.isfinite(measured)
        assert known.sum() == 20
        synthetic = synthetic_magnitude(band, calibration.wavelength, flux[known])
        assert np.abs(synthetic - measured[known]).max() < 0.08


# The coefficients ----------------------------------------------------------------------------------------------------


def test_coefficients_reproduce_the_flux_within_their_noise(calibration, error_model, rng):
    n = 400
    flux = 300.0 * rng.uniform(0.5, 2.0, (n, 1)) * np.linspace(0.5, 1.5, N_XP) ** rng.uniform(-1.0, 1.0, (n, 1))
    spectra = SpectrumSynthesis(calibration, error_model).observe(flux, np.ones((2, n)), rng)
    chi2 = np.empty(n)
    for i in range(n):
        covariance = np.zeros((N_XP, N_XP))
        for name in ("bp", "rp"):
            design, error = getattr(calibration, f"{name}_design"), getattr(spectra, f"{name}_error")[i].astype(float)
            correlation = np.eye(len(error))
            correlation[np.tril_indices(len(error), -1)] = getattr(spectra, f"{name}_correlation")[i]
            correlation += np.tril(correlation, -1).T
            covariance += (design * error) @ correlation @ (design * error).T
        # Rounding of the archive's float32 and of the text matters in the directions XP hardly sees: leave out noise
        # below 1e-6 of the flux.
        residual = flux_of(calibration, spectra)[i] - flux[i]
        chi2[i] = residual @ np.linalg.solve(covariance + np.diag((1e-6 * flux[i]) ** 2), residual)
    # chi2 of 61 samples: mean 61, standard deviation of the mean (122 / n)^1/2.
    assert chi2.mean() == pytest.approx(N_XP, abs=6.0 * np.sqrt(2.0 * N_XP / n))


def test_coefficients_are_the_least_ones(calibration, error_model, rng):
    """Without noise, c is orthogonal in Sigma_0^-1 to whatever leaves A c unchanged; Sigma_0 is that of the node."""
    flux = np.linspace(80.0, 120.0, N_XP)[None]
    node = 10.0 ** BRIGHTNESS_NODES[np.abs(BRIGHTNESS_NODES - 2.0).argmin()]

    class Silent:
        def standard_normal(self, shape):
            return np.zeros(shape)

        gamma = staticmethod(lambda *_: rng.gamma(*_))

    spectra = SpectrumSynthesis(calibration, error_model).observe(flux, np.ones((2, 1)), Silent())
    np.testing.assert_allclose(flux_of(calibration, spectra), flux, rtol=1e-8)
    design = np.hstack([calibration.bp_design, calibration.rp_design])
    unseen = np.linalg.svd(design)[2][N_XP:]
    whitened = []
    for name in ("bp", "rp"):
        photometer, mean_flux = getattr(error_model, name), np.array([node])
        error = photometer.draw_errors(mean_flux, np.zeros(1))[0].astype(float)
        covariance = error[:, None] * photometer.correlation(mean_flux)[0] * error
        whitened.append(np.linalg.solve(covariance, getattr(spectra, name)[0]))
    projection = unseen @ np.concatenate(whitened)
    assert np.abs(projection).max() < 1e-6 * np.abs(np.concatenate(whitened)).max()


def test_same_seed_same_survey_other_seed_another(survey_model):
    first, again, other = (simulate(*survey_model, 30, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.coefficients.bp, again.coefficients.bp)
    np.testing.assert_array_equal(first.gaia_source["parallax"], again.gaia_source["parallax"])
    assert not np.array_equal(first.truth, other.truth)


def test_systematics_are_those_of_the_models_noise(survey_model):
    model, prior = survey_model
    loud, quiet = (simulate(model, prior, 3000, seed=1, systematics=draw) for draw in (True, False))
    np.testing.assert_array_equal(loud.truth, quiet.truth)
    # In bright stars' reddest band the photometric error is 0.022 mag; Eq. 2 adds the floor of a band to it.
    scatter = {}
    for name, survey in (("loud", loud), ("quiet", quiet)):
        true = magnitude_of_flux("J", survey.population.flux[:, N_XP])
        bright = true < 11.0
        scatter[name] = np.std((survey.gaia_source["j_m"] - true)[bright])
    added = np.sqrt(scatter["loud"] ** 2 - scatter["quiet"] ** 2)
    expected = 2.5 / np.log(10.0) * np.hypot(model.noise.independent[N_XP], model.scale_sigma)
    assert added == pytest.approx(expected, rel=0.4)


# The source table ----------------------------------------------------------------------------------------------------


def test_parallaxes_scatter_as_their_errors_say(survey_model):
    survey = simulate(*survey_model, 2000, seed=2)
    pull = (survey.gaia_source["parallax"] - survey.truth[:, 4]) / survey.gaia_source["parallax_error"]
    assert abs(pull.mean()) < 6.0 / np.sqrt(len(pull))
    assert np.std(pull) == pytest.approx(1.0, abs=6.0 / np.sqrt(2 * len(pull)))


def test_parallax_error_is_that_of_dr3():
    # Gaia EDR3 (Lindegren et al. 2021): median errors of 0.02-0.03 mas below 15, 0.07 at 17, 0.5 at 20.
    np.testing.assert_allclose(parallax_error(np.array([9.0, 15.0, 17.0, 20.0])), [0.015, 0.03, 0.08, 0.56], rtol=0.2)


def test_undetected_bands_are_missing_and_marked(survey_model):
    source = simulate(*survey_model, 500, seed=4).gaia_source
    for k, column in enumerate(("j_m", "h_m", "ks_m")):
        letters = np.array([letter[k] for letter in source["ph_qual"]])
        np.testing.assert_array_equal(letters == "U", np.isnan(source[column]))
        np.testing.assert_array_equal(letters == "A", source[f"{column}sigcom"] < 0.109)
    assert len(BANDS) == 5


# The files -----------------------------------------------------------------------------------------------------------


def test_header_has_the_archives_columns(shared_data):
    def columns_of(lines):
        content = yaml.safe_load("\n".join(line[2:] for line in lines[1:]).replace("!!omap", ""))
        return [
            (column["name"], column["datatype"], column.get("subtype"), column["meta"]["ucd"])
            for column in content["datatype"]
        ]

    with gzip.open(shared_data / REAL_30, "rt") as stream:
        real = [line.rstrip("\n") for line in stream if line.startswith("#")]
    ours = header("Gaia DR3", ["Simulated."])
    assert len(ours) == len(real) == 182
    for mine, theirs in zip(columns_of(ours), columns_of(real), strict=True):
        assert mine[:3] == theirs[:3]


def test_numbers_read_back_to_the_last_bit_in_javas_style(tmp_path, rng):
    values = rng.standard_normal((5, 40)) * 10.0 ** rng.uniform(-12, 12, (5, 40))
    values[0, :6] = [0.0, 1.0, -2.0, 1e-3, 9.999e-4, 1e7]
    single = values.astype(np.float32)
    empty = np.full((5, 3), np.nan)
    columns = {
        "source_id": np.arange(5) + (1 << 62),
        "bp_coefficients": values,
        "bp_coefficient_errors": single,
        "rp_coefficients": empty,
    }
    write_bulk_file(tmp_path / "a.csv", columns, rows_at_once=2)
    with open(tmp_path / "a.csv", newline="") as stream:
        rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    assert [int(row["source_id"]) for row in rows] == columns["source_id"].tolist()
    assert {row["rp_coefficients"] for row in rows} == {row["bp_chi_squared"] for row in rows} == {"null"}
    for i, row in enumerate(rows):
        texts = row["bp_coefficients"].strip("[]").split(",")
        np.testing.assert_array_equal(np.array(texts, float), values[i])
        texts32 = row["bp_coefficient_errors"].strip("[]").split(",")
        np.testing.assert_array_equal(np.array(texts32, np.float32), single[i])
    assert rows[0]["bp_coefficients"].startswith("[0.0,1.0,-2.0,0.001,9.999E-4,1.0E7,")


def test_the_same_stars_give_the_same_bytes(survey, tmp_path):
    first, again = (survey.write(tmp_path / name) for name in ("first", "again"))
    for name in ("spectra", "gaia_source", "truth"):
        assert getattr(first, name).read_bytes() == getattr(again, name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == sorted(
        ["XpContinuousMeanSpectrum_simulated.csv.gz", "gaia_source.csv", "truth.csv"]
    )


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        write_bulk_file(tmp_path / "a.csv.gz", {"source_id": np.arange(3), "bp_coefficients": "not an array"})
    assert list(tmp_path.iterdir()) == []


def test_our_reader_reads_our_files(survey, tmp_path, calibration):
    block = next(read_blocks(survey.write(tmp_path).spectra, calibration))
    assert not block.bad.any()
    np.testing.assert_array_equal(block.source_id, survey.source_id)
    read = block.coefficients
    for name in ("bp", "rp", "bp_error", "rp_error", "bp_correlation", "rp_correlation", "bp_standard_deviation"):
        np.testing.assert_array_equal(getattr(read, name), getattr(survey.coefficients, name))


@pytest.mark.parametrize(("n_stars", "seed"), [(0, 0), (-3, 0), (5, -1)])
def test_nonsense_is_refused(survey_model, n_stars, seed):
    with pytest.raises(InputError):
        simulate(*survey_model, n_stars, seed=seed)
