"""The ledger: what of the plan is done, and whether every planned row stands in the output exactly once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from caprl_ray.output.committed import Committed
from caprl_ray.plan import UnitRef


@dataclass(frozen=True, kw_only=True)
class UnitLedger:
    """The balance of one unit; `planned` is None while the unit's length is unknown."""

    unit: int
    planned: int | None
    finished: int
    failed: int
    duplicate: int
    beyond: int = 0
    """Rows with an index that the unit does not have."""

    @property
    def missing(self) -> int | None:
        """Planned rows that are nowhere in the output; None where `planned` is."""
        return None if self.planned is None else self.planned - self.finished - self.failed + self.beyond

    @property
    def balanced(self) -> bool:
        """Whether every planned row is there once."""
        return self.missing == 0 and not self.duplicate and not self.beyond


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The balance of a whole output. `done` is the job's word for finished rows, such as "captioned"."""

    units: list[UnitLedger]
    done: str

    @property
    def balanced(self) -> bool:
        """Whether every unit is."""
        return all(unit.balanced for unit in self.units)

    @property
    def finished(self) -> int:
        """Finished rows of all units."""
        return sum(unit.finished for unit in self.units)

    @property
    def failed(self) -> int:
        """Failed rows of all units."""
        return sum(unit.failed for unit in self.units)

    @property
    def planned(self) -> int:
        """Planned rows of the units whose length is known."""
        return sum(unit.planned or 0 for unit in self.units)

    @property
    def duplicate(self) -> int:
        """Rows that stand more than once."""
        return sum(unit.duplicate for unit in self.units)

    @property
    def beyond(self) -> int:
        """Rows with an index that their unit does not have."""
        return sum(unit.beyond for unit in self.units)

    @property
    def unknown(self) -> int:
        """Units whose length is not known yet."""
        return sum(unit.planned is None for unit in self.units)

    def report(self) -> dict[str, Any]:
        """The whole ledger as plain data: totals, and every unit. The key of finished rows is `done`."""
        return {
            "balanced": self.balanced,
            "planned": None if self.unknown else self.planned,
            self.done: self.finished,
            "failed": self.failed,
            "duplicate": self.duplicate,
            "beyond": self.beyond,
            "units": [self._unit(unit) for unit in self.units],
        }

    def _unit(self, unit: UnitLedger) -> dict[str, Any]:
        return {
            "unit": unit.unit,
            "planned": unit.planned,
            self.done: unit.finished,
            "failed": unit.failed,
            "duplicate": unit.duplicate,
            "missing": unit.missing,
            "beyond": unit.beyond,
        }

    def summary(self) -> str:
        """One line for people."""
        balanced = sum(unit.balanced for unit in self.units)
        line = f"{balanced} of {len(self.units)} units balanced; {self.finished} {self.done}, {self.failed} failed"
        missing = sum(unit.missing or 0 for unit in self.units)
        line += f", {missing} missing" if missing else ""
        line += f", {self.duplicate} duplicate" if self.duplicate else ""
        line += f", {self.beyond} beyond their unit's end" if self.beyond else ""
        return line + (f"; {self.unknown} units of unknown length" if self.unknown else "")


def balance(refs: Iterable[UnitRef], committed: dict[int, Committed], done: str) -> Ledger:
    """Compare the plan with the committed rows; `done` is the job's word for finished rows."""
    units = []
    for ref in refs:
        unit = committed.get(ref.unit) or Committed()
        planned = unit.rows if unit.rows is not None else ref.rows
        units.append(
            UnitLedger(
                unit=ref.unit,
                planned=planned,
                finished=len(unit.finished),
                failed=len(unit.failed),
                duplicate=len(unit.extra),
                beyond=len(unit.done) - unit.done.range_cardinality(0, planned) if planned is not None else 0,
            )
        )
    return Ledger(units=units, done=done)
