"""The ledger: what of the plan is done, read from the output itself (D3), and whether it balances (P1).

The committed rows' `unit`, `index` and `unit_rows` are all there is to know: one bitmap a unit for captioned rows and
one for failed rows. A row that stands in both counts as captioned (D7).
"""

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from caprl_ray.commit import DATA, FAILED
from caprl_ray.errors import SystemFailure
from caprl_ray.plan import UnitRef
from caprl_ray.storage import Storage, join

COLUMNS = ["unit", "index", "unit_rows"]


@dataclass
class Committed:
    """What the output holds of one unit; `rows` is the unit's length where its last row says it."""

    captioned: BitMap = field(default_factory=BitMap)
    failed: BitMap = field(default_factory=BitMap)
    duplicates: int = 0
    rows: int | None = None

    @property
    def done(self) -> BitMap:
        """The indices that need no more work."""
        return self.captioned | self.failed


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


def read_committed(storage: Storage, output: str) -> dict[int, Committed]:
    """What the output holds, for each unit that has any row in it."""
    units: dict[int, Committed] = {}
    for folder in (DATA, FAILED):
        for path in storage.objects(join(output, folder), ".parquet"):
            _add(units, folder, _identity_columns(storage, path))
    for unit in units.values():
        unit.failed -= unit.captioned
    return units


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
                duplicate=unit.duplicates,
            )
        )
    return Ledger(units=units)


def _identity_columns(storage: Storage, path: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(storage.read(path)), columns=COLUMNS)
    except (OSError, pa.ArrowInvalid) as error:
        raise SystemFailure(f"{path}: the committed object cannot be read ({type(error).__name__}).") from error


def _add(units: dict[int, Committed], folder: str, table: pa.Table) -> None:
    numbers, indices = table["unit"].to_numpy(), table["index"].to_numpy()
    for number in np.unique(numbers):
        unit = units.setdefault(int(number), Committed())
        rows = unit.captioned if folder == DATA else unit.failed
        added = indices[numbers == number].astype(np.uint32)
        before = len(rows)
        rows.update(BitMap(added))
        unit.duplicates += before + len(added) - len(rows)
    ends = table.filter(table["unit_rows"].is_valid())
    for number, length in zip(ends["unit"].to_pylist(), ends["unit_rows"].to_pylist(), strict=True):
        units[number].rows = length
