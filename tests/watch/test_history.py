"""The history of an output's runs has few points, in one file for all runs."""

import dataclasses
import json
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caprl_ray.storage import Storage
from caprl_ray.watch import status_file
from caprl_ray.watch.history import MOST, Point, Points, added, parse, plain, steps, together
from caprl_ray.watch.record import Record, Replicas
from caprl_ray.watch.status import Run, Status
from caprl_ray.watch.status_file import StatusFile
from tests.watch.test_status import STATUS

START = 1_800_000_000


def of(points: Points) -> tuple[float, float]:
    """The mean of replicas and the rows of all runs."""
    seconds = sum(two.at - one.at for one, two in steps(points))
    mean = sum(two.replicas * (two.at - one.at) for one, two in steps(points)) / seconds
    return mean, sum(two.done - one.done for one, two in steps(points))


def test_a_week_of_two_runs_stays_few_points_and_moves_no_average() -> None:
    points: Points = ()
    for number in range(20_000):
        replicas, run = (8 if number % 4 else 4), number // 12_000
        at = START + 30 * number + 86_400 * run  # a day between the runs
        points = added(points, Point(at=at, lease=run, done=300 * number, failed=number, replicas=replicas))
    assert MOST / 3 < len(points) <= MOST
    mean, done = of(points)
    assert mean == pytest.approx(7, abs=0.01) and done == 300 * (20_000 - 2), "but the step between the runs"
    assert (points[0].at, points[-1].at) == (START, START + 30 * 19_999 + 86_400)
    apart = [two.at - one.at for one, two in steps(points)]
    assert max(apart) < 7 * 86_400 / 60, "no part of the week is without points"
    assert parse(json.loads(json.dumps(plain(points)))) == points and len(json.dumps(plain(points))) < 20_000


def test_many_short_runs_stay_few_points_and_a_clock_that_is_behind_goes_on() -> None:
    points: Points = ()
    for run in range(1000):
        for second in (0, 30):
            at = START + 100 * run + second - 1000 * (run == 999)
            points = added(points, Point(at=at, lease=run, done=run, failed=0, replicas=1))
    assert len(points) == MOST and points[-1].lease == 999
    assert all(one.at < two.at for one, two in pairwise(points))


@pytest.mark.parametrize(
    "change",
    [
        {"done": None}, {"done": [1]}, {"at": [2, 1]}, {"done": ["1", "2"]}, {"replicas": [1, -1]},
        {"failed": [True, 0]}, {"lease": [float("nan"), 1]}, {"at": 7},
    ],
)  # fmt: skip
def test_a_history_that_is_not_whole_is_none(change: dict[str, Any]) -> None:
    whole = {"at": [1, 2], "lease": [1, 1], "done": [0, 5], "failed": [0, 0], "replicas": [1, 1.5]}
    assert len(parse(whole)) == 2 and parse(whole | change) == () and parse(None) == () and parse({}) == ()


def at(second: int, done: int, replicas: int) -> Status:
    when = datetime.fromtimestamp(START + second, UTC).isoformat(timespec="seconds")
    record = Record(rows=done, replicas=Replicas(running=replicas), failed={"image_corrupt": 1})
    return dataclasses.replace(STATUS, at=when, before=0, failed_before=0, record=record)


def test_status_json_holds_the_history_of_all_runs(tmp_path: Path) -> None:
    output: Any = SimpleNamespace(storage=Storage(), path=str(tmp_path), lease=None, part=None)
    for lease, first in ((1, 0), (2, 1000)):
        file = StatusFile(output)
        for second in (first, first + 30, first + 60):
            file.write(dataclasses.replace(at(second, second, lease), run=Run(lease=lease)))
            file.put()
    content = (tmp_path / "status.json").read_bytes()
    points = parse(json.loads(content)["history"])
    assert [point.at - START for point in points] == [0, 30, 60, 1000, 1030, 1060]
    assert [point.done for point in points] == [0, 30, 60, 1000, 1030, 1060]
    assert [point.replicas for point in points] == [1, 1, 1, 2, 2, 2] and points[0].failed == 1
    assert Status.parse(content).at == at(1060, 0, 0).at
    (tmp_path / "status.json").write_text('{"schema": 1, "hist')  # half written
    assert status_file.written(Storage(), str(tmp_path / "status.json")) == ()


def test_runs_that_went_on_at_the_same_time_become_one_history() -> None:
    def run(start: int, end: int, rows: int) -> Points:
        return tuple(Point(at=at, lease=1, done=rows * at, failed=at, replicas=2) for at in range(start, end))

    found = together((Point(at=1, lease=3, done=7, failed=0, replicas=1),), [run(10, 20, 5), run(15, 30, 1)])
    assert [point.at for point in found] == [1, *range(10, 30)]
    assert found[1] == Point(at=10, lease=0, done=50, failed=10, replicas=2)
    assert found[9] == Point(at=18, lease=0, done=90 + 18, failed=36, replicas=4)
    assert found[-1] == Point(at=29, lease=0, done=95 + 29, failed=19 + 29, replicas=0)
