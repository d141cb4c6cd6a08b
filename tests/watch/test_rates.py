"""Rates, the rest of the plan and the time left, from records alone."""

import dataclasses

import pytest

from caprl_ray.output.ledger import Ledger, UnitLedger
from caprl_ray.plan import UnitRef
from caprl_ray.storage import Stored
from caprl_ray.watch.rates import planned_rows, rates
from caprl_ray.watch.record import Record
from caprl_ray.watch.start import Open, Start

START = Start(done=1000, failed=3, planned=5000)


def at(seconds: float, rows: int, tokens: float = 0) -> Record:
    """A record of a run whose engine ran at 20 s, and whose first batch of 30 rows was done at 35 s."""
    first = (35.0, 30) if rows else None
    return Record(seconds=seconds, ready=20.0, first=first, rows=rows, sums={"tokens": {"decoded": tokens}})


def test_there_is_no_rate_before_the_first_batch_and_one_from_it_on() -> None:
    assert rates(START, [at(10, 0), at(34, 0)]).now is None
    first = rates(START, [at(34, 0), at(35, 30)])
    assert (first.now, first.overall, first.eta_s) == (2.0, 2.0, (5000 - 1030) / 2), "since the engine ran"
    assert rates(START, [at(35, 30), at(40, 30)]).now == 1.5, "until the second batch is done"


def test_the_start_of_the_engines_and_what_is_long_ago_do_not_count() -> None:
    history = [at(35, 30, 300), at(720, 7030, 70300), at(960, 7510, 75100), at(1020, 7570, 75700)]
    found = rates(Start(done=0, failed=0, planned=8000), history)
    assert found.now == 60 / 60 and found.overall == 7570 / 1000
    assert found.tokens == 18.0 and found.tokens_overall == 75700 / 1000
    assert found.eta_s == pytest.approx(430 / (540 / 300)), "at the rate of five minutes"


def test_a_job_without_engines_counts_from_its_first_batch() -> None:
    history = [dataclasses.replace(record, ready=None) for record in (at(35, 30), at(45, 80))]
    assert rates(START, history[:1]).overall is None and rates(START, history).overall == 5.0


def test_a_limit_ends_the_run_and_not_the_plan() -> None:
    history = [at(34, 0), at(35, 30)]
    limited = rates(dataclasses.replace(START, limit=100), history)
    assert (limited.planned, limited.eta_s) == (5000, 70 / 2)
    assert rates(dataclasses.replace(START, limit=9000), history).eta_s == (5000 - 1030) / 2


def shards(**more: object) -> Record:
    return dataclasses.replace(at(50, 60), **more)  # type: ignore[arg-type]


def test_shards_are_estimated_from_their_bytes_until_they_are_read() -> None:
    start = Start(done=0, failed=0, planned=0, open=Open(bytes=10_000, known_rows=0, known_bytes=0))
    assert planned_rows(start, at(30, 0)) == (None, False)
    images = {"stage_rows": {"prepare": 64}, "stage_bytes": {"prepare": 640}}
    assert planned_rows(start, shards(sums=images)) == (1000, False), "by the mean size of the images so far"
    assert planned_rows(start, shards(sums=images, read=(100, 2000))) == (500, False), "by whole shards"
    assert planned_rows(start, shards(read=(480, 10_000))) == (480, True)
    assert planned_rows(start, shards(read=(10, 2000))) == (60, False), "never fewer than are done"
    before = dataclasses.replace(start, planned=300, open=Open(bytes=10_000, known_rows=300, known_bytes=6000))
    assert planned_rows(before, at(30, 0)) == (800, False), "by the shards of earlier runs"


def test_the_start_tells_units_of_unknown_length_from_the_others() -> None:
    def ref(unit: int, rows: int | None, size: int) -> UnitRef:
        place = Stored(path="p", size=1, version="1")
        return UnitRef(unit=unit, kind="k", rows=rows, bytes=size, object=place, row_group=0, offset=unit)

    def unit(number: int, planned: int | None, done: int) -> UnitLedger:
        return UnitLedger(unit=number, planned=planned, finished=done, failed=0, duplicate=0)

    ledger = Ledger(units=[unit(0, 50, 50), unit(1, None, 7), unit(2, 20, 0)], done="captioned")
    start = Start.of(ledger, None, refs=[ref(0, None, 5000), ref(1, None, 900), ref(2, 20, 10**6)])
    assert (start.done, start.planned) == (57, 70)
    assert start.open == Open(bytes=900, known_rows=50, known_bytes=5000)
