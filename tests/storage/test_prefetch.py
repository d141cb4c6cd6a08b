"""Prefetching keeps the order and raises errors in their place, and stays within its bound."""

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from caprl_ray.storage.prefetch import FETCHED_AHEAD, prefetched


def test_results_come_in_order_whatever_finishes_first() -> None:
    assert list(prefetched(lambda n: time.sleep(0.002 * (7 - n % 8)) or n, range(50))) == list(range(50))


def test_as_many_as_allowed_are_under_way_and_no_more_are_asked_for() -> None:
    all_at_once = threading.Barrier(FETCHED_AHEAD)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(100):
            taken.append(n)
            yield n

    results = prefetched(lambda n: all_at_once.wait(10) if n < FETCHED_AHEAD else n, items())
    next(results)
    assert len(taken) == FETCHED_AHEAD
    results.close()
    assert len(taken) == FETCHED_AHEAD


def test_a_fault_comes_at_its_place() -> None:
    results = prefetched(lambda n: 1 // (n - 3), range(10))
    assert [next(results) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_early_end_does_not_wait_for_what_runs() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise KeyboardInterrupt

    answer, began = threading.Event(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(prefetched(lambda _: answer.wait(20), items()))
    assert time.monotonic() - began < 10
    answer.set()


@pytest.mark.timeout(20)
def test_an_early_end_does_not_wait_for_the_ends_of_threads() -> None:
    begun, answer = threading.Event(), threading.Event()

    def call(n: int) -> int:
        if n:
            begun.set()
            answer.wait(20)
        return n

    results = prefetched(call, range(2), 2)
    assert next(results) == 0 and begun.wait(10)
    # As if the garbage collector closed it while a thread starts.
    with getattr(threading, "_shutdown_locks_lock", nullcontext()):
        results.close()
    answer.set()
