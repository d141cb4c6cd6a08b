"""Decide whether a source that changed since the plan is read in its present version.

The plan never changes (docs/design.md, D2). A read task that may accept a source's present version looks it up and
reads it. A shard or a parquet file must then still hold every finished row at the same position with the same bytes.
Otherwise the planned version is read, and the unit fails as before. So correct rows stay, and no row is joined to a
picture that it does not describe, wherever a run was stopped in between.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import IntEnum

from pyroaring import BitMap

from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.output.held import Held, digest
from caprl_ray.plan import Entry, LeftOut, Unit, UnitRef
from caprl_ray.rows.schema import bounded
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.prefetch import prefetched

FILES, PARQUET = "files", "parquet"
LOOKUPS = 16  # at once
Read = Callable[[Unit, BitMap, Access, LeftOut], Iterator[Sample | None]]
# Codes of failed rows that may succeed in a source's present version.
MENDABLE = frozenset({"source_changed", "truncated_unit", "unit_format"})


class Accept(IntEnum):
    """Which present versions of a source may be read instead of the planned one."""

    NONE = 0
    SAME_ROWS = 1
    """A version of the same size, if the finished rows prove that it is the same source (--extend)."""
    TOUCHED = 2
    """A version of the same size (--accept-touched)."""
    CHANGED = 3
    """Any version: of files whose rows are retried, and of shards with --retry-failed=source_changed or truncated_unit.
    A parquet file that was planned must still have the same size."""


def present(
    unit: Unit, accept: Accept, done: BitMap, retried: BitMap, held: Held | None, access: Access, read: Read
) -> Unit:
    """The unit, with the present versions of its sources where they are accepted.

    `done`: the rows that are not read. `retried`: the failed rows that are retried. A file of such a row is read in its
    present version, whatever the row failed for. `held`: the finished rows that a present version must still hold.
    """
    if accept == Accept.SAME_ROWS and held is None:
        accept = Accept.NONE
    levels = dict.fromkeys(range(len(unit.entries)), accept)
    if unit.kind == FILES:
        levels = {n: Accept.CHANGED if n in retried else level for n, level in levels.items() if n not in done}
    wanted = [n for n, level in levels.items() if level]
    found = prefetched(lambda n: _now(unit.entries[n].stored, access.storage), wanted, LOOKUPS)
    entries = list(unit.entries)
    for n, now in zip(wanted, found, strict=True):
        if now and _acceptable(now, entries[n].stored, levels[n], unit):
            entries[n] = Entry(stored=now, key=entries[n].key)
    changed = replace(unit, entries=entries)
    if changed != unit and unit.kind != FILES and held is not None and not _same(changed, held, access, read):
        return unit
    return changed


def has_changed(storage: Storage, ref: UnitRef) -> bool:
    """Whether the shard of a unit exists in another version than the planned one."""
    planned = ref.load(storage).entries[0].stored
    now = _now(planned, storage)
    return now is not None and now != planned


def _now(planned: Stored, storage: Storage) -> Stored | None:
    try:
        found = storage.lookup(planned.path)
    except PermissionError:
        return None  # reading the source will fail too
    except OSError as error:
        raise SystemFailure(f"{planned.path}: cannot be read ({error.strerror or type(error).__name__}).") from error
    return found if isinstance(found, Stored) else None


def _acceptable(now: Stored, planned: Stored, accept: Accept, unit: Unit) -> bool:
    """Whether `now` may be read instead of `planned`.

    A parquet file or manifest of another size has other row groups or lines, so the planned ranges do not fit it. One
    of the same size may have others too; reading notices that (sources/parquet_read.py, manifest.py).
    """
    planned_ranges = unit.lines is not None or (unit.kind == PARQUET and unit.row_groups is not None)
    same_size = accept != Accept.CHANGED or planned_ranges
    return not same_size or now.size == planned.size


def _same(unit: Unit, held: Held, access: Access, read: Read) -> bool:
    """Whether the finished rows are still at their positions, with the same keys and bytes."""
    wanted = dict(zip(held["index"].tolist(), held["digest"].tolist(), strict=True))
    last = max(wanted)
    others = BitMap(range(last)) - BitMap(wanted)
    try:
        for index, sample in enumerate(read(unit, others, access, LeftOut())):
            if index in wanted and wanted[index] != _digest(sample):
                return False
            if index == last:
                return True
    except RowFailure:
        pass
    return False  # the source ends before the last finished row


def _digest(sample: Sample | None) -> bytes | None:
    if sample is None or sample.image is None:
        return None
    return digest(bounded(sample.key), hashlib.sha256(sample.image).hexdigest())
