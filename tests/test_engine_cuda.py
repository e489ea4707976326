"""What the CUDA engine does around its kernels: batches, memory that runs out, a GPU that is lost, arrays of CuPy.

The GPU is a simulated one: the kernels' own text on the processor. The contract itself is in ``test_engine_*.py``.
"""

from __future__ import annotations

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields, replace

import h5py
import numpy as np
import pytest
from conftest import SEED
from mock_stars import random_model, random_params, random_prior, random_stars, some_bands_missing
from simulated_gpu import GpuArray, SimulatedGpu, simulated_cupy

import xpkern as xk
from bench.gpu.checks import Sample, check_everything
from xpkern.engine.arrays import constant
from xpkern.engine.contract import FitOptions, LossTerms, StarData
from xpkern.engine.cuda import arguments
from xpkern.engine.cuda.engine import CudaEngine
from xpkern.engine.groups import GroupedStars, WhitenerGroups
from xpkern.engine.training import Steps
from xpkern.fit.fit import default_box
from xpkern.fit.start import start_grid
from xpkern.observe.simulate import simulate
from xpkern.status import Status

STARS = 40


class Mock:
    """Some random stars and everything a fit of them needs."""

    def __init__(self, rng, stars=STARS, **sizes):
        self.model, self.prior = random_model(rng, **sizes), random_prior(rng)
        self.params = random_params(rng, self.prior, stars)
        missing = some_bands_missing(rng, stars) if self.model.n_samples == 66 else None
        self.stars = random_stars(rng, self.model, self.params, missing=missing)
        self.grid, self.box = start_grid(self.model, self.prior), default_box(self.prior)

    def fit(self, engine, stars=None):
        stars = self.stars if stars is None else stars
        return engine.fit(
            self.model, self.prior, stars, self.grid, LossTerms(), self.box, FitOptions(starts=2, max_iterations=20)
        )

    def epoch(self, engine, stars=None, params=None):
        batches = np.arange(STARS, dtype=np.int64)[::-1].reshape(2, -1).copy()
        return engine.train_epoch(
            self.model,
            self.stars if stars is None else stars,
            self.params if params is None else params,
            batches,
            LossTerms(prior=False),
            self.box,
            Steps("adam", np.full(2, 1e-4)),
            Steps("sgd", np.full(2, 1e-7), clip=10.0),
            None,
        )


def same(one, other):
    """Whether two results hold the same bytes, wherever they are."""
    for each in fields(one):
        a, b = (on_host(getattr(result, each.name)) for result in (one, other))
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=each.name)


def on_host(array):
    return array._array if isinstance(array, GpuArray) else array


@pytest.fixture(scope="module")
def mock():
    return Mock(np.random.default_rng(SEED))


@pytest.fixture
def cupy(monkeypatch):
    module = simulated_cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def on_gpu(cupy, stars: StarData) -> StarData:
    return StarData(**{name: cupy.asarray(array.copy()) for name, array in vars(stars).items()})


def test_every_operation_gives_what_the_reference_does():
    checks = check_everything(CudaEngine(SimulatedGpu()), Sample(24))
    assert len(checks) == 24
    assert [str(check) for check in checks if not check.passed] == []


@pytest.mark.parametrize("stars", [0, 1, 31, 32, 33, 100])
def test_batches_of_any_size_give_the_same(rng, stars):
    mock = Mock(rng, stars)
    narrow = SimulatedGpu(says_free=0)  # then it is 32 stars at a time
    expected = CudaEngine(SimulatedGpu()).predict(mock.model, mock.params)
    np.testing.assert_array_equal(CudaEngine(narrow).predict(mock.model, mock.params), expected)
    assert narrow.launches.count("predict") == -(-stars // 32)


def test_room_that_there_has_been_is_not_asked_for_again(mock, cupy, monkeypatch):
    gpu = SimulatedGpu()
    engine = CudaEngine(gpu)
    stars = on_gpu(cupy, mock.stars)
    expected = mock.fit(engine, stars)

    def asked():
        raise AssertionError("the driver's lock")

    monkeypatch.setattr(gpu, "free_memory", asked)
    same(mock.fit(engine, stars), expected)


def test_pinned_arrays_are_copied_as_they_are(mock):
    gpu = SimulatedGpu()
    engine = CudaEngine(gpu)
    pinned = gpu.allocate_host(mock.params.nbytes).view(np.float64).reshape(mock.params.shape)
    pinned[:] = mock.params
    engine.predict(mock.model, mock.params)
    gpu.copied_from.clear()
    engine.predict(mock.model, pinned)
    assert gpu.copied_from == [pinned.ctypes.data]


def test_memory_that_runs_out_halves_the_batch_and_is_said_once(mock):
    engine = CudaEngine(SimulatedGpu())
    expected = engine.predict(mock.model, np.tile(mock.params, (10, 1)))
    gpu = SimulatedGpu(memory=150_000, says_free=1 << 30)
    with pytest.warns(RuntimeWarning, match="no room for 400 stars at a time: going on with half") as warned:
        found = CudaEngine(gpu).predict(mock.model, np.tile(mock.params, (10, 1)))
    assert len(warned) == 1
    np.testing.assert_array_equal(found, expected)
    assert gpu.launches.count("predict") > 3


def test_memory_for_hardly_a_star_is_an_error(mock):
    gpu = SimulatedGpu(memory=60_000, says_free=1 << 30)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(xk.DeviceOutOfMemory, match="no room on the GPU even for 32 stars"),
    ):
        CudaEngine(gpu).predict(mock.model, np.tile(mock.params, (10, 1)))


def test_a_lost_gpu_is_an_error_and_the_call_can_be_repeated(mock):
    gpu = SimulatedGpu()
    engine = CudaEngine(gpu)
    expected = mock.fit(engine)
    gpu.lost_at = "fit_search"
    with pytest.raises(xk.DeviceFailed):
        mock.fit(engine)
    gpu.lost_at = None
    same(mock.fit(engine), expected)


def test_a_lost_gpu_leaves_no_catalogue_and_a_new_run_makes_one(tmp_path):
    files = simulate(*xk.load_model(), 12, seed=5).write(tmp_path / "survey")
    gpu = SimulatedGpu()
    engine, output = CudaEngine(gpu), tmp_path / "catalog.h5"
    gpu.lost_at = "fit_finish"
    with pytest.raises(xk.DeviceFailed):
        xk.make_catalog(files.spectra, output, gaia_source=files.gaia_source, engine=engine)
    assert [path.name for path in tmp_path.iterdir()] == ["survey"]
    gpu.lost_at = None

    def lose_it(stars):
        gpu.lost_at = "fit_finish"

    with pytest.raises(xk.DeviceFailed, match=r"the 5 rows before it are in .*catalog\.incomplete\.h5"):
        xk.make_catalog(
            files.spectra, output, gaia_source=files.gaia_source, engine=engine, threads=1, rows=5, on_progress=lose_it
        )
    assert not output.exists()
    gpu.lost_at = None
    summary = xk.make_catalog(files.spectra, output, gaia_source=files.gaia_source, engine=engine)
    assert summary.fitted == 12
    with h5py.File(output) as file:
        assert file.attrs["engine"] == "cuda"
        assert file.attrs["instruction_set"] == "compute capability 0.0, host compiler"


def catalogue_of(folder, files, gpu, rows):
    output = folder / "catalog.h5"
    engine, (model, prior) = CudaEngine(gpu), xk.load_model()
    for _ in range(2):
        gpu.copied_from.clear()  # what kernels read of the model and the like is there the second time
        xk.make_catalog(
            files.spectra,
            output,
            gaia_source=files.gaia_source,
            model=model,
            prior=prior,
            engine=engine,
            threads=1,
            rows=rows,
            overwrite=True,
        )
    return [path.read_bytes() for path in (output, folder / "catalog.diagnostics.h5")]


def test_a_block_stays_on_the_gpu_from_coefficients_to_rows(tmp_path, cupy):
    files = simulate(*xk.load_model(), 6, seed=5).write(tmp_path / "survey")
    by_host, there = SimulatedGpu(), SimulatedGpu(keeps_arrays=True)
    expected = catalogue_of(tmp_path, files, by_host, rows=4)
    assert by_host.copied_from
    assert catalogue_of(tmp_path, files, there, rows=4) == expected
    assert there.copied_from == []
    assert there.launches == by_host.launches


def test_a_block_that_has_no_room_on_the_gpu_passes_through_the_host(tmp_path, cupy, caplog):
    files = simulate(*xk.load_model(), 6, seed=5).write(tmp_path / "survey")
    expected = catalogue_of(tmp_path, files, SimulatedGpu(), rows=4)
    full = SimulatedGpu(keeps_arrays=True)

    def no_room(array):
        raise xk.DeviceOutOfMemory("no room for it")

    full.keeping = lambda: nullcontext(no_room)
    caplog.clear()
    assert catalogue_of(tmp_path, files, full, rows=4) == expected
    said = [record.message for record in caplog.records if "room" in record.message]
    assert said == ["the GPU has no room for 4 stars at once: they pass through the host (no room for it)"] * 2


def test_threads_may_call_at_the_same_time(mock):
    engine = CudaEngine(SimulatedGpu())
    parts = [slice(first, first + 5) for first in range(0, STARS, 5)]
    expected = engine.predict(mock.model, mock.params)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda part: engine.predict(mock.model, mock.params[part]), parts))
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_stars_on_the_gpu_stay_there(mock, cupy):
    gpu = SimulatedGpu()
    engine = CudaEngine(gpu)
    expected = mock.fit(engine)
    start = cupy.asarray(mock.params)
    stars = on_gpu(cupy, mock.stars)
    gpu.copied_from.clear()
    found = mock.fit(engine, stars)
    assert all(isinstance(getattr(found, each.name), GpuArray) for each in fields(found))
    assert gpu.copied_from == []
    same(found, expected)
    evaluation = engine.evaluate(mock.model, mock.prior, stars, start, LossTerms())
    same(evaluation, engine.evaluate(mock.model, mock.prior, mock.stars, mock.params, LossTerms()))


def test_training_on_stars_that_are_on_the_gpu(mock, cupy):
    """They are solved by their whiteners, those of the host by inverses made as they arrive: bits may differ."""
    engine = CudaEngine(SimulatedGpu())
    expected = mock.epoch(engine)
    stars, params = on_gpu(cupy, mock.stars), cupy.asarray(mock.params)
    found = mock.epoch(engine, stars, params)
    assert isinstance(found.params, GpuArray)
    np.testing.assert_array_equal(stars.whitener._array, mock.stars.whitener)
    np.testing.assert_allclose(found.params._array, expected.params, rtol=1e-6)
    np.testing.assert_allclose(found.star_loss._array, expected.star_loss, rtol=1e-5)
    np.testing.assert_allclose(found.model_loss, expected.model_loss, rtol=1e-6)
    np.testing.assert_allclose(found.model.ext_curve, expected.model.ext_curve, rtol=1e-6)
    loss, *_ = engine.train_step(mock.model, stars, params)
    assert loss == pytest.approx(engine.train_step(mock.model, mock.stars, mock.params)[0], rel=1e-6)


def test_training_on_more_stars_than_the_gpu_holds(mock):
    engine = CudaEngine(SimulatedGpu())
    expected = mock.epoch(engine)
    few = CudaEngine(SimulatedGpu(says_free=250_000))  # room for one of the two batches
    found = mock.epoch(few)
    np.testing.assert_array_equal(found.params, expected.params)
    np.testing.assert_array_equal(found.star_loss, expected.star_loss)
    np.testing.assert_array_equal(found.model_loss, expected.model_loss)
    np.testing.assert_array_equal(found.moments.second.flatten(), expected.moments.second.flatten())


def test_whiteners_that_cannot_change_stay_on_the_gpu(mock):
    gpu = SimulatedGpu()
    engine = CudaEngine(gpu)
    expected = mock.epoch(engine)
    constant = mock.stars.whitener.copy()
    constant.flags.writeable = False
    stars = replace(mock.stars, whitener=constant)
    copied = []
    for _ in range(2):
        gpu.bytes_copied = 0
        found = mock.epoch(engine, stars)
        copied.append(gpu.bytes_copied)
        np.testing.assert_array_equal(found.params, expected.params)
        np.testing.assert_array_equal(found.model.ext_curve, expected.model.ext_curve)
    assert copied[0] - copied[1] == constant.nbytes
    kept = gpu.used
    del stars, constant
    assert gpu.used < kept


def test_a_training_set_comes_to_the_gpu_once(mock):
    gpu = SimulatedGpu()
    engine = CudaEngine(gpu)
    expected = mock.epoch(engine)
    flux, mean, sigma = (constant(getattr(mock.stars, name).copy()) for name in ("flux", "mean", "sigma"))
    stars = GroupedStars(flux, WhitenerGroups.of(mock.stars.whitener), mean, sigma)
    constant(stars.whitener.groups)
    copied = []
    for _ in range(2):
        gpu.bytes_copied = 0
        found = mock.epoch(engine, stars)
        copied.append(gpu.bytes_copied)
        np.testing.assert_array_equal(found.params, expected.params)
        np.testing.assert_array_equal(found.model.ext_curve, expected.model.ext_curve)
    assert copied[0] - copied[1] == sum(array.nbytes for array in (flux, stars.whitener, mean, sigma))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"flux": np.zeros((STARS, 66))}, TypeError, "flux must be float32, not float64"),
        ({"whitener": np.zeros((STARS, 66), np.float32)}, ValueError, r"whitener must have shape \(40, 2211\)"),
        ({"sigma": np.ones((STARS, 4))}, ValueError, r"sigma must have shape \(40, 5\), not \(40, 4\)"),
    ],
)
def test_kernels_are_given_nothing_that_they_would_misread(mock, change, error, message):
    engine, stars = CudaEngine(SimulatedGpu()), replace(mock.stars, **change)
    with pytest.raises(error, match=message):
        mock.fit(engine, stars)
    with pytest.raises(error, match=message):
        mock.epoch(engine, stars)


def test_parameters_of_another_shape_are_refused(mock):
    engine = CudaEngine(SimulatedGpu())
    with pytest.raises(ValueError, match=r"parameters must have shape \(40, 5\), not \(40, 4\)"):
        engine.predict(mock.model, mock.params[:, :4])
    with pytest.raises(ValueError, match=r"parameters must have shape \(40, 5\), not \(39, 5\)"):
        engine.evaluate(mock.model, mock.prior, mock.stars, mock.params[:39], LossTerms())


def test_arrays_here_and_there_are_refused(mock, cupy):
    engine = CudaEngine(SimulatedGpu())
    with pytest.raises(xk.InputError, match="on the GPU: flux; the others are not"):
        mock.fit(engine, replace(mock.stars, flux=cupy.asarray(mock.stars.flux)))
    with pytest.raises(xk.InputError, match="field whitener: must be contiguous"):
        mock.fit(engine, replace(mock.stars, whitener=np.asfortranarray(mock.stars.whitener)))


class TestFit:
    """``xk.fit`` from arrays on the GPU."""

    @pytest.fixture
    def arrays(self, mock):
        flux = mock.stars.flux.copy()
        flux[3, 7], flux[4] = np.nan, np.nan  # a sample and a star
        packed = mock.stars.whitener.copy()
        packed[5, 10] = np.inf
        plx, plx_err = mock.stars.mean[:, -1].copy(), mock.stars.sigma[:, -1].copy()
        plx[6] = np.nan
        return {"flux": flux, "packed_factor": packed, "plx": plx, "plx_err": plx_err}

    def test_is_that_of_the_same_arrays_on_the_host(self, mock, arrays, cupy):
        engine = CudaEngine(SimulatedGpu())
        of_host = xk.Observations.from_arrays(**arrays)
        of_gpu = xk.Observations.from_arrays(**{name: cupy.asarray(array) for name, array in arrays.items()})
        same(of_gpu, of_host)
        assert isinstance(of_gpu.whitener, GpuArray)
        expected = xk.fit(of_host, mock.model, mock.prior, engine=engine)
        found = xk.fit(of_gpu, mock.model, mock.prior, engine=engine)
        assert isinstance(found.cov, GpuArray)
        assert isinstance(found.status, GpuArray)
        same(found, expected)
        assert found.status._array[4] & Status.NO_DATA
        assert found.status._array[3] & Status.MISSING_SAMPLES
        assert repr(found) == repr(expected)
        same(found.on_host(), expected)
        assert found.engine == "cuda"
        assert found.instruction_set == "compute capability 0.0, host compiler"

    def test_reads_factors_in_place(self, mock, cupy):
        whitener = cupy.asarray(mock.stars.whitener)
        obs = xk.Observations.from_arrays(flux=cupy.asarray(mock.stars.flux), packed_factor=whitener)
        assert obs.whitener.data.ptr == whitener.data.ptr
        assert obs.star_data().whitener.data.ptr == whitener.data.ptr

    def test_takes_dense_whiteners(self, mock, arrays, cupy):
        of_host = xk.Observations.from_arrays(flux=mock.stars.flux, packed_factor=mock.stars.whitener)
        dense = np.stack([of_host.whitener_dense(star) for star in range(8)])
        expected = xk.Observations.from_arrays(flux=mock.stars.flux[:8], whitener=dense)
        found = xk.Observations.from_arrays(flux=cupy.asarray(mock.stars.flux[:8]), whitener=cupy.asarray(dense))
        same(found, expected)

    def test_by_the_recipe_of_zgr23(self, mock, cupy):
        engine = CudaEngine(SimulatedGpu())
        recipe = xk.Zgr23Options(types=8, exts=5, adam_steps=20, sgd_rounds=0)
        arrays = {"flux": mock.stars.flux[:4], "packed_factor": mock.stars.whitener[:4]}
        expected = xk.fit(
            xk.Observations.from_arrays(**arrays), mock.model, mock.prior, engine=engine, optimizer=recipe
        )
        of_gpu = xk.Observations.from_arrays(**{name: cupy.asarray(array) for name, array in arrays.items()})
        found = xk.fit(of_gpu, mock.model, mock.prior, engine=engine, optimizer=recipe)
        assert isinstance(found.params, GpuArray)
        same(found, expected)

    def test_by_another_engine_is_refused(self, mock, cupy):
        obs = xk.Observations.from_arrays(
            flux=cupy.asarray(mock.stars.flux), packed_factor=cupy.asarray(mock.stars.whitener)
        )
        with pytest.raises(xk.InputError, match="'cpu' takes no arrays on a GPU: 'cuda' does"):
            xk.fit(obs, mock.model, mock.prior, engine="cpu")
        with pytest.raises(xk.InputError, match="cuda: "):  # by itself it would be that one, and there is no GPU
            xk.fit(obs, mock.model, mock.prior)

    def test_needs_cupy(self, mock, monkeypatch):
        monkeypatch.setitem(sys.modules, "cupy", None)
        monkeypatch.delitem(sys.modules, "cupy")
        flux = GpuArray(mock.stars.flux)
        with pytest.raises(xk.InputError, match=r"need CuPy .*xpkern\[cuda13\]"):
            xk.Observations.from_arrays(flux=flux, packed_factor=mock.stars.whitener)


def test_unusual_models_take_the_general_kernels(rng):
    mock = Mock(rng, 6, hidden=(40, 24))
    gpu = SimulatedGpu()
    engine, reference = CudaEngine(gpu), xk.get_engine("reference")
    found = engine.predict(mock.model, mock.params)
    np.testing.assert_allclose(found, reference.predict(mock.model, mock.params), rtol=1e-9)
    solution = mock.fit(engine)
    at_end = reference.evaluate(mock.model, mock.prior, mock.stars, solution.params, LossTerms())
    np.testing.assert_allclose(solution.loss, at_end.loss, rtol=1e-5, atol=1e-3)
    assert {"predict_any", "fit_start_any", "fit_fine_any", "fit_finish_any"} <= set(gpu.launches)


def test_networks_beyond_the_kernels_are_refused(rng):
    model, prior = random_model(rng, hidden=(4,) * 8), random_prior(rng)
    with pytest.raises(xk.InputError, match="1 to 8 layers, not 9"):
        CudaEngine(SimulatedGpu()).predict(model, random_params(rng, prior, 3))


def test_kernels_of_another_version_are_refused(mock, monkeypatch):
    class Longer(arguments.TrainArguments):
        _fields_ = (("more", arguments.c_int64),)

    monkeypatch.setitem(arguments.SIZES, "TrainArguments", Longer)
    size = ctypes.sizeof(arguments.TrainArguments)
    with pytest.raises(xk.DeviceFailed, match=f"TrainArguments has {size} bytes in the kernels and {size + 8} here"):
        CudaEngine(SimulatedGpu()).predict(mock.model, mock.params)
