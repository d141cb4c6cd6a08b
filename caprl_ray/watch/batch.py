"""The report about one batch to the counter actor: a single message."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Sums = Mapping[str, Mapping[str, float]]
"""Sums by kind and name, such as {"flags": {"loop": 2}, "tokens": {"decoded": 900}}."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The requests of a replica's engine, as means since its last batch, and the batches that it holds.

    `running` requests have one of the engine's `places`, and `waiting` requests have none.
    """

    replica: str
    running: float
    waiting: float
    places: int
    batches: int


@dataclass(frozen=True, kw_only=True)
class Last:
    """The row that was finished last: its key, and its caption if the job writes one."""

    key: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of finished and failed rows.

    Attributes:
        rows: their number.
        codes: the codes of the failed ones.
        retried: how many of the rows had failed before.
        anew: the codes of rows that failed again with another code.
        again: the codes of those that failed again with the same code.
        sums: counters of the rows and the replica.
        last: one of the finished rows.
        load: the replica, if one worked on the batch.
        pool: the name of its pool (watch/starts.py).
        unscored: the codes of captions that could not be scored, for other reasons than that the user gave no
            questions about them.
        ended: the keys of attempts that ended (replica/attempts.py).
    """

    rows: int
    codes: Sequence[str] = ()
    retried: int = 0
    anew: Sequence[str] = ()
    again: Sequence[str] = ()
    sums: Sums = field(default_factory=dict)
    last: Last | None = None
    load: Load | None = None
    pool: str = ""
    unscored: Sequence[str] = ()
    ended: Sequence[str] = ()
