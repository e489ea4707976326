"""The compiled calibration: against GaiaXPy on real spectra, against the reference engine on any shape, any numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_engine_calibrate import random_spectra

from xpkern.engine.contract import Calibrated, Coefficients
from xpkern.engine.packed import packed_size, present_samples, sample_variance, unpack_factor
from xpkern.engine.reference import ReferenceEngine
from xpkern.grid import N_BANDS, N_FLUX, N_XP, XP_WAVELENGTH
from xpkern.model.noise import Noise
from xpkern.observe.calibration import FLUX_UNIT, Calibration
from xpkern.observe.spectra import read_blocks
from xpkern.status import Status

cpu = pytest.importorskip("xpkern.engine.cpu", reason="the extension is not built")

#: Elements of G over sqrt(C_ii): float32 rounding of both sides is 6e-8 of an element.
STORAGE = 3e-7

#: The number of stars around which lanes of 1, 2, 4 and 8 are full, partly filled and empty.
STAR_COUNTS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17]


@pytest.fixture(params=cpu.instruction_sets())
def compiled(request):
    """The compiled engine with each instruction set of this machine."""
    return cpu.CpuEngine(request.param)


@pytest.fixture(scope="module")
def calibration():
    return Calibration.default()


def no_noise(samples=N_FLUX, floor=0.0):
    return Noise(independent=np.zeros(samples), common=0.0, bp=0.0, rp=0.0, floor=floor)


def rows_of(coefficients, rows):
    """Some rows, as contiguous arrays."""
    return Coefficients(**{name: np.ascontiguousarray(array[rows]) for name, array in vars(coefficients).items()})


def factor_of(whitener):
    """G (n, m, m); zeros where missing."""
    factor = unpack_factor(whitener)
    diagonal = np.einsum("njj->nj", factor)
    np.divide(1.0, diagonal, out=diagonal, where=diagonal > 0)
    return factor


def assert_like_reference(found: Calibrated, expected: Calibrated, tolerance: float = STORAGE) -> None:
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_array_equal(present_samples(found.whitener), present_samples(expected.whitener))
    brightest = np.abs(expected.flux).max(axis=1, initial=1e-30, keepdims=True)
    assert np.abs((found.flux - expected.flux) / brightest).max(initial=0.0) <= 2e-7
    sigma = np.sqrt(sample_variance(expected.whitener))
    sigma[sigma == 0] = 1.0
    difference = (factor_of(found.whitener) - factor_of(expected.whitener)) / sigma[:, :, None]
    assert np.abs(difference).max(initial=0.0) <= tolerance


def assert_identical(found: Calibrated, expected: Calibrated) -> None:
    for name in ("flux", "whitener", "status"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()


# ---- GaiaXPy


def gaiaxpy_rows(source_id, coefficients):
    """Rows as gaiaxpy.calibrate takes them; what is absent is NaN."""
    for star, identifier in enumerate(source_id):
        row = {"source_id": identifier}
        for side in ("bp", "rp"):
            size = getattr(coefficients, side).shape[1]
            values = {
                "n_parameters": size,
                "n_relevant_bases": size,
                "standard_deviation": float(getattr(coefficients, f"{side}_standard_deviation")[star]),
                "coefficients": getattr(coefficients, side)[star],
                "coefficient_errors": getattr(coefficients, f"{side}_error")[star].astype(float),
                "coefficient_correlations": getattr(coefficients, f"{side}_correlation")[star].astype(float),
            }
            exists = getattr(coefficients, f"has_{side}")[star]
            row |= {f"{side}_{name}": value if exists else np.nan for name, value in values.items()}
        yield row


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "file",
    [
        "real/XpContinuousMeanSpectrum_real-30.csv.gz",
        "gaiaxpy/xp_continuous/XP_CONTINUOUS_RAW.csv",
        "gaiaxpy/xp_continuous/XP_CONTINUOUS_RAW_with_missing_BP.csv",
    ],
)
def test_real_spectra_against_gaiaxpy(compiled, calibration, shared_data, capsys, file):
    gaiaxpy = pytest.importorskip("gaiaxpy")
    pandas = pytest.importorskip("pandas")
    (block,) = read_blocks(shared_data / file, calibration)
    stars = len(block)
    spectra = pandas.DataFrame(list(gaiaxpy_rows(block.source_id, block.coefficients)))
    oracle, _ = gaiaxpy.calibrate(spectra, sampling=XP_WAVELENGTH, save_file=False)
    assert oracle["source_id"].tolist() == block.source_id.tolist()
    flux = np.stack(oracle["flux"].to_numpy()) / FLUX_UNIT
    error = np.stack(oracle["flux_error"].to_numpy()) / FLUX_UNIT

    infinite = np.full((stars, N_BANDS), np.inf)
    found = compiled.calibrate(calibration, block.coefficients, no_noise(), np.zeros_like(infinite), infinite)
    np.testing.assert_array_equal(found.status, 0)
    present = present_samples(found.whitener)[:, :N_XP]
    both = block.coefficients.has_bp & block.coefficients.has_rp
    np.testing.assert_array_equal(present.sum(axis=1), np.where(both, N_XP, N_XP - 26))
    # flux to the rounding of float32, relative to the star's brightest sample; errors likewise
    brightest = np.nanmax(np.abs(flux), axis=1, keepdims=True)
    assert np.abs((found.flux[:, :N_XP] - flux) / brightest)[present].max() <= 1e-7
    sigma = np.sqrt(sample_variance(found.whitener))[:, :N_XP]
    np.testing.assert_allclose(sigma[present], error[present], rtol=3e-7)


def test_real_covariances_have_no_eigenvalue_near_the_floor(compiled, calibration, shared_data):
    (block,) = read_blocks(shared_data / "real" / "XpContinuousMeanSpectrum_real-30.csv.gz", calibration)
    infinite = np.full((len(block), N_BANDS), np.inf)
    for sigma in ("archive", "zgr23"):
        arguments = (calibration, block.coefficients, Noise.eq2(sigma=sigma), np.zeros_like(infinite), infinite)
        found = compiled.calibrate(*arguments)
        np.testing.assert_array_equal(found.status, 0)
        assert_like_reference(found, ReferenceEngine().calibrate(*arguments))


# ---- any shape


def random_calibration(rng, samples, n_bp, n_rp, bp_end, rp_begin):
    """Smooth designs on the samples before ``bp_end`` (BP) and from ``rp_begin`` on (RP)."""

    def design(size, rows):
        result = np.zeros((samples, size))
        phase = np.linspace(0.0, 1.0, samples)[rows, None] * np.arange(size) * np.pi
        result[rows] = np.cos(phase) + 0.3 * rng.normal(size=phase.shape)
        return result

    return Calibration(
        release="test",
        instrument_model="random",
        bp_design=design(n_bp, slice(None, bp_end)),
        rp_design=design(n_rp, slice(rp_begin, None)),
        wavelength=np.linspace(392.0, 992.0, samples),
        bp_basis_function_id=1,
        rp_basis_function_id=2,
    )


@pytest.mark.parametrize(
    ("samples", "n_bp", "n_rp", "bp_end", "rp_begin"),
    [
        pytest.param(61, 51, 55, 26, 25, id="DR4"),
        pytest.param(61, 55, 55, 26, 25, id="DR3"),
        pytest.param(40, 30, 33, 22, 15, id="seven shared samples"),
        pytest.param(30, 20, 25, 15, 15, id="no shared sample"),
        pytest.param(24, 9, 7, 14, 12, id="more samples than coefficients"),
        pytest.param(13, 13, 6, 7, 0, id="RP everywhere"),
        pytest.param(11, 5, 11, 11, 0, id="both everywhere"),
        pytest.param(2, 1, 1, 1, 1, id="one coefficient each"),
    ],
)
@pytest.mark.parametrize("common", [0.0, 0.2])
def test_any_number_of_samples_and_coefficients(compiled, rng, samples, n_bp, n_rp, bp_end, rp_begin, common):
    calibration = random_calibration(rng, samples, n_bp, n_rp, bp_end, rp_begin)
    stars = 11
    coefficients, infrared, error = random_spectra(rng, stars, calibration)
    coefficients.has_bp[2] = coefficients.has_rp[7] = False
    error[rng.random(error.shape) < 0.3] = np.inf
    noise = Noise(independent=rng.uniform(0.005, 0.02, samples + N_BANDS), common=common)
    found = compiled.calibrate(calibration, coefficients, noise, infrared, error)
    expected = ReferenceEngine().calibrate(calibration, coefficients, noise, infrared, error)
    assert found.whitener.shape == (stars, packed_size(samples + N_BANDS))
    assert_like_reference(found, expected)


def test_samples_that_depend_on_each_other(compiled, rng, calibration):
    # two equal rows of the design: no basis of as many columns as rows exists, C is singular without Eq. 2
    twin = np.array(calibration.bp_design)
    twin[7] = twin[6]
    dependent = dataclasses.replace(calibration, bp_design=twin)
    coefficients, infrared, error = random_spectra(rng, 9, dependent)
    arguments = (dependent, coefficients, Noise.eq2(), infrared, error)
    assert_like_reference(compiled.calibrate(*arguments), ReferenceEngine().calibrate(*arguments))


# ---- the floor


def test_near_singular_covariances_take_the_floor_of_their_own_star_only(compiled, rng, calibration):
    noise = Noise.eq2()
    coefficients, infrared, error = random_spectra(rng, 21, calibration)
    before = compiled.calibrate(calibration, coefficients, noise, infrared, error)
    np.testing.assert_array_equal(before.status, 0)
    faint = [0, 5, 6, 20]
    for side in ("bp", "rp"):
        getattr(coefficients, side)[faint] *= 1e-8
        getattr(coefficients, f"{side}_error")[faint] *= np.float32(1e-6)
    found = compiled.calibrate(calibration, coefficients, noise, infrared, error)
    expected_status = np.zeros(21, np.uint32)
    expected_status[faint] = Status.EIGENVALUE_FLOORED
    np.testing.assert_array_equal(found.status, expected_status)
    others = np.setdiff1d(np.arange(21), faint)
    np.testing.assert_array_equal(found.whitener[others], before.whitener[others])
    # C of a floored star is floor * 1 but for a few eigenvalues: its factor is well conditioned
    expected = ReferenceEngine().calibrate(calibration, coefficients, noise, infrared, error)
    assert_like_reference(found, expected, tolerance=1e-6)


def test_correlations_that_are_none(compiled, rng, calibration):
    # not positive definite: eigenvalues of Sigma far below zero, so that C needs its floor or has no factor
    coefficients, infrared, error = random_spectra(rng, 6, calibration, error=0.2)
    coefficients.bp_correlation[[1, 4]] *= -9
    found = compiled.calibrate(calibration, coefficients, Noise.eq2(), infrared, error)
    expected = ReferenceEngine().calibrate(calibration, coefficients, Noise.eq2(), infrared, error)
    assert (expected.status[[1, 4]] != 0).all()
    # raised to 1e-9 of eigenvalues of 1e4, C is as good as singular: whether it has a factor is decided by rounding
    for star in (1, 4):
        assert found.status[star] in (Status.EIGENVALUE_FLOORED, Status.SINGULAR_COVARIANCE)
        assert np.isfinite(found.whitener[star]).all()
    others = [0, 2, 3, 5]
    np.testing.assert_array_equal(found.status[others], 0)
    np.testing.assert_array_equal(found.flux[others], expected.flux[others])


# ---- any numbers


@pytest.mark.parametrize("side", ["bp", "rp"])
@pytest.mark.parametrize("field", ["", "_error", "_correlation", "_standard_deviation"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_side_with_a_number_that_is_none_is_missing(compiled, rng, calibration, side, field, value):
    sigma = "zgr23" if field == "_standard_deviation" else "archive"
    if field == "_standard_deviation" and not np.isnan(value):
        value = 0.0  # 1 / s is what enters
    coefficients, infrared, error = random_spectra(rng, 9, calibration)
    clean = compiled.calibrate(calibration, coefficients, Noise.eq2(sigma=sigma), infrared, error)
    array = getattr(coefficients, side + field)
    star, position = 3, rng.integers(array.shape[1]) if array.ndim == 2 else None
    array[star if position is None else (star, position)] = value
    found = compiled.calibrate(calibration, coefficients, Noise.eq2(sigma=sigma), infrared, error)
    getattr(coefficients, f"has_{side}")[star] = False
    declared = compiled.calibrate(calibration, coefficients, Noise.eq2(sigma=sigma), infrared, error)
    assert_identical(found, declared)
    assert np.isfinite(found.flux).all()
    assert np.isfinite(found.whitener).all()
    others = np.arange(9) != star
    np.testing.assert_array_equal(found.whitener[others], clean.whitener[others])


@pytest.mark.parametrize(
    ("flux", "error"),
    [
        (np.nan, 0.1),
        (np.inf, 0.1),
        (1.0, np.nan),
        (1.0, np.inf),
        (np.nan, np.nan),
        (1e300, 0.1),
        (1.0, 1e300),
        (0.0, 0.0),
    ],
)
def test_a_band_without_usable_numbers_is_missing(compiled, rng, calibration, flux, error):
    coefficients, infrared, infrared_error = random_spectra(rng, 3, calibration)
    infrared[1, 2], infrared_error[1, 2] = flux, error
    found = compiled.calibrate(calibration, coefficients, Noise.eq2(), infrared, infrared_error)
    infrared[1, 2], infrared_error[1, 2] = 0.0, np.inf
    declared = compiled.calibrate(calibration, coefficients, Noise.eq2(), infrared, infrared_error)
    assert_identical(found, declared)


@pytest.mark.parametrize("factor", [1e40, 1e150, 1e300])
def test_numbers_too_large_to_store_leave_no_infinity(compiled, rng, calibration, factor):
    coefficients, infrared, error = random_spectra(rng, 5, calibration)
    coefficients.bp[2] *= factor
    found = compiled.calibrate(calibration, coefficients, Noise.eq2(), infrared, error)
    np.testing.assert_array_equal(found.status, [0, 0, Status.SINGULAR_COVARIANCE, 0, 0])
    assert np.isfinite(found.flux).all()
    assert not found.whitener[2].any()


# ---- the same bytes, whatever the company


@pytest.mark.parametrize("stars", STAR_COUNTS)
def test_a_star_does_not_notice_its_neighbours(compiled, rng, calibration, stars):
    coefficients, infrared, error = random_spectra(rng, 17, calibration)
    coefficients.has_bp[3] = coefficients.has_rp[8] = False
    coefficients.bp[11] *= 1e-8
    coefficients.rp[11] *= 1e-8
    coefficients.bp_error[11] *= np.float32(1e-6)
    coefficients.rp_error[11] *= np.float32(1e-6)
    error[rng.random(error.shape) < 0.3] = np.inf
    noise = Noise.eq2()
    everything = compiled.calibrate(calibration, coefficients, noise, infrared, error, threads=1)
    order = rng.permutation(17)[:stars]
    found = compiled.calibrate(calibration, rows_of(coefficients, order), noise, infrared[order], error[order])
    assert_identical(found, Calibrated(everything.flux[order], everything.whitener[order], everything.status[order]))


def test_threads_do_not_change_a_byte(compiled, rng, calibration):
    # more stars than one thread takes at a time
    coefficients, infrared, error = random_spectra(rng, 40, calibration)
    rows = rng.integers(0, 40, 1100)
    arguments = (calibration, rows_of(coefficients, rows), Noise.eq2(), infrared[rows], error[rows])
    assert_identical(compiled.calibrate(*arguments, threads=2), compiled.calibrate(*arguments, threads=1))


def test_fused_instruction_sets_agree_to_the_last_bit(rng, calibration):
    fused = [isa for isa in cpu.instruction_sets() if isa in ("avx2", "avx512")]
    if len(fused) < 2:
        pytest.skip("this machine has not both AVX2 and AVX-512")
    coefficients, infrared, error = random_spectra(rng, 20, calibration)
    coefficients.has_rp[4] = False
    results = [cpu.CpuEngine(isa).calibrate(calibration, coefficients, Noise.eq2(), infrared, error) for isa in fused]
    assert_identical(*results)
