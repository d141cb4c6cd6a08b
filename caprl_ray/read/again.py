"""Rows that are captioned again, and the values that they keep from their old version."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyroaring import BitMap

from caprl_ray.errors import SystemFailure
from caprl_ray.output.again import Chosen
from caprl_ray.output.committed import opened
from caprl_ray.output.objects import DATA
from caprl_ray.read.unit import Row
from caprl_ray.storage import Storage, Stored, join


@dataclass(frozen=True, kw_only=True)
class Keeps:
    """What a row keeps from its old version in `output`: the value of `column`, under the name `name`."""

    storage: Storage
    output: str
    column: str
    name: str

    @classmethod
    def of(cls, storage: Storage, output: str, columns: tuple[str, str] | None) -> "Keeps | None":
        """Build from a job's pair (column, name); None for a job that keeps nothing (caprl_ray/job.py)."""
        return cls(storage=storage, output=output, column=columns[0], name=columns[1]) if columns else None

    def old(self, unit: int, chosen: Chosen) -> dict[int, Row]:
        """The kept values and the attempts of a unit's chosen rows, by index. Raises SystemFailure if a row is gone."""
        found: dict[int, Row] = {}
        for table in self._tables(chosen):
            for row in table.filter(pc.equal(table["unit"], unit)).to_pylist():
                before = {"attempts": row["attempts"], self.name: row[self.column]}
                if before["attempts"] >= found.get(row["index"], before)["attempts"]:
                    found[row["index"]] = before
        if lost := chosen.rows - BitMap(found):
            raise SystemFailure(f"{self.output}: row {lost[0]} of unit {unit} is not in the output any more.")
        return found

    def _tables(self, chosen: Chosen) -> Iterator[pa.Table]:
        for name in chosen.objects:
            stored = self.storage.lookup(join(self.output, DATA, name))
            if isinstance(stored, Stored):  # a repair removes an object once all of its rows are done again
                with opened(self.storage, stored) as file:
                    yield file.read(columns=["unit", "index", "attempts", self.column], use_threads=False)


def done_again(rows: Iterator[Row], chosen: Chosen, old: Mapping[int, Row]) -> Iterator[Row]:
    """Yield a unit's chosen rows with the values of `old` (by index). The attempts of both versions are added up."""
    last = chosen.rows.max()
    for row in rows:
        if row["index"] in chosen.rows:
            before = old[row["index"]]
            yield row | before | {"attempts": row["attempts"] + before["attempts"]}
        if row["index"] >= last:
            return
