"""Start Ray on this machine alone, without the processes that only a cluster needs.

Each such process costs one to three seconds of CPU while the engine starts. On few cores the first caption waits for
them (benchmarks/results.md).
"""

import logging
import os
from typing import Any

import ray

from caprl_ray.cluster import internals

# Idle workers that Ray keeps on this machine. Ray's own limit is the number of cores. On two cores Ray would stop and
# restart workers for reading, prepare and commit all the time, seconds each.
IDLE_WORKERS = "16"
IDLE_WORKERS_VARIABLE = "RAY_num_workers_soft_limit"  # Ray's own variables
USAGE_VARIABLE = "RAY_USAGE_STATS_ENABLED"

_sessions: set[str] = set()


def start(*, debug: bool = False, **more: Any) -> None:
    """Start Ray and connect to it. With `debug` show its and its workers' output. `more` goes to ray.init."""
    os.environ.setdefault(IDLE_WORKERS_VARIABLE, IDLE_WORKERS)
    os.environ.setdefault(USAGE_VARIABLE, "0")
    if not debug:  # the output of Ray's C++ side, for instance a warning about each actor of Ray Data's own
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    level = logging.INFO if debug else logging.ERROR
    with internals.lean_start(debug=debug):
        if not debug:
            internals.no_worker_logs()
        ray.init("local", include_dashboard=False, log_to_driver=debug, logging_level=level, **more)
    _sessions.add(ray.get_runtime_context().get_session_name())


def connected() -> bool:
    """Whether this process is connected to a Ray that was started here."""
    return ray.is_initialized() and ray.get_runtime_context().get_session_name() in _sessions


def this_machine(base: type) -> type:
    """A coordinator of resources, derived from Ray Data's `base`, for one dataset that has this whole machine."""

    class ThisMachine(base):  # type: ignore[misc]
        def __init__(self, **_: Any) -> None:
            self._reserved = {node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}

        def request_resources(self, *_: Any, **__: Any) -> None:
            pass

        def cancel_request(self) -> None:
            pass

        def get_reserved_resources(self) -> dict[str, dict[str, float]]:
            return self._reserved

    return ThisMachine


class NoStatistics:
    """Replaces Ray Data's client of the dashboard's statistics."""

    @staticmethod
    def register_dataset_to_stats_actor(*_: Any, **__: Any) -> None:
        """Do nothing."""

    @staticmethod
    def update_execution_metrics(*_: Any, **__: Any) -> None:
        """Do nothing."""
