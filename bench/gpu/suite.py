"""The GPU suite: what the kernels compute, how fast, and what share of the GPU's and the link's limits that is.

Arrays stay on the GPU where a figure says "resident" (that needs CuPy); times are by the GPU's own clock, the median of
several runs. Figures that begin or end in the host's memory are by the wall clock.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import xpkern as xk
from bench.evaluation import multiply_adds_of_evaluation
from bench.gpu.catalogue import measure_catalogues
from bench.gpu.checks import FEW_STARS, Sample, check_everything, run_everything
from bench.gpu.paper import PAPERS_STARS, measure_paper
from bench.gpu.roof import Roof, host_copy_rate, measure_roof, seconds
from bench.harness import machine
from bench.training import bytes_of_star, multiply_adds_of_steps
from xpkern.engine.contract import Coefficients, Descent, FitOptions, StarData
from xpkern.engine.training import Steps
from xpkern.observe.calibration import Calibration

#: Fused multiply-adds in double of one star's calibration; NOTES.md derives it.
_CALIBRATION = 164_000

#: Those of its covariance under a learned noise: G G^T and the factor; csrc/core/frozen_noise.hpp counts them.
_FREEZING = 120_000

#: Fused multiply-adds of a star's start, and evaluations of a fit by kind, as NOTES.md counts them.
_START = 76_000

#: Bytes of one star's coefficients with errors and correlations, and bands: what crosses the link.
_COEFFICIENTS = 13_200

#: Stars of a batch of training, and steps timed.
_BATCH, _STEPS = 512, 256

#: Steps of the descent that is timed.
_DESCENT_STEPS = 16

#: Streams that carry coefficients in and results out, stars of one of their batches, and how often all pass by: the
#: first batch's copy and the last one's kernels run alone, which is to be a small part of all.
_STREAMS, _STREAMED, _PASSES = 3, 65536, 16

#: Runs of which the median counts, and the share of an earlier rate below which one is said to be slower.
_RUNS, _SLOWER = 5, 0.95

#: Runs of an epoch, of which the median counts: what it costs besides its steps varies by what a few of them take.
_EPOCHS = 40

#: Where this checkout holds results.
RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: list[str]) -> int:
    """Run the suite; the exit code is 1 where there is no GPU or it computes something else than it should."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.add_argument("--stars", type=int, help="stars of the timed runs (default: 131072), or of --only-run (96)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument(
        "--only-run", action="store_true", help="each operation once, without a clock: for sanitizers and profilers"
    )
    parser.add_argument(
        "--paper", action="store_true", help=f"the paper's training instead: {PAPERS_STARS:,} stars, 20 GB, two minutes"
    )
    options = parser.parse_args(arguments)
    engine = open_engine("gpu")
    if engine is None:
        return 1
    if options.only_run:
        run_everything(engine, Sample(options.stars or 96))
        print("every operation was run once")
        return 0
    if options.paper:
        return _paper(engine, options)
    options.stars = options.stars or 131072
    return _suite(engine, options)


def open_engine(benchmark: str) -> Any:
    """The CUDA engine, or nothing but words where there is no GPU."""
    try:
        return xk.get_engine("cuda")
    except xk.InputError as error:
        print(f"bench {benchmark}: there is no GPU to measure: {error}", file=sys.stderr)
        return None


def folder_of(engine: Any, output: Path) -> Path:
    """Where results of this GPU go; it is made."""
    name_of_gpu = re.sub(r"[^a-z0-9]+", "-", engine.device.facts.name.lower()).strip("-")
    folder = output / name_of_gpu
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _paper(engine: Any, options: argparse.Namespace) -> int:
    """Add the figures of the paper's training to those that the suite has left."""
    path = folder_of(engine, options.output) / "gpu.json"
    record = json.loads(path.read_text()) if path.exists() else {"gpu": asdict(engine.device.facts), "figures": {}}
    found = measure_paper(engine, options.stars or PAPERS_STARS)
    record["figures"] |= found
    path.write_text(json.dumps(record, indent=2) + "\n")
    for name, value in found.items():
        print(f"{name:84s} {value:>14,.4g}")
    return 0


def _suite(engine: Any, options: argparse.Namespace) -> int:
    facts = engine.device.facts
    print(f"{facts.name}, compute capability {facts.compute_capability}, {facts.door}, kernels by {facts.compiler}")
    started = time.perf_counter()
    sample = Sample(FEW_STARS)
    engine.predict(sample.model, sample.truth)
    print(f"kernels loaded, compiled where they had not been: {time.perf_counter() - started:.1f} s")
    checks = check_everything(engine, sample)
    print(*checks, sep="\n", flush=True)
    figures: dict[str, Any] = {}
    record = {
        "gpu": asdict(facts),
        "commit": _commit(),
        "machine": machine(),
        "stars": options.stars,
        "complete": False,
        "checks": {check.name: {"found": check.found, "allowed": check.allowed} for check in checks},
        "figures": figures,
    }
    path = folder_of(engine, options.output) / "gpu.json"
    held = _held(path.parent.name)  # before it is written anew

    def write() -> None:
        path.write_text(json.dumps(record, indent=2) + "\n")

    roof = measure_roof(engine.device)
    figures |= roof.as_dict() | {"host's memory, one thread [GB/s]": 1e-9 * host_copy_rate()}
    write()  # and after everything that is measured: a run that is cut off leaves what it has
    for measure in (_resident, _training, _from_host, measure_catalogues, _peer):
        try:
            found = measure(engine, roof, options.stars)
        except ImportError as error:
            found = {f"{measure.__doc__} Not measured": str(error)}
        figures |= found
        write()
        for name, value in found.items():
            print(f"{name:74s} {value:>14,.4g}" if isinstance(value, float) else f"{name:74s} {value}", flush=True)
    record["complete"] = True
    write()
    print(f"written to {path}")
    _compare(figures, held)
    wrong = [check for check in checks if not check.passed]
    if wrong:
        print(f"bench gpu: {len(wrong)} checks failed: {', '.join(check.name for check in wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _held(name_of_gpu: str) -> tuple[str, dict[str, Any]] | None:
    """The results that this checkout holds, of the same GPU or else of any, and which GPU that was."""
    stored = sorted(RESULTS.glob("*/gpu.json"), key=lambda path: path.parent.name != name_of_gpu)
    return (stored[0].parent.name, json.loads(stored[0].read_text())) if stored else None


def _compare(figures: dict[str, Any], held: tuple[str, dict[str, Any]] | None) -> None:
    """Say how rates differ from those held before."""
    if held is None:
        return
    name_of_gpu, before = held
    print(f"against {name_of_gpu} at {before['commit'][:9]}, times as fast:")
    for name, value in figures.items():
        known = before["figures"].get(name)
        if not (isinstance(value, float) and isinstance(known, float)) or not name.endswith(("[stars/s]", "[us]")):
            continue
        faster = known / value if name.endswith("[us]") else value / known
        print(f"{name:74s} {faster:>14.3f}" + (" SLOWER" if faster < _SLOWER else ""))


def _many(n_stars: int) -> tuple[Sample, np.ndarray]:
    """Some thousand simulated stars, and the rows of as many copies of them as are asked for."""
    sample = Sample(min(n_stars, 8192))
    return sample, np.arange(n_stars) % len(sample.truth)


def _resident(engine: Any, roof: Roof, n_stars: int) -> dict[str, Any]:
    """Everything on the GPU already."""
    import cupy

    sample, rows = _many(n_stars)
    model, samples = sample.model, sample.model.n_samples
    coefficients = Coefficients(
        **{
            name: cupy.asarray(np.ascontiguousarray(array[rows]))
            for name, array in vars(sample.survey.coefficients).items()
        }
    )
    bands = [cupy.asarray(np.ascontiguousarray(array[rows])) for array in sample.bands]
    stars = StarData(**{name: cupy.asarray(array[rows]) for name, array in vars(sample.stars).items()})
    truth = cupy.asarray(sample.truth[rows])
    start = engine.start(sample.grid, stars, FitOptions())[:, 0].copy()
    solution = engine.fit(model, sample.prior, stars, sample.grid, sample.terms, sample.box, FitOptions())
    evaluations = float(solution.iterations.mean())
    from_one = engine.fit(model, sample.prior, stars, start, sample.terms, sample.box, FitOptions())
    evaluations_from_one = float(from_one.iterations.mean())
    per_evaluation = float(sum(multiply_adds_of_evaluation(model, in_blocks=False).values()))
    network = sum(weight.size for weight in model.weights)
    whitener = 4.0 * samples * (samples + 1) / 2
    operations: dict[str, tuple[Callable[[], Any], float, float, float]] = {
        # what, multiply-adds, their roof, bytes at least
        "calibrate": (
            lambda: engine.calibrate(Calibration.default(), coefficients, model.noise, *bands),
            _CALIBRATION,
            roof.tiles64,
            _COEFFICIENTS + whitener,
        ),
        "predict": (lambda: engine.predict(model, truth), network, roof.float64, 8.0 * samples),
        "evaluate": (
            lambda: engine.evaluate(model, sample.prior, stars, truth, sample.terms),
            per_evaluation,
            roof.float32,
            whitener,
        ),
        "start": (lambda: engine.start(sample.grid, stars, FitOptions()), _START, roof.tiles64, whitener),
        "fit + Fisher, from given starts": (
            lambda: engine.fit(model, sample.prior, stars, start, sample.terms, sample.box, FitOptions()),
            per_evaluation * evaluations_from_one,
            roof.tiles64,
            whitener,
        ),
        "start + fit + Fisher": (
            lambda: engine.fit(model, sample.prior, stars, sample.grid, sample.terms, sample.box, FitOptions()),
            _START + per_evaluation * evaluations,
            roof.tiles64,
            whitener,
        ),
        "freeze": (
            lambda: engine.freeze_noise(model, sample.learned, stars, model.noise, solution.params),
            _FREEZING,
            roof.tiles64,
            2.0 * whitener,
        ),
        "covariance": (lambda: engine.invert_information(solution.fisher), 0.0, roof.float64, 3.0 * 200),
        f"descend, {_DESCENT_STEPS} steps of Adam": (
            lambda: engine.descend(
                model, sample.prior, stars, truth, sample.terms, sample.box, Descent("adam", _DESCENT_STEPS, 0.01)
            ),
            _DESCENT_STEPS * multiply_adds_of_steps(model)["star"],
            roof.float32,
            whitener,
        ),
    }
    figures: dict[str, Any] = {"fit: evaluations a star": evaluations}
    for name, (work, multiply_adds, peak, least_bytes) in operations.items():
        stream = engine.device.current_stream()
        took = statistics.median(seconds(engine.device, lambda _, work=work: work(), stream, _RUNS)) / n_stars
        figures[f"{name}, resident [stars/s]"] = 1.0 / took
        if multiply_adds:
            figures[f"{name}, share of the multiply-adds' roof"] = 2.0 * multiply_adds / took / peak
        figures[f"{name}, share of the memory's roof"] = least_bytes / took / roof.memory
    return figures


def _training(engine: Any, roof: Roof, n_stars: int) -> dict[str, Any]:
    """Steps of the model, and of the model and its stars, which stay on the GPU as those of a training set do."""
    steps = min(_STEPS, n_stars // _BATCH)
    sample, rows = _many(steps * _BATCH)
    stars = StarData(**{name: _constant(array[rows]) for name, array in vars(sample.labelled).items()})
    params = sample.truth[rows]
    batches = np.random.default_rng(1).permutation(len(rows)).reshape(steps, _BATCH)
    of_model, of_stars = multiply_adds_of_steps(sample.model).values()
    figures: dict[str, Any] = {}
    for name, moves_stars, multiply_adds in (
        ("model", False, of_model),
        ("model and stars", True, of_model + of_stars),
    ):

        def epoch(count: int, moves_stars: bool = moves_stars) -> float:
            rates = np.full(count, 1e-12)
            course = (Steps("sgd", rates, 0.5), Steps("sgd", rates, clip=100.0) if moves_stars else None)
            begin = time.perf_counter()
            engine.train_epoch(
                sample.model, stars, params, batches[:count], xk.LossTerms(prior=False), sample.box, *course, None
            )
            return time.perf_counter() - begin

        few = max(steps // 4, 1)
        epoch(steps)  # brings the stars
        # the time of fewer steps is subtracted: what an epoch costs besides its steps cancels
        took = [(epoch(steps) - epoch(few)) / max(steps - few, 1) for _ in range(_EPOCHS)]
        step = statistics.median(took)
        figures[f"step of {_BATCH} stars, {name} [us]"] = 1e6 * step
        figures[f"step of {_BATCH} stars, {name}, share of the multiply-adds' roof"] = (
            2.0 * multiply_adds * _BATCH / step / roof.float32
        )
        figures[f"step of {_BATCH} stars, {name}, share of the memory's roof"] = (
            bytes_of_star(sample.model) * _BATCH / step / roof.memory
        )
    return figures


def _constant(array: np.ndarray) -> np.ndarray:
    """The same, and nobody can write to it."""
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array


def _from_host(engine: Any, roof: Roof, n_stars: int) -> dict[str, Any]:
    """From arrays of the host to arrays of the host."""
    sample, rows = _many(n_stars)
    stars = StarData(**{name: np.ascontiguousarray(array[rows]) for name, array in vars(sample.stars).items()})
    figures: dict[str, Any] = {}

    def timed(work: Callable[[], Any]) -> float:
        work()
        times = []
        for _ in range(_RUNS):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return n_stars / statistics.median(times)

    figures["start + fit + Fisher, whiteners in the host's memory [stars/s]"] = timed(
        lambda: engine.fit(sample.model, sample.prior, stars, sample.grid, sample.terms, sample.box, FitOptions())
    )
    rate = _PASSES * timed(_streamed(engine, sample, rows))
    figures["coefficients in pinned memory to finished stars [stars/s]"] = rate
    figures["coefficients in pinned memory to finished stars, share of the link"] = (
        rate * _COEFFICIENTS / roof.to_device
    )
    return figures


def _streamed(engine: Any, sample: Sample, rows: np.ndarray) -> Callable[[], None]:
    """What carries coefficients of pinned memory through calibration and fit, a few streams side by side."""
    import cupy

    def pinned(array: np.ndarray) -> np.ndarray:
        place = engine.device.allocate_host(array.nbytes).view(array.dtype).reshape(array.shape)
        place[:] = array
        return place

    coefficients = {name: pinned(array[rows]) for name, array in vars(sample.survey.coefficients).items()}
    bands = [pinned(array[rows]) for array in sample.bands]
    mean, sigma = pinned(sample.stars.mean[rows]), pinned(sample.stars.sigma[rows])
    noise, calibration = sample.model.noise, Calibration.default()

    results: dict[str, np.ndarray] = {}  # of a batch; the next one's take their place
    of_thread = (
        threading.local()
    )  # its stream: CuPy keeps memory for each, and a new one's has to be asked of the driver

    def keep(name: str, array: Any, stream: Any) -> None:
        if name not in results or results[name].shape != array.shape:
            results[name] = engine.device.allocate_host(array.nbytes).view(array.dtype).reshape(array.shape)
        cupy.asnumpy(array, stream=stream, out=results[name], blocking=False)

    def finish(first: int) -> None:
        some = slice(first, first + _STREAMED)
        if not hasattr(of_thread, "stream"):
            of_thread.stream = cupy.cuda.Stream(non_blocking=True)
        with of_thread.stream as stream:

            def bring(array: np.ndarray) -> Any:
                there = cupy.empty(array[some].shape, array.dtype)
                there.set(array[some], stream=stream)
                return there

            on_gpu = Coefficients(**{name: bring(array) for name, array in coefficients.items()})
            there = [bring(array) for array in (*bands, mean, sigma)]
            calibrated = engine.calibrate(calibration, on_gpu, noise, *there[:2])
            stars = StarData(calibrated.flux, calibrated.whitener, *there[2:])
            solution = engine.fit(
                sample.model, sample.prior, stars, sample.grid, sample.terms, sample.box, FitOptions()
            )
            covariance, _, _ = engine.invert_information(solution.fisher)
            keep(f"covariance {threading.get_ident()}", covariance, stream)
            for name in ("params", "loss", "chi2", "status"):
                keep(f"{name} {threading.get_ident()}", getattr(solution, name), stream)
            stream.synchronize()

    pool = ThreadPoolExecutor(_STREAMS)

    def everything() -> None:
        list(pool.map(finish, [*range(0, len(rows), _STREAMED)] * _PASSES))

    return everything


def _peer(engine: Any, roof: Roof, n_stars: int) -> dict[str, Any]:
    """Levenberg-Marquardt in JAX on the same GPU, from its own starts and from several."""
    from bench.peers.jax_fit import STARTS, JaxFit, Stars, on_gpu
    from bench.stars import dense_whiteners, observations

    if not on_gpu():
        raise ImportError("JAX has no GPU here: pip install 'jax[cuda13]'")
    few = min(n_stars, 32768)
    sample = Sample(min(few, 8192))
    obs = observations(len(sample.truth))
    rows = np.arange(few) % len(obs)
    peer = JaxFit(sample.model, sample.prior)
    stars = Stars(obs.flux[rows], dense_whiteners(obs)[rows], obs.plx[rows], obs.plx_err[rows], batch=few)
    figures: dict[str, Any] = {}
    for name, run in (("one start", peer.run), (f"up to {STARTS} starts", peer.run_from_several)):
        run(stars)
        begin = time.perf_counter()
        params, _, _ = run(stars)
        figures[f"JAX Levenberg-Marquardt, {name} [stars/s]"] = few / (time.perf_counter() - begin)
        loss = engine.evaluate(sample.model, sample.prior, sample.stars[rows], params, sample.terms).loss
        ours = engine.fit(
            sample.model, sample.prior, sample.stars, sample.grid, sample.terms, sample.box, FitOptions()
        ).loss[rows]
        figures[f"JAX, {name}: share of stars within 0.01 of ours or lower"] = float(np.mean(loss < ours + 0.01))
    return figures


def _commit() -> str:
    """Of this checkout, with a mark where it has changes; unknown without git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
