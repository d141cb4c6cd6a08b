"""Write the parts of an export: here if they are small, otherwise in Ray tasks."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from caprl_ray.cluster import session
from caprl_ray.export.parts import Part
from caprl_ray.export.target import RECORD_S, RECORDED, Target, Written
from caprl_ray.output.scan import Tell

# Rows that are exported here: Ray takes seconds to start.
ROWS_HERE = 20_000
Write = Callable[[Part], Written]
STEP = "exporting"


def write_parts(write: Write, parts: Sequence[Part], target: Target, tell: Tell) -> Iterator[Written]:
    """Write parts, record them as they are done, and yield them. The rest is recorded at the end, also at a
    failure."""
    held: list[Written] = []
    since, done = time.monotonic(), 0
    try:
        for written in _written(write, parts):
            done += 1
            tell(STEP, done, len(parts))
            held.append(written)
            yield written
            if len(held) >= RECORDED or time.monotonic() - since >= RECORD_S:
                target.record(held)
                held, since = [], time.monotonic()
    finally:
        if held:
            target.record(held)


def _written(write: Write, parts: Sequence[Part]) -> Iterator[Written]:
    if len(parts) < 2 or sum(part.kept for part in parts) <= ROWS_HERE:
        yield from map(write, parts)
        return
    with session.connected():
        yield from _in_tasks(write, parts)


def _in_tasks(write: Write, parts: Sequence[Part]) -> Iterator[Written]:
    """A bounded number of tasks at a time; results as they come."""
    import ray

    task, shared = ray.remote(num_cpus=1)(_call), ray.put(write)
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: list[Any] = []
    for part in parts:
        if len(waiting) == most:
            (ready,), waiting = ray.wait(waiting, num_returns=1)
            yield ray.get(ready)
        waiting.append(task.remote(shared, part))
    while waiting:
        (ready,), waiting = ray.wait(waiting, num_returns=1)
        yield ray.get(ready)


def _call(write: Write, part: Part) -> Written:
    return write(part)
