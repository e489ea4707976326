"""Every benchmark works, on few stars, and tells what it should; the stars and files that they use."""

import json
import os
import sys
from dataclasses import replace

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
from bench.benchmarks import BENCHMARKS
from bench.scaling import same_bytes
from bench.stars import conditioned_stars, longer_file, plain_file, survey_files
from xpkern.cli import main
from xpkern.engine.contract import Calibrated
from xpkern.engine.packed import unpack_factor
from xpkern.maps.settings import MapSettings
from xpkern.observe.error_model import ErrorModel
from xpkern.survey import run, simulator
from xpkern.survey.truth import ModelTruth
from xpkern.train.apogee_library import Library
from xpkern.train.confidence import LabelledFits, labelled_fits
from xpkern.train.held_out import observations
from xpkern.train.noise_fit import NoiseRecipe
from xpkern.train.relu_network import NetworkSettings

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
    "survey": ["end to end [us a row]", "DR4 on 40 nodes", "bound by"],
    "sizes": ["catalogue of", "peak memory of this process"],
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
    monkeypatch.setattr(surveys, "SHARES", (4, 2, 1))
    monkeypatch.setattr(surveys, "FILES_OF_LONGEST", 2)
    monkeypatch.setattr(surveys, "FILES_OF_KILLED", 2)
    monkeypatch.setattr(surveys, "KILLS", 1)
    monkeypatch.setattr(surveys, "_xpkern", in_this_process)
    monkeypatch.setattr(matching, "WAYS", {"xpkern match": matching.by_files})
    texts = {"default": SMALL, "large": SMALL, "zgr23": SMALL_ZGR23}
    recipes = {name: recipe_from(tmp_path, text) for name, text in texts.items()}
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
