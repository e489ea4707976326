"""Every benchmark by its name."""

from __future__ import annotations

from collections.abc import Callable

from bench.accuracy import bench_optimum, bench_precision, bench_pulls
from bench.closure import bench_atmospheres, bench_closure, bench_recipes, bench_resume
from bench.coefficients import bench_calibrate, bench_finish
from bench.confidence import bench_confidence
from bench.converting import bench_convert
from bench.dust import bench_dust, bench_dust_speed
from bench.fitting import bench_fit, bench_isa, bench_peak
from bench.formats import bench_formats
from bench.fuzz import bench_fuzz
from bench.ingest import bench_ingest
from bench.matching import bench_crossmatch
from bench.noise import bench_noise, bench_noise_cost
from bench.posterior import bench_posterior
from bench.real import bench_confusion, bench_curve, bench_real
from bench.report import bench_report
from bench.result import Result
from bench.scaling import bench_threads
from bench.simulation import bench_simulate
from bench.surveys import bench_kills, bench_sizes, bench_survey
from bench.training import bench_train
from bench.writing import bench_write
from xpkern.catalog.run import MOST_STARS_OF_A_BLOCK

#: Benchmarks by name: (function of number of stars, rounds and engine; default number of stars).
BENCHMARKS: dict[str, tuple[Callable[[int, int, str], Result], int]] = {
    "peak": (bench_peak, 4096),
    "isa": (bench_isa, 4096),
    "fit": (bench_fit, 4096),
    # As many as a catalogue has at once: what is made of them goes into memory that is used again.
    "calibrate": (bench_calibrate, MOST_STARS_OF_A_BLOCK),
    "finish": (bench_finish, MOST_STARS_OF_A_BLOCK),
    "ingest": (bench_ingest, 16_384),
    "write": (bench_write, 32768),
    "formats": (bench_formats, 4096),
    "convert": (bench_convert, 4096),
    "crossmatch": (bench_crossmatch, 10_000_000),
    "survey": (bench_survey, 200_000),
    "sizes": (bench_sizes, 1_000_000),
    "kills": (bench_kills, 4000),
    "fuzz": (bench_fuzz, 10_000_000),
    "threads": (bench_threads, 8192),
    "simulate": (bench_simulate, 16384),
    "dust": (bench_dust, 2_000_000),
    "dust_speed": (bench_dust_speed, 2_000_000),
    "train": (bench_train, 100_000),
    "optimum": (bench_optimum, 4096),
    "precision": (bench_precision, 4096),
    "pulls": (bench_pulls, 65536),
    "recipes": (bench_recipes, 50000),
    "closure": (bench_closure, 1_000_000),
    "atmospheres": (bench_atmospheres, 40960),
    "resume": (bench_resume, 300),
    "real": (bench_real, 1_000_000),
    "curve": (bench_curve, 0),
    "confusion": (bench_confusion, 16384),
    "confidence": (bench_confidence, 40000),
    "noise": (bench_noise, 100_000),
    "noise_cost": (bench_noise_cost, 2048),
    "posterior": (bench_posterior, 2048),
    "report": (bench_report, 1_000_000),
}
