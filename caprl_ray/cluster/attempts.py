"""The number of attempts of the task that runs in this process."""

from functools import lru_cache

import ray
from ray.actor import ActorHandle

from caprl_ray.cluster import internals


def current_task() -> str | None:
    """The id of the task that runs here. It stays the same when Ray repeats the task. None outside of Ray's workers."""
    if not ray.is_initialized():
        return None  # asking for the runtime context would start Ray
    context = ray.get_runtime_context()
    mode = getattr(getattr(context, "worker", None), "mode", ray.WORKER_MODE)
    if mode != ray.WORKER_MODE:
        return None  # a driver, where asking for the task would log a warning
    task: str | None = context.get_task_id()
    return task


def earlier_attempts(task: str, counter: ActorHandle | None) -> int:
    """How many earlier attempts the current task has had, whatever ended them.

    Ray's own count is a private function. Without it the counter actor counts.
    """
    number = internals.attempt_number()
    if number is None:
        number = _counted(task, counter) if counter else 0
    return number


@lru_cache(maxsize=1)
def _counted(task: str, counter: ActorHandle) -> int:
    """Called once per attempt, even if a task has several batches, because each call counts."""
    return int(ray.get(counter.attempt.remote(task)))
