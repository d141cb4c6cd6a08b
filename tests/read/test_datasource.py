"""The units and rows of a read task."""

import pickle
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from pyroaring import BitMap

from caprl_ray.output.again import Chosen
from caprl_ray.output.committed import Committed
from caprl_ray.plan import UnitRef
from caprl_ray.read import datasource
from caprl_ray.read.datasource import Reading, Work, chosen_again, groups
from caprl_ray.recipe.input import Input
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage, Stored


def access_with(hashes: list[str]) -> Access:
    return Access(storage=Storage(), input=Input(paths=["-"], placeholders=hashes), max_bytes=1)


def test_placeholders_lie_in_the_object_store_once_and_in_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[Any] = []
    monkeypatch.setattr(ray, "put", lambda value: stored.append(value) or "reference")
    digests = [sha256(b"%d" % number) for number in range(1000)]
    reading = Reading.of(access_with([digest.hexdigest() for digest in digests]))
    assert reading.placeholders == "reference" and len(pickle.dumps(reading)) < 3000
    (found,) = stored
    assert len(found) == 1000 and digests[7].digest() in found


def test_without_placeholders_nothing_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "put", lambda value: pytest.fail("stored"))
    assert Reading.of(access_with([])).placeholders is None


def test_of_a_unit_of_unknown_length_only_the_chosen_rows_are_done_again() -> None:
    ref, chosen = work(0, 1).ref, Chosen(rows=BitMap([0]), objects=())
    committed = {0: Committed(finished=BitMap([0, 1]), failed=BitMap([2]))}
    (again,) = chosen_again([ref], committed, {0: chosen})
    assert again.done == BitMap([1, 2]) and again.rows is None


def work(unit: int, size: int, rows: int | None = None, done: int = 0) -> Work:
    part = Stored(path="plan/00000.parquet", size=1, version="1")
    ref = UnitRef(unit=unit, kind="webdataset", rows=rows, bytes=size, object=part, row_group=0, offset=unit)
    return Work(ref=ref, done=BitMap(range(done)), rows=rows)


def test_large_units_are_begun_first_and_the_rest_in_the_order_of_the_plan() -> None:
    sizes = {0: 100, 1: 110, 2: 900, 3: 90, 4: 5000, 5: 100, 6: 100, 7: 95}
    planned = [work(unit, size) for unit, size in sizes.items()]
    planned[2] = work(2, 2000)
    tasks = [[one.ref.unit for one in group] for group in groups(planned)]
    assert tasks == [[4], [2], [0], [1], [3], [5], [6], [7]]
    mostly_done = [*planned[:4], work(4, 5000, rows=1000, done=990), *planned[5:]]
    assert groups(mostly_done)[0][0].ref.unit == 2, "what is left of a unit counts"
    assert groups([]) == []
    first_look = [one.ref.unit for group in groups(planned, planned_order=True) for one in group]
    assert first_look == [*sizes], "of a run with a limit, the first rows are those of the input"


def test_among_more_units_than_tasks_a_large_one_shares_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasource, "MOST_READ_TASKS", 8)
    tasks = groups([work(unit, 5000 if unit in (7, 50) else 100) for unit in range(100)])
    assert [[one.ref.unit for one in group] for group in tasks[:2]] == [[7], [50]]
    rest = [one.ref.unit for group in tasks[2:] for one in group]
    assert len(tasks) == 8 and rest == [unit for unit in range(100) if unit not in (7, 50)]


def test_a_read_task_asks_at_once_and_then_rarely_whether_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [100.0], list[float]()

    def ask() -> bool:
        asked.append(now[0])
        return now[0] > 101

    monkeypatch.setattr(datasource.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    closing = datasource._Closing(SimpleNamespace(closing=SimpleNamespace(remote=ask)))  # type: ignore[arg-type]
    answers = []
    for now[0] in (100.0, 100.1, 100.4, 100.6, 101.0, 101.2):
        answers.append(closing())
    assert asked == [100.0, 100.6, 101.2] and answers == [False] * 5 + [True]
