"""A survey run end to end: rate, memory, where the time goes, what more processes bring, and what kills cannot do."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import xpkern as xk
from bench.fitting import Fitter
from bench.harness import ALLOWED_CPUS, Contestant, compare, measure_once, on_cpus
from bench.ingest import profile
from bench.result import Result
from bench.stars import SEED, model_and_prior
from xpkern.cli.run import PARTIAL
from xpkern.fit.start import start_grid
from xpkern.survey.planted import Planted
from xpkern.survey.run import simulate_survey

#: Files of the survey, and of the survey that is killed.
FILES, FILES_OF_KILLED = 50, 4

#: Rounds of a duel at most: one takes minutes.
MOST_ROUNDS = 7

#: Parts of the stars asked for that the surveys have whose cost per star is compared, and the files of the longest.
SHARES, FILES_OF_LONGEST = (100, 10, 1), 100

#: Rows of which the parts of the work are measured.
PROFILED = 4096

#: Random moments at which a run is killed.
KILLS = 50

#: As installed, where pip has compiled the library: here its first run does, and no later one again.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

#: Sources with XP spectra in Gaia DR3, and announced for DR4.
RELEASES = {"DR3": 219_197_643, "DR4": 2_800_000_000}

#: Machines for which the time is projected: nodes, cores of each.
MACHINES = {"2 cores": (1, 2), "64-core node": (1, 64), "40 nodes of 64 cores": (40, 64)}


def bench_survey(n_stars: int, rounds: int, engine_name: str) -> Result:
    """A survey of 50 files end to end: one process, two, one catalogue of the shards; projected to DR3 and DR4."""
    with tempfile.TemporaryDirectory(prefix="xpkern-bench-") as name:
        folder = Path(name)
        per_file = math.ceil(n_stars / FILES)
        started = time.perf_counter()
        simulate_survey(folder / "sim", n_stars, seed=SEED, truth="model", stars_per_file=per_file)
        extra: dict[str, Any] = {"stars": n_stars, "simulated in [s]": time.perf_counter() - started}
        spectra = sorted((folder / "sim").glob("Xp*.csv.gz"))
        one, two = (_settings(folder, f"shards{number}", engine_name) for number in (1, 2))

        def run(settings: Path, processes: int) -> Callable[[], None]:
            def make() -> None:
                shutil.rmtree(folder / f"shards{processes}", ignore_errors=True)
                with on_cpus(sorted(ALLOWED_CPUS)[-processes:]):
                    _xpkern("run", str(settings), "--processes", str(processes))

            return make

        alone = Contestant("xpkern run: 1 process, 1 CPU", run(one, 1), n_stars)
        together = Contestant("xpkern run: 2 processes, 2 CPUs", run(two, 2), n_stars)
        duels = []
        if len(ALLOWED_CPUS) > 1:
            duels.append(compare(together, alone, rounds=min(rounds, MOST_ROUNDS), repeats=1))
            speed_up = duels[0].ratio
            rate = duels[0].peer.median
            extra["2 processes: same bytes as 1"] = _shards(folder / "shards1") == _shards(folder / "shards2")
        else:
            rate, speed_up = measure_once(alone, min(rounds, MOST_ROUNDS)), 2.0
            extra["2 processes"] = "not measured: one CPU only"
        extra["peak memory of a process [MB]"] = max(line["memory_mb"] for line in _log(folder / "shards1"))
        for output in ("catalog.h5", "catalog.parquet"):
            started = time.perf_counter()
            _xpkern("collect", str(one), "-o", str(folder / output))
            extra[f"collect to {output} [us a star]"] = 1e6 * (time.perf_counter() - started) / n_stars
        started = time.perf_counter()
        _xpkern("collect", str(one), "--virtual", "-o", str(folder / "virtual.h5"))
        extra["collect --virtual [s]"] = time.perf_counter() - started
        bytes_of_row = sum(path.stat().st_size for path in spectra) / n_stars
        profiled = min(PROFILED, n_stars)
        parts = profile(profiled, engine_name, folder / "parts.h5")
        parts["second pass"] = _second_pass_alone(profiled, engine_name)
        storage = _storage_rate(spectra)
        extra |= {f"{part} alone [us a row]": value for part, value in parts.items()}
        extra |= {
            "end to end [us a row]": 1e6 / rate,
            "sum of the parts alone, share of end to end": sum(parts.values()) * rate / 1e6,
            "compressed bytes a row": bytes_of_row,
            "storage here, files not in memory [MB/s]": storage / 1e6,
        }
        extra |= _projections(rate, speed_up / 2, bytes_of_row, storage, parts)
    return Result("survey", "stars/s", duels, None, extra)


def bench_sizes(n_stars: int, rounds: int, engine_name: str) -> Result:
    """What a star costs in a catalogue of all the stars, of a tenth, of a hundredth; each has files of its own."""
    model, prior = model_and_prior()
    with tempfile.TemporaryDirectory(prefix="xpkern-bench-") as name:
        folder = Path(name)

        def contestant(share: int) -> Contestant:
            stars, survey = math.ceil(n_stars / share), folder / f"sim{share}"
            per_file = math.ceil(n_stars / FILES_OF_LONGEST)
            with on_cpus(ALLOWED_CPUS):
                _xpkern(
                    *("simulate", "--n", str(stars), "--truth", "model", "--none-planted", "--seed", str(SEED)),
                    *("--stars-per-file", str(per_file), "-o", str(survey)),
                )
            spectra = sorted(survey.glob("Xp*.csv.gz"))

            def make() -> None:
                summary = xk.make_catalog(
                    spectra,
                    folder / "catalog.h5",
                    gaia_source=survey / "gaia_source.fits",
                    model=model,
                    prior=prior,
                    engine=engine_name,
                    threads=1,
                    overwrite=True,
                )
                if summary.rows != stars:
                    raise RuntimeError(f"{summary.rows} rows of {stars} in the catalogue")

            return Contestant(f"catalogue of {stars:,} stars in {len(spectra)} files", make, stars)

        shortest, *between, longest = (contestant(share) for share in SHARES)
        rounds = min(rounds, MOST_ROUNDS)
        rates = {each: measure_once(each, rounds) for each in between}
        duel = compare(longest, shortest, rounds=rounds, repeats=1)
        rates |= {shortest: duel.peer.median, longest: duel.ours.median}
        extra: dict[str, Any] = {f"{each.name} [us a star]": 1e6 / rate for each, rate in rates.items()}
        extra["peak memory of this process [MB]"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Result("sizes", "stars/s", [duel], None, extra)


def bench_kills(n_stars: int, _rounds: int, engine_name: str) -> Result:
    """Whether a survey run killed at 50 random moments ends, each time, with the bytes of an undisturbed one."""
    rng = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory(prefix="xpkern-bench-") as name, on_cpus(ALLOWED_CPUS):
        folder = Path(name)
        per_file = math.ceil(n_stars / FILES_OF_KILLED)
        planted = Planted(bad_row=0.01)
        simulate_survey(folder / "sim", n_stars, seed=SEED, truth="model", stars_per_file=per_file, planted=planted)
        settings = _settings(folder, "killed", engine_name)
        command = [sys.executable, "-m", "xpkern", "run", str(settings), "--processes", "2"]
        started = time.perf_counter()
        _xpkern("run", str(settings), "--processes", "2")
        seconds = time.perf_counter() - started
        expected, same, begun, left = _shards(folder / "killed"), 0, 0, 0
        for _ in range(KILLS):
            shutil.rmtree(folder / "killed")
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=ENVIRONMENT,
            )
            try:
                process.wait(rng.uniform(0.0, seconds))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            done = _shards(folder / "killed") if (folder / "killed").is_dir() else {}
            begun += bool(done)
            left += sum(name.endswith(".partial") for name in done)
            _xpkern("run", str(settings), "--processes", "2")
            same += _shards(folder / "killed") == expected
        extra: dict[str, Any] = {
            "stars": n_stars,
            "files": FILES_OF_KILLED,
            "undisturbed run [s]": seconds,
            "kills": KILLS,
            "kills that left files behind": begun,
            "partial files they left, removed by the next run": left,
            "kills after which the next run ended with the same bytes": same,
        }
        extra |= _faults(folder, engine_name, expected)
    return Result("kills", extra=extra)


def _faults(folder: Path, engine_name: str, expected: dict[str, bytes]) -> dict[str, Any]:
    """A corrupt, a cut, an empty and a missing file among good ones: what becomes of either."""
    good = sorted((folder / "sim").glob("Xp*.csv.gz"))[0]
    bad = {"corrupt": bytearray(good.read_bytes()), "cut": good.read_bytes()[: good.stat().st_size // 2], "empty": b""}
    bad["corrupt"][len(bad["corrupt"]) // 2] ^= 0xFF
    for name, data in bad.items():
        (folder / "sim" / f"Xp_{name}.csv.gz").write_bytes(data)
    (folder / "sim" / "Xp_missing.csv.gz").symlink_to(folder / "gone.csv.gz")
    settings = _settings(folder, "faults", engine_name)
    code = _xpkern("run", str(settings), "--processes", "2", allowed=(PARTIAL,))
    found = _shards(folder / "faults")
    named = {path.name.split(".")[0] for path in (folder / "faults").glob("*.failed.json")}
    return {
        "faults: exit code says partial": code == PARTIAL,
        "faults: the good files' shards are the same bytes": all(
            found.get(name) == data for name, data in expected.items()
        ),
        "faults: bad files that are named": ", ".join(sorted(named)),
    }


def _settings(folder: Path, output: str, engine_name: str) -> Path:
    path = folder / f"{output}.toml"
    path.write_text(
        f'spectra = "sim/Xp*.csv.gz"\ngaia_source = "sim/gaia_source.fits"\noutput = "{output}"\n'
        f'engine = "{engine_name}"\nthreads = 1\n'
    )
    return path


def _xpkern(*arguments: str, allowed: Sequence[int] = (0,)) -> int:
    """Run the command line; anything but the exit codes allowed is an error."""
    command = [sys.executable, "-m", "xpkern", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    if finished.returncode not in allowed:
        raise RuntimeError(f"xpkern {' '.join(arguments)}: {finished.stderr}")
    return finished.returncode


def _shards(folder: Path) -> dict[str, bytes]:
    """What a run leaves but its log and claims."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in (folder / "log").glob("*.jsonl") for line in path.read_text().splitlines()]


def _second_pass_alone(n_stars: int, engine_name: str) -> float:
    """Time [us] that the shipped model's learned noise adds to the fit of a star under that of Eq. 2."""
    model, prior = xk.load_model()
    fitter = Fitter(xk.get_engine(engine_name), n_stars)
    grid = start_grid(model, prior)

    def fit(noise: str) -> float:
        def run() -> None:
            xk.fit(fitter.obs, model, prior, engine=fitter.engine, threads=1, start=grid, noise=noise)

        return 1e6 / measure_once(Contestant(noise, run, n_stars), 3)

    return fit("learned") - fit("eq2")


def _storage_rate(spectra: Sequence[Path]) -> float:
    """Bytes a second that files give which the system does not have in memory."""
    for path in spectra:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    for path in spectra:
        with open(path, "rb", buffering=0) as stream:
            while stream.read(1 << 22):
                pass
    return sum(path.stat().st_size for path in spectra) / (time.perf_counter() - started)


def _projections(
    rate: float, efficiency: float, bytes_of_row: float, storage: float, parts: dict[str, float]
) -> dict[str, Any]:
    """Hours for whole releases, and what binds: arithmetic from this run's figures alone.

    Each core is as fast as this one beside another one that is busy, and each node's storage as fast as this machine's.
    """
    heaviest = max(parts, key=parts.__getitem__)
    projected: dict[str, Any] = {}
    for machine, (nodes, cores) in MACHINES.items():
        by_cores = nodes * cores * rate * (efficiency if cores > 1 else 1.0)
        by_storage = nodes * storage / bytes_of_row
        binding = "storage" if by_storage < by_cores else f"cores ({heaviest} the most)"
        projected[f"{machine}: the cores want [MB/s a node]"] = by_cores * bytes_of_row / nodes / 1e6
        for release, sources in RELEASES.items():
            projected[f"{release} on {machine} [h]"] = sources / min(by_cores, by_storage) / 3600
        projected[f"{machine}: bound by"] = binding
    return projected
