"""How fast the model and its stars are trained from whiteners in memory, and how close that comes to its roofline."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import xpkern as xk
from bench.harness import ALLOWED_CPUS, Comparison, Contestant, compare, measure_once, null_run, on_cpus
from bench.peak import fma_peak
from bench.result import Result
from bench.stars import model_and_prior, observations, survey
from xpkern.engine import Engine
from xpkern.engine.contract import Descent, LossTerms, StarData
from xpkern.engine.groups import GroupedStars, in_random_groups
from xpkern.engine.training import EpochResult, Steps
from xpkern.fit.fit import default_box
from xpkern.model.flux_model import FluxModel

#: Stars of a batch, as the paper has it.
BATCH = 512

#: Stars that are simulated; more are copies of them in memory of their own.
SIMULATED = 4096

#: Rates so small that the model stays what it is however often it is trained.
RATE, CLIP = 1e-12, 100.0

#: Which sides move.
MODEL: dict[str, Any] = {"model_rate": RATE, "star_rate": None}
BOTH: dict[str, Any] = {"model_rate": RATE, "star_rate": RATE}
STARS: dict[str, Any] = {"model_rate": None, "star_rate": RATE}

#: Steps of Adam whose time is measured, of so many stars.
ADAM_STEPS, ADAM_STARS = 32, 2048

#: Stars of the paper's training set, its high-quality subset and what is left after self-cleaning; epochs of a phase,
#: and steps of the last one (Section 3.2).
ALL, HIGH_QUALITY, CLEANED, EPOCHS, LAST_STEPS = 2_066_000, 1_861_666, 1_556_666, 128, 4096


class Trainer:
    """Epochs over the same stars, in the same batches of random groups, by one engine.

    Parameters
    ----------
    engine : Engine
    n_stars : int
    """

    def __init__(self, engine: Engine, n_stars: int) -> None:
        self.engine = engine
        self.model, self.prior = model_and_prior()
        simulated = min(n_stars, SIMULATED)
        self.source = np.arange(n_stars) % simulated
        stars, truth = observations(simulated).star_data(), survey(simulated).truth
        self.params = truth[self.source]
        rows = StarData(
            stars.flux[self.source], stars.whitener[self.source], self.params, np.full(self.params.shape, 0.1)
        )
        self.stars = GroupedStars.of(rows)
        size = min(BATCH, n_stars)
        order = in_random_groups(np.arange(n_stars), np.random.default_rng(1))[: n_stars // size * size]
        self.batches = np.ascontiguousarray(order.reshape(-1, size))
        self.terms, self.box = LossTerms(prior=False), default_box(self.prior)

    def epoch(
        self,
        model_rate: float | None,
        star_rate: float | None,
        *,
        batches: np.ndarray | None = None,
        threads: int = 1,
    ) -> EpochResult:
        """Steps over all batches when none are given; a side whose rate is None does not move."""
        batches = self.batches if batches is None else batches
        model_steps = None if model_rate is None else Steps("sgd", np.full(len(batches), model_rate), 0.5)
        star_steps = None if star_rate is None else Steps("sgd", np.full(len(batches), star_rate), clip=CLIP)
        return self.engine.train_epoch(
            self.model,
            self.stars,
            self.params,
            batches,
            self.terms,
            self.box,
            model_steps,
            star_steps,
            None,
            threads=threads,
        )


def multiply_adds_of_steps(model: FluxModel) -> dict[str, int]:
    """Fused multiply-adds of one star: in the gradient of the model, and in a step of its own."""
    sizes = [weight.shape for weight in model.weights]
    samples = sizes[-1][1]
    forward = sum(rows * columns for rows, columns in sizes)
    inner = forward - sizes[0][0] * sizes[0][1]
    whitening = 2 * samples * (samples - 1) // 2
    return {"model": 2 * forward + inner + whitening, "star": 2 * forward + whitening}


def bytes_of_star(model: FluxModel) -> int:
    """What a star's gradient has to read from memory: whitener and flux in float32, parameters in float64."""
    samples = model.n_samples
    return 4 * (samples * (samples + 1) // 2 + samples) + 8 * model.n_parameters


def read_bandwidth(array: np.ndarray, repeats: int = 5) -> float:
    """Return the rate [GB/s] at which one core reads an array that no cache holds: NumPy looks for its maximum."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        array.max()
        best = min(best, time.perf_counter() - start)
    return 1e-9 * array.nbytes / best


def bench_train(n_stars: int, rounds: int, engine_name: str) -> Result:
    """Training steps of the model and its stars, against JAX, with the shares of the peak and of the memory's rate."""
    trainer = Trainer(xk.get_engine(engine_name), n_stars)
    size = trainer.batches.shape[1]
    one = np.ascontiguousarray(np.broadcast_to(trainer.batches[0], trainer.batches.shape))
    kinds: dict[str, dict[str, Any]] = {
        "one batch again and again, model": MODEL | {"batches": one},
        "epoch, model": MODEL,
        "epoch, model and stars": BOTH,
        "epoch, stars": STARS,
    }
    ours = {name: _contestant(trainer, name, what) for name, what in kinds.items()}
    extra: dict[str, Any] = {"stars": trainer.batches.size, "stars of a batch": size}
    try:
        duels = _against_jax(trainer, one, list(ours.values()), rounds)
    except ImportError as error:
        extra["JAX"], duels = str(error), []

    counts, read = multiply_adds_of_steps(trainer.model), bytes_of_star(trainer.model)
    seconds = {}
    for name, contestant in ours.items():
        peak, bandwidth = fma_peak(trainer.engine.instruction_set), read_bandwidth(trainer.stars.whitener.groups)
        seconds[name] = 1 / measure_once(contestant, 3)
        what = kinds[name]
        count = sum(counts[side] for side in counts if what[f"{side}_rate"] is not None)
        arithmetic = 2e-9 * count / peak
        # once a batch, whatever is done with it: it stays in the last cache
        memory = 0.0 if "batches" in what else 1e-9 * read / bandwidth
        extra |= {
            f"{name}: time [us a star]": 1e6 * seconds[name],
            f"{name}: multiply-adds at {peak:.0f} GFLOP/s [us a star]": 1e6 * arithmetic,
            f"{name}: {read} B from memory at {bandwidth:.1f} GB/s [us a star]": 1e6 * memory,
            f"{name}: binding": "memory" if memory > arithmetic else "multiply-adds",
            f"{name}: share of the binding roofline": max(arithmetic, memory) / seconds[name],
        }
    extra |= _projection(trainer, seconds, n_stars)
    return Result("train", "stars/s", duels, null_run(ours["epoch, model"], rounds=rounds, repeats=1), extra)


def _contestant(trainer: Trainer, name: str, what: dict[str, Any]) -> Contestant:
    items = what.get("batches", trainer.batches).size
    return Contestant(f"xpkern, {name}", lambda: trainer.epoch(**what), items)


def _against_jax(trainer: Trainer, one: np.ndarray, ours: list[Contestant], rounds: int) -> list[Comparison]:
    from bench.peers.jax_train import Batches, JaxTraining

    obs = observations(min(len(trainer.stars), SIMULATED))
    dense = np.stack([obs.whitener_dense(star) for star in range(len(obs))]).astype(np.float32)
    peer, stars = JaxTraining(trainer.model, trainer.terms), trainer.stars

    def laid_out(rows: np.ndarray) -> Batches:
        return Batches.of(stars.flux, dense, stars.mean, stars.sigma, trainer.params, rows, trainer.source)

    single = laid_out(one[:1])
    single = Batches(single.data * len(one), single.x * len(one))
    whole = laid_out(trainer.batches)
    peers = [
        Contestant("JAX, one batch again and again, model", lambda: peer.model_epoch(single, RATE), one.size),
        Contestant("JAX, epoch, model", lambda: peer.model_epoch(whole, RATE), trainer.batches.size),
        Contestant(
            "JAX, epoch, model and stars", lambda: peer.both_epoch(whole, RATE, RATE, CLIP), trainer.batches.size
        ),
    ]
    return [compare(us, them, rounds=rounds, repeats=1) for us, them in zip(ours, peers, strict=False)]


def _projection(trainer: Trainer, seconds: dict[str, float], n_stars: int) -> dict[str, Any]:
    """Times of the paper's training from those of a star, on one core and on as many as there are."""
    few = slice(0, min(ADAM_STARS, n_stars))
    stars, params = trainer.stars[few], trainer.params[few]
    adam = Descent("adam", ADAM_STEPS, RATE, clip=CLIP)

    def last_phase(threads: int) -> Contestant:
        def run() -> None:
            trainer.engine.descend(
                trainer.model, trainer.prior, stars, params, trainer.terms, trainer.box, adam, threads=threads
            )

        return Contestant("Adam", run, min(ADAM_STARS, n_stars) * ADAM_STEPS)

    names = ("epoch, model", "epoch, model and stars", "epoch, stars")
    costs = {1: [*(seconds[name] for name in names), 1 / measure_once(last_phase(1), 3)]}
    n_cpus = len(ALLOWED_CPUS)
    if n_cpus > 1:
        with on_cpus(ALLOWED_CPUS):
            threaded = [
                _contestant(trainer, name, kind | {"threads": n_cpus})
                for name, kind in zip(names, (MODEL, BOTH, STARS), strict=True)
            ]
            costs[n_cpus] = [1 / measure_once(contestant, 3) for contestant in (*threaded, last_phase(n_cpus))]
    extra: dict[str, Any] = {}
    for threads, (model, both, stars, step) in costs.items():
        where = f"{threads} thread{'s' if threads > 1 else ''}"
        phases = [
            EPOCHS * HIGH_QUALITY * model,
            EPOCHS * HIGH_QUALITY * both,
            EPOCHS * ALL * stars,
            EPOCHS * CLEANED * both,
            LAST_STEPS * ALL * step,
        ]
        extra |= {
            f"{where}: model and stars [us a star]": 1e6 * both,
            f"{where}: a step of Adam with the model fixed [us a star]": 1e6 * step,
            f"projected, {where}: epoch of {ALL:,} stars, model [s]": ALL * model,
            f"projected, {where}: epoch of {ALL:,} stars, model and stars [s]": ALL * both,
            f"projected, {where}: phases 1, 2, 3, 5, 6 [min]": ", ".join(f"{phase / 60:.1f}" for phase in phases),
            f"projected, {where}: all phases [h]": sum(phases) / 3600,
        }
    return extra
