"""The benchmark harness, with a clock of our own: nothing here depends on how fast the machine is."""

import json
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from labelled_stars import SMALL, SMALL_ZGR23, recipe_from

import xpkern as xk
from bench import (
    closure,
    confidence,
    dust,
    formats,
    fuzz,
    ingest,
    matching,
    noise,
    oracle,
    posterior,
    report,
    simulation,
    surveys,
)
from bench.__main__ import parse
from bench.benchmarks import BENCHMARKS
from bench.evaluation import multiply_adds_of_evaluation, seconds_per_evaluation
from bench.fitting import Fitter
from bench.harness import Contestant, compare, machine, measure_once, median_band, null_run, pinned
from bench.peers.numpy_calibration import numpy_calibrate
from bench.peers.numpy_fit import NumpyFit
from bench.result import Result
from bench.scaling import same_bytes, thread_numbers
from bench.stars import conditioned_stars, dense_whiteners, longer_file, plain_file, survey, survey_files
from bench.training import CLIP, Trainer, multiply_adds_of_steps
from xpkern.cli import main
from xpkern.engine.contract import Calibrated, LossTerms
from xpkern.engine.packed import unpack_factor
from xpkern.engine.training import ModelArrays
from xpkern.grid import N_BANDS, N_XP
from xpkern.maps.settings import MapSettings
from xpkern.observe.calibration import Calibration
from xpkern.observe.error_model import ErrorModel
from xpkern.observe.simulate import simulate
from xpkern.survey import run, simulator
from xpkern.survey.truth import ModelTruth
from xpkern.train.apogee_library import Library
from xpkern.train.confidence import LabelledFits, labelled_fits
from xpkern.train.held_out import observations
from xpkern.train.noise_fit import NoiseRecipe
from xpkern.train.relu_network import NetworkSettings


class Clock:
    """A clock that moves only when work is done, by what the work costs."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def contestant(self, name, cost, items=10):
        def run():
            self.calls.append(name)
            self.now += cost(len(self.calls)) if callable(cost) else cost

        return Contestant(name, run, items)


def test_rate_is_the_best_of_the_repeats():
    clock = Clock()
    costs = iter([3.0, 1.0, 2.0])
    contestant = clock.contestant("a", lambda _: next(costs))
    assert measure_once(contestant, 3, clock) == 10 / 1.0


def test_contestants_take_turns_in_alternating_order():
    clock = Clock()
    compare(clock.contestant("a", 1), clock.contestant("b", 1), rounds=3, repeats=2, clock=clock)
    assert "".join(clock.calls) == "ab" + "aabb" + "bbaa" + "aabb"


def test_ratio_and_band_of_a_real_difference():
    clock = Clock()
    result = compare(clock.contestant("ours", 1), clock.contestant("peer", 4), clock=clock)
    assert result.ratio == pytest.approx(4)
    assert result.ours.median == pytest.approx(10)
    assert result.peer.median == pytest.approx(2.5)
    assert result.differ


def test_slow_drift_of_the_machine_cancels():
    clock = Clock()
    drift = [1 + 0.01 * step for step in range(1000)]
    result = compare(
        clock.contestant("ours", lambda step: drift[step]),
        clock.contestant("peer", lambda step: 2 * drift[step]),
        rounds=8,
        clock=clock,
    )
    assert result.ratio == pytest.approx(2, rel=0.03)


def test_null_run_finds_no_difference_under_noise(rng):
    clock = Clock()
    contestant = clock.contestant("same", lambda _: rng.uniform(1, 1.2))
    runs = [null_run(contestant, rounds=9, repeats=1, clock=clock) for _ in range(100)]
    assert sum(run.differ for run in runs) < 20  # 4 expected
    assert np.median([run.ratio for run in runs]) == pytest.approx(1, abs=0.03)


def test_null_run_on_real_work_is_a_fair_duel():
    work = np.ones(1000)
    result = null_run(Contestant("sum", work.sum, 1000), rounds=5, repeats=3)
    assert result.rounds == 5
    assert result.ratio_lower <= result.ratio <= result.ratio_upper


@pytest.mark.parametrize(("rounds", "rank"), [(1, 0), (5, 0), (7, 0), (9, 1), (25, 7), (101, 40)])
def test_median_band_has_the_tabulated_ranks(rounds, rank):
    """Ranks of the 95 % confidence interval of a median, as in tables of the sign test."""
    shuffled = np.random.default_rng(1).permutation(rounds).astype(float)
    assert median_band(shuffled) == (rank, rounds - 1 - rank)


def test_pinned_keeps_one_cpu_and_lets_go():
    before = os.sched_getaffinity(0)
    with pinned() as cpu:
        assert os.sched_getaffinity(0) == {cpu}
    assert os.sched_getaffinity(0) == before


def test_result_is_plain_enough_for_json():
    clock = Clock()
    duel = compare(clock.contestant("ours", 1), clock.contestant("peer", 2), clock=clock)
    result = Result("x", "stars/s", [duel], None, {"one figure [us]": 7.0, "same": True})
    content = json.loads(json.dumps({"machine": machine()} | result.as_dict()))
    assert content["duels"][0]["ratio"] == pytest.approx(2)
    assert content["extra"]["one figure [us]"] == 7
    assert {"processor", "python", "numpy"} <= set(content["machine"])
    assert any("7" in line for line in result.lines())


def test_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["nonsense"])
    assert "no benchmark is called nonsense" in capsys.readouterr().err
    assert parse([]).names == list(BENCHMARKS)


def test_multiply_adds_of_the_usual_model():
    """Counted by hand in bench/NOTES.md for 3-32-32-32-66."""
    weights = [np.zeros(shape) for shape in ((3, 32), (32, 32), (32, 32), (32, 66))]
    count = multiply_adds_of_evaluation(SimpleNamespace(weights=weights))
    assert list(count.values()) == [4256, 12480, 12870, 1386]


def test_multiply_adds_of_training_steps_of_the_usual_model():
    """Counted by hand in bench/NOTES.md for 3-32-32-32-66."""
    weights = [np.zeros(shape) for shape in ((3, 32), (32, 32), (32, 32), (32, 66))]
    count = multiply_adds_of_steps(SimpleNamespace(weights=weights))
    assert count == {"model": 4256 + 4256 + 4160 + 2 * 2145, "star": 4256 + 4256 + 2 * 2145}


def test_time_of_an_evaluation_leaves_out_what_is_constant(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)

    def fit_with_at_most(evaluations):
        clock.now += 5.0 + 0.25 * evaluations

    assert seconds_per_evaluation(fit_with_at_most, 10, rounds=3) == pytest.approx(0.025)


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


#: Stars of the benchmarks when they only have to show that they work.
FEW = 24

#: Benchmarks that fetch stars or atmospheres; tests/test_bench_real.py holds what they say against made ones.
ON_REAL_STARS = {"real", "curve", "confusion"}

#: What a benchmark must tell: parts of the names of its figures.
FIGURES = {
    "peak": ["share of peak", "peak of one core"],
    "isa": ["share of the best"],
    "fit": ["ours: share of stars that end within 0.01", "NumPy: share of stars that end within 1", "start alone"],
    "calibrate": ["batched Cholesky alone"],
    "finish": ["batched Cholesky alone", "calibration alone", "start + fit alone"],
    "ingest": ["gunzip alone", "parse alone", "write alone", "sum of the parts, share", "peak memory"],
    "write": [".fits: bytes a row", ".parquet: share of a plain write"],
    "formats": ["HDF5 mirror to catalogue, best", "Parquet: sum of the parts alone", "write alone"],
    "fuzz": ["csv parser, findings", "avro, refused"],
    "threads": ["start + fit + Fisher, 2 threads: speed-up", "multiply-adds on registers, 2 threads", "same bytes"],
    "simulate": ["true sources alone, CPU", "coefficients alone, CPU", "survey in files, hdf5", "peak memory, csv"],
    "train": ["epoch, model: share of the binding", "epoch, model and stars: time", "all phases [h]"],
    "optimum": ["no parallax, 4 starts: share", "parallax, 1 start: time", "optimum_128.npz"],
    "precision": ["error of the loss over", "effect of storing"],
    "pulls": ["all: plx, median pull", "all: teff, width"],
    "recipes": ["zgr23: whole recipe", "default: validation loss, mean", "true model: validation loss, median"],
    "closure": [
        "trained model, all: plx, median pull",
        "learned noise model, all: teff, width",
        "true model, all: teff, width",
    ],
    "atmospheres": ["validation loss, mean", "giants: stars", "giants: teff, median pull"],
    "resume": ["kills", "same bytes"],
    "confidence": ["teff: ROC AUC", "logg: calibration error before", "star: pass the basic cut", "share of the peak"],
    "dust": ["cells compared", "weighted: correlation", "median: correlation"],
    "dust_speed": ["reading these bytes alone", "pixels and binning", "catalogue to FITS map"],
    "noise": ["real ones: factor of the archive's", "independent, learned, Eq. 19, all", "log g off by more"],
    "convert": ["compact: bytes a row", "lossless: same catalogue to the byte", "teff: change by rounding"],
    "crossmatch": ["matches that astropy does not find", "xpkern match: peak memory"],
    "survey": ["end to end [us a row]", "catalogue of 2 files", "DR4 on 40 nodes", "bound by"],
    "kills": ["ended with the same bytes", "faults: bad files that are named"],
    "noise_cost": ["times that of Eq. 2", "of both passes, mean"],
    "posterior": ["rank chi2 of logg", "no parallax: truths within 90 %", "survey: effective share"],
    "report": ["24 stars: wall time", "24 stars: CPU time", "24 stars: peak memory"],
}


@pytest.fixture
def small_benchmarks(monkeypatch, tmp_path):
    """The oracle in a folder of its own and small, files hardly longer than others."""
    monkeypatch.setattr(oracle, "CACHE", tmp_path)
    monkeypatch.setattr(oracle, "N_STARTS", 6)
    monkeypatch.setattr(ingest, "LENGTHS", (1, 2))
    monkeypatch.setattr(formats, "LENGTHS", ())  # memory is measured in the same way in ingest
    monkeypatch.setattr(formats, "FEW_ROWS", 2)
    monkeypatch.setattr(fuzz, "FLAGS", ["-O0" if flag == "-O1" else flag for flag in fuzz.FLAGS])
    monkeypatch.setattr(fuzz, "CHECKS", [])  # .ci/run has a stage that builds it with them
    monkeypatch.setattr(simulation, "TRUTH", "model")  # needs no download
    monkeypatch.setattr(simulation, "LENGTHS", (1,))
    monkeypatch.setattr(simulation, "CSV_SHARE", 16)
    monkeypatch.setattr(dust, "MAP", MapSettings(nsides=(2, 1), edges=(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)))
    monkeypatch.setattr(dust, "FEWEST", 4000)
    monkeypatch.setattr(dust, "MEMORY_SHARES", ())
    for module in (closure, simulation, run, simulator):
        monkeypatch.setattr(module, "BLOCK_ROWS", 128)
    monkeypatch.setattr(closure, "load_truth", lambda name, cache: ModelTruth(*xk.load_model()))  # nor does this
    sampling = sys.modules["xpkern.fit.posterior"]  # xpkern.fit is the function
    monkeypatch.setattr(sampling, "ROUNDS", 1)
    monkeypatch.setattr(sampling, "PILOT", 100)
    monkeypatch.setattr(sampling, "WALKERS", 100)
    monkeypatch.setattr(sampling, "STEPS", 2)
    monkeypatch.setattr(posterior, "SAMPLES", 600)
    monkeypatch.setattr(posterior, "PEER_STARS", 1)
    monkeypatch.setattr(posterior.emcee_posterior, "STEPS", 40)
    monkeypatch.setattr(closure, "KILLS", 1)
    monkeypatch.setattr(closure, "KILLED_RECIPE", SMALL)
    monkeypatch.setattr(surveys, "FILES", 2)
    monkeypatch.setattr(surveys, "LENGTHS", (1, 2))
    monkeypatch.setattr(surveys, "FILES_OF_KILLED", 2)
    monkeypatch.setattr(surveys, "KILLS", 1)
    monkeypatch.setattr(surveys, "_xpkern", in_this_process)
    monkeypatch.setattr(matching, "WAYS", {"xpkern match": matching.by_files})
    recipes = {name: recipe_from(tmp_path, text) for name, text in (("default", SMALL), ("zgr23", SMALL_ZGR23))}
    monkeypatch.setattr(confidence, "TRUTH", "model")
    monkeypatch.setattr(confidence, "TIMED_STARS", 700)
    monkeypatch.setattr(confidence, "SETTINGS", NetworkSettings(hidden=(8, 8), epochs=2))
    monkeypatch.setattr(confidence, "labelled_fits", many_labelled_fits)
    monkeypatch.setattr(noise, "LABELLED", 40)
    monkeypatch.setattr(noise, "RECIPE", NoiseRecipe(groups=2, iterations=2))
    monkeypatch.setattr(noise, "QUICK_RECIPE", NoiseRecipe(groups=2, iterations=2))
    monkeypatch.setattr(noise, "real_stars", lambda part, correlated: few_real_stars(correlated))
    without_figures = (
        "from xpkern.report import run\nrun._render = lambda part: (b'', b'')\nrun._write_data = lambda *_: None\n"
    )
    monkeypatch.setattr(report, "PROGRAM", without_figures + report.PROGRAM)
    monkeypatch.setattr(closure, "load_recipe", lambda name: replace(recipes[name], name=name))


def many_labelled_fits(catalog, labels, model, prior):
    """More stars than so small a survey has, good ones and bad ones."""
    found = labelled_fits(catalog, labels, model, prior)
    rng = np.random.default_rng(2)
    features = rng.normal(size=(400, found.features.shape[1])).astype(np.float32)
    chi2 = np.where(features[:, :3] + rng.normal(size=(400, 3)) > 0, 1.0, 20.0)
    return LabelledFits(np.arange(400), features, rng.normal(size=(400, 3)), chi2, found.counts)


def in_this_process(*arguments, allowed=(0,)):
    """The command line without a process for each command, or several for a run."""
    if "--processes" in arguments:
        arguments = arguments[: arguments.index("--processes")]
    code = main(arguments)
    assert code in allowed
    return code


def few_real_stars(correlated):
    """As the library's, which would have to be fetched: giants and dwarfs on either side of G = 12 and 14."""
    model, _ = xk.load_model()
    rng = np.random.default_rng(1)
    theta = np.tile([[4.6, -0.2, 2.4], [5.6, -0.1, 4.4]], (9, 1)) + rng.normal(0.0, 0.1, (18, 3))
    params = np.column_stack([theta, np.full(18, 0.1), np.full(18, 1.0)])
    flux = np.exp(model.ln_flux(params))[:, :64] * (1.0 + 0.02 * rng.standard_normal((18, 64)))
    library = Library(
        np.arange(18),
        flux,
        0.02 * np.abs(flux),
        theta,
        np.full((18, 3), 0.02),
        np.full(18, 0.1),
        np.repeat([11.0, 13.0, 15.0], 6),
    )
    error_model = ErrorModel.default() if correlated else None
    return noise.RealStars(library, observations(library, model.noise, error_model))


@pytest.mark.filterwarnings("ignore:::gaiaxpy")
@pytest.mark.parametrize("name", sorted(BENCHMARKS.keys() - ON_REAL_STARS))
def test_benchmark_works(name, small_benchmarks):
    """Peers that are not installed are named in the figures; the rest of the benchmark runs all the same."""
    if name == "threads" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU only")
    benchmark, _ = BENCHMARKS[name]
    result = benchmark(FEW, 1, "cpu")
    assert result.name == name
    json.dumps(result.as_dict())
    assert len(result.lines()) >= len(result.extra)
    for figure in FIGURES[name]:
        found = [value for key, value in result.extra.items() if figure in key]
        assert found, figure
        assert all(isinstance(value, str) or np.isfinite(value) for value in found)
    for duel in result.duels:
        assert duel.ours.median > 0
        assert duel.peer.median > 0
    if name == "threads":
        assert all(value for key, value in result.extra.items() if "same bytes" in key)
    if name == "convert":
        assert result.extra["lossless: same catalogue to the byte"]
    if name == "crossmatch":
        assert result.extra["matches"] > FEW // 2
        assert result.extra["matches that astropy does not find, and the reverse"] == 0
    if name == "kills":
        assert result.extra["kills after which the next run ended with the same bytes"] == surveys.KILLS
        assert result.extra["faults: bad files that are named"] == "Xp_corrupt, Xp_cut, Xp_empty, Xp_missing"
        assert result.extra["faults: the good files' shards are the same bytes"]
    if name == "survey":
        assert result.extra.get("2 processes: same bytes as 1", True)
    if name == "resume":
        assert "false" not in result.extra["same bytes"]
    if name == "precision":
        assert result.extra["error of the loss over max(1e-3, 1e-5 loss), largest"] <= 1


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
    model, stars, batches = trainer.model, trainer.stars, trainer.batches.reshape(3, -1)
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


def test_oracle_is_not_above_a_fit_and_is_remembered(fitter, small_benchmarks, monkeypatch):
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


def test_conditioned_stars_are_what_they_claim():
    stored, exact, params = conditioned_stars(40, 3000.0, 1e8)
    model, _ = xk.load_model()
    factor = unpack_factor(exact.whitener)
    diagonal = np.einsum("njj->nj", factor)
    diagonal[:] = 1 / diagonal
    covariance = factor @ factor.swapaxes(1, 2)
    sigma = np.sqrt(np.einsum("njj->nj", covariance))
    condition = np.linalg.cond(covariance / (sigma[:, :, None] * sigma[:, None]))
    assert 1e6 < condition.max() < 1e9
    assert condition.min() < 1e3
    snr = np.exp(model.ln_flux(params)) / sigma
    assert 1000 < snr.max() < 4500
    assert snr.min() > 8
    assert stored.whitener.dtype == np.float32
    np.testing.assert_allclose(stored.whitener, exact.whitener, rtol=1e-6)


def test_longer_and_plain_files_have_the_same_rows():
    spectra = survey_files(FEW).spectra
    once, thrice = xk.read_xp(spectra), xk.read_xp(longer_file(spectra, 3))
    np.testing.assert_array_equal(thrice.source_id, np.tile(once.source_id, 3))
    np.testing.assert_array_equal(thrice.whitener, np.tile(once.whitener, (3, 1)))
    np.testing.assert_array_equal(xk.read_xp(plain_file(spectra, 5)).flux, once.flux[:5])


def test_same_bytes_sees_the_last_bit():
    one = Calibrated(np.ones((2, 3), np.float32), np.zeros((2, 6), np.float32), np.zeros(2, np.uint32))
    other = Calibrated(np.nextafter(one.flux, np.float32(2)), one.whitener, one.status)
    assert same_bytes(one, Calibrated(one.flux.copy(), one.whitener.copy(), one.status.copy()))
    assert not same_bytes(other, one)


@pytest.mark.parametrize(
    ("n_cpus", "expected"), [(1, []), (2, [2]), (3, [2, 3]), (4, [2, 4]), (6, [2, 4, 6]), (16, [2, 4, 8, 16])]
)
def test_thread_numbers_double_up_to_every_cpu(n_cpus, expected):
    assert thread_numbers(n_cpus) == expected
