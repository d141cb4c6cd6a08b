"""The sums over the rows of an object, whatever a dataset's own words are."""

from typing import Any

import pyarrow as pa

from caprl_ray.caption.columns import CAPTION
from caprl_ray.output.counts import Counts
from caprl_ray.output.ledger import Ledger
from caprl_ray.rows.schema import data_schema, failed_schema

SOURCE = pa.schema([])


def table_of(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema=schema)


def test_flags_are_counted_by_row_without_the_datasets_own_words() -> None:
    rows = [{"flags": [f"metadata_undecoded:{n}\\n.txt", "metadata_undecoded:txt"]} for n in range(1000)]
    counts = Counts.of(table_of(data_schema(SOURCE, CAPTION), [*rows, {"flags": ["blank"]}, {}, {"flags": []}]))
    assert counts.flags == {"metadata_undecoded": 1000, "blank": 1}
    assert len(counts.dump()) < 200
    counts.flags.update(dict.fromkeys(["a", "b"], 2))
    assert (
        "(1,000 metadata_undecoded, 2 a, 2 b, 1 blank)" in Ledger(units=[], done="captioned", counts=counts).summary()
    )


def test_a_unit_has_ended_at_a_row_without_a_key_unless_it_was_read_on() -> None:
    lost = [(1, 7, "truncated_unit", ""), (1, 8, "truncated_unit", ""), (2, 0, "unit_format", "")]
    others = [(3, 0, "empty_unit", ""), (4, 2, "read_crash", ""), (5, 0, "no_image", "a")]
    rows = [dict(zip(("unit", "index", "code", "key"), row, strict=True)) for row in (*lost, *others)]
    assert Counts.of(table_of(failed_schema(SOURCE), rows)).ended == [(1, 7), (2, 0)]
