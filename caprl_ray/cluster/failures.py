"""One sentence for each exception of Ray that a user can meet."""

import os
from collections.abc import Iterator
from typing import Any

import ray

from caprl_ray.errors import CaprlError, SystemFailure

SPILL_FOLDER = "RAY_object_spilling_directory"  # Ray's own variable
DEFAULT_FOLDER = "/tmp/ray"


def full_disk(error: Exception) -> SystemFailure | None:
    """The sentence for blocks that fit neither into Ray's object store nor on the disk that it spills to."""
    if not any(isinstance(cause, ray.exceptions.OutOfDiskError) for cause in _causes(error)):
        return None
    folder = os.environ.get(SPILL_FOLDER) or f"below {DEFAULT_FOLDER} by default"
    where = " on one of the nodes, unless they were started with another" if os.environ.get("RAY_ADDRESS") else ""
    return SystemFailure(
        f"Ray: its object store is full, and so is the disk that it spills to ({folder}{where}); make room there, or "
        f"start Ray with {SPILL_FOLDER} naming a folder on a larger disk, and run the same command again to resume."
    )


def stuck(error: Exception) -> SystemFailure | None:
    """The sentence for a run without any progress for longer than replicas may be waited for."""
    timeout = getattr(ray.data.exceptions, "ExecutionTimeoutError", None)  # Ray 2.58 and later
    return no_progress() if timeout is not None and isinstance(error, timeout) else None


def no_progress() -> SystemFailure:
    """The sentence for a run without any progress for longer than replicas may be waited for."""
    return SystemFailure(
        "Ray: nothing was read, prepared, captioned or written for longer than replicas.wait_s and half an hour; see "
        "that the cluster has CPUs for reading and prepare, and run the same command again to resume."
    )


def own_error(error: BaseException) -> CaprlError | None:
    """The exception of ours that a worker raised, unwrapped from Ray's; None if there is none.

    An OSError that names its path, as those of `Storage` do, counts as one.
    """
    for cause in _causes(error):
        # Ray's wrappers may also be instances of their causes. The cause itself comes later in the chain.
        if isinstance(cause, CaprlError) and not isinstance(cause, ray.exceptions.RayError):
            # Ray appends advice to messages.
            return type(cause)(str(cause).partition("\n")[0])
    return _named_fault(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes, nearest first."""
    seen: list[BaseException] = []
    queue: list[Any] = [error]
    while queue:
        current = queue.pop(0)
        if isinstance(current, BaseException) and current not in seen:
            yield current
            seen.append(current)
            queue += [getattr(current, "cause", None), current.__cause__, current.__context__]


def _named_fault(error: BaseException | None) -> SystemFailure | None:
    """The sentence for an OSError that names its path, if a worker raised one."""
    while isinstance(error, ray.exceptions.RayError):
        error = getattr(error, "cause", None)
    return SystemFailure.of(error) if isinstance(error, OSError) and error.filename else None
