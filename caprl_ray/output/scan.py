"""Work on many objects of an output: here if they are few, otherwise in Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import ray

In = TypeVar("In")
Out = TypeVar("Out")

# Objects per Ray task: seconds of work in a bucket, fractions of a second on a disk. Up to this many are processed in
# this process, without Ray.
OBJECTS_PER_TASK = 1000


class Tell(Protocol):
    """Is called with the number of finished objects of a step (watch/steps.py)."""

    def __call__(self, step: str, done: int, total: int) -> None: ...


def silent(step: str, done: int, total: int) -> None:
    """Report no progress."""


def scan(
    function: Callable[[str, Sequence[In]], Out],
    found: Mapping[str, Sequence[In]],
    step: str,
    tell: Tell = silent,
    per_task: int | None = None,
) -> Iterator[Out]:
    """Call `function` with a folder and some of its objects, for all objects by folder in `found`, and yield the
    results.

    Results of Ray tasks are yielded as the tasks finish; only a bounded number is held. `per_task`: objects per task.
    """
    total, per_task = sum(map(len, found.values())), per_task or OBJECTS_PER_TASK
    if total <= per_task:
        for folder, objects in found.items():
            yield function(folder, objects)
        return
    from caprl_ray.cluster import session

    with session.connected():
        done = 0
        for count, result in _in_tasks(function, found, per_task):
            done += count
            tell(step, done, total)
            yield result


def _in_tasks(
    function: Callable[[str, Sequence[In]], Out], found: Mapping[str, Sequence[In]], per_task: int
) -> Iterator[tuple[int, Out]]:
    import ray

    task, shared = ray.remote(num_cpus=1)(_call), ray.put(function)  # what the function holds is sent once
    starts = ((folder, n) for folder, objects in found.items() for n in range(0, len(objects), per_task))
    waiting: dict[ray.ObjectRef, int] = {}
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while True:
        for folder, start in starts:
            objects = found[folder][start : start + per_task]
            waiting[task.remote(shared, folder, objects)] = len(objects)
            if len(waiting) == most:
                break
        if not waiting:
            return
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        yield waiting.pop(ready), ray.get(ready)


def _call(function: Callable[[str, Any], Out], folder: str, objects: Any) -> Out:
    return function(folder, objects)
