"""What the rows of an object say in sum, stored in its footer, which every resume reads anyway: no further request.

Objects of older versions say nothing. Their rows count in no sum.
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
# The rows of a unit that could not be read further have no key. These have none either, and the unit was read further.
READ_ON = ("empty_unit", "read_crash")


@dataclass
class Counts:
    """Sums over rows.

    Attributes:
        runs: rows by the recipe that wrote them, as column `run` names it.
        flags: finished rows by flag, without what follows its colon: a dataset's own word, of which there is no end.
        codes: failed rows by code.
        ended: units that could not be read to their end, each with the index of the first row that was not read.
        tallies: what the captions of finished rows say (output/tallies.py).
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
    """A column of ours; empty if the table has none, or one of the source's own of that name."""
    found = is_own(table.schema, name) and table.schema.field(name).type == kind
    return table[name] if found else pa.chunked_array([], kind)


def kinds(flags: pa.ListArray) -> pa.ChunkedArray:
    """What comes before the colon of each row's flags, once for a row."""
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
