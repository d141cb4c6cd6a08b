"""A Ray of this process's own, on this machine alone, without the processes that only a cluster needs.

Each is a Python of one to three seconds of CPU, and they start when the engine does: where cores are few, the first
caption waits for them (benchmarks/results.md).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import ray
from ray._private import services
from ray._private.node import Node
from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import AutoscalingCoordinator
from ray.data._internal.execution import streaming_executor

# Idle workers that Ray keeps on this machine. Its own bound is the number of cores: on two of them workers for reading,
# prepare and commit are ended and started again all the time, seconds each.
IDLE_WORKERS = "16"
IDLE_WORKERS_VARIABLE = "RAY_num_workers_soft_limit"  # Ray's own variables
USAGE_VARIABLE = "RAY_USAGE_STATS_ENABLED"

_sessions: set[str] = set()


def start(*, debug: bool = False, **more: Any) -> None:
    """Start it and connect to it; with `debug` its own and its workers' output is shown. `more` is ray.init's."""
    os.environ.setdefault(IDLE_WORKERS_VARIABLE, IDLE_WORKERS)
    os.environ.setdefault(USAGE_VARIABLE, "0")
    level = logging.INFO if debug else logging.ERROR
    with ExitStack() as stack:
        # What serves a web page, which was not asked for, and what starts and ends machines.
        stack.enter_context(replaced(services, "start_api_server", lambda *_, **__: ("", None)))
        stack.enter_context(replaced(Node, "start_monitor", lambda _: None))
        if not debug:
            # What brings the workers' output here; and what Ray's C++ side and the processes that spill write to this
            # terminal, for instance a warning about each actor of Ray Data's own.
            stack.enter_context(replaced(Node, "start_log_monitor", lambda _: None))
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            ray._private.worker._worker_logs_enabled = False
        ray.init("local", include_dashboard=False, log_to_driver=debug, logging_level=level, **more)
    _sessions.add(ray.get_runtime_context().get_session_name())


def connected() -> bool:
    """Whether this process is connected to a Ray that was started here."""
    return ray.is_initialized() and ray.get_runtime_context().get_session_name() in _sessions


@contextmanager
def plain_data() -> Iterator[None]:
    """Ray Data inside of it has neither an actor that shares machines out between datasets, nor one for a dashboard."""
    with (
        replaced(rate_based_cluster_autoscaler, "DefaultAutoscalingCoordinator", _ThisMachine),
        replaced(streaming_executor, "_StatsManager", _NoStatistics),
    ):
        yield


class _ThisMachine(AutoscalingCoordinator):  # type: ignore[misc]
    """All that there is belongs to the one dataset, and nothing more can be had."""

    def __init__(self, **_: Any) -> None:
        self._reserved = {node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}

    def request_resources(self, *_: Any, **__: Any) -> None:
        pass

    def cancel_request(self) -> None:
        pass

    def get_reserved_resources(self) -> dict[str, dict[str, float]]:
        return self._reserved


class _NoStatistics:
    @staticmethod
    def register_dataset_to_stats_actor(*_: Any) -> None:
        pass

    @staticmethod
    def update_execution_metrics(*_: Any) -> None:
        pass


@contextmanager
def replaced(owner: ModuleType | type, name: str, own: object) -> Iterator[None]:
    """Inside of it, `own` stands where Ray looks for `name`."""
    kept = getattr(owner, name)
    setattr(owner, name, own)
    try:
        yield
    finally:
        setattr(owner, name, kept)
