"""The compiled engine beyond the common contract: instruction sets, threads, determinism, precision, bad calls."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from itertools import pairwise, product

import numpy as np
import pytest
from mock_stars import correlation_in_blocks, random_model, random_params, random_prior, random_stars

from xpkern.engine import get_engine, reference, reference_descent, reference_fit, reference_start
from xpkern.engine.contract import FitOptions, LossTerms, StarData
from xpkern.errors import InputError
from xpkern.fit.fit import default_box
from xpkern.fit.start import N_COLUMNS, start_grid
from xpkern.model import model_error
from xpkern.status import Status

cpu = pytest.importorskip("xpkern.engine.cpu", reason="the extension module is not built")
kernels = pytest.importorskip("xpkern.engine._cpu")

ISAS = cpu.instruction_sets()


def rows(stars: StarData, chosen) -> StarData:
    return StarData(
        *(np.ascontiguousarray(getattr(stars, field.name)[chosen]) for field in dataclasses.fields(StarData))
    )


def fit(engine, model, prior, stars, **options):
    return engine.fit(
        model, prior, stars, start_grid(model, prior), LossTerms(), default_box(prior), FitOptions(starts=3), **options
    )


def every_byte(solution) -> dict[str, np.ndarray]:
    return {field.name: getattr(solution, field.name) for field in dataclasses.fields(solution)}


@pytest.fixture
def survey(rng):
    """Stars of every kind: missing samples, no parallax, none at all, very high and very low signal-to-noise, factors
    in blocks and others.
    """
    model, prior = random_model(rng), random_prior(rng)
    blocks = []
    kinds = ((0.1, True), (5.0, False), (50.0, True), (3000.0, True))
    for (snr, parallax), correlation in product(kinds, (None, correlation_in_blocks())):
        params = random_params(rng, prior, 80)
        missing = rng.random((80, model.n_samples)) < rng.choice([0.0, 0.3], (80, 1))
        missing[:2] = True
        blocks.append(
            random_stars(rng, model, params, snr=snr, missing=missing, parallax=parallax, correlation=correlation)
        )
    stars = StarData(
        *(np.concatenate([getattr(block, field.name) for block in blocks]) for field in dataclasses.fields(StarData))
    )
    return model, prior, rows(stars, rng.permutation(len(stars)))


@pytest.mark.parametrize("isa", ISAS)
def test_same_bytes_for_any_threads_blocks_and_order(rng, survey, isa):
    model, prior, stars = survey
    engine = cpu.CpuEngine(isa)
    whole = every_byte(fit(engine, model, prior, stars, threads=1))
    for name, value in every_byte(fit(engine, model, prior, stars, threads=3)).items():
        np.testing.assert_array_equal(value, whole[name], err_msg=f"{name} with 3 threads")
    order = rng.permutation(len(stars))
    shuffled = every_byte(fit(engine, model, prior, rows(stars, order), threads=2))
    for name, value in shuffled.items():
        np.testing.assert_array_equal(value, whole[name][order], err_msg=f"{name} shuffled")
    cuts = np.sort(rng.choice(len(stars), 5, replace=False))
    parts = [every_byte(fit(engine, model, prior, part)) for part in np_split(stars, cuts)]
    for name, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value, err_msg=f"{name} split")


def np_split(stars: StarData, cuts) -> list[StarData]:
    edges = [0, *cuts, len(stars)]
    return [rows(stars, slice(first, last)) for first, last in pairwise(edges)]


@pytest.mark.parametrize("isa", ISAS[1:])
def test_instruction_sets_agree(survey, isa):
    model, prior, stars = survey
    best, other = (fit(cpu.CpuEngine(name), model, prior, stars) for name in (ISAS[0], isa))
    np.testing.assert_array_equal(np.isnan(best.loss), np.isnan(other.loss))
    slack = np.maximum(1e-3, 1e-5 * best.loss)
    # A star on the watershed between two minima may fall to either side; all others must agree.
    apart = np.flatnonzero(np.abs(best.loss - other.loss) > slack)
    assert len(apart) < 0.02 * len(stars)
    # Where they differ, each finds that the other's minimum is one.
    terms, box = LossTerms(), default_box(prior)
    for name, found in ((isa, best), (ISAS[0], other)):
        again = cpu.CpuEngine(name).fit(
            model, prior, rows(stars, apart), found.params[apart], terms, box, FitOptions(starts=1)
        )
        assert (again.loss <= found.loss[apart] + slack[apart]).all()


def test_nothing_is_left_unexplained(survey):
    model, prior, stars = survey
    solution = fit(get_engine("cpu"), model, prior, stars)
    status = solution.status
    empty = ~(stars.whitener[:, np.arange(model.n_samples).cumsum() + np.arange(model.n_samples)] > 0).any(axis=1)
    np.testing.assert_array_equal((status & np.uint32(Status.NO_DATA)) != 0, empty)
    assert np.isnan(solution.params[empty]).all()
    assert np.isfinite(solution.params[~empty]).all()
    converged = (status & np.uint32(Status.NOT_CONVERGED | Status.NO_DATA)) == 0
    assert converged[~empty].mean() > 0.99
    limit = FitOptions().tolerance * np.maximum(1.0, 0.01 * solution.loss)
    # The decrement of x and that of the solver's own coordinates differ by the Jacobian's curvature.
    definite = converged & ((status & np.uint32(Status.HESSIAN_NOT_POSITIVE | Status.ON_BOX_EDGE)) == 0)
    assert (solution.decrement[definite] <= 10 * limit[definite]).all()


def test_float64_finishes_what_float32_did_not(rng):
    """Stars that run out of float32 steps are taken on from where they stopped, and say so."""
    model, prior = random_model(rng), random_prior(rng)
    stars = random_stars(rng, model, random_params(rng, prior, 200))
    solution = get_engine("cpu").fit(
        model,
        prior,
        stars,
        start_grid(model, prior),
        LossTerms(),
        default_box(prior),
        FitOptions(max_iterations=1),
    )
    rescued = (solution.status & np.uint32(Status.RESCUED)) != 0
    assert rescued.any()
    assert not (rescued & (solution.iterations <= 3)).any()
    exact = get_engine("reference").evaluate(model, prior, stars, solution.params, LossTerms())
    np.testing.assert_allclose(solution.loss, exact.loss, rtol=1e-8, atol=1e-6)
    # float64 slopes: derivatives are those of the reference to far below what float32 could give
    scale = np.sqrt(np.einsum("nii->ni", exact.fisher))
    error = np.abs(solution.fisher - exact.fisher) / scale[:, :, None] / scale[:, None, :]
    assert error[rescued].max() < 1e-9


def test_status_bits_are_those_of_python():
    assert {name: int(Status[name]) for name in kernels.STATUS} == kernels.STATUS
    compiled = {bit.name for bit in Status if bit >= 1 << 16}
    assert compiled == set(kernels.STATUS)


def test_constants_are_those_of_the_reference():
    modules = (reference, reference_descent, reference_fit, reference_start, model_error)
    stated = {name: value for module in modules for name, value in vars(module).items()} | {"N_COLUMNS": N_COLUMNS}
    assert {name: stated[name] for name in kernels.CONSTANTS} == kernels.CONSTANTS


def test_instruction_set_from_the_environment(monkeypatch):
    monkeypatch.setenv("XPKERN_ISA", ISAS[-1])
    assert cpu.CpuEngine().instruction_set == ISAS[-1]
    monkeypatch.setenv("XPKERN_ISA", "mmx")
    with pytest.raises(InputError, match=r"mmx.*this machine can run"):
        cpu.CpuEngine()


def test_threads(monkeypatch):
    monkeypatch.setenv("XPKERN_NUM_THREADS", "3")
    assert cpu.number_of_threads() == 3
    assert cpu.number_of_threads(2) == 2
    for wrong in ("0", "-1", "many"):
        monkeypatch.setenv("XPKERN_NUM_THREADS", wrong)
        with pytest.raises(InputError, match="XPKERN_NUM_THREADS"):
            cpu.number_of_threads()
    with pytest.raises(InputError, match="threads"):
        cpu.number_of_threads(0)


def test_kernels_refuse_arrays_they_would_have_to_copy(rng):
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 4)
    stars = random_stars(rng, model, params)
    engine = get_engine("cpu")
    with pytest.raises(TypeError, match="incompatible function arguments"):
        engine.evaluate(
            model, prior, dataclasses.replace(stars, flux=stars.flux.astype(np.float64)), params, LossTerms()
        )
    with pytest.raises(ValueError, match=r"whitener must have shape \(4, 2211"):
        engine.evaluate(
            model,
            prior,
            dataclasses.replace(stars, whitener=np.ascontiguousarray(stars.whitener[:, 1:])),
            params,
            LossTerms(),
        )


def test_a_forked_child_can_still_use_threads():
    """Dask and multiprocessing fork: the parent's threads do not exist in the child."""
    program = (
        "import os, numpy as np\n"
        "from xpkern import FluxModel\n"
        "from xpkern.engine.cpu import CpuEngine\n"
        "model = FluxModel.from_arrays([np.ones((3, 4)), np.ones((4, 66))], [np.ones(4), np.ones(66)],\n"
        "    np.ones(66), np.zeros(3), np.ones(3), np.arange(66) + 400.0)\n"
        "params = np.ones((4096, 5))\n"
        "engine = CpuEngine()\n"
        "engine.predict(model, params, threads=4)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    engine.predict(model, params, threads=4)\n"
        "    os._exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    )
    environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60, env=environment)
