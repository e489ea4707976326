"""What only a real GPU can show: its own arithmetic, CuPy's arrays, that both ways to it lead to the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

import xpkern as xk
from bench.gpu.checks import Sample, check_everything
from bench.stars import observed
from xpkern.engine.contract import FitOptions, LossTerms, StarData
from xpkern.engine.cuda import device as door
from xpkern.engine.cuda.engine import CudaEngine
from xpkern.engine.packed import unpack_factor

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def sample():
    return Sample(96)


def fitted(engine, sample):
    return engine.fit(
        sample.model, sample.prior, sample.stars, sample.grid, LossTerms(), sample.box, FitOptions(starts=2)
    )


def test_every_operation_gives_what_the_reference_does(gpu_engine, sample):
    checks = check_everything(gpu_engine, sample)
    assert [str(check) for check in checks if not check.passed] == []


def test_it_is_chosen_where_nothing_else_is_asked_for(gpu_engine):
    if gpu_engine.device.facts.door == "simulation":
        pytest.skip("a simulated GPU is not chosen")
    assert xk.get_engine("auto") is xk.get_engine("cuda")
    assert gpu_engine.device.free_memory() <= gpu_engine.device.facts.memory


def test_arrays_of_cupy_stay_where_they_are(gpu_engine, sample):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    obs = observed(sample.survey, engine="cpu")
    on_gpu = xk.Observations.from_arrays(
        source_id=obs.source_id,
        flux=cupy.asarray(obs.flux),
        packed_factor=cupy.asarray(obs.whitener),
        plx=cupy.asarray(obs.plx),
        plx_err=cupy.asarray(obs.plx_err),
    )
    expected = xk.fit(obs, sample.model, sample.prior, engine=gpu_engine)
    with cupy.cuda.Stream(non_blocking=True):
        found = xk.fit(on_gpu, sample.model, sample.prior)
        assert isinstance(found.params, cupy.ndarray)
        assert isinstance(found.cov, cupy.ndarray)
        back = found.on_host()
    # The kernels give the same bits; what the scale of fluxes does to parallaxes afterwards is arithmetic of whoever
    # made the arrays, and CuPy's compiler fuses products and sums.
    np.testing.assert_array_equal(back.loss, expected.loss)
    np.testing.assert_array_equal(back.params[:, :-1], expected.params[:, :-1])
    np.testing.assert_allclose(back.params, expected.params, rtol=1e-15)
    np.testing.assert_array_equal(back.status, expected.status)
    np.testing.assert_allclose(back.cov, expected.cov, rtol=1e-9)
    assert len(found.to_table()) == len(obs) if _has("astropy") else True


def test_a_sample_that_is_missing_is_dropped_on_the_gpu_as_on_the_host(gpu_engine, sample):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    flux = sample.stars.flux.copy()
    flux[3, 7], flux[4] = np.nan, np.nan
    packed = sample.stars.whitener.copy()
    packed[5, 10] = np.inf
    host = xk.Observations.from_arrays(flux=flux, packed_factor=packed)
    there = xk.Observations.from_arrays(flux=cupy.asarray(flux), packed_factor=cupy.asarray(packed)).on_host()
    np.testing.assert_array_equal(there.status, host.status)
    np.testing.assert_array_equal(there.whitener, host.whitener)


def test_training_on_arrays_of_cupy(gpu_engine, sample):
    """They are solved by their whiteners, those of the host by inverses."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    there = StarData(**{name: cupy.asarray(array) for name, array in vars(sample.labelled).items()})
    loss, *gradient = gpu_engine.train_step(sample.model, there, cupy.asarray(sample.truth))
    expected_loss, *expected = gpu_engine.train_step(sample.model, sample.labelled, sample.truth)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    np.testing.assert_allclose(gradient[-1], expected[-1], rtol=1e-3, atol=1e-3 * np.abs(expected[-1]).max())


def test_both_ways_to_the_gpu_lead_to_the_same(gpu_engine, sample, monkeypatch):
    engines = []
    for name in ("cupy", "extension"):
        monkeypatch.setenv(door.DOOR_VARIABLE, name)
        try:
            engines.append(CudaEngine())
        except xk.DeviceUnavailable as error:
            pytest.skip(str(error))
    (one, other), (a, b) = (fitted(engine, sample) for engine in engines), (each.device.facts for each in engines)
    if a.compiler.split()[-1] == b.compiler.split()[-1]:
        np.testing.assert_array_equal(one.params, other.params)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)


def test_more_memory_than_there_is_is_an_error_of_ours(gpu_engine):
    with pytest.raises(xk.DeviceOutOfMemory):
        gpu_engine.device.allocate(1 << 45)
    # and the GPU goes on working
    assert gpu_engine.device.free_memory() > 0


def test_host_and_gpu_calibrate_alike(gpu_engine, sample):
    ours, theirs = (observed(sample.survey, engine=engine).whitener for engine in (gpu_engine, xk.get_engine("cpu")))
    np.testing.assert_allclose(unpack_factor(ours), unpack_factor(theirs), rtol=1e-4, atol=1e-6 * np.abs(theirs).max())


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None
