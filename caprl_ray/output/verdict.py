"""Whether an output may be marked as complete: `failures.max_fraction` applies to all of its rows, however few.

`failures.min_rows` is only for stopping a run early (watch/breaker.py). This check runs at the end of every run.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc

from caprl_ray.errors import TooManyFailures
from caprl_ray.output.committed import opened
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.objects import FAILED
from caprl_ray.output.part import Part
from caprl_ray.recipe.output import Failures
from caprl_ray.rows.codes import ASKED_FOR
from caprl_ray.storage import Storage
from caprl_ray.text import plain

EXAMPLES = 3
MOST_SHOWN = 200  # characters of a path or a detail
COLUMNS = ["source", "key", "code", "detail"]


def over(ledger: Ledger, limits: Failures, rows: int = 0, failed: int = 0, ignored: Collection[str] = ()) -> str | None:
    """The message for an output with more failed rows than the limit; None if it is within.

    `rows` and `failed` are the numbers when the output was accepted before; these rows do not count. Rows with a code
    in `ignored`, and rows that the user asked to fail, do not count either.
    """
    codes = {*ignored, *ASKED_FOR}
    known = sum(ledger.counts.codes[code] for code in codes)
    total, now_failed = ledger.finished + ledger.failed - known, ledger.failed - known
    allowed = max(limits.max_fraction * total, failed + limits.max_fraction * max(0, total - rows))
    if now_failed <= allowed:
        return None
    return (
        f"failures.max_fraction: {now_failed:,} of {total:,} {ledger.noun}s failed, more than "
        f"{limits.max_fraction:g} allows ({ledger.reasons(without=codes)})"
    )


def refusal(wrong: str, storage: Storage, output: str) -> TooManyFailures:
    """The error for an output that is over the limit, with some failed rows as examples."""
    return TooManyFailures(
        f"{wrong}; {examples(storage, output)}written rows stay. Remove the cause and run again with --retry-failed, "
        "or accept them: run again with a higher failures.max_fraction."
    )


@contextmanager
def with_examples(storage: Storage, output: str, part: Part | None = None) -> Iterator[None]:
    """Show some failed rows when the breaker stops a run."""
    try:
        yield
    except TooManyFailures as error:
        shown = examples(storage, output, part)
        raise TooManyFailures(f"{error} Failed rows: {shown.rstrip('; ')}." if shown else str(error)) from error


def examples(storage: Storage, output: str, part: Part | None = None) -> str:
    """Some failed rows of the newest object, if possible with different codes, but none that the user asked for."""
    objects = committed_objects(storage, output, [FAILED], part=part)[FAILED]
    if not objects:
        return ""
    with opened(storage, objects[-1]) as file:
        table = file.read(columns=COLUMNS, use_threads=False)
    asked_for = pc.is_in(table["code"], pa.array(sorted(ASKED_FOR)))
    rows = table.filter(pc.invert(asked_for)).slice(0, 10_000).to_pylist()
    first = {row["code"]: row for row in reversed(rows)}
    shown = [*first.values(), *(row for row in rows if first[row["code"]] is not row)][:EXAMPLES]
    return "".join(f"{_said(row)}; " for row in shown)


def _said(row: dict[str, str | None]) -> str:
    source, key = row["source"] or "", row["key"] or ""
    place = source if source.endswith(key) else f"{source} {key}"
    return f"{_line(place)}: {_line(' '.join(filter(None, [row['code'], row['detail']])))}"


def _line(text: str) -> str:
    text = plain(text).replace("\n", " ")
    return text if len(text) <= MOST_SHOWN else f"…{text[1 - MOST_SHOWN :]}"
