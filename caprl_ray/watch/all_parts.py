"""The statuses of an output's parts (output/part.py), and their sum."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, TypeVar

from caprl_ray.output.holder import Holder, now
from caprl_ray.output.part import FOLDER, STATUS, Part
from caprl_ray.storage import Storage, join
from caprl_ray.storage.prefetch import prefetched
from caprl_ray.watch import history, status_file
from caprl_ray.watch.rates import Rates
from caprl_ray.watch.record import Readers, Record, Replicas, Requests
from caprl_ray.watch.status import RUNNING, NotAStatus, Run, Status, place

Counts = TypeVar("Counts", Replicas, Requests)


def statuses(storage: Storage, output: str) -> dict[Part, Status]:
    """The last readable status of each part."""
    names = [stored.path.rpartition("/")[2] for stored in storage.objects(join(output, FOLDER), STATUS)]
    parts = sorted(filter(None, (Part.named(name.removesuffix(STATUS)) for name in names)))
    found = prefetched(lambda part: _status(storage, output, part), parts)
    return {part: status for part, status in zip(parts, found, strict=True) if status}


def _status(storage: Storage, output: str, part: Part) -> Status | None:
    with suppress(FileNotFoundError, NotADirectoryError, NotAStatus):
        return Status.parse(storage.read(place(output, part)))
    return None


def total(parts: Mapping[Part, Status], running: Collection[Part], missing: bool = False) -> Status:
    """The sum of the parts' statuses. `running` are the parts that a driver writes.

    `missing`: some parts have no status, so the number of planned rows is unknown.
    """
    told = list(parts.values())
    live = [status for part, status in parts.items() if part in running]
    latest = max(told, key=lambda status: status.at)
    reasons = [status.ended for status in told if status.ended]
    return Status(
        run=replace(latest.run, run=None, lease=None, driver="", part="", price=_price(told, latest)),
        at=latest.at,
        phase=_phase(live),
        before=sum(status.before for status in told),
        failed_before=sum(status.failed_before for status in told),
        rates=_rates(told, live, missing),
        record=_record(told, live, latest),
        ended=None if live else next(iter(reasons), ""),
    )


def _phase(live: list[Status]) -> str:
    phases = [status.phase for status in live]
    return RUNNING if RUNNING in phases else next(iter(phases), "no part runs")


def empty(output: str, part: Part | None = None, holder: Holder | None = None) -> Status:
    """The status of a run that has reported nothing yet."""
    run = Run(output=output, part=str(part or ""), lease=holder.number if holder and part else None)
    at = now().isoformat(timespec="seconds")
    return Status(run=run, at=at, phase="starting", before=0, failed_before=0, rates=Rates(), record=Record())


def _price(told: list[Status], latest: Status) -> float | None:
    """The mean price of a GPU hour, because clusters may differ."""
    hours = sum(status.gpu_hours or 0 for status in told)
    costs = [status.cost for status in told if status.cost is not None]
    return sum(costs) / hours if hours and len(costs) == len(told) else latest.run.price


def _rates(told: list[Status], live: list[Status], missing: bool) -> Rates:
    planned = [status.rates.planned for status in told]
    etas = [status.rates.eta_s for status in live]
    known = not missing and None not in planned
    return Rates(
        now=_sum(status.rates.now for status in live),
        tokens=_sum(status.rates.tokens for status in live),
        tokens_overall=_sum(status.rates.tokens_overall for status in live),
        planned=sum(filter(None, planned)) if known else None,
        exact=known and all(status.rates.exact for status in told),
        eta_s=max(filter(None, etas), default=None) if known and None not in etas else None,
    )


def _sum(numbers: Iterable[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _record(told: list[Status], live: list[Status], latest: Status) -> Record:
    records = [status.record if status in live else _ended(status.record) for status in told]
    first = [record.first for record in records if record.first]
    committed = [record.committed for record in records if record.committed]
    kinds = _names(record.sums for record in records)
    return Record(
        seconds=max(record.seconds for record in records),
        ready=min((record.ready for record in records if record.ready is not None), default=None),
        first=min(first, default=None),
        rows=sum(record.rows for record in records),
        failed=_added(record.failed for record in records),
        committed=(sum(rows for rows, _ in committed), max(at for _, at in committed)) if committed else None,
        sums={kind: _added(record.sums.get(kind, {}) for record in records) for kind in kinds},
        read=(sum(record.read[0] for record in records), sum(record.read[1] for record in records)),
        replicas=_together(Replicas, [record.replicas for record in records]),
        requests=_together(Requests, [record.requests for record in records]),
        readers={name: _readers(records, name) for name in _names(record.readers for record in records)},
        last=latest.record.last,
    )


def _ended(record: Record) -> Record:
    """The record of a run that has ended, without replicas and requests."""
    readers = {
        name: Readers(replicas=replace(pool.replicas, running=0, starting=0)) for name, pool in record.readers.items()
    }
    return replace(
        record, replicas=replace(record.replicas, running=0, starting=0), requests=Requests(), readers=readers
    )


def _readers(records: list[Record], name: str) -> Readers:
    pools = [record.readers[name] for record in records if name in record.readers]
    return Readers(
        replicas=_together(Replicas, [pool.replicas for pool in pools]),
        requests=_together(Requests, [pool.requests for pool in pools]),
    )


def _names(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    return sorted(set[str]().union(*mappings))


def _added(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    added = Counter[str]()
    for mapping in mappings:
        added.update(mapping)
    return dict(added)


def _together(kind: type[Counts], counts: Sequence[Counts]) -> Counts:
    """The sum of records with numeric fields."""
    return kind(**{field.name: sum(getattr(one, field.name) for one in counts) for field in fields(kind)})


def keep(storage: Storage, output: str) -> None:
    """When all parts are finished, write their totals and cost into the status of the whole output.

    The output is already complete, so a failing store does not fail the run.
    """
    with suppress(OSError):
        found = statuses(storage, output)
        if not found:
            return
        histories = [status_file.written(storage, place(output, part)) for part in found]
        points = history.together(status_file.written(storage, place(output)), histories)
        storage.put(place(output), status_file.content(total(found, ()), points))
