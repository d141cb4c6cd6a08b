"""summary.json sums up a whole output, and leaves out counts that do not add up."""

from collections import Counter
from typing import Any

import pyarrow as pa

from caprl_ray.caption.columns import CAPTION
from caprl_ray.output.counts import Counts
from caprl_ray.output.ledger import Ledger, UnitLedger
from caprl_ray.output.summary import content
from caprl_ray.output.tallies import MOST_OPENERS
from caprl_ray.rows.schema import data_schema

SCHEMA = data_schema(pa.schema([]), CAPTION)


def table(*rows: dict[str, Any]) -> pa.Table:
    common = {"model": "embedded", "finish_reason": "stop", "flags": [], "repaired": [], "decodes": 1, "key": "a"}
    return pa.Table.from_pylist([common | row for row in rows], schema=SCHEMA)


def ledger(counts: Counts, finished: int, failed: int = 0) -> Ledger:
    unit = UnitLedger(unit=0, planned=finished + failed, finished=finished, failed=failed, duplicate=0)
    return Ledger(units=[unit], done="captioned", counts=counts)


def stored(*tables: pa.Table) -> Counts:
    """The counts of several objects, as their footers give them back."""
    counts = Counts()
    for one in tables:
        counts.add(Counts.load({b"caprl_ray.counts": Counts.of(one).dump()}))
    return counts


def test_every_counter_is_a_sum_over_all_objects() -> None:
    first = table(
        {"caption": "The image shows a dog.", "caption_tokens": 5, "decoded_tokens": 5},
        {
            "caption": "The image shows " + "x" * 100,
            "caption_tokens": 9,
            "decoded_tokens": 30,
            "saved_tokens": 70,
            "decodes": 3,
        },
    )
    second = table(
        {"caption": "A cat.", "caption_tokens": 2, "decoded_tokens": 6, "repaired": ["loop"], "flags": ["too_short"]}
    )
    found = content(ledger(stored(first, second), 3))
    assert found
    assert found["rows"] == found["counted"] == {"captioned": 3, "failed": 0}
    assert found["models"] == {"embedded": 3}
    assert found["decodes"] == {"1": 2, "3": 1}
    assert found["tokens"] == {"kept": 16, "spent": 41, "saved": 70}
    assert found["characters"] == {"0": 2, "64": 1}
    assert found["openers"] == {"the image shows": 2}
    assert (found["flags"], found["repaired"]) == ({"too_short": 1}, {"loop": 1})


def test_what_does_not_add_up_is_not_told() -> None:
    row = {"caption": "A cat.", "caption_tokens": 2, "decoded_tokens": 2}
    assert content(ledger(stored(table(row, row)), 1)) is None  # a row stands twice
    assert content(ledger(stored(table(row | {"decoded_tokens": 1})), 1)) is None
    assert content(ledger(Counts(), 5))["counted"] == {"captioned": 0, "failed": 0}  # type: ignore[index]


def test_openers_are_bounded() -> None:
    rows = [
        {"caption": f"opener {number // 2} here", "caption_tokens": 1, "decoded_tokens": 1} for number in range(500)
    ]
    tallied = Counts.of(table(*rows)).tallies["openers"]
    assert len(tallied) == MOST_OPENERS
    assert set(Counter(tallied).values()) == {2}
