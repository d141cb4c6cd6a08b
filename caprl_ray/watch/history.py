"""The history of the runs of an output in a bounded number of points. status.json holds it.

When two points are merged, the number of replicas is the mean over the time of both, so that averages do not change.
"""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from itertools import pairwise
from typing import Any

MOST = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A run at one moment.

    Attributes:
        at: seconds since 1970, by the driver's clock. They grow from point to point.
        lease: the number of the run's lease; 0 if there is none.
        done, failed: rows of the whole output that are done, and those of them that failed.
        replicas: the running ones, since the point before of the same run.
    """

    at: int
    lease: int
    done: int
    failed: int
    replicas: float


Points = tuple[Point, ...]
NAMES = tuple(field.name for field in fields(Point))


def added(points: Points, point: Point) -> Points:
    """The points with one more, at most MOST. A point that is not later than the last one of its run replaces it."""
    last = points[-1] if points else None
    if last and point.at <= last.at:
        if point.lease == last.lease:
            return (*points[:-1], replace(point, at=last.at))
        point = replace(point, at=last.at + 1)  # another machine's clock
    points = (*points, point)
    return points if len(points) <= MOST else _thinned(points)


def together(before: Points, runs: Sequence[Points]) -> Points:
    """The common history of concurrent runs, each with rows of its own, after `before`. It has no lease number."""
    events = sorted((point.at, number, place) for number, run in enumerate(runs) for place, point in enumerate(run))
    now: dict[int, Point] = {}
    for at, number, place in events:
        run = runs[number]
        now[number] = run[place] if place + 1 < len(run) else replace(run[place], replicas=0)
        done, failed = (sum(getattr(point, name) for point in now.values()) for name in ("done", "failed"))
        replicas = sum(point.replicas for point in now.values())
        before = added(before, Point(at=at, lease=0, done=done, failed=failed, replicas=replicas))
    return before


def plain(points: Points) -> dict[str, list[float]]:
    """As columns, for JSON."""
    columns = zip(*map(astuple, points), strict=True) if points else ((),) * len(NAMES)
    return {name: list(column) for name, column in zip(NAMES, columns, strict=True)}


def parse(found: Any) -> Points:
    """The points of their columns; none if they are not whole."""
    try:
        rows = list(zip(*(found[name] for name in NAMES), strict=True))
        points = [Point(**dict(zip(NAMES, map(_number, row), strict=True))) for row in rows]
    except (TypeError, KeyError, ValueError):
        return ()
    return tuple(points[-MOST:]) if all(one.at < two.at for one, two in pairwise(points)) else ()


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is no count")
    return value


def steps(points: Sequence[Point]) -> Iterator[tuple[Point, Point]]:
    """Each two points of one run that follow each other."""
    return ((one, two) for one, two in pairwise(points) if one.lease == two.lease)


def _thinned(points: Points) -> Points:
    """Merge points to about half as many, evenly spread over the time of the runs. Each run keeps its first and last
    point, as far as MOST allows."""
    apart = 2 * sum(two.at - one.at for one, two in steps(points)) / MOST
    kept: list[Point] = []
    over: Point | None = None  # goes into the next one
    for next_one, after in zip(points, (*points[1:], None), strict=True):
        point, over = (_merged(kept[-1].at, over, next_one), None) if over else (next_one, None)
        begins = not kept or kept[-1].lease != point.lease
        ends = after is None or after.lease != point.lease
        if begins or ends or point.at - kept[-1].at >= apart:
            kept.append(point)
        else:
            over = point
    return tuple(kept[-MOST:])


def _merged(start: int, one: Point, two: Point) -> Point:
    """The later one of two points of a run, for the time of both."""
    seconds = one.replicas * (one.at - start) + two.replicas * (two.at - one.at)
    return replace(two, replicas=round(seconds / (two.at - start), 3))
