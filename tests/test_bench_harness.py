"""The benchmark harness, with a clock of our own: nothing here depends on how fast the machine is."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from bench.__main__ import parse
from bench.benchmarks import BENCHMARKS
from bench.evaluation import evaluations_under_roof, multiply_adds_of_evaluation
from bench.harness import Contestant, compare, machine, measure_once, median_band, null_run, pinned
from bench.result import Result
from bench.scaling import thread_numbers
from bench.training import multiply_adds_of_steps


class Clock:
    """A clock that moves only when work is done, by what the work costs."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def contestant(self, name, cost, items=10):
        def run():
            self.calls.append(name)
            self.now += cost(len(self.calls)) if callable(cost) else cost

        return Contestant(name, run, items)


def test_rate_is_the_best_of_the_repeats():
    clock = Clock()
    costs = iter([3.0, 1.0, 2.0])
    contestant = clock.contestant("a", lambda _: next(costs))
    assert measure_once(contestant, 3, clock) == 10 / 1.0


def test_contestants_take_turns_in_alternating_order():
    clock = Clock()
    compare(clock.contestant("a", 1), clock.contestant("b", 1), rounds=3, repeats=2, clock=clock)
    assert "".join(clock.calls) == "ab" + "aabb" + "bbaa" + "aabb"


def test_what_a_call_has_written_is_cleared_after_it_apart_from_the_clock():
    clock, written, most = Clock(), [], []

    def run():
        most.append(len(written))
        written.append(1)
        clock.now += 2

    def clear():
        written.clear()
        clock.now += 100

    result = null_run(Contestant("a", run, 10, clear), rounds=2, repeats=2, clock=clock)
    assert set(most) == {0}
    assert not written
    assert result.ours.median == result.peer.median == pytest.approx(5)


def test_ratio_and_band_of_a_real_difference():
    clock = Clock()
    result = compare(clock.contestant("ours", 1), clock.contestant("peer", 4), clock=clock)
    assert result.ratio == pytest.approx(4)
    assert result.ours.median == pytest.approx(10)
    assert result.peer.median == pytest.approx(2.5)
    assert result.differ


def test_slow_drift_of_the_machine_cancels():
    clock = Clock()
    drift = [1 + 0.01 * step for step in range(1000)]
    result = compare(
        clock.contestant("ours", lambda step: drift[step]),
        clock.contestant("peer", lambda step: 2 * drift[step]),
        rounds=8,
        clock=clock,
    )
    assert result.ratio == pytest.approx(2, rel=0.03)


def test_null_run_finds_no_difference_under_noise(rng):
    clock = Clock()
    contestant = clock.contestant("same", lambda _: rng.uniform(1, 1.2))
    runs = [null_run(contestant, rounds=9, repeats=1, clock=clock) for _ in range(100)]
    assert sum(run.differ for run in runs) < 20  # 4 expected
    assert np.median([run.ratio for run in runs]) == pytest.approx(1, abs=0.03)


def test_null_run_on_real_work_is_a_fair_duel():
    work = np.ones(1000)
    result = null_run(Contestant("sum", work.sum, 1000), rounds=5, repeats=3)
    assert result.rounds == 5
    assert result.ratio_lower <= result.ratio <= result.ratio_upper


@pytest.mark.parametrize(("rounds", "rank"), [(1, 0), (5, 0), (7, 0), (9, 1), (25, 7), (101, 40)])
def test_median_band_has_the_tabulated_ranks(rounds, rank):
    """Ranks of the 95 % confidence interval of a median, as in tables of the sign test."""
    shuffled = np.random.default_rng(1).permutation(rounds).astype(float)
    assert median_band(shuffled) == (rank, rounds - 1 - rank)


def test_pinned_keeps_one_cpu_and_lets_go():
    before = os.sched_getaffinity(0)
    with pinned() as cpu:
        assert os.sched_getaffinity(0) == {cpu}
    assert os.sched_getaffinity(0) == before


def test_result_is_plain_enough_for_json():
    clock = Clock()
    duel = compare(clock.contestant("ours", 1), clock.contestant("peer", 2), clock=clock)
    result = Result("x", "stars/s", [duel], None, {"one figure [us]": 7.0, "same": True})
    content = json.loads(json.dumps({"machine": machine()} | result.as_dict()))
    assert content["duels"][0]["ratio"] == pytest.approx(2)
    assert content["extra"]["one figure [us]"] == 7
    assert {"processor", "python", "numpy"} <= set(content["machine"])
    assert any("7" in line for line in result.lines())


def test_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["nonsense"])
    assert "no benchmark is called nonsense" in capsys.readouterr().err
    assert parse([]).names == list(BENCHMARKS)


def test_multiply_adds_of_the_usual_model():
    """Counted by hand in bench/NOTES.md for 3-32-32-32-66."""
    weights = [np.zeros(shape) for shape in ((3, 32), (32, 32), (32, 32), (32, 66))]
    model = SimpleNamespace(weights=weights)
    assert list(multiply_adds_of_evaluation(model, in_blocks=False).values()) == [4256, 12480, 12870, 1386]
    assert list(multiply_adds_of_evaluation(model, in_blocks=True).values()) == [4256, 12480, 6120, 1386]


def test_multiply_adds_of_training_steps_of_the_usual_model():
    """Counted by hand in bench/NOTES.md for 3-32-32-32-66."""
    weights = [np.zeros(shape) for shape in ((3, 32), (32, 32), (32, 32), (32, 66))]
    count = multiply_adds_of_steps(SimpleNamespace(weights=weights))
    assert count == {"model": 4256 + 4256 + 4160 + 2 * 2145, "star": 4256 + 4256 + 2 * 2145}


def test_time_of_an_evaluation_leaves_out_what_is_constant(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)

    def fit_with_at_most(evaluations):
        clock.now += 5.0 + 0.25 * evaluations

    roofs = iter([1.0, 3.0, 2.0, 1.0, 1.0, *[7.0] * 5])
    measured = evaluations_under_roof(fit_with_at_most, lambda: next(roofs), 10, rounds=2)
    np.testing.assert_allclose(measured.seconds, 0.025)
    np.testing.assert_array_equal(measured.roof, [3.0, 7.0])  # the highest of the round's turns
    np.testing.assert_allclose(measured.shares(0.075e9), [1.0, 3.0 / 7.0])


@pytest.mark.parametrize(
    ("n_cpus", "expected"), [(1, []), (2, [2]), (3, [2, 3]), (4, [2, 4]), (6, [2, 4, 6]), (16, [2, 4, 8, 16])]
)
def test_thread_numbers_double_up_to_every_cpu(n_cpus, expected):
    assert thread_numbers(n_cpus) == expected
