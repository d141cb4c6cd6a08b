"""Counters of the captions of an object. Readers of the counters compute rates."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Tallies = dict[str, Counter[str]]

# Finished rows by the value of a column.
VALUES = ("model", "finish_reason", "decodes")
# Finished rows by each value of a list.
LISTS = ("repaired",)
# Sums over rows.
SUMS = {"caption_tokens": "kept", "decoded_tokens": "spent", "saved_tokens": "saved"}
# The lower ends of the histogram's bins, in characters.
LENGTHS = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
# The first words of a caption. Each object counts only its most frequent ones that occur at least twice, so the counts
# of the whole output may be too small, but not too large.
OPENER_WORDS, MOST_OPENERS = 3, 50


def tallies(table: pa.Table) -> Tallies:
    """Count the finished rows of an object. Columns that the table lacks count nothing."""
    found = {name: counted(table[name]) for name in VALUES if name in table.schema.names}
    found |= {name: counted(table[name].combine_chunks().flatten()) for name in LISTS if name in table.schema.names}
    found["tokens"] = Counter(
        {word: pc.sum(table[name]).as_py() or 0 for name, word in SUMS.items() if name in table.schema.names}
    )
    if "caption" in table.schema.names:
        captions = table["caption"].drop_null()
        found["characters"] = _histogram(pc.utf8_length(captions).to_pylist())
        found["openers"] = _openers(captions.to_pylist())
    found |= scores(table)
    return {name: counts for name, counts in found.items() if counts}


def scores(table: pa.Table) -> dict[str, Counter[str]]:
    """The sums of the rows' scores, and of the gain from choosing the best of several captions.

    `scores` has rows, and the sums of their scores and of the squares. `gain` has rows with two scores, and the sums of
    the kept and of the first captions' scores, of the differences and of their squares. `score_codes` counts rows
    without a score by code.
    """
    names, found = table.schema.names, dict[str, Counter[str]]()
    if "score" in names:
        score = table["score"]
        found["scores"] = _sums(score.drop_null(), "rows", "sum", "squares")
    if "score_code" in names:
        found["score_codes"] = counted(table["score_code"])
    if "first_score" in names:
        both = table.select(["score", "first_score"]).drop_null()
        found["gain"] = _sums(pc.subtract(both["score"], both["first_score"]), "rows", "difference", "squares")
        found["gain"].update({"kept": _sum(both["score"]), "first": _sum(both["first_score"])})
    return {name: counts for name, counts in found.items() if any(counts.values())}


def _sums(values: pa.ChunkedArray, rows: str, total: str, squares: str) -> Counter[str]:
    numbers: dict[str, Any] = {rows: len(values), total: _sum(values), squares: _sum(pc.multiply(values, values))}
    return Counter(numbers)


def _sum(values: pa.ChunkedArray) -> float:
    return float(pc.sum(values).as_py() or 0.0)


def counted(values: pa.Array | pa.ChunkedArray) -> Counter[str]:
    """The count of each value, by its text."""
    pairs = pc.value_counts(values.drop_null()).to_pylist() if len(values) else []
    return Counter(
        {str(pair["values"]): pair["counts"] for pair in sorted(pairs, key=lambda pair: str(pair["values"]))}
    )


def _histogram(lengths: list[int]) -> Counter[str]:
    return Counter(str(max(low for low in LENGTHS if low <= length)) for length in lengths)


def _openers(captions: list[str]) -> Counter[str]:
    openers = Counter(" ".join(caption[:200].split()[:OPENER_WORDS]).lower() for caption in captions)
    return Counter({opener: count for opener, count in openers.most_common(MOST_OPENERS) if count > 1})
