"""What the rows of an object say in sum, stored in its footer, which every resume reads anyway: no further request.

Objects of older versions say nothing. Their rows count in no sum.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from caprl_ray.rows.schema import is_own

KEY = b"caprl_ray.counts"  # in an object's metadata, as JSON
FLAGS = pa.list_(pa.string())
# The rows of a unit that could not be read further have no key. An empty unit was read to its end.
EMPTY_UNIT = "empty_unit"


@dataclass
class Counts:
    """Sums over rows.

    Attributes:
        runs: rows by the recipe that wrote them, as column `run` names it.
        flags: finished rows by flag.
        codes: failed rows by code.
        ended: units that could not be read to their end, each with the index of the first row that was not read.
    """

    runs: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    ended: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, table: pa.Table) -> "Counts":
        """Count the rows of an object."""
        codes = _ours(table, "code", pa.string())
        flags = _ours(table, "flags", FLAGS)
        return cls(
            runs=_counted(_ours(table, "run", pa.string())),
            flags=_counted(flags.combine_chunks().flatten()),
            codes=_counted(codes),
            ended=list(_ended(table)) if len(codes) else [],
        )

    def add(self, other: "Counts") -> None:
        """Add the sums of other rows."""
        self.runs.update(other.runs)
        self.flags.update(other.flags)
        self.codes.update(other.codes)
        self.ended += other.ended

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
        return cls(Counter(told["runs"]), Counter(told["flags"]), Counter(told["codes"]), ended)


def _ours(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """A column of ours; empty if the table has none, or one of the source's own of that name."""
    found = is_own(table.schema, name) and table.schema.field(name).type == kind
    return table[name] if found else pa.chunked_array([], kind)


def _counted(values: pa.Array | pa.ChunkedArray) -> Counter[str]:
    counted = pc.value_counts(values.drop_null()).to_pylist() if len(values) else []
    return Counter({pair["values"]: pair["counts"] for pair in sorted(counted, key=lambda pair: str(pair["values"]))})


def _ended(table: pa.Table) -> Iterable[tuple[int, int]]:
    lost = pc.and_(pc.equal(table["key"], ""), pc.not_equal(table["code"], EMPTY_UNIT))
    rows = table.select(["unit", "index"]).filter(lost.fill_null(False))
    first: dict[int, int] = {}
    for unit, index in zip(rows["unit"].to_pylist(), rows["index"].to_pylist(), strict=True):
        first[unit] = min(index, first.get(unit, index))
    return sorted(first.items())
