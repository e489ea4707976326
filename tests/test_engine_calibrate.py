"""Eqs. 2-4 by every engine, held against one dense matrix per star."""

from __future__ import annotations

import numpy as np
import pytest
from mock_stars import assert_same

from xpkern.engine.contract import Coefficients
from xpkern.engine.packed import packed_size, present_samples, unpack_factor
from xpkern.grid import BLOCKS, N_BANDS, N_FLUX, N_XP, WAVELENGTH
from xpkern.model.noise import Noise
from xpkern.observe.calibration import Calibration
from xpkern.status import Status

#: Elements of C over sqrt(C_ii C_jj): G is stored in float32, 6e-8, and 66 such products are summed.
STORAGE = 3e-6


def random_spectra(rng, stars, calibration, error=0.02):
    """Coefficients that fall off as the archive's do, with correlated errors; infrared with 2 %."""

    def side(size, scale):
        values = (
            scale * rng.uniform(0.5, 2.0, (stars, 1)) * rng.normal(1.0, 0.3, (stars, size)) * 0.8 ** np.arange(size)
        )
        roots = rng.normal(size=(stars, size, 2 * size))
        covariance = roots @ roots.swapaxes(1, 2)
        deviation = np.sqrt(np.einsum("njj->nj", covariance))
        correlation = covariance / (deviation[:, :, None] * deviation[:, None, :])
        strict = correlation[(slice(None), *np.tril_indices(size, -1))]
        errors = error * scale * rng.uniform(0.5, 1.5, (stars, size))
        return values, errors.astype(np.float32), np.ascontiguousarray(strict, dtype=np.float32)

    bp, bp_error, bp_correlation = side(calibration.n_bp, 100.0)
    rp, rp_error, rp_correlation = side(calibration.n_rp, 200.0)
    coefficients = Coefficients(
        bp=bp,
        rp=rp,
        bp_error=bp_error,
        rp_error=rp_error,
        bp_correlation=bp_correlation,
        rp_correlation=rp_correlation,
        bp_standard_deviation=rng.uniform(0.8, 2.0, stars).astype(np.float32),
        rp_standard_deviation=rng.uniform(0.8, 2.0, stars).astype(np.float32),
        has_bp=np.ones(stars, bool),
        has_rp=np.ones(stars, bool),
    )
    infrared = rng.uniform(0.01, 1.0, (stars, N_BANDS))
    return coefficients, infrared, 0.02 * infrared


def dense_covariance(calibration, coefficients, star, noise, infrared, infrared_error):
    """Flux, C and the samples that exist, of one star, straight from Eq. 2."""
    flux, covariance = np.zeros(N_FLUX), np.zeros((N_FLUX, N_FLUX))
    present = np.ones(N_FLUX, bool)
    both_sides = np.zeros((N_XP, N_XP))
    for side, design, common in (("bp", calibration.bp_design, noise.bp), ("rp", calibration.rp_design, noise.rp)):
        if not getattr(coefficients, f"has_{side}")[star]:
            # BP reaches to 642 nm, RP begins there
            present[:N_XP] &= WAVELENGTH[:N_XP] > 642 if side == "bp" else WAVELENGTH[:N_XP] < 642
            continue
        size = design.shape[1]
        rho = np.eye(size)
        position = 0
        for row in range(size):
            for column in range(row):
                rho[row, column] = rho[column, row] = getattr(coefficients, f"{side}_correlation")[star, position]
                position += 1
        errors = getattr(coefficients, f"{side}_error")[star].astype(float)
        if noise.sigma == "zgr23":
            errors = errors / float(getattr(coefficients, f"{side}_standard_deviation")[star])
        side_flux = design @ getattr(coefficients, side)[star]
        both_sides += design @ np.diag(errors) @ rho @ np.diag(errors) @ design.T
        both_sides += common**2 * np.outer(side_flux, side_flux)
        flux[:N_XP] += side_flux
    covariance[:N_XP, :N_XP] = both_sides + noise.common**2 * np.outer(flux[:N_XP], flux[:N_XP])
    for band in range(N_BANDS):
        if np.isfinite(infrared_error[band]):
            flux[N_XP + band] = infrared[band]
            covariance[N_XP + band, N_XP + band] = infrared_error[band] ** 2
        else:
            present[N_XP + band] = False
    covariance += np.diag((noise.independent * flux) ** 2)
    return flux, covariance, present


def stored_covariance(whitener):
    """G G^T of stored whiteners; zero rows and columns where samples are missing."""
    factor = unpack_factor(whitener)
    diagonal = np.einsum("njj->nj", factor)
    np.divide(1.0, diagonal, out=diagonal, where=diagonal > 0)
    return factor @ factor.swapaxes(1, 2)


def assert_calibrated(found, calibration, coefficients, noise, infrared, infrared_error, floor=None):
    covariances = stored_covariance(found.whitener)
    for star in range(len(coefficients)):
        flux, covariance, present = dense_covariance(
            calibration, coefficients, star, noise, infrared[star], infrared_error[star]
        )
        np.testing.assert_array_equal(present_samples(found.whitener)[star], present)
        expected_flux = np.where(present, flux, 0.0)
        np.testing.assert_allclose(found.flux[star], expected_flux, rtol=2e-7, atol=1e-9 * np.abs(flux).max())
        if floor is not None:
            spectrum = np.flatnonzero(present[:N_XP])
            block = covariance[np.ix_(spectrum, spectrum)]
            values, vectors = np.linalg.eigh(block)
            covariance[np.ix_(spectrum, spectrum)] = vectors @ np.diag(np.maximum(values, floor)) @ vectors.T
        scale = np.sqrt(np.diag(covariance))[present]
        difference = (covariances[star] - covariance)[np.ix_(present, present)]
        assert np.abs(difference / np.outer(scale, scale)).max() <= STORAGE


@pytest.fixture(scope="module")
def calibration():
    return Calibration.default()


@pytest.mark.parametrize("sigma", ["archive", "zgr23"])
def test_covariance(engine, rng, calibration, sigma):
    theoretical = WAVELENGTH > 3000
    noise = Noise.eq2(sigma=sigma, theoretical=theoretical)
    coefficients, infrared, error = random_spectra(rng, 5, calibration)
    found = engine.calibrate(calibration, coefficients, noise, infrared, error)
    assert found.flux.dtype == found.whitener.dtype == np.float32
    assert found.status.dtype == np.uint32
    np.testing.assert_array_equal(found.status, 0)
    assert_calibrated(found, calibration, coefficients, noise, infrared, error)


def test_factors_are_in_blocks(engine, rng, calibration):
    """What the fit makes use of: of Eq. 2's factor the block between BP alone and RP alone is of rank one."""
    alone, leading, linked = BLOCKS
    of_bp, of_rp = calibration.bp_design.any(axis=1), calibration.rp_design.any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(of_bp), np.arange(leading))
    np.testing.assert_array_equal(np.flatnonzero(of_rp), np.arange(alone, linked))
    coefficients, infrared, infrared_error = random_spectra(rng, 17, calibration)
    found = engine.calibrate(calibration, coefficients, Noise.eq2(), infrared, infrared_error)
    factor = unpack_factor(found.whitener)
    between = factor[:, leading:linked, :alone]
    row = np.abs(between).sum(axis=2).argmax(axis=1)
    along = between[np.arange(17), row]
    common = np.einsum("nij,nj->ni", between, along) / np.square(along).sum(axis=1)[:, None]
    assert (common != 0).all()
    np.testing.assert_allclose(common[:, :, None] * along[:, None, :], between, rtol=1e-6)
    assert not np.tril(factor, -1)[:, linked:].any()


def test_what_is_missing_is_deleted_before_factorising(engine, rng, calibration):
    noise = Noise.eq2()
    coefficients, infrared, error = random_spectra(rng, 20, calibration)
    coefficients.has_bp[[1, 4]] = False
    coefficients.has_rp[[2, 5]] = False
    for side in ("bp", "rp"):
        absent = ~getattr(coefficients, f"has_{side}")
        for name in (side, f"{side}_error", f"{side}_correlation", f"{side}_standard_deviation"):
            getattr(coefficients, name)[absent] = 0
    error[rng.random(error.shape) < 0.4] = np.inf
    error[0], error[1], error[3] = 0.02 * infrared[0], 0.02 * infrared[1], np.inf
    infrared[~np.isfinite(error)] = 0.0
    found = engine.calibrate(calibration, coefficients, noise, infrared, error)
    np.testing.assert_array_equal(found.status, 0)
    assert_calibrated(found, calibration, coefficients, noise, infrared, error)


def test_nothing_observed(engine, rng, calibration):
    coefficients, infrared, error = random_spectra(rng, 3, calibration)
    coefficients.has_bp[1] = coefficients.has_rp[1] = False
    error[1] = np.inf
    found = engine.calibrate(calibration, coefficients, Noise.eq2(), infrared, error)
    np.testing.assert_array_equal(found.status, [0, Status.NO_DATA, 0])
    assert not found.whitener[1].any()
    assert not found.flux[1].any()


def test_eigenvalues_are_floored_where_they_must_be_and_only_there(engine, rng, calibration):
    # without Eq. 2's terms, C of 61 samples from 55 + 55 smooth basis functions is as good as singular
    noise = Noise(independent=np.zeros(N_FLUX), common=0.0, bp=0.0, rp=0.0)
    coefficients, infrared, error = random_spectra(rng, 4, calibration, error=1e-4)
    lowest = [
        np.linalg.eigvalsh(
            dense_covariance(calibration, coefficients, star, noise, infrared[star], error[star])[1][:N_XP, :N_XP]
        )[0]
        for star in range(4)
    ]
    floor = 100.0 * max(lowest)
    floored = Noise(independent=np.zeros(N_FLUX), common=0.0, bp=0.0, rp=0.0, floor=floor)
    found = engine.calibrate(calibration, coefficients, floored, infrared, error)
    np.testing.assert_array_equal(found.status, Status.EIGENVALUE_FLOORED)
    assert_calibrated(found, calibration, coefficients, floored, infrared, error, floor=floor)
    # a floor just below the smallest eigenvalue: the certificate cannot tell, the eigenvalues can
    untouched = Noise(independent=np.zeros(N_FLUX), common=0.0, bp=0.0, rp=0.0, floor=0.5 * min(lowest))
    found = engine.calibrate(calibration, coefficients, untouched, infrared, error)
    np.testing.assert_array_equal(found.status, 0)


def test_no_factor(engine, rng, calibration):
    noise = Noise(independent=np.zeros(N_FLUX), common=0.0, bp=0.0, rp=0.0, floor=0.0)
    coefficients, infrared, error = random_spectra(rng, 3, calibration)
    coefficients.bp_error[1] = coefficients.rp_error[1] = 0.0
    error[1] = 0.0
    found = engine.calibrate(calibration, coefficients, noise, infrared, error)
    np.testing.assert_array_equal(found.status, [0, Status.SINGULAR_COVARIANCE, 0])
    assert not found.whitener[1].any()


@pytest.mark.parametrize("stars", [0, 1, 15, 16, 17])
def test_a_star_does_not_notice_how_many_there_are(engine, rng, calibration, stars):
    coefficients, infrared, error = random_spectra(rng, 17, calibration)
    error[3] = np.inf
    some = Coefficients(**{name: values[:stars] for name, values in vars(coefficients).items()})
    found = engine.calibrate(calibration, some, Noise.eq2(), infrared[:stars], error[:stars])
    everything = engine.calibrate(calibration, coefficients, Noise.eq2(), infrared, error)
    assert found.whitener.shape == (stars, packed_size(N_FLUX))
    np.testing.assert_array_equal(found.status, everything.status[:stars])
    if engine.name == "reference":
        np.testing.assert_allclose(found.whitener, everything.whitener[:stars], rtol=1e-5, atol=1e-7)
    else:
        assert_same(engine.name, found.flux, everything.flux[:stars])
        assert_same(engine.name, found.whitener, everything.whitener[:stars])
