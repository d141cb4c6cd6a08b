"""The finished and failed rows of an output, read from its own objects (docs/design.md, D3): two bitmaps per unit.

Only the identity columns are read, in Ray tasks if there are many objects. Time and memory grow with the number of
objects and one bit a row. No id is held.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyroaring import BitMap

from caprl_ray.errors import SystemFailure
from caprl_ray.output.counts import Counts
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA, FAILED, Written
from caprl_ray.output.part import Part as PartOfOutput
from caprl_ray.output.scan import Tell, scan, silent
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.storage import SourceChanged, Storage, Stored
from caprl_ray.storage.prefetch import prefetched

# A unit's length, and counts of what is in no row (LeftOut.dump), "" if none.
Length = tuple[int, str]
# The attempts of a failed row, and its code.
Failure = tuple[int, str]

COLUMNS = ["unit", "index", "unit_rows", "unit_left_out"]  # the last is missing in objects of older versions
FAILURE_COLUMNS = ["attempts", "code"]  # read as well if failed rows are to be retried
# Identities held in memory, 8 bytes each, before they become bitmaps.
ROWS_AT_ONCE = 2**22
# Bytes per request: a footer, or the few columns before the captions.
PIECE = 64 * 1024


@dataclass(slots=True)
class Committed:
    """The rows of one unit in the output.

    A row in `data` and in `failed` counts as finished; among failed rows the highest `attempts` counts (docs/design.md,
    D7). `rows` is the unit's length if a row has it. A later run may find a larger length, if an earlier one could not
    read to the end.

    Attributes:
        extra_finished: indices that are in `data` more than once.
        extra_failed: indices in `failed` that are there more than once or are finished.
        retry: the failed rows to retry, by their failure.
        ended: failed rows after which the unit could not be read further.
        left_out: counts of what is in no row; None if nothing, or if `rows` is not known.
    """

    finished: BitMap = field(default_factory=BitMap)
    failed: BitMap = field(default_factory=BitMap)
    extra_finished: BitMap = field(default_factory=BitMap)
    extra_failed: BitMap = field(default_factory=BitMap)
    rows: int | None = None
    retry: Mapping[Failure, BitMap] = field(default_factory=lambda: NO_ROWS)
    ended: frozenset[int] = frozenset()
    left_out: LeftOut | None = None

    @property
    def done(self) -> BitMap:
        """The indices that are finished or failed."""
        return self.finished | self.failed

    @property
    def extra(self) -> BitMap:
        """The duplicate indices."""
        return self.extra_finished | self.extra_failed

    def settle(self) -> None:
        """Leave each index in one bitmap, after all objects are read."""
        if self.rows is not None and self.done and self.done.max() >= self.rows:
            # A row beyond the end: an earlier run could not read to the end, so the length is not known.
            self.rows = self.left_out = None
        both = self.finished & self.failed
        self.extra_failed |= both
        self.failed -= both
        self.ended = frozenset(index for index in self.ended if index in self.failed)
        for rows in (self.finished, self.failed, self.extra_finished, self.extra_failed):
            rows.run_optimize()


class CommittedUnits(dict[int, Committed]):
    """The rows of an output by unit, and `counts`, the sums from its objects (output/counts.py)."""

    def __init__(self, units: Mapping[int, Committed], counts: Counts) -> None:
        super().__init__(units)
        self.counts = counts


NO_ROWS: Mapping[Failure, BitMap] = MappingProxyType({})


@dataclass(frozen=True)
class Part:
    """The rows of some objects of one folder, as a task returns them: for each unit a serialized bitmap, or its length
    with what was left out of it.

    `extra` are the duplicate indices in these objects, `failures` the failed rows by their failure, `counts` the sums
    from the objects.
    """

    folder: str
    rows: dict[int, bytes]
    extra: dict[int, bytes]
    lengths: dict[int, Length]
    failures: dict[Failure, dict[int, bytes]]
    counts: Counts


def read_committed(
    storage: Storage,
    output: str,
    retry: Collection[str] = (),
    tell: Tell = silent,
    since: Written | None = None,
    part: PartOfOutput | None = None,
) -> CommittedUnits:
    """The rows of an output by unit. Raises SystemFailure for an object that cannot be read.

    `retry` are the codes of failed rows that are to be retried. `since` and `part` leave objects out, as
    `committed_objects` does; with `part` the rows of its own units are all there.
    """
    units: defaultdict[int, Committed] = defaultdict(Committed)
    failures: defaultdict[int, dict[Failure, BitMap]] = defaultdict(dict)
    found, read = committed_objects(storage, output, since=since, part=part), partial(_read, storage, bool(retry))
    counts = Counts()
    for read_parts in scan(read, found, "reading the output's objects", tell):
        _take_in(units, failures, read_parts)
        for read_part in read_parts:
            counts.add(read_part.counts)
    for number, index in counts.ended:
        units[number].ended |= {index}
    for unit in units.values():
        unit.settle()
    for number, how in failures.items():
        units[number].retry = _to_retry(how, retry, units[number].failed)
    return CommittedUnits(units, counts)


def _take_in(
    units: defaultdict[int, Committed], failures: defaultdict[int, dict[Failure, BitMap]], parts: Iterable[Part]
) -> None:
    for part in parts:
        for number, content in part.rows.items():
            unit, rows = units[number], BitMap.deserialize(content)
            before, extra = _of(unit, part.folder)
            if before.intersect(rows):
                extra |= before & rows
            before |= rows
        for number, content in part.extra.items():
            _, extra = _of(units[number], part.folder)
            extra |= BitMap.deserialize(content)
        for number, length in part.lengths.items():
            _take_length(units[number], length)
        for how, by_unit in part.failures.items():
            for number, content in by_unit.items():
                before = failures[number].setdefault(how, BitMap())
                before |= BitMap.deserialize(content)


def _take_length(unit: Committed, length: Length) -> None:
    """Keep the longest length, with the counts from that reading."""
    rows, left_out = length
    if rows > (unit.rows or 0) or (rows == unit.rows and unit.left_out is None):
        unit.rows, unit.left_out = rows, LeftOut.load(left_out) if left_out else None


def _of(unit: Committed, folder: str) -> tuple[BitMap, BitMap]:
    """The unit's rows in a folder, and the duplicate ones."""
    return (unit.finished, unit.extra_finished) if folder == DATA else (unit.failed, unit.extra_failed)


def _to_retry(how: Mapping[Failure, BitMap], codes: Collection[str], failed: BitMap) -> dict[Failure, BitMap]:
    """The failed rows of a unit whose latest failure has one of `codes`."""
    retry, later = {}, BitMap()
    for failure in sorted(how, reverse=True):  # the highest number of attempts first
        rows = (how[failure] & failed) - later
        later |= rows
        if failure[1] in codes and rows:
            retry[failure] = rows
    return retry


def _read(storage: Storage, with_failures: bool, folder: str, objects: Sequence[Stored]) -> list[Part]:
    """The parts of some objects, each with a bounded number of rows."""
    parts: list[Part] = []
    with_failures = with_failures and folder == FAILED
    columns = [*COLUMNS, *(FAILURE_COLUMNS if with_failures else ())]
    held = _Held(folder, with_failures)
    for table, counts in prefetched(lambda stored: content(storage, stored, columns), objects):
        held.add(table, counts)
        if held.rows >= ROWS_AT_ONCE:
            parts.append(held.part())
            held = _Held(folder, with_failures)
    return [*parts, held.part()] if held.rows else parts


class _Held:
    """Identities of the rows of some objects, as unit * 2^32 + index, before they become bitmaps."""

    def __init__(self, folder: str, with_failures: bool) -> None:
        self.rows = 0
        self._folder = folder
        self._with_failures = with_failures
        self._identities: list[np.ndarray] = []
        self._failures: defaultdict[Failure, list[np.ndarray]] = defaultdict(list)
        self._lengths: dict[int, Length] = {}
        self._counts = Counts()

    def add(self, table: pa.Table, counts: Counts) -> None:
        """Add the rows of one object, and the lengths of units in them."""
        rows, lengths = identities(table), table["unit_rows"]
        self._counts.add(counts)
        self.rows += len(rows)
        self._identities.append(rows)
        if lengths.null_count < len(lengths):
            for said in table.filter(lengths.is_valid()).to_pylist():
                length = said["unit_rows"], said.get("unit_left_out") or ""
                self._lengths[said["unit"]] = max(length, self._lengths.get(said["unit"], length))
        if self._with_failures:
            for failure, of_these in _by_failure(table):
                self._failures[failure].append(rows[of_these])

    def part(self) -> Part:
        """Everything that was added, as bitmaps."""
        rows = np.sort(np.concatenate(self._identities), kind="stable")  # each object is sorted already
        again = rows[1:][rows[1:] == rows[:-1]]
        failures = {how: dict(bitmaps(np.sort(np.concatenate(of)))) for how, of in self._failures.items()}
        extra = dict(bitmaps(again))
        return Part(self._folder, dict(bitmaps(rows)), extra, self._lengths, failures, self._counts)


def identities(table: pa.Table) -> np.ndarray:
    """The identities of a table's rows as unit * 2^32 + index."""
    identity: np.ndarray = table["unit"].to_numpy().astype(np.int64) << 32 | table["index"].to_numpy()
    return identity


def _by_failure(table: pa.Table) -> Iterator[tuple[Failure, np.ndarray]]:
    """The failures of a table's rows, each with a mask of its rows."""
    attempts = pc.fill_null(table["attempts"], 0).to_numpy().astype(np.int64)
    codes = pc.fill_null(table["code"], "").combine_chunks().dictionary_encode()
    names = codes.dictionary.to_pylist()
    failures = attempts * len(names) + codes.indices.to_numpy()
    for failure in np.unique(failures).tolist():
        yield (failure // len(names), names[failure % len(names)]), failures == failure


def bitmaps(identities: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Sorted identities as bitmaps of indices by unit."""
    if (identities[1:] == identities[:-1]).any():
        identities = np.unique(identities)
    units, indices = identities >> 32, identities.astype(np.uint32)  # keeps the lower half
    cuts = (np.flatnonzero(units[1:] != units[:-1]) + 1).tolist()
    for start, end in pairwise([0, *cuts, len(units)] if len(units) else []):
        first, last = int(indices[start]), int(indices[end - 1])
        # A bitmap takes a range at once, and an array row by row.
        rows = BitMap(range(first, last + 1) if last - first == end - start - 1 else indices[start:end])
        rows.run_optimize()
        yield int(units[start]), rows.serialize()


def content(storage: Storage, stored: Stored, columns: list[str]) -> tuple[pa.Table, Counts]:
    """Some columns of a committed object, read without the others, and its sums. Raises SystemFailure."""
    with opened(storage, stored) as file:
        return file.read(columns=columns, use_threads=False), Counts.load(file.metadata.metadata)


@contextmanager
def opened(storage: Storage, stored: Stored, piece: int | None = PIECE) -> Iterator[pq.ParquetFile]:
    """A committed object, for reading a few columns; with another `piece`, for reading more. Raises SystemFailure, also
    for faults inside the block."""
    try:
        with storage.open(stored, piece=piece) as stream:
            # Only a few pages are read, so Arrow's threads and prefetching would cost more than they save. `stream`
            # buffers one piece.
            file = pq.ParquetFile(stream, pre_buffer=False)
            if "unit" not in file.schema.names:
                raise SystemFailure(
                    f"{stored.path}: no run has written this file; move it out of the output, and run the same command "
                    "again."
                )
            yield file
    except (FileNotFoundError, SourceChanged) as error:
        raise SystemFailure(
            f"{stored.path}: the committed object cannot be read: it was replaced meanwhile, by a run, by verify "
            "--repair or by compact; run the command again."
        ) from error
    except (OSError, pa.ArrowInvalid) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SystemFailure(f"{stored.path}: the committed object cannot be read ({reason}).") from error
