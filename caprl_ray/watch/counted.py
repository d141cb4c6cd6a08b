"""Report batches of a job's last stage."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.actor import ActorHandle

from caprl_ray.output.counts import kinds
from caprl_ray.output.tallies import counted as tallied
from caprl_ray.output.tallies import scores
from caprl_ray.rows.codes import NOT_ASKED, UNFINISHED
from caprl_ray.rows.schema import FAILED_BEFORE
from caprl_ray.text import plain
from caprl_ray.watch.batch import Batch, Last

# Columns that a job may add (caption/columns.py); of tokens, by what their sums are called.
LISTS = ("flags", "repaired")
TOKENS = {"prompt": "prompt_tokens", "caption": "caption_tokens", "decoded": "decoded_tokens"}
SCORES = ("score", "score_code", "first_score")
TOLD = (*LISTS, *TOKENS.values(), *SCORES, "decodes", "key", "caption")
NOTHING = Batch(rows=0)
MOST_TEXT = 200  # characters of a caption that are shown


def counted(rows: pa.Table, counter: ActorHandle, own: Batch = NOTHING) -> pa.Table:
    """Report a batch of finished and failed rows to the counter actor, together with what the replica says itself."""
    batch = batch_of(rows)
    sums = {**batch.sums, **own.sums}
    counter.add.remote(replace(batch, sums=sums, load=own.load, pool=own.pool, ended=own.ended))
    return rows


def _ended(rows: pa.Table) -> pa.Table:
    """The rows without those that a stopped run has cancelled."""
    if rows["code"].null_count == rows.num_rows:
        return rows  # a filter copies
    return rows.filter(pc.not_equal(rows["code"], UNFINISHED).fill_null(True))


def batch_of(rows: pa.Table) -> Batch:
    """The report about a batch. Columns that the job does not add, and cancelled rows, are left out."""
    rows = _ended(rows)
    told = rows.select([name for name in TOLD if name in rows.schema.names])  # others are large, and a filter copies
    finished = told.filter(pc.is_null(rows["code"])) if rows["code"].null_count < rows.num_rows else told
    sums, unscored = dict(_sums(finished)), _unscored(finished)
    batch = Batch(rows=rows.num_rows, codes=_codes(rows), sums=sums, last=_last(finished), unscored=unscored)
    before = rows[FAILED_BEFORE.name]
    if before.null_count == len(before):
        return batch
    retried = rows.select(["code", FAILED_BEFORE.name]).filter(before.is_valid())
    same = pc.equal(retried["code"], retried[FAILED_BEFORE.name]).fill_null(False)
    anew, again = _codes(retried.filter(pc.invert(same))), _codes(retried.filter(same))
    return replace(batch, retried=retried.num_rows, anew=anew, again=again)


def _sums(rows: pa.Table) -> Iterator[tuple[str, Mapping[str, float]]]:
    names = rows.schema.names
    for name in LISTS:
        if name in names:
            yield name, tallied(kinds(rows[name].combine_chunks()))
    tokens = {name: _sum(rows[column]) for name, column in TOKENS.items() if column in names}
    if tokens:
        yield "tokens", tokens
    if "decodes" in names:
        yield "decodes", {"rows": rows.num_rows, "decodes": _sum(rows["decodes"])}
    yield from scores(rows).items()


def _unscored(rows: pa.Table) -> list[str]:
    """The codes of captions that were asked about and could not be scored."""
    if "score_code" not in rows.schema.names:
        return []
    return [code for code in rows["score_code"].drop_null().to_pylist() if code not in NOT_ASKED]


def _sum(column: pa.ChunkedArray) -> float:
    return pc.sum(column).as_py() or 0


def _last(rows: pa.Table) -> Last | None:
    if not rows.num_rows:
        return None
    row: dict[str, Any] = {name: rows[name][-1].as_py() for name in ("key", "caption") if name in rows.schema.names}
    return Last(key=_short(row.get("key")), text=_short(row.get("caption")))


def _short(text: str | None) -> str:
    """One line of an untrusted text."""
    return " ".join(plain(text or "")[: 2 * MOST_TEXT].split())[:MOST_TEXT]


def _codes(rows: pa.Table) -> list[str]:
    return list(rows["code"].drop_null().to_pylist())
