"""What our engines are compared with computes the same: the peers, and the oracle of the optimum."""

import sys

import numpy as np
import pytest

import xpkern as xk
from bench import oracle
from bench.fitting import Fitter
from bench.peers.numpy_calibration import numpy_calibrate
from bench.peers.numpy_fit import NumpyFit
from bench.stars import dense_whiteners, survey, survey_files
from bench.training import CLIP, Trainer
from xpkern.engine.contract import LossTerms
from xpkern.engine.packed import unpack_factor
from xpkern.engine.training import ModelArrays
from xpkern.grid import N_BANDS, N_XP
from xpkern.observe.calibration import Calibration
from xpkern.observe.simulate import simulate

#: Stars of a comparison.
FEW = 24


@pytest.fixture(scope="module")
def small_survey():
    model, prior = xk.load_model()
    return model, prior, simulate(model, prior, 12, seed=3)


def test_numpy_calibration_is_the_reference(small_survey):
    """A peer that computes something else would be no peer."""
    model, _, survey = small_survey
    calibration = Calibration.default()
    flux, factor = numpy_calibrate(calibration, survey.coefficients, model.noise)
    no_band, no_error = np.zeros((12, N_BANDS)), np.full((12, N_BANDS), np.inf)
    expected = xk.get_engine("reference").calibrate(calibration, survey.coefficients, model.noise, no_band, no_error)
    np.testing.assert_allclose(flux, expected.flux[:, :N_XP], rtol=1e-6, atol=1e-6 * np.abs(flux).max())
    stored = unpack_factor(expected.whitener)[:, :N_XP, :N_XP]
    diagonal = np.arange(N_XP)
    factor[:, diagonal, diagonal] = 1 / factor[:, diagonal, diagonal]
    np.testing.assert_allclose(factor, stored, rtol=1e-5, atol=1e-6)


def test_numpy_fit_has_the_reference_loss_and_finds_its_minimum(small_survey, rng):
    model, prior, survey = small_survey
    flux = survey.population.flux
    whitener = np.stack([np.diag(1 / (0.01 * one)) for one in flux])
    plx = survey.truth[:, 4]
    obs = xk.Observations.from_arrays(flux=flux, whitener=whitener, plx=plx, plx_err=0.05 * plx)
    peer = NumpyFit(model, prior)
    start = survey.truth * [1.02, 1, 1, 1.2, 1] + [0, 0.1, 0, 0.05, 0]
    params, loss = peer.run(start, obs.flux, whitener.astype(np.float32), obs.plx, obs.plx_err)
    engine = xk.get_engine("reference")
    at_end = engine.evaluate(model, prior, obs.star_data(), params, xk.LossTerms())
    np.testing.assert_allclose(loss, at_end.loss, atol=0.05)
    newton = np.linalg.solve(at_end.hessian, at_end.gradient[:, :, None])[:, :, 0]
    drop = 0.5 * np.einsum("ni,ni->n", newton, at_end.gradient)
    assert np.median(np.abs(drop)) < 0.01


@pytest.fixture(scope="module")
def fitter():
    return Fitter(xk.get_engine("cpu"), FEW)


def test_jax_fit_has_our_loss_our_fisher_matrix_and_finds_the_same_minimum(fitter):
    jax_fit = pytest.importorskip("bench.peers.jax_fit", reason="JAX is not installed", exc_type=ImportError)
    obs = fitter.obs
    stars = jax_fit.Stars(obs.flux, dense_whiteners(obs), obs.plx, obs.plx_err)
    peer = jax_fit.JaxFit(fitter.model, fitter.prior)
    params, loss, fisher = peer.run(stars)
    at_end = xk.get_engine("reference").evaluate(fitter.model, fitter.prior, fitter.stars, params, LossTerms())
    np.testing.assert_allclose(loss, at_end.loss, atol=0.1, rtol=1e-4)
    scale = np.sqrt(np.einsum("naa->na", at_end.fisher))
    np.testing.assert_allclose(
        fisher / (scale[:, :, None] * scale[:, None]), at_end.fisher / (scale[:, :, None] * scale[:, None]), atol=0.01
    )
    polished = fitter.fit(params)
    assert np.mean(at_end.loss < polished.loss + 0.01) > 0.8
    assert np.mean(at_end.loss < fitter.fit(fitter.grid).loss + 0.01) > 0.6


def test_jax_start_is_the_best_of_its_grid(fitter):
    """Against the same formula, star by star, in float64."""
    jax_fit = pytest.importorskip("bench.peers.jax_fit", reason="JAX is not installed", exc_type=ImportError)
    obs = fitter.obs
    stars = jax_fit.Stars(obs.flux, dense_whiteners(obs), obs.plx, obs.plx_err)
    start = jax_fit.JaxFit(fitter.model, fitter.prior).start(stars).astype(np.float64)
    grid = {name: np.asarray(array, np.float64) for name, array in jax_fit._grid(fitter.model, fitter.prior).items()}
    variance = stars.arrays[1].astype(np.float64)
    for star in range(FEW):
        band = obs.flux[star] @ grid["mean"]
        weight = 1 / (variance[star] @ grid["mean"] + (0.05 * band) ** 2)
        plx2 = (grid["flux"] @ (weight * band)) / (grid["flux"] ** 2 @ weight)
        score = ((plx2[:, None] * grid["flux"] - band) ** 2) @ weight - (weight * band**2).sum()
        score += (np.sqrt(plx2) - obs.plx[star]) ** 2 / (obs.plx_err[star] ** 2 + 0.01 * plx2) - grid["twice_ln_prior"]
        chosen = np.abs(grid["y"][:, :4] - start[star, :4]).sum(axis=1).argmin()
        assert score[chosen] < score.min() + 0.01 * max(1, abs(score.min()))
        assert start[star, 4] == pytest.approx(0.5 * np.log(plx2[chosen]), abs=1e-4)


def test_jax_training_takes_our_steps():
    jax_train = pytest.importorskip("bench.peers.jax_train", reason="JAX is not installed", exc_type=ImportError)
    trainer = Trainer(xk.get_engine("reference"), FEW)
    trainer.params = trainer.params * [1.01, 1, 1, 1.1, 1.02]
    model, stars, batches = trainer.model, trainer.stars[:], trainer.batches.reshape(3, -1)
    dense = dense_whiteners(Fitter(trainer.engine, FEW).obs)
    laid_out = jax_train.Batches.of(stars.flux, dense, stars.mean, stars.sigma, trainer.params, batches, trainer.source)
    peer = jax_train.JaxTraining(model, trainer.terms)

    def flat(weights, biases, ln_ext_curve):
        return ModelArrays([*weights], [*biases], ln_ext_curve).flatten()

    before = flat(model.weights, model.biases, np.log(model.ext_curve))
    gradient = ModelArrays(*trainer.engine.train_step(model, stars, trainer.params)[1:]).flatten()
    rate = 1e-3 / np.linalg.norm(gradient)  # changes that float32 can tell to a thousandth

    def assert_same_change(state, expected):
        change = flat(expected.weights, expected.biases, np.log(expected.ext_curve)) - before
        found = flat(*([np.asarray(array) for array in part] for part in state[:2]), np.asarray(state[2])) - before
        assert np.linalg.norm(found - change) < 0.01 * np.linalg.norm(change)

    expected = trainer.epoch(rate, None, batches=batches)
    state, loss = peer.model_epoch(laid_out, rate)
    assert_same_change(state, expected.model)
    np.testing.assert_allclose(loss, expected.model_loss, rtol=1e-3)
    expected = trainer.epoch(rate, 1e-5, batches=batches)
    state, x = peer.both_epoch(laid_out, rate, 1e-5, CLIP)
    assert_same_change(state, expected.model)
    moved = np.column_stack([expected.params[:, :3], np.log(expected.params[:, 3:])])
    np.testing.assert_allclose(x, moved[batches], rtol=1e-6, atol=3e-6)
    assert np.abs(x - np.column_stack([trainer.params[:, :3], np.log(trainer.params[:, 3:])])[batches]).max() > 1e-4


def test_python_stack_reads_what_was_written():
    python_csv = pytest.importorskip("bench.peers.python_csv", reason="pysimdjson is missing", exc_type=ImportError)
    written = survey(FEW).coefficients
    parts = list(python_csv.read_coefficients(survey_files(FEW).spectra))
    for name in ("bp", "rp", "bp_error", "rp_error", "bp_correlation", "rp_correlation"):
        found = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(found.astype(getattr(written, name).dtype), getattr(written, name))


def test_missing_peer_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "simdjson", None)
    monkeypatch.delitem(sys.modules, "bench.peers.python_csv", raising=False)
    with pytest.raises(ImportError, match="pip install"):
        import bench.peers.python_csv
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "bench.peers.jax_fit", raising=False)
    with pytest.raises(ImportError, match="pip install"):
        import bench.peers.jax_fit  # noqa: F401


def test_oracle_is_not_above_a_fit_and_is_remembered(fitter, tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "CACHE", tmp_path)
    monkeypatch.setattr(oracle, "N_STARTS", 32)
    stars = fitter.stars[:4]
    lowest = oracle.lowest_loss(fitter.engine, fitter.model, fitter.prior, stars)
    truth = survey(FEW).truth[:4]
    assert (lowest <= fitter.fit(truth, stars=stars).loss + 1e-3).all()
    again = oracle.lowest_loss(None, fitter.model, fitter.prior, stars)
    np.testing.assert_array_equal(again, lowest)
    with pytest.raises(AttributeError):  # other stars: it would have to search
        oracle.lowest_loss(None, fitter.model, fitter.prior, fitter.stars[1:5])


def test_random_starts_fill_the_box(rng, fitter):
    starts = oracle.random_starts(fitter.box, 4000, rng)
    lower, upper = fitter.box.lower.copy(), fitter.box.upper.copy()
    lower[3] = oracle.SMALLEST_EXT
    for values in (starts, lower, upper):
        values[..., 3:] = np.log(values[..., 3:])
    share = (starts - lower) / (upper - lower)
    assert share.min() > -1e-12
    assert share.max() < 1 + 1e-12
    np.testing.assert_allclose(np.quantile(share, [0.1, 0.5, 0.9], axis=0).T, [[0.1, 0.5, 0.9]] * 5, atol=0.05)
