"""Threads: how many there are, and streams of blocks that several of them work on without a trace in the result."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from xpkern.errors import InputError
from xpkern.threads import SLURM_VARIABLE, VARIABLES, in_order, number_of_threads

#: Including more than this machine may have.
THREADS = [1, 2, 3, 7]


class TestNumberOfThreads:
    @pytest.fixture(autouse=True)
    def nothing_set(self, monkeypatch):
        for variable in (*VARIABLES, SLURM_VARIABLE):
            monkeypatch.delenv(variable, raising=False)

    def test_what_is_asked_comes_first_then_ours_then_that_of_openmp(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
        assert number_of_threads() == 5
        monkeypatch.setenv("XPKERN_NUM_THREADS", "3")
        assert number_of_threads() == 3
        assert number_of_threads(2) == 2
        assert number_of_threads(4096) == 4096

    @pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes to cores")
    def test_cores_of_this_process_and_of_its_slurm_task(self, monkeypatch):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 6, 7})
        assert number_of_threads() == 4
        monkeypatch.setenv("OMP_NUM_THREADS", "")
        for given, expected in (("2", 2), ("4", 4), ("64", 4)):
            monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
            assert number_of_threads() == expected

    @pytest.mark.parametrize("variable", ["XPKERN_NUM_THREADS", "OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"])
    @pytest.mark.parametrize("wrong", ["0", "-1", "many", "1.5"])
    def test_nonsense_is_refused_by_its_name(self, monkeypatch, variable, wrong):
        monkeypatch.setenv(variable, wrong)
        with pytest.raises(InputError, match=f"{wrong}.*not a number of threads") as caught:
            number_of_threads()
        assert caught.value.field == variable
        assert number_of_threads(2) == 2

    @pytest.mark.parametrize("wrong", [0, -3])
    def test_nonsense_in_a_call(self, wrong):
        with pytest.raises(InputError, match="not a number of threads"):
            number_of_threads(wrong)


class Stream:
    """Numbers from 0, which notes how it is used; ``break_at`` raises instead of that number."""

    def __init__(self, count: int, break_at: int = -1) -> None:
        self.count = count
        self.break_at = break_at
        self.taken = 0
        self.closed = False
        self.users = 0
        self.most_users = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self.used():
            if self.taken == self.break_at:
                raise InputError(f"broken at {self.taken}")
            if self.taken == self.count:
                raise StopIteration
            self.taken += 1
            return self.taken - 1

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        self.users += 1
        self.most_users = max(self.users, self.most_users)
        yield_to_others()
        try:
            yield
        finally:
            self.users -= 1

    def close(self) -> None:
        self.closed = True


def yield_to_others() -> None:
    """Let other threads go first, some of the time."""
    for _ in range(random.randrange(4)):
        threading.Event().wait(0.0005)


def square(number: int) -> int:
    yield_to_others()
    return number * number


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("xpkern-")]


@pytest.mark.parametrize("threads", THREADS)
class TestInOrder:
    @pytest.mark.parametrize("count", [0, 1, 5, 60])
    def test_every_result_once_and_in_order(self, threads, count):
        stream = Stream(count)
        assert list(in_order(stream, square, threads=threads)) == [i * i for i in range(count)]
        assert stream.closed
        assert stream.most_users == 1  # never asked by two threads at once
        assert not helpers()

    def test_results_of_none_are_results(self, threads):
        assert list(in_order(Stream(9), lambda number: None, threads=threads)) == [None] * 9

    @pytest.mark.parametrize("break_at", [0, 1, 17])
    def test_an_error_of_the_stream_comes_behind_all_results_before_it(self, threads, break_at):
        stream, results = Stream(30, break_at), []
        with pytest.raises(InputError, match=f"broken at {break_at}"):
            results.extend(in_order(stream, square, threads=threads))
        # extend() keeps what came before the error
        assert results == [i * i for i in range(break_at)]
        assert stream.closed
        assert not helpers()

    @pytest.mark.parametrize("bad", [0, 1, 17])
    def test_the_error_of_the_first_bad_item_is_raised_whoever_meets_another_one_first(self, threads, bad):
        def work(number: int) -> int:
            if number == bad:
                yield_to_others()
                yield_to_others()
            if number >= bad:
                raise ValueError(f"cannot use {number}")
            return number

        results: list[int] = []
        with pytest.raises(ValueError, match=f"cannot use {bad}$"):
            results.extend(in_order(Stream(30), work, threads=threads))
        assert results == list(range(bad))
        assert not helpers()

    @pytest.mark.parametrize("ahead", [1, 4])
    def test_no_more_than_so_many_wait_for_the_caller(self, threads, ahead):
        stream = Stream(40)
        for yielded, _ in enumerate(in_order(stream, square, threads=threads, ahead=ahead), 1):
            yield_to_others()
            assert stream.taken <= yielded + ahead

    def test_no_more_threads_than_asked_are_busy(self, threads):
        busy, most, guard = 0, 0, threading.Lock()

        def work(number: int) -> int:
            nonlocal busy, most
            with guard:
                busy += 1
                most = max(most, busy)
            yield_to_others()
            with guard:
                busy -= 1
            return number

        for _ in in_order(Stream(60), work, threads=threads):
            pass
        assert most <= threads

    def test_a_caller_that_goes_away_leaves_no_thread(self, threads):
        stream = Stream(1000)
        results = in_order(stream, square, threads=threads)
        assert list(itertools.islice(results, 3)) == [0, 1, 4]
        results.close()
        assert stream.closed
        assert not helpers()
        assert stream.taken < 100

    def test_ctrl_c_is_raised_at_once(self, threads):
        main = threading.main_thread()

        def work(number: int) -> int:
            if number > 5 and threading.current_thread() is main:
                raise KeyboardInterrupt
            return square(number)

        stream = Stream(1000)
        with pytest.raises(KeyboardInterrupt):
            list(in_order(stream, work, threads=threads))
        assert stream.closed
        assert not helpers()


def test_a_source_that_never_answers_does_not_keep_the_caller():
    never, asked = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 0
        asked.set()
        never.wait()

    # one item at a time: the caller is given the first, and one of the others asks for the next
    results = in_order(source(), square, threads=3, ahead=1)
    assert next(results) == 0
    assert asked.wait(30)
    assert not never.is_set()
    results.close()
    assert len(helpers()) == 1
    never.set()
    for helper in helpers():
        helper.join(30)
    assert not helpers()


def test_a_forked_child_can_use_threads_again():
    """Dask and multiprocessing fork: the parent's threads do not exist in the child."""
    program = (
        "import os\n"
        "from xpkern.threads import in_order\n"
        "results = in_order(iter(range(1000)), lambda number: -number, threads=4)\n"
        "assert next(results) == 0\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    assert list(in_order(iter(range(100)), lambda number: -number, threads=4)) == [-i for i in range(100)]\n"
        "    os._exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert next(results) == -1\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
