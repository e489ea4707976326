"""The benchmark harness, with a clock of our own: nothing here depends on how fast the machine is."""

import json
import os

import numpy as np
import pytest

from bench.harness import Contestant, compare, measure_once, middle_half, null_run, pinned, write_json


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
    result = null_run(clock.contestant("same", lambda _: rng.uniform(1, 1.2)), rounds=101, repeats=1, clock=clock)
    assert not result.differ
    assert result.ratio == pytest.approx(1, abs=0.05)


def test_null_run_on_real_work_is_a_fair_duel():
    work = np.ones(1000)
    result = null_run(Contestant("sum", work.sum, 1000), rounds=5, repeats=3)
    assert result.rounds == 5
    assert result.ratio_lower <= result.ratio <= result.ratio_upper


def test_middle_half():
    assert middle_half([5.0]) == (5.0, 5.0)
    assert middle_half([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)


def test_pinned_keeps_one_cpu_and_lets_go():
    before = os.sched_getaffinity(0)
    with pinned() as cpu:
        assert os.sched_getaffinity(0) == {cpu}
    assert os.sched_getaffinity(0) == before


def test_json_names_the_machine(tmp_path):
    clock = Clock()
    result = compare(clock.contestant("ours", 1), clock.contestant("peer", 2), clock=clock)
    write_json(tmp_path / "new" / "x.json", "x", result, {"stars": 7})
    content = json.loads((tmp_path / "new" / "x.json").read_text())
    assert content["comparison"]["ratio"] == pytest.approx(2)
    assert content["comparison"]["differ"] is True
    assert content["stars"] == 7
    assert {"processor", "python", "numpy"} <= set(content["machine"])
