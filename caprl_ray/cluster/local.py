"""Start Ray on this machine alone, without the processes that only a cluster needs.

Each such process costs one to three seconds of CPU while the engine starts. On few cores the first caption waits for
them (benchmarks/results.md).
"""

import logging
import math
import os
import secrets
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from caprl_ray.cluster import internals

# Idle workers that Ray keeps on this machine. Ray's own limit is the number of cores. On two cores Ray would stop and
# restart workers for reading, prepare and commit all the time, seconds each.
IDLE_WORKERS = "16"
IDLE_WORKERS_VARIABLE = "RAY_num_workers_soft_limit"  # Ray's own variables
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
USAGE_VARIABLE = "RAY_USAGE_STATS_ENABLED"

SHARED_MEMORY = Path("/dev/shm")
LATEST = "session_latest"  # Ray's link
GONE_S = 10.0  # for Ray's processes, which write into the session's folder until they have ended

_sessions: dict[str, Path | None] = {}  # names and folders


def start(*, debug: bool = False, **more: Any) -> None:
    """Start Ray and connect to it. With `debug` show its and its workers' output. `more` goes to ray.init."""
    os.environ.setdefault(IDLE_WORKERS_VARIABLE, IDLE_WORKERS)
    os.environ.setdefault(USAGE_VARIABLE, "0")
    if not _has_token():  # otherwise Ray would write a new one into the user's home
        os.environ[TOKEN_VARIABLE] = secrets.token_hex(32)
    if not debug:  # the output of Ray's C++ side, for instance a warning about each actor of Ray Data's own
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    level = logging.INFO if debug else logging.ERROR
    with internals.lean_start(debug=debug):
        if not debug:
            internals.no_worker_logs()
        ray.init("local", include_dashboard=False, log_to_driver=debug, logging_level=level, **more)
    _sessions[ray.get_runtime_context().get_session_name()] = internals.session_folder()


def slow_store(folder: Path = SHARED_MEMORY) -> str | None:
    """A sentence if Ray's object store does not fit into this machine's shared memory, so that Ray keeps it on disk."""
    try:
        room = shutil.disk_usage(folder).free
    except OSError:
        room = 0
    store = int(ray.cluster_resources().get("object_store_memory", 0))
    if store <= room:
        return None
    return (
        f"{folder} has {room / 1e9:.2g} GB free and Ray's object store is {store / 1e9:.2g} GB, so Ray keeps it in "
        f"files, which is slower; give a container --shm-size {math.ceil(store / 1e9)}g"
    )


def connected() -> bool:
    """Whether this process is connected to a Ray that was started here."""
    return ray.is_initialized() and ray.get_runtime_context().get_session_name() in _sessions


def stop(*, keep: bool) -> None:
    """Disconnect from Ray. One that was started here ends, and with it the folder of its logs and sockets.

    With `keep` the folder stays, and a line says where the logs are.
    """
    name = ray.get_runtime_context().get_session_name() if connected() else ""
    ray.shutdown()
    folder = _sessions.pop(name, None)
    if folder and keep:
        sys.stderr.write(f"caprl-ray: Ray's logs are in {folder / 'logs'}.\n")
    elif folder:
        _remove(folder)


def _has_token() -> bool:
    """Whether there is a token with which the processes of a Ray know each other."""
    named = TOKEN_VARIABLE in os.environ or f"{TOKEN_VARIABLE}_PATH" in os.environ
    return named or (Path.home() / ".ray" / "auth_token").exists()


def _remove(folder: Path) -> None:
    """Remove a session's folder, the link to it as the latest one, and Ray's folder if nothing else is in it."""
    until = time.monotonic() + GONE_S
    while folder.exists() and time.monotonic() < until:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
    latest = folder.parent / LATEST
    if latest.is_symlink() and not latest.exists():
        latest.unlink(missing_ok=True)
    with suppress(OSError):
        folder.parent.rmdir()


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
