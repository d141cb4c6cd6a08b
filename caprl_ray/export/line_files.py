"""Files of JSON lines: the part that is common to the forms that write them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa

from caprl_ray.export.form import Writing
from caprl_ray.export.parts import Part, by_rows
from caprl_ray.export.rows import UnitRows, reader
from caprl_ray.export.source import Source
from caprl_ray.export.target import Written

ROWS = 100_000  # of a file


@dataclass(frozen=True, kw_only=True)
class LineFiles:
    """A Form whose parts are one file of lines each, of up to `rows` rows."""

    source: Source
    target: str
    rows: int

    @property
    def schema(self) -> pa.Schema:
        """The columns that lines need."""
        raise NotImplementedError

    def put(self, table: pa.Table, file: BinaryIO) -> int:
        """Write the lines of rows. Returns how many of the rows have a line."""
        raise NotImplementedError

    def parts(self, units: Sequence[UnitRows]) -> Iterator[Part]:
        """Whole units, up to a number of rows."""
        return by_rows(units, self.rows)

    def write(self, part: Part) -> Written:
        """One file of lines."""
        writing = Writing(storage=self.source.storage, target=self.target, part=part)
        held = reader(self.source.storage)
        if part.kept:
            with writing.file(f"{part.name}.jsonl") as file:
                for table in (table for unit in part.units for table in held.rows(unit, self.schema)):
                    exported = self.put(table, file)
                    writing.exported += exported
                    writing.left_out += table.num_rows - exported
        return writing.written()

    def finish(self, written: Mapping[str, Written]) -> None:
        """There is no common file."""
