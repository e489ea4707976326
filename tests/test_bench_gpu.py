"""The GPU benchmarks as far as they go without one: what they say then, and the whole suite on a simulated one."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from simulated_gpu import SimulatedGpu, simulated_cupy

import xpkern.engine
from bench.__main__ import main
from bench.gpu import catalogue, paper, roof, suite
from bench.gpu.checks import Check
from bench.gpu.code import text_of_kernels
from xpkern.engine.cuda import device as door
from xpkern.engine.cuda.engine import CudaEngine
from xpkern.errors import DeviceUnavailable


@pytest.mark.parametrize("benchmark", ["gpu", "code"])
def test_without_a_gpu_it_says_so(benchmark, monkeypatch, capsys):
    def no_driver():
        raise DeviceUnavailable("no NVIDIA driver")

    monkeypatch.setattr(door, "gpu_names", no_driver)
    assert main([benchmark]) == 1
    assert f"bench {benchmark}: there is no GPU to measure: " in capsys.readouterr().err


def test_code_is_as_long_as_it_says():
    """An instruction is 16 bytes, and the loop's own are few."""
    kernels = text_of_kernels().split('extern "C"')[1:]
    found = [kernel.count("fma.rn.f32") * 16 / 1024 for kernel in kernels]
    asked_for = [int(re.search(r"code_(\d+)\(", kernel)[1]) for kernel in kernels]
    np.testing.assert_allclose(found, asked_for, atol=0.3)


@pytest.mark.parametrize(("found", "passed"), [(0.9, True), (1.0, True), (1.1, False), (np.nan, False)])
def test_a_check_passes_up_to_what_is_allowed(found, passed):
    assert Check("loss", found, 1.0).passed == passed


class Stream:
    """One of CuPy's."""

    def __init__(self, non_blocking):
        assert non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def synchronize(self):
        pass


def test_the_papers_training_is_timed_phase_by_phase():
    found = paper.measure_paper(xpkern.engine.get_engine("cpu"), 512, share=64)
    for phase in ("model", "joint", "refine", "clean", "joint_clean", "final"):
        assert found[f"the paper's phase {phase}, 1/64 of it, 512 stars [s]"] > 0
    whole = found["the paper's six phases on 512 stars, from 1/64 of them [min]"]
    assert whole > found["the paper's phase final, 1/64 of it, 512 stars [s]"] * 64 / 60


def test_the_suite_on_a_simulated_gpu(monkeypatch, tmp_path, capsys):
    """Every figure is there and the JSON can be read; what they are means nothing."""
    cupy = simulated_cupy()
    to_host = cupy.asnumpy

    def asnumpy(array, stream=None, out=None, blocking=True):
        if out is None:
            return to_host(array)
        assert not blocking
        np.copyto(out, to_host(array))
        return out

    cupy.cuda, cupy.asnumpy = SimpleNamespace(Stream=Stream), asnumpy
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(xpkern.engine._MAKERS, "cuda", lambda: CudaEngine(SimulatedGpu()))
    for name, value in {
        "_ROUNDS": 1,
        "_TILE_ROUNDS": 1,
        "_COPIED": 1 << 14,
        "_SENT": 1 << 10,
        "_RUNS": 1,
        "_BLOCKS_A_PROCESSOR": 1,
    }.items():
        monkeypatch.setattr(roof, name, value)
    small = {"_RUNS": 1, "_EPOCHS": 1, "_STREAMED": 10, "_PASSES": 2, "_STEPS": 2, "_BATCH": 8, "FEW_STARS": 16}
    for name, value in small.items():
        monkeypatch.setattr(suite, name, value)
    monkeypatch.setattr(suite, "host_copy_rate", lambda: 1e9)
    monkeypatch.setattr(suite, "_peer", _no_peer)
    monkeypatch.setattr(catalogue, "_ROUNDS", 1)
    monkeypatch.setattr(suite, "check_everything", lambda engine, sample: [Check("loss", 0.0, 1.0)])
    assert main(["gpu", "--stars", "16", "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "simulated-gpu" / "gpu.json").read_text())
    assert record["gpu"]["compute_capability"] == "0.0"
    assert record["checks"] == {"loss": {"found": 0.0, "allowed": 1.0}}
    for figure in (
        "float32 [GFLOP/s]",
        "tiles64 [GFLOP/s]",
        "to_device [GB/s]",
        "start + fit + Fisher, resident [stars/s]",
        "calibrate, share of the memory's roof",
        "step of 8 stars, model and stars [us]",
        "coefficients in pinned memory to finished stars [stars/s]",
        "HDF5 to catalogue, GPU [stars/s]",
    ):
        assert record["figures"][figure] > 0, figure
    assert record["figures"]["A peer. Not measured"] == "no JAX here"
    assert record["complete"]
    said = capsys.readouterr().out
    (stored,) = suite.RESULTS.glob("nvidia-*/gpu.json")
    assert f"at {json.loads(stored.read_text())['commit'][:9]}, times as fast:" in said
    assert "start + fit + Fisher, resident [stars/s]" in said[said.index("times as fast") :]
    monkeypatch.setattr(suite, "check_everything", lambda engine, sample: [Check("loss", 2.0, 1.0)])
    monkeypatch.setattr(suite, "_resident", _no_peer)
    monkeypatch.setattr(suite, "_training", _no_peer)
    monkeypatch.setattr(suite, "_from_host", _no_peer)
    monkeypatch.setattr(suite, "measure_catalogues", _no_peer)
    assert main(["gpu", "--stars", "16", "--output", str(tmp_path)]) == 1
    assert "1 checks failed: loss" in capsys.readouterr().err

    def cut_off(engine, roof, n_stars):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "_from_host", cut_off)
    with pytest.raises(KeyboardInterrupt):
        main(["gpu", "--stars", "16", "--output", str(tmp_path)])
    record = json.loads((tmp_path / "simulated-gpu" / "gpu.json").read_text())
    assert not record["complete"]
    assert record["figures"]["float32 [GFLOP/s]"] > 0


def _no_peer(engine, roof, n_stars):
    """A peer."""
    raise ImportError("no JAX here")
