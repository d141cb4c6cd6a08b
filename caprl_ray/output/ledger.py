"""The ledger: what of the plan is done, and whether every planned row stands in the output once (P1)."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from caprl_ray.output.committed import Committed
from caprl_ray.plan import UnitRef


@dataclass(frozen=True, kw_only=True)
class UnitLedger:
    """The balance of one unit; `planned` is None while nobody knows how long the unit is."""

    unit: int
    planned: int | None
    captioned: int
    failed: int
    duplicate: int

    @property
    def missing(self) -> int | None:
        """Planned rows that are nowhere in the output; None where `planned` is."""
        return None if self.planned is None else self.planned - self.captioned - self.failed

    @property
    def balanced(self) -> bool:
        """Whether every planned row is there once."""
        return self.missing == 0 and not self.duplicate


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The balance of a whole output."""

    units: list[UnitLedger]

    @property
    def balanced(self) -> bool:
        """Whether every unit is."""
        return all(unit.balanced for unit in self.units)

    @property
    def captioned(self) -> int:
        """Captioned rows of all units."""
        return sum(unit.captioned for unit in self.units)

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
    def unknown(self) -> int:
        """Units whose length nobody knows yet."""
        return sum(unit.planned is None for unit in self.units)

    def report(self) -> dict[str, Any]:
        """The whole ledger as plain data: totals, and every unit."""
        return {
            "balanced": self.balanced,
            "planned": None if self.unknown else self.planned,
            "captioned": self.captioned,
            "failed": self.failed,
            "duplicate": self.duplicate,
            "units": [asdict(unit) | {"missing": unit.missing} for unit in self.units],
        }

    def summary(self) -> str:
        """One line for people."""
        finished = sum(unit.balanced for unit in self.units)
        line = f"{finished} of {len(self.units)} units balanced; {self.captioned} captioned, {self.failed} failed"
        missing = self.planned - sum(u.captioned + u.failed for u in self.units if u.planned is not None)
        line += f", {missing} missing" if missing else ""
        line += f", {self.duplicate} duplicate" if self.duplicate else ""
        return line + (f"; {self.unknown} units of unknown length" if self.unknown else "")


def balance(refs: Iterable[UnitRef], committed: dict[int, Committed]) -> Ledger:
    """Hold the plan against what is committed."""
    units = []
    for ref in refs:
        unit = committed.get(ref.unit) or Committed()
        units.append(
            UnitLedger(
                unit=ref.unit,
                planned=unit.rows if unit.rows is not None else ref.rows,
                captioned=len(unit.captioned),
                failed=len(unit.failed),
                duplicate=len(unit.extra),
            )
        )
    return Ledger(units=units)
