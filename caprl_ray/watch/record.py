"""The counts of a run at one moment. Every reader has them from here: view, status.json, metrics.

They come from the counter actor. A task that Ray repeats counts twice; the ledger has exact numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from caprl_ray.watch.batch import Last, Sums


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Replicas now, and how many were lost: their process or node ended, or their engine did not start.

    `seconds` are those that all of them have held their resources, together.
    """

    running: int = 0
    starting: int = 0
    lost: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Requests:
    """The requests of all engines: those that have one of the engines' `places`, those that wait for one, and the
    batches that they belong to."""

    running: float = 0.0
    waiting: float = 0.0
    places: int = 0
    batches: int = 0

    @property
    def used(self) -> float:
        """The requests over the places; 0 without places."""
        return (self.running + self.waiting) / self.places if self.places else 0.0


@dataclass(frozen=True, kw_only=True)
class Readers:
    """A further pool of replicas, for instance the one that scores captions: its replicas and its requests."""

    replicas: Replicas = field(default_factory=Replicas)
    requests: Requests = field(default_factory=Requests)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Attributes:
    seconds: since the run began.
    ready: seconds at which the first engine ran; None before.
    first: seconds at which the first batch was done, and its rows; None before.
    rows: rows that passed the last stage in this run.
    failed: failed rows among them, by code.
    committed: rows in objects that are written, and seconds of the last one; None before.
    sums: sums by kind and name: flags, repaired, tokens, decodes, stage_seconds, stage_rows, stage_bytes, self_checks,
        stopped_loops, scores.
    read: rows and bytes of the units whose length was not known before they were read.
    replicas, requests: of the job's own pool.
    readers: further pools, by the name of their section in the recipe.
    absent: seconds for which some pool has no replica.
    """

    seconds: float = 0.0
    ready: float | None = None
    first: tuple[float, int] | None = None
    rows: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    committed: tuple[int, float] | None = None
    sums: Sums = field(default_factory=dict)
    read: tuple[int, int] = (0, 0)
    replicas: Replicas = field(default_factory=Replicas)
    requests: Requests = field(default_factory=Requests)
    readers: Mapping[str, Readers] = field(default_factory=dict)
    last: Last | None = None
    absent: float = 0.0

    def sum(self, kind: str, name: str) -> float:
        """One of the sums; 0 if there is none."""
        return self.sums.get(kind, {}).get(name, 0)

    @property
    def failures(self) -> int:
        """All failed rows."""
        return sum(self.failed.values())

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> "Record":
        """A record of its plain data (dataclasses.asdict). Raises TypeError, KeyError or ValueError for other data."""
        parts = {
            "first": tuple(found["first"]) if found["first"] else None,
            "committed": tuple(found["committed"]) if found["committed"] else None,
            "read": tuple(found["read"]),
            "replicas": Replicas(**known(Replicas, found["replicas"])),
            "requests": Requests(**known(Requests, found["requests"])),
            "readers": {name: _readers(told) for name, told in found.get("readers", {}).items()},
            "last": Last(**known(Last, found["last"])) if found["last"] else None,
        }
        return cls(**{**known(cls, found), **parts})


def _readers(found: Mapping[str, Any]) -> Readers:
    return Readers(
        replicas=Replicas(**known(Replicas, found["replicas"])),
        requests=Requests(**known(Requests, found["requests"])),
    )


def known(kind: type[Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a dataclass's own fields: a newer version may have written more."""
    return {field.name: found[field.name] for field in fields(kind) if field.name in found}
