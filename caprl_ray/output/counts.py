"""The sums of an object's rows. They are in its footer, which every resume reads anyway, so they cost no request.

Objects of older versions have no sums. Their rows are not counted.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from caprl_ray.output.tallies import Tallies, counted, tallies
from caprl_ray.rows.schema import is_own

KEY = b"caprl_ray.counts"  # in an object's metadata, as JSON
FLAGS = pa.list_(pa.string())
# A failed row without a key ends its unit, except for these codes, after which the unit was read further.
READ_ON = ("empty_unit", "read_crash")


@dataclass
class Counts:
    """Sums over rows.

    Attributes:
        runs: rows by the recipe that wrote them, as column `run` names it.
        flags: finished rows by flag, without the text after a colon, which is a dataset's own word.
        codes: failed rows by code.
        ended: units that could not be read to their end, each with the index of the first row that was not read.
        tallies: counters of the captions of finished rows (output/tallies.py).
    """

    runs: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    ended: list[tuple[int, int]] = field(default_factory=list)
    tallies: Tallies = field(default_factory=dict)

    @classmethod
    def of(cls, table: pa.Table) -> "Counts":
        """Count the rows of an object."""
        codes = _ours(table, "code", pa.string())
        flags = _ours(table, "flags", FLAGS)
        return cls(
            runs=counted(_ours(table, "run", pa.string())),
            flags=counted(kinds(flags.combine_chunks())),
            codes=counted(codes),
            ended=list(_ended(table)) if len(codes) else [],
            tallies=tallies(table.select([name for name in table.schema.names if is_own(table.schema, name)])),
        )

    def add(self, other: "Counts") -> None:
        """Add the sums of other rows."""
        self.runs.update(other.runs)
        self.flags.update(other.flags)
        self.codes.update(other.codes)
        self.ended += other.ended
        for name, counts in other.tallies.items():
            self.tallies.setdefault(name, Counter()).update(counts)

    def dump(self) -> bytes:
        """The text for an object's metadata."""
        return json.dumps(vars(self), separators=(",", ":")).encode()

    @classmethod
    def load(cls, metadata: dict[bytes, bytes] | None) -> "Counts":
        """Read them from an object's metadata."""
        text = (metadata or {}).get(KEY)
        if text is None:
            return cls()
        told = json.loads(text)
        ended = [(unit, index) for unit, index in told["ended"]]
        tallied = {name: Counter(counts) for name, counts in told.get("tallies", {}).items()}
        return cls(Counter(told["runs"]), Counter(told["flags"]), Counter(told["codes"]), ended, tallied)


def _ours(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """One of our columns; empty if the table has none, or if the source has a column of that name."""
    found = is_own(table.schema, name) and table.schema.field(name).type == kind
    return table[name] if found else pa.chunked_array([], kind)


def kinds(flags: pa.ListArray) -> pa.ChunkedArray:
    """The part before the colon of each row's flags, without repeats in a row."""
    kinds = pc.replace_substring_regex(flags.flatten(), "(?s):.*", "")
    rows = pa.table({"row": pc.list_parent_indices(flags), "kind": kinds})
    return rows.group_by(["row", "kind"], use_threads=False).aggregate([])["kind"]


def _ended(table: pa.Table) -> Iterable[tuple[int, int]]:
    lost = pc.and_(pc.equal(table["key"], ""), pc.invert(pc.is_in(table["code"], pa.array(READ_ON))))
    rows = table.select(["unit", "index"]).filter(lost.fill_null(False))
    first: dict[int, int] = {}
    for unit, index in zip(rows["unit"].to_pylist(), rows["index"].to_pylist(), strict=True):
        first[unit] = min(index, first.get(unit, index))
    return sorted(first.items())
