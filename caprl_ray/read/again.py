"""Rows that are captioned again, and the values of their old version that they keep."""

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
    """The value of the old version that a row keeps: its `column`, under the name `name`."""

    storage: Storage
    output: str
    column: str
    name: str

    @classmethod
    def of(cls, storage: Storage, output: str, columns: tuple[str, str] | None) -> "Keeps | None":
        """The value that a job with these columns keeps (caprl_ray/job.py)."""
        return cls(storage=storage, output=output, column=columns[0], name=columns[1]) if columns else None

    def old(self, unit: int, chosen: Chosen) -> dict[int, Row]:
        """The kept values of the chosen rows of a unit, and their attempts, by index."""
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
            if isinstance(stored, Stored):  # a repair has removed it if all of its rows were done again
                with opened(self.storage, stored) as file:
                    yield file.read(columns=["unit", "index", "attempts", self.column], use_threads=False)


def done_again(rows: Iterator[Row], chosen: Chosen, old: Mapping[int, Row]) -> Iterator[Row]:
    """The chosen rows of a unit, each with more attempts than its old version, which `old` gives by index."""
    last = chosen.rows.max()
    for row in rows:
        if row["index"] in chosen.rows:
            before = old[row["index"]]
            yield row | before | {"attempts": row["attempts"] + before["attempts"]}
        if row["index"] >= last:
            return
