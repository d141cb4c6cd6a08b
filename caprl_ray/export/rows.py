"""The finished rows of a unit in the order of their index, a few objects at a time."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyroaring import BitMap

from caprl_ray.output.committed import opened
from caprl_ray.output.places import Place
from caprl_ray.plan import UnitRef
from caprl_ray.storage import Storage, Stored

# Objects that a reader holds: an object has rows of a few units, which are exported one after the other.
HELD = 8
OBJECT = "caprl_ray object"  # a column: which object, by name, a row was read from


@dataclass(frozen=True, kw_only=True)
class UnitRows:
    """What is exported of a unit: the rows in `kept`, which stand at `places`; `rows` is its length.

    `finished` and `failed` are the numbers of its rows in the output.
    """

    ref: UnitRef
    kept: BitMap
    places: list[Place]
    rows: int
    finished: int
    failed: int


class Reader:
    """Reads rows of one output."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._held: OrderedDict[Stored, pa.Table] = OrderedDict()

    def rows(self, unit: UnitRows, schema: pa.Schema) -> Iterator[pa.Table]:
        """The kept rows of a unit by their index, as tables of `schema`, which has `unit`, `index` and `attempts`.

        A row is handed on as soon as no later object can hold one before it, so that memory holds the objects whose
        ranges of rows overlap. A row that stands twice counts once (docs/design.md, D7).
        """
        waiting, ends = schema.empty_table().append_column(OBJECT, pa.array([], pa.int32())), unit.places[1:]
        kept = pa.array(np.asarray(unit.kept.to_array(), np.int64))
        names = sorted(place.stored.path for place in unit.places)
        for number, place in enumerate(unit.places):
            rows = self._object(place.stored, schema)
            mine = pc.and_(pc.equal(rows["unit"], unit.ref.unit), pc.is_in(rows["index"], kept))
            rows = rows.filter(mine)
            waiting = pa.concat_tables(
                [waiting, rows.append_column(OBJECT, _repeated(names.index(place.stored.path), rows.num_rows))]
            )
            if number < len(ends):
                done = pc.less(waiting["index"], ends[number].first)
                ready, waiting = waiting.filter(done), waiting.filter(pc.invert(done))
            else:
                ready = waiting
            if ready.num_rows:
                yield _once(ready)

    def _object(self, stored: Stored, schema: pa.Schema) -> pa.Table:
        if stored not in self._held:
            with opened(self._storage, stored) as file:
                names = [name for name in schema.names if name in file.schema_arrow.names]
                self._held[stored] = fitted(file.read(columns=names, use_threads=False), schema)
            if len(self._held) > HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(stored)
        return self._held[stored]


def fitted(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with these columns; one that they lack is null."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.schema.names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _repeated(number: int, rows: int) -> pa.Array:
    return pa.array(np.full(rows, number, np.int32))


def _once(rows: pa.Table) -> pa.Table:
    """The rows by their index; of several with one index the one that counts."""
    by: Sequence[tuple[str, str]] = [("index", "ascending"), ("attempts", "descending"), (OBJECT, "ascending")]
    rows = rows.sort_by(by).drop_columns(OBJECT)
    first = np.diff(rows["index"].to_numpy(), prepend=-1) != 0
    return rows if first.all() else rows.filter(pa.array(first))
