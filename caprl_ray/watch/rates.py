"""Rates and the time left, computed from counters at two times. Pure functions, without a clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from caprl_ray.watch.record import Record
from caprl_ray.watch.start import Start

NOW_S, FIVE_MINUTES_S = 60.0, 300.0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rows and tokens a second, None before the first batch, and what is left.

    Attributes:
        now: rows/s of the last minute.
        overall: rows/s since the first engine ran. The start of the engines does not count.
        tokens: generated tokens/s of the last five minutes, those of repeated decodings too.
        tokens_overall: the same since the first engine ran.
        planned: planned rows of the whole output, whatever limit the run has; None while it cannot be estimated.
        exact: whether that number is known. Otherwise it is estimated from the bytes of shards.
        eta_s: seconds until they are done, or as many as the run may do, at the rate of the last five minutes.
    """

    now: float | None = None
    overall: float | None = None
    tokens: float | None = None
    tokens_overall: float | None = None
    planned: int | None = None
    exact: bool = False
    eta_s: float | None = None


def rates(start: Start | None, history: Sequence[Record]) -> Rates:
    """Compute the rates from the records of a run, in order. `start` is None until the input is listed."""
    latest = history[-1]
    since, lately = _since(latest), _lately(history, FIVE_MINUTES_S)
    overall, five = _rate(since, latest, _rows), _rate(lately, latest, _rows)
    planned, exact = planned_rows(start, latest) if start else (None, False)
    pace = five or overall
    left = _left(start, planned, latest) if start else None
    return Rates(
        now=overall if five is None else _rate(_lately(history, NOW_S), latest, _rows),
        overall=overall,
        tokens=_rate(lately, latest, _tokens),
        tokens_overall=_rate(since, latest, _tokens),
        planned=planned,
        exact=exact,
        eta_s=left / pace if left is not None and pace else None,
    )


def _left(start: Start, planned: int | None, record: Record) -> int | None:
    """The rows that the run is still to do, if they can be estimated."""
    ends = [end for end in (planned, start.limit and start.done + start.limit) if end is not None]
    return max(0, min(ends) - start.done - record.rows) if ends else None


def planned_rows(start: Start, record: Record) -> tuple[int | None, bool]:
    """The planned rows of the whole output, and whether they are known.

    The rows of shards are estimated from their bytes: by the shards that were read to their end, or else by the mean
    size of the images so far.
    """
    rows, exact = start.planned, True
    if start.open:
        read_rows, read_bytes = record.read
        left = start.open.bytes - read_bytes
        rows += read_rows
        if left > 0:
            exact = False
            density = _rows_a_byte(start, record)
            if density is None:
                return None, False
            rows += round(left * density)
    return (rows if exact else max(rows, start.done + record.rows)), exact


def _rows_a_byte(start: Start, record: Record) -> float | None:
    assert start.open
    rows, size = start.open.known_rows + record.read[0], start.open.known_bytes + record.read[1]
    if not size:
        rows, size = int(record.sum("stage_rows", "prepare")), int(record.sum("stage_bytes", "prepare"))
    return rows / size if size else None


def _rows(record: Record) -> float:
    return record.rows


def _tokens(record: Record) -> float:
    return record.sum("tokens", "decoded")


def _since(latest: Record) -> Record | None:
    """The start for the rates of the whole run: when the first engine ran, or the first batch of a job without engines;
    None before the first batch."""
    if latest.first is None:
        return None
    if latest.ready is not None:
        return Record(seconds=latest.ready)
    when, rows = latest.first
    return Record(seconds=when, rows=rows, sums={"tokens": {"decoded": _tokens(latest) * rows / latest.rows}})


def _lately(history: Sequence[Record], seconds: float) -> Record | None:
    """The record of this many seconds ago, but not before the first batch; None until the second batch is done."""
    latest = history[-1]
    if latest.first is None or latest.rows <= latest.first[1]:
        return None
    after = [record for record in history if record.first is not None]
    before = [record for record in after if record.seconds <= latest.seconds - seconds]
    return before[-1] if before else after[0] if after else None


def _rate(earlier: Record | None, latest: Record, count: Callable[[Record], float]) -> float | None:
    if earlier is None or latest.seconds <= earlier.seconds:
        return None
    return (count(latest) - count(earlier)) / (latest.seconds - earlier.seconds)
