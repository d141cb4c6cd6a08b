"""End a run that has no replica left because engines do not start, and only then."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray

from caprl_ray.cluster import resources
from caprl_ray.errors import SystemFailure
from caprl_ray.job import Job
from caprl_ray.recipe.replicas import Replicas
from caprl_ray.watch.starts import STARTS, Pool

POLL_S = 1.0
SHOWN_NODES = 5


class ReplicaWatch:
    """Context manager that watches a run's replicas and calls `stop` when none can start."""

    def __init__(self, counter: Any, job: Job, stop: Callable[[SystemFailure], None]) -> None:
        self._counter, self._job, self._stop_run = counter, job, stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="replicas", daemon=True)

    def __enter__(self) -> "ReplicaWatch":
        if self._job.has_replicas:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._job.has_replicas:
            self._thread.join()

    def _work(self) -> None:
        while not self._ended.wait(POLL_S):
            for name, recipe in self._job.pools.items():
                try:
                    pool = ray.get(self._counter.pool.remote(recipe.replicas.min, name), timeout=10)
                    failure = pool.struck and hopeless(pool, resources.able_nodes(recipe), recipe.replicas)
                except ray.exceptions.RayError:
                    continue  # ask again in a second
                if failure:
                    self._stop_run(of_pool(name, failure))
                    return


def hopeless(pool: Pool, able: Mapping[str, str], replicas: Replicas) -> SystemFailure | None:
    """The error that ends a run without enough replicas, or None while it may go on.

    `able` are the living nodes on which a replica fits, by id with their names. While a later pool finishes rows, this
    one may have ended because it has none left.
    """
    struck = {able[node]: reason for node, reason in pool.struck.items() if node in able}
    if not struck or pool.passed_s <= replicas.wait_s:
        return None
    if not pool.running and not pool.starting and able.keys() <= pool.struck.keys():
        return SystemFailure(f"{_reason(struck)} No replica can start: {_nodes(struck)}.")
    if pool.running < replicas.min and pool.short_s > replicas.wait_s:
        return SystemFailure(
            f"replicas.min: fewer than {replicas.min} replicas ran for {replicas.wait_s:g} seconds "
            f"(replicas.wait_s). {_reason(struck)} {_nodes(struck)}; repair them, or lower replicas.min, and run the "
            "same command again to resume."
        )
    return None


def of_pool(name: str, failure: SystemFailure) -> SystemFailure:
    """A failure of a pool of replicas, which says of which one if the job has several."""
    return SystemFailure(f"{name}: {failure}") if name else failure


def _reason(struck: Mapping[str, str]) -> str:
    return next(iter(struck.values()))


def _nodes(struck: Mapping[str, str]) -> str:
    more = f" and {len(struck) - SHOWN_NODES} more" if len(struck) > SHOWN_NODES else ""
    many = "nodes" if len(struck) > 1 else "node"
    return f"{STARTS} starts failed on {many} {', '.join(list(struck)[:SHOWN_NODES])}{more}"
