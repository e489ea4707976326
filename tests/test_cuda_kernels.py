"""The CUDA kernels' own text, run on the processor: against the reference engine at the edges of what stars can be.

How the engine around them behaves is in ``test_engine_cuda.py``; every test of the contract runs on them, too, where
``XPKERN_TEST_SIMULATED_GPU`` is set.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from cuda_library import SOURCES, kernel_names
from mock_stars import (
    infrared_missing,
    random_model,
    random_params,
    random_prior,
    random_stars,
    side_missing,
    some_bands_missing,
)
from simulated_gpu import SimulatedGpu
from test_engine_calibrate import random_spectra

from xpkern.engine.contract import Descent, FitOptions, LossTerms, StarData
from xpkern.engine.cpu import CpuEngine
from xpkern.engine.cuda import launching
from xpkern.engine.cuda.engine import CudaEngine
from xpkern.engine.packed import unpack_factor
from xpkern.engine.reference import ReferenceEngine
from xpkern.engine.training import Steps
from xpkern.errors import TrainingDiverged
from xpkern.fit.fit import default_box
from xpkern.fit.start import start_grid
from xpkern.model.noise import Noise
from xpkern.observe.calibration import Calibration
from xpkern.status import Status

REFERENCE = ReferenceEngine()
TERMS = LossTerms()


@pytest.fixture(scope="module")
def kernels() -> CudaEngine:
    return CudaEngine(SimulatedGpu())


class Sky:
    """Stars of every kind side by side: complete, without a side or bands, faint, bright, without a parallax."""

    def __init__(self, rng, stars: int) -> None:
        self.model, self.prior = random_model(rng), random_prior(rng)
        self.params = random_params(rng, self.prior, stars)
        kinds = [
            self._some(rng),
            self._some(rng, missing=some_bands_missing(rng, stars)),
            self._some(rng, missing=infrared_missing(stars), snr=3.0),
            self._some(rng, missing=side_missing(stars, "bp"), snr=1000.0),
            self._some(rng, missing=side_missing(stars, "rp"), parallax=False),
        ]
        self.kind = rng.integers(len(kinds), size=stars)
        parts = [np.stack([getattr(kind, name) for kind in kinds]) for name in ("flux", "whitener", "mean", "sigma")]
        self.stars = StarData(*(part[self.kind, np.arange(stars)] for part in parts))
        self.box = default_box(self.prior)

    def _some(self, rng, **how) -> StarData:
        return random_stars(rng, self.model, self.params, **how)

    def lose(self, star: int) -> None:
        """Leave a star without any data."""
        self.stars.flux[star] = 0.0
        self.stars.whitener[star] = 0.0


def by_scale(found, expected):
    """Largest difference between matrices of stars, in units of their diagonals' roots."""
    scale = np.sqrt(np.abs(np.einsum("naa->na", expected)))
    return np.max(np.abs(found - expected) / (scale[:, :, None] * scale[:, None, :]), initial=0.0)


@pytest.mark.parametrize("stars", [0, 1, 31, 33])
def test_evaluation_and_prediction(rng, kernels, stars):
    sky = Sky(rng, stars)
    found = kernels.evaluate(sky.model, sky.prior, sky.stars, sky.params, TERMS)
    expected = REFERENCE.evaluate(sky.model, sky.prior, sky.stars, sky.params, TERMS)
    allowed = np.maximum(1e-3, 1e-5 * np.abs(expected.loss))
    assert (np.abs(found.loss - expected.loss) <= allowed).all()
    assert (np.abs(found.chi2 - expected.chi2) <= allowed).all()
    np.testing.assert_allclose(found.ln_prior, expected.ln_prior, atol=1e-10)
    assert by_scale(found.hessian, expected.hessian) <= 1e-3
    assert by_scale(found.fisher, expected.fisher) <= 1e-4
    flux = REFERENCE.predict(sky.model, sky.params)
    np.testing.assert_allclose(kernels.predict(sky.model, sky.params), flux, rtol=1e-11)


def test_fit_from_a_grid(rng, kernels):
    sky = Sky(rng, 33)
    sky.lose(7)
    grid, options = start_grid(sky.model, sky.prior), FitOptions(starts=3)
    found = kernels.fit(sky.model, sky.prior, sky.stars, grid, TERMS, sky.box, options)
    assert found.status[7] == Status.NO_DATA
    assert np.isnan(found.loss[7])
    kept = np.arange(33) != 7
    at = REFERENCE.evaluate(sky.model, sky.prior, sky.stars[kept], found.params[kept], TERMS)
    assert (np.abs(found.loss[kept] - at.loss) <= np.maximum(1e-3, 1e-5 * np.abs(at.loss))).all()
    assert by_scale(found.hessian[kept], at.hessian) <= 1e-3
    assert (found.status[kept] & Status.NOT_CONVERGED == 0).all()
    assert (found.minima[kept] >= 1).all()
    starts = kernels.start(grid, sky.stars, options)
    expected = REFERENCE.start(grid, sky.stars, options)
    same = np.isnan(starts) == np.isnan(expected)
    assert same[kept].mean() > 0.9  # of scores that are all but equal either type may come first
    close = np.abs(starts[kept, 0] - expected[kept, 0]).max(axis=1) < 1e-2
    assert close.mean() > 0.8


def test_samples_may_be_compared_with_any_neighbours(rng, kernels):
    """Windows of every length, and samples that are missing in them."""
    sky = Sky(rng, 33)
    samples = len(sky.model.wavelength)
    whole = np.column_stack([np.zeros(samples, int), np.full(samples, samples)])
    first = rng.integers(0, samples, samples)
    drawn = np.column_stack([first, rng.integers(first, samples) + 1])
    grid = start_grid(sky.model, sky.prior)
    for window in (whole, drawn):
        compared = replace(grid, window=window.astype(np.int32))
        starts = kernels.start(compared, sky.stars, FitOptions())[:, 0]
        expected = REFERENCE.start(compared, sky.stars, FitOptions())[:, 0]
        assert (np.abs(starts - expected).max(axis=1) < 1e-2).mean() > 0.8  # another type where two are all but equal


@pytest.mark.parametrize("stars", [0, 1, 15, 16, 17, 33])
def test_starts_and_what_is_written_of_a_fit(rng, kernels, stars):
    """By warps: portions of stars that are whole, and are not; stars of any signal-to-noise, and one without data."""
    sky = Sky(rng, stars)
    for star, snr in ((2, 1e5), (3, 0.01)):
        if star < stars:
            one = random_stars(rng, sky.model, sky.params, snr=snr)
            sky.stars.flux[star], sky.stars.whitener[star] = one.flux[star], one.whitener[star]
    if stars > 7:
        sky.lose(7)
    kept = np.arange(stars) != 7
    grid, options = start_grid(sky.model, sky.prior), FitOptions(starts=2, max_iterations=3)
    starts, expected = (engine.start(grid, sky.stars, options)[kept] for engine in (kernels, REFERENCE))
    close = np.abs(starts[:, 0] - expected[:, 0]).max(axis=1) < 1e-2
    assert np.sum(~close) <= 0.1 * stars  # of scores that are all but equal either type may come first
    # a few steps, wherever they lead: what is written must belong to where that is
    found = kernels.fit(sky.model, sky.prior, sky.stars, grid, TERMS, sky.box, options)
    np.testing.assert_array_equal(found.status == Status.NO_DATA, ~kept)
    assert (found.residual[~kept] == 0).all()
    factor = unpack_factor(sky.stars.whitener).astype(np.float64)[kept]
    diagonal = np.einsum("njj->nj", factor)
    present = diagonal > 0
    np.divide(1.0, diagonal, out=diagonal, where=present)
    sigma = np.where(present, np.sqrt(np.einsum("nij,nij->ni", factor, factor)), np.inf)
    flux = REFERENCE.predict(sky.model, found.params[kept])
    np.testing.assert_allclose(found.residual[kept], (flux - sky.stars.flux[kept]) / sigma, rtol=1e-4, atol=1e-4)
    at = REFERENCE.evaluate(sky.model, sky.prior, sky.stars[kept], found.params[kept], TERMS)
    assert by_scale(found.fisher[kept], at.fisher) <= 1e-3


@pytest.mark.parametrize("limits", [(), (1, 2, 3, 5)])
def test_searches_that_are_left_more_or_less_often_end_alike(rng, kernels, monkeypatch, limits):
    sky = Sky(rng, 33)
    grid, options = start_grid(sky.model, sky.prior), FitOptions(starts=3)
    expected = kernels.fit(sky.model, sky.prior, sky.stars, grid, TERMS, sky.box, options)
    monkeypatch.setattr("xpkern.engine.cuda.fitting._GATHERED_AFTER", limits)
    found = kernels.fit(sky.model, sky.prior, sky.stars, grid, TERMS, sky.box, options)
    for name in ("params", "loss", "hessian", "fisher", "residual", "iterations", "status", "minima"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_a_small_grid_does_what_a_large_one_does(rng, monkeypatch):
    """Threads take one star after the other, and a block need not be of the usual size."""
    sky = Sky(rng, 33)
    start = sky.params * 1.05
    expected = CudaEngine(SimulatedGpu()).fit(
        sky.model, sky.prior, sky.stars, start, TERMS, sky.box, FitOptions(max_iterations=10)
    )
    monkeypatch.setattr(launching.Launcher, "threads", lambda self, items, bytes_a_thread=0: 32)
    monkeypatch.setattr(launching, "BLOCK", 32)
    found = CudaEngine(SimulatedGpu()).fit(
        sky.model, sky.prior, sky.stars, start, TERMS, sky.box, FitOptions(max_iterations=10)
    )
    np.testing.assert_array_equal(found.params, expected.params)
    np.testing.assert_array_equal(found.status, expected.status)


@pytest.mark.parametrize(("stars", "size"), [(0, 5), (1, 5), (15, 5), (16, 4), (17, 6), (33, 5), (300, 5)])
def test_covariances(rng, kernels, stars, size):
    """Eigenvalues far above the floor, near it on either side, and below 0; units of all sizes; what is no number."""
    vectors = np.linalg.qr(rng.normal(size=(stars, size, size)))[0]
    values = rng.uniform(0.1, 1.0, (stars, size))
    values[:, 0] = rng.choice([1e-2, 2e-6, 0.9e-6, 1e-9, -1e-7], stars)
    scaled = (vectors * values[:, None, :]) @ vectors.swapaxes(1, 2)
    scale = 10.0 ** rng.uniform(-3, 5, (stars, size))
    information = 0.5 * (scaled + scaled.swapaxes(1, 2)) * (scale[:, :, None] * scale[:, None, :])
    if stars > 3:
        information[1, 2], information[1, :, 2] = 0.0, 0.0  # a parameter that nothing depends on
        information[2], information[3, 0, 1] = np.nan, np.nan
    covariance, inverse, floored = kernels.invert_information(information)
    expected, expected_inverse, expected_floored = REFERENCE.invert_information(information)
    np.testing.assert_array_equal(floored, expected_floored)
    np.testing.assert_array_equal(inverse[~floored], information[~floored])
    for found, right in ((covariance, expected), (inverse, expected_inverse)):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(right))
        finite = np.isfinite(right).all(axis=(1, 2))
        assert by_scale(found[finite], right[finite]) <= 1e-8
        np.testing.assert_array_equal(found[finite], found[finite].swapaxes(1, 2))
    if stars > 16:
        assert floored.any()
        assert not floored.all()


def test_descent(rng, kernels):
    sky = Sky(rng, 17)
    how = Descent("adam", steps=30, rate=0.02, decay_every=10, clip=100.0)
    start = np.clip(sky.params * 1.1, sky.box.lower, sky.box.upper)
    arguments = (sky.model, sky.prior, sky.stars, start, TERMS, sky.box, how)
    expected = REFERENCE.descend(*arguments)
    np.testing.assert_allclose(kernels.descend(*arguments), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("stars", [0, 1, 2, 31, 33, 64, 65, 129])
def test_gradient_of_the_model(rng, kernels, stars):
    sky = Sky(rng, stars)
    labels = replace(sky.stars, mean=sky.params, sigma=np.full(sky.params.shape, 0.1))
    params = sky.params * 1.02
    loss, *found = kernels.train_step(sky.model, labels, params)
    expected_loss, *expected = REFERENCE.train_step(sky.model, labels, params)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for ours, theirs in zip(_flat(found), _flat(expected), strict=True):
        assert np.abs(ours - theirs).max() <= 2e-4 * np.abs(theirs).max() + 1e-9


def _flat(gradient):
    weights, biases, curve = gradient
    return [*weights, *biases, curve]


@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_epoch(rng, kernels, method):
    sky = Sky(rng, 70)
    labels = replace(sky.stars, mean=sky.params, sigma=np.full(sky.params.shape, 0.1))
    batches = rng.permutation(70)[:66].reshape(2, 33).astype(np.int64)
    model_steps = Steps(method, np.full(2, 1e-5), momentum=0.5 if method == "sgd" else 0.0, clip=10.0)
    star_steps = Steps("sgd", np.full(2, 1e-6), clip=100.0)
    params = sky.params * 1.02  # at the true ones only noise is left of the gradient, and single precision shows
    arguments = (sky.model, labels, params, batches, LossTerms(prior=False), sky.box)
    found = kernels.train_epoch(*arguments, model_steps, star_steps, None)
    expected = REFERENCE.train_epoch(*arguments, model_steps, star_steps, None)
    np.testing.assert_allclose(found.model_loss, expected.model_loss, rtol=1e-4)
    np.testing.assert_allclose(found.params, expected.params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.star_loss, expected.star_loss, rtol=1e-4)
    if method == "sgd":  # Adam divides by the size of a gradient: where that is all but zero, rounding decides
        for ours, theirs, before in zip(found.model.weights, expected.model.weights, sky.model.weights, strict=True):
            assert np.linalg.norm(ours - theirs) <= 0.01 * np.linalg.norm(theirs - before) + 1e-12
    for ours, theirs in zip(found.moments.first.weights, expected.moments.first.weights, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()
    again = kernels.train_epoch(*arguments, model_steps, star_steps, None)
    for ours, theirs in zip(found.model.weights, again.model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_step_of_adam_follows_from_its_moments(rng, kernels):
    sky = Sky(rng, 20)
    steps, batch = Steps("adam", np.array([1e-4])), np.arange(20, dtype=np.int64)[None]
    found = kernels.train_epoch(
        sky.model, sky.stars, sky.params, batch, LossTerms(prior=False), sky.box, steps, None, None
    )
    first, second = found.moments.first, found.moments.second
    for layer, before in enumerate(sky.model.weights):
        mean, square = first.weights[layer] / (1 - 0.9), second.weights[layer] / (1 - 0.999)
        step = -1e-4 * np.sqrt(1 - 0.999) / (1 - 0.9) * first.weights[layer] / (np.sqrt(second.weights[layer]) + 1e-7)
        np.testing.assert_allclose(found.model.weights[layer], before + step, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(mean**2, square, rtol=1e-12)


def test_a_model_that_runs_away_keeps_its_last_finite_step(rng, kernels):
    sky = Sky(rng, 20)
    batches = np.arange(20, dtype=np.int64).reshape(2, 10)
    steps = Steps("sgd", np.array([1e-9, 1e300]))
    with pytest.raises(TrainingDiverged) as caught:
        kernels.train_epoch(
            sky.model, sky.stars, sky.params, batches, LossTerms(prior=False), sky.box, steps, None, None
        )
    assert caught.value.batch == 1
    assert all(np.isfinite(weight).all() for weight in caught.value.reached.model.weights)


def test_every_kernel_is_launched_by_the_engine():
    """None is left over, and none is missing."""
    python = "".join(path.read_text() for path in (SOURCES.parents[1] / "xpkern" / "engine" / "cuda").glob("*.py"))
    named = set(re.findall(r'"(\w+)"', python))
    kernels = [name for name in kernel_names(general=False) if not name.startswith("roof_")]
    assert [name for name in kernels if name not in named] == []


@pytest.fixture
def left_to_the_cpu(monkeypatch):
    """How many stars each calibration by the kernels leaves to the CPU's, which it then asks."""
    counts = []

    class Counting(CpuEngine):
        def calibrate(self, calibration, coefficients, *arguments, **options):
            counts.append(len(coefficients))
            return super().calibrate(calibration, coefficients, *arguments, **options)

    monkeypatch.setattr("xpkern.engine.cuda.engine.CpuEngine", Counting)
    return counts


def assert_same_calibration(found, expected):
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_allclose(found.flux, expected.flux, rtol=1e-6, atol=1e-6 * np.abs(expected.flux).max())
    factors = unpack_factor(found.whitener), unpack_factor(expected.whitener)
    diagonals = [np.einsum("njj->nj", factor) for factor in factors]
    np.testing.assert_array_equal(diagonals[0] == 0, diagonals[1] == 0)
    for diagonal in diagonals:
        np.divide(1.0, diagonal, out=diagonal, where=diagonal > 0)
    scale = np.sqrt(np.einsum("nij,nij->ni", factors[1], factors[1]))[:, :, None]
    assert (np.abs(factors[0] - factors[1]) <= 1e-5 * scale).all()


@pytest.mark.parametrize("sigma", ["archive", "zgr23"])
def test_calibration_of_spectra_with_flaws(rng, kernels, left_to_the_cpu, sigma):
    calibration = Calibration.default()
    coefficients, infrared, error = random_spectra(rng, 13, calibration)
    coefficients.has_rp[1] = coefficients.has_bp[2] = coefficients.has_bp[3] = coefficients.has_rp[3] = False
    coefficients.bp[4, 17], coefficients.rp[5, 54], coefficients.bp[6, 0] = np.nan, np.inf, -np.inf
    coefficients.rp_error[7, 54] = coefficients.bp_correlation[8, -1] = coefficients.rp_correlation[9, 0] = np.nan
    coefficients.bp_standard_deviation[10] = 0.0
    infrared[3:6, 1], error[3] = np.nan, np.inf
    arguments = (calibration, coefficients, Noise.eq2(sigma=sigma), infrared, error)
    found = kernels.calibrate(*arguments)
    assert not left_to_the_cpu
    assert found.status[3] == Status.NO_DATA
    assert_same_calibration(found, CpuEngine().calibrate(*arguments))
    coefficients.bp_error[11] = 1e37  # too large to be stored
    found = kernels.calibrate(*arguments)
    assert left_to_the_cpu == [1]
    assert_same_calibration(found, CpuEngine().calibrate(*arguments))


def test_spectra_of_other_sizes(rng, kernels, left_to_the_cpu):
    """A warp has room for the archive's; others take the form with a star a thread."""
    usual = Calibration.default()
    shorter = replace(usual, bp_design=usual.bp_design[:, :40].copy(), rp_design=usual.rp_design[:, :54].copy())
    coefficients, infrared, error = random_spectra(rng, 3, shorter)
    arguments = (shorter, coefficients, Noise.eq2(), infrared, error)
    found = kernels.calibrate(*arguments)
    assert kernels.device.launches[-1] == "calibrate_any"
    assert not left_to_the_cpu
    assert_same_calibration(found, CpuEngine().calibrate(*arguments))


@pytest.mark.parametrize("shared_memory", [65_536, 101_376])
def test_a_block_has_as_many_spectra_as_there_is_shared_memory_for(rng, kernels, shared_memory):
    calibration = Calibration.default()
    coefficients, infrared, error = random_spectra(rng, 5, calibration)
    arguments = (calibration, coefficients, Noise.eq2(), infrared, error)
    expected = kernels.calibrate(*arguments)
    gpu = SimulatedGpu()
    gpu.facts = replace(gpu.facts, shared_memory=shared_memory)
    found = CudaEngine(gpu).calibrate(*arguments)
    np.testing.assert_array_equal(found.whitener, expected.whitener)
    np.testing.assert_array_equal(found.flux, expected.flux)
