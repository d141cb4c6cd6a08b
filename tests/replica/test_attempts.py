"""Batches that were running when a replica died: how many run together again, and how the deadly row is found."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caprl_ray.errors import RowFailure
from caprl_ray.replica.attempts import DEATHS_ALONE, UNSUSPECTED, Attempts, company
from caprl_ray.watch import counter
from caprl_ray.watch.counter import Counter

ROWS = 3  # of a batch


class Actor:
    """A Counter whose methods are called as those of an actor."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def __getattr__(self, name: str) -> Any:
        return Method(getattr(self._counter, name))


class Method:
    def __init__(self, method: Any) -> None:
        self._method = method

    def remote(self, *arguments: Any) -> Any:
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(self._method(*arguments))
        return answer


class Died(BaseException):
    """The replica's process is gone."""


class Run:
    """Batches that replicas caption one after the other, each until it dies."""

    def __init__(self, batches: int, poison: set[int], outside: int = 0) -> None:
        self.batches, self.poison, self.outside = batches, poison, outside
        self.counter = Actor(Counter())
        self.results: dict[int, Any] = {}
        self.deaths = 0
        self.most: list[int] = []  # batches together, of each replica

    def replica(self) -> None:
        """One process: it takes every batch that is left, until it dies or all are done."""
        try:
            asyncio.run(asyncio.wait_for(self._live(), 30))
        except Died:
            self.deaths += 1

    async def _live(self) -> None:
        attempts = Attempts(self.counter, "here", self.batches)  # type: ignore[arg-type]
        self.inside, self.dead = 0, asyncio.get_running_loop().create_future()
        self.most.append(0)
        tasks = [asyncio.ensure_future(self._batch(attempts, n)) for n in range(self.batches) if n not in self.results]
        done = asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait([done, self.dead], return_when=asyncio.FIRST_COMPLETED)
        if self.dead.done():
            for task in tasks:
                task.cancel()
            await done
            raise Died
        assert await done == [None] * len(tasks)

    async def _batch(self, attempts: Attempts, number: int) -> None:
        rows = [{"unit": number, "index": index} for index in range(ROWS)]
        self.results[number] = await attempts.caption(f"task {number}", rows, self._caption)
        self.counter.end.remote(attempts.ended())  # with what else it tells of the batch

    async def _caption(self, rows: list[dict[str, Any]]) -> Sequence[Any]:
        self.inside += 1
        self.most[-1] = max(self.most[-1], self.inside)
        for _ in range(3):
            await asyncio.sleep(0)
        if len(self.most) <= self.outside and not self.dead.done():
            self.dead.set_result(None)  # killed from outside
        if any(row["unit"] in self.poison and row["index"] == 1 for row in rows) and not self.dead.done():
            self.dead.set_result(None)
        await asyncio.sleep(0)
        if self.dead.done():
            await asyncio.Event().wait()
        self.inside -= 1
        return [{"caption": str(row)} for row in rows]


@pytest.fixture(autouse=True)
def no_node_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter, "_gone", lambda nodes: 0)


@given(st.integers(1, 2000))
def test_the_number_that_may_run_together_is_halved_until_a_batch_is_alone(in_flight: int) -> None:
    limits = company(in_flight)
    assert limits[:UNSUSPECTED] == (None,) * UNSUSPECTED and limits[-1] == 1
    halves = [in_flight, *(limit or 0 for limit in limits[UNSUSPECTED:])]
    assert all(fewer == max(1, more // 2) for more, fewer in itertools.pairwise(halves))
    assert len(limits) - 1 == 1 + max(1, in_flight.bit_length() - 1)  # crashes until it is alone
    assert (len(company(3)) - 1, len(company(141)) - 1) == (2, 8)


@pytest.mark.parametrize(("outside", "together"), [(1, 141), (2, 70), (3, 70)])
def test_deaths_from_outside_leave_many_batches_together(outside: int, together: int) -> None:
    run = Run(141, set(), outside)
    for _ in range(outside + 1):
        run.replica()
    assert run.deaths == outside and len(run.results) == 141
    assert run.most[-1] == together  # of three deaths, the third was seen by half of them
    assert not run.counter._counter._begun, "no batch that ended counts as one that did not"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 59))
def test_a_poison_row_is_found_within_so_many_deaths_and_nothing_else_fails(batches: int, bad: int) -> None:
    bad %= batches
    run = Run(batches, {bad})
    most = (len(company(batches)) - 1) + 1 + DEATHS_ALONE
    for _ in range(most + 1):
        run.replica()
    assert run.deaths == most and run.results.keys() == set(range(batches))
    failed = [(n, i) for n, rows in run.results.items() for i, row in enumerate(rows) if isinstance(row, RowFailure)]
    assert failed == [(bad, 1)]
