"""The build: which sources get which flags on which machine. (Its products are checked by .ci/run.)"""

import importlib.util
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from xpkern.engine.cuda import sources
from xpkern.engine.cuda.sources import nvrtc_options

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def build():
    specification = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def sources_of(build, machine):
    return [*build.sources_of_cpu_engine(machine), *build.sources_of_csv(machine), *build.PARQUET_SOURCES]


def test_every_source_is_there(build):
    for machine in build.ISAS:
        for source in sources_of(build, machine):
            assert (ROOT / source).is_file(), source


def test_every_translation_unit_is_built_somewhere(build):
    built = {source for machine in build.ISAS for source in sources_of(build, machine)}
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "cpu").glob("*.cpp")}
    assert written == built


def test_unknown_machine_gets_the_scalar_baseline(build):
    sources = build.sources_of_cpu_engine("riscv64")
    assert [source for source in sources if "isa_" in source] == ["csrc/cpu/isa_scalar.cpp"]


def test_only_the_isa_files_are_compiled_for_more_than_the_baseline(build):
    for source in sources_of(build, "x86_64"):
        wide = [flag for flag in build.flags_of_source(source) if flag.startswith("-m")]
        assert bool(wide) == source.startswith(("csrc/cpu/isa_avx2", "csrc/cpu/isa_avx512")), source


def test_each_isa_file_has_a_namespace_of_its_own(build):
    names = [flag for isa in build.ISA_FLAGS for flag in build.flags_of_source(f"csrc/cpu/isa_{isa}.cpp")]
    assert len({name for name in names if name.startswith("-DXPKERN_ISA=")}) == len(build.ISA_FLAGS)


def test_no_flag_ties_a_build_to_this_machine_or_breaks_nan(build):
    flags = {flag for source in build.sources_of_cpu_engine("x86_64") for flag in build.flags_of_source(source)}
    assert not flags & {"-march=native", "-mtune=native", "-ffast-math", "-Ofast", "-ffinite-math-only"}
    assert "-ffp-contract=off" in flags


def test_nvcc_and_cupy_compile_alike(build):
    """But for what each alone knows: CuPy flushes denormals by itself, and NVRTC has no host."""
    nvcc, cupy = set(build.NVCC_FLAGS), set(nvrtc_options())
    assert "-fmad=false" in nvcc & cupy
    assert nvcc - cupy == {"-O3", "-ftz=true", "-Icsrc"}
    own = {option for option in cupy if option.startswith(("-I", "-DXPKERN_SOURCE_HASH="))}
    assert len(own) == 2
    assert cupy - nvcc - own == {"-default-device"}
    assert set(nvrtc_options(general=True)) - cupy == {build.GENERAL_FLAG}


def test_cuda_links_no_driver(build):
    assert ("-cudart", "static") in list(pairwise(build.NVCC_MODULE_FLAGS))
    assert not any("lcuda" in flag for flag in build.NVCC_MODULE_FLAGS)


def test_every_source_of_the_kernels_is_in_their_hash(tmp_path, monkeypatch):
    """CuPy would else go on using kernels of an older text."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    monkeypatch.setattr(sources, "source_folder", lambda: tmp_path / "csrc")
    hashes = [sources.source_hash.__wrapped__()]
    for name in ("core/lane.hpp", "cuda/kernels.cu", "cuda/arguments.cuh"):
        with (tmp_path / "csrc" / name).open("a") as file:
            file.write("// changed\n")
        hashes.append(sources.source_hash.__wrapped__())
    assert len(set(hashes)) == 4
    assert hashes[0] == sources.source_hash()


def test_kernels_are_built_for_every_major_version_that_can_run_them(build):
    """nvcc 12 knows GPUs for which they cannot be compiled."""
    known = "\n".join(f"compute_{number}" for number in (50, 52, 60, 61, 70, 72, 75, 80, 86, 90, 100, 101, 120))
    assert build.flags_of_architectures(known) == [
        *(f"-gencode=arch=compute_{number},code=sm_{number}" for number in (70, 80, 90, 100, 120)),
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_cuda_without_nvcc_is_a_clear_error(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "NVCC"}
    code = (
        "import runpy, sys\n"
        "build = runpy.run_path('setup.py')\n"
        "from setuptools import Distribution\n"
        "build['BuildExtensions'](Distribution()).build_cuda()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"PATH": str(tmp_path), "XPKERN_CUDA": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "XPKERN_CUDA=1 needs nvcc" in result.stderr
