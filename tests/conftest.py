"""Fixtures every test may use: a fresh generator, the shared data, the engines, small random models.

A machine lent for its GPU has few libraries: what only some fixtures need is imported by these.
"""

from __future__ import annotations

import gzip
import os
import secrets
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from xpkern.engine import available_engines, get_engine
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior
from xpkern.observe.observations import Observations

if TYPE_CHECKING:
    from labelled_stars import LabelledSurvey

    from xpkern.observe.simulate import SurveyFiles
    from xpkern.survey.truth import AtmosphereTruth, ModelTruth
    from xpkern.train.recipe import Recipe

#: A new seed for every run, so that the tests see new numbers; set XPKERN_TEST_SEED to repeat a failure. The processes
#: that pytest deals tests out to inherit it.
SEED = int(os.environ.setdefault("XPKERN_TEST_SEED", str(secrets.randbits(32))))

try:
    from hypothesis import settings
except ImportError:  # a machine lent for its GPU; what needs it there says so
    pass
else:
    # No test is timed (the machine may be busy), and none leaves a folder of examples behind.
    settings.register_profile("xpkern", deadline=None, database=None)
    settings.load_profile("xpkern")

#: Set it to run what needs a GPU on a simulated one instead: the kernels' own text on the CPU, minutes.
SIMULATED_GPU = bool(os.environ.get("XPKERN_TEST_SIMULATED_GPU"))

WHY_NOT = available_engines()
ENGINES = [name for name, reason in WHY_NOT.items() if reason is None and name != "cuda"]
if "cpu" in ENGINES:  # once for every instruction set of this machine
    from xpkern.engine.cpu import CpuEngine, instruction_sets

    ENGINES = [name for name in ENGINES if name != "cpu"] + [f"cpu-{isa}" for isa in instruction_sets()]


#: Files that take long for the number of tests in them.
LONG_FILES = ("test_shards_slurm.py", "test_demo.py")


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # pytest-xdist: files are dealt out in the order below


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes run the tests, what takes longest comes first: none is busy alone for long at the end."""
    if hasattr(config, "workerinput"):
        tests = Counter(item.path.name for item in items)
        items.sort(key=lambda item: (item.path.name not in LONG_FILES, -tests[item.path.name]))


def pytest_report_header() -> str:
    gpu = "simulated" if SIMULATED_GPU else WHY_NOT["cuda"] or "ready"
    return f"XPKERN_TEST_SEED={SEED}, engines: {', '.join(ENGINES)}; GPU: {gpu}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.append(("seed", f"repeat with XPKERN_TEST_SEED={SEED}"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of its own for each test, from the run's seed and the test's name."""
    name = np.frombuffer(request.node.nodeid.encode(), np.uint8)
    return np.random.default_rng([SEED, *name])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the shared test data; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    wanted = os.environ.get("XPKERN_TEST_DATA")
    folder = Path(wanted or os.environ.get("XPKERN_SHARED_DATA", default))
    if wanted and not folder.is_dir():
        pytest.fail(f"XPKERN_TEST_DATA={wanted} is no folder")
    if not folder.is_dir():
        pytest.skip(f"shared data not found at {folder} (set XPKERN_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def gpu_engine():
    """The CUDA engine, on the GPU of this machine."""
    if SIMULATED_GPU:
        from simulated_gpu import SimulatedGpu

        from xpkern.engine.cuda.engine import CudaEngine

        return CudaEngine(SimulatedGpu())
    if WHY_NOT["cuda"] is not None:
        pytest.skip(f"no GPU: {WHY_NOT['cuda']}")
    return get_engine("cuda")


@pytest.fixture(params=[*ENGINES, pytest.param("cuda", marks=pytest.mark.gpu)])
def engine(request: pytest.FixtureRequest):
    """Every engine and instruction set that can be used here, one after the other."""
    if request.param == "cuda":
        return request.getfixturevalue("gpu_engine")
    name, _, instruction_set = request.param.partition("-")
    return CpuEngine(instruction_set) if instruction_set else get_engine(name)


@pytest.fixture(scope="session")
def optimum(shared_data: Path) -> dict[str, np.ndarray]:
    """128 mock stars with the best optima of Eq. 19 that many float64 searches found."""
    with np.load(shared_data / "vectors" / "optimum_128.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="session")
def optimum_model(optimum: dict[str, np.ndarray]) -> tuple[FluxModel, TypePrior]:
    """Model and prior of :func:`optimum`."""
    model = FluxModel.from_arrays(
        [optimum[f"W{layer}"] for layer in range(4)],
        [optimum[f"b{layer}"] for layer in range(4)],
        optimum["R"],
        optimum["input_zp"],
        optimum["input_scale"],
        optimum["wl"],
    )
    return model, TypePrior.from_arrays(optimum["gmm_w"], optimum["gmm_mu"], optimum["gmm_cov"])


@pytest.fixture(scope="session")
def optimum_observations(optimum: dict[str, np.ndarray]) -> Observations:
    """The stars of :func:`optimum`."""
    return Observations.from_arrays(
        flux=optimum["flux"], whitener=optimum["flux_sqrticov"], plx=optimum["plx"], plx_err=optimum["plx_err"]
    )


@pytest.fixture(scope="session")
def labelled() -> LabelledSurvey:
    """A simulated survey with labels, for runs of small recipes; tests that change stars make a training set of it."""
    from labelled_stars import LabelledSurvey

    return LabelledSurvey.random(110, np.random.default_rng(SEED))


@pytest.fixture(params=["ours", "zgr23"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    """Both recipes, small."""
    from labelled_stars import RECIPES, recipe_from

    return recipe_from(tmp_path, RECIPES[request.param])


@pytest.fixture
def ours(tmp_path: Path) -> Recipe:
    """The default recipe, small."""
    from labelled_stars import SMALL, recipe_from

    return recipe_from(tmp_path, SMALL)


@pytest.fixture(scope="session")
def bulk_files(tmp_path_factory: pytest.TempPathFactory) -> SurveyFiles:
    """A small survey on disk, for the command line."""
    from command_lines import STARS

    from xpkern.model.model_file import load_model
    from xpkern.observe.simulate import simulate

    return simulate(*load_model(), STARS, seed=5).write(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="session")
def bulk_lines(bulk_files: SurveyFiles) -> list[bytes]:
    """Lines of its bulk file, the header first."""
    return gzip.decompress(bulk_files.spectra.read_bytes()).splitlines(keepends=True)


@pytest.fixture(scope="session")
def expected_catalog(bulk_files: SurveyFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The catalogue of the undamaged survey."""
    from command_lines import catalog_arguments, read

    from xpkern.cli import main

    output = tmp_path_factory.mktemp("expected") / "catalog.h5"
    assert main([*catalog_arguments(bulk_files.spectra, bulk_files), "-o", str(output)]) == 0
    return read(output)


@pytest.fixture(scope="session")
def truth() -> AtmosphereTruth:
    """A simulated survey's truth of black bodies."""
    from mock_atmospheres import black_bodies

    from xpkern.survey.truth import AtmosphereTruth

    return AtmosphereTruth(black_bodies())


@pytest.fixture(scope="session")
def model_truth() -> ModelTruth:
    """That of the shipped model."""
    from xpkern.model.model_file import load_model
    from xpkern.survey.truth import ModelTruth

    return ModelTruth(*load_model())
