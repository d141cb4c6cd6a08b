"""Ray's jobs: a client of each cluster that takes them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from caprl_ray.errors import SystemFailure

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray's variables, which its client prefers to an argument


class Client(Protocol):
    """The part of Ray's JobSubmissionClient that is used."""

    def submit_job(self, **job: Any) -> str: ...
    def get_job_info(self, job_id: str) -> Any: ...
    def list_jobs(self) -> list[Any]: ...
    def stop_job(self, job_id: str) -> bool: ...


def connect(addresses: Sequence[str]) -> list[Client]:
    """Ray's clients of these clusters, or of the one that the environment names. Raises SystemFailure."""
    from ray.job_submission import JobSubmissionClient

    clients = []
    with _without(ADDRESSES if addresses else ()):
        wanted: Sequence[str | None] = addresses or [None]
        for address in wanted:
            try:
                clients.append(JobSubmissionClient(address))
            except (OSError, RuntimeError, ValueError) as error:
                named = address or next((name for name in ADDRESSES if name in os.environ), "this machine")
                raise SystemFailure(f"Ray: no cluster takes jobs at {named} ({_first_line(error)}).") from error
    return clients


@contextmanager
def refusals() -> Iterator[None]:
    """Raise SystemFailure for what a cluster refuses, or where none answers."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise SystemFailure(f"Ray: the cluster takes no job ({_first_line(error)}).") from error


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
