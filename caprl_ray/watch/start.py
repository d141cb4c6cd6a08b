"""The start of a run: the rows of earlier runs, and the plan."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from caprl_ray.output.ledger import Ledger
from caprl_ray.plan import UnitRef
from caprl_ray.rows.codes import ASKED_FOR


@dataclass(frozen=True, kw_only=True)
class Open:
    """The units whose length only reading them tells, by their bytes; rows and bytes of such units that were read to
    their end before."""

    bytes: int
    known_rows: int
    known_bytes: int


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins.

    Attributes:
        done: rows done before.
        failed: how many of them failed.
        planned: planned rows, of the units whose length is known.
        open: the other units; None if there are none.
        limit: rows of this run at most.
        asked_for: failed rows for which the user asked.
    """

    done: int
    failed: int
    planned: int
    open: Open | None = None
    limit: int | None = None
    asked_for: int = 0

    @classmethod
    def of(
        cls,
        ledger: Ledger,
        limit: int | None,
        retried: Mapping[str, int] = MappingProxyType({}),
        refs: Iterable[UnitRef] = (),
    ) -> "Start":
        """The start of a run that continues from `ledger`, retries the `retried` rows, given by the code that they
        failed with, and processes at most `limit`. `refs` are the units of the ledger."""
        failed = ledger.failed - sum(retried.values())
        asked_for = ledger.asked_for - sum(retried.get(code, 0) for code in ASKED_FOR)
        return cls(
            done=ledger.finished + failed,
            failed=failed,
            planned=ledger.planned,
            open=_open(ledger, refs) if ledger.unknown else None,
            limit=limit,
            asked_for=asked_for,
        )

    @property
    def judged(self) -> tuple[int, int]:
        """The numbers of rows and of failed rows of earlier runs, for the circuit breaker."""
        return self.done - self.asked_for, self.failed - self.asked_for


def _open(ledger: Ledger, refs: Iterable[UnitRef]) -> Open:
    size = known_rows = known_bytes = 0
    for unit, ref in zip(ledger.units, refs, strict=True):
        if unit.planned is None:
            size += ref.bytes
        elif ref.rows is None:
            known_rows += unit.planned
            known_bytes += ref.bytes
    return Open(bytes=size, known_rows=known_rows, known_bytes=known_bytes)
