"""Finished rows to caption again: the request of `caption --again CONDITION`, in OUT/again/.

A request is written once. It names the rows that met the condition, and the objects that hold them. Objects of the
request's lease or a later one hold answers: rows that were captioned again or failed again. So a killed run continues,
and captions no row twice.

Until a run ends, an answered row is in `data` twice. The new one counts, because it has more `attempts`, and the end of
the run removes the old one. A row that fails again keeps its old version, because a finished row counts before a failed
one (D7).
"""

import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output.committed import Committed, bitmaps, identities, opened, read_committed
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA, Written
from caprl_ray.output.scan import Tell, scan, silent
from caprl_ray.output.where import Condition, output_schema
from caprl_ray.storage import Storage, Stored, join
from caprl_ray.storage.prefetch import prefetched

FOLDER = "again"
REQUEST, ROWS, ANSWERED = "request.json", "rows.parquet", "answered.parquet"
Row = dict[str, int | str | bytes]
SCHEMA = pa.schema([("unit", pa.int32()), ("object", pa.string()), ("rows", pa.binary())])


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The rows of one unit to caption again, and the names of the objects in `data` that hold them."""

    rows: BitMap
    objects: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """An open request.

    Attributes:
        condition: selects its rows.
        run: the recipe, as column `run` names it.
        since: objects of this lease and later ones hold answers.
        chosen: its rows by unit.
    """

    condition: str
    run: str
    since: int
    chosen: Mapping[int, Chosen] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of requested rows."""
        return sum(len(chosen.rows) for chosen in self.chosen.values())


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answered rows of a request by unit: done again, or failed again."""

    done: Mapping[int, BitMap]
    failed: Mapping[int, BitMap]

    def left(self, request: Request) -> dict[int, Chosen]:
        """The unanswered rows of a request, by unit."""
        rows = {
            unit: chosen.rows - self.done.get(unit, BitMap()) - self.failed.get(unit, BitMap())
            for unit, chosen in request.chosen.items()
        }
        return {unit: replace(request.chosen[unit], rows=some) for unit, some in rows.items() if some}

    def rows(self) -> list[Row]:
        """All answers, to be stored."""
        return [
            {"unit": unit, "object": word, "rows": some.serialize()}
            for word, by_unit in (("done", self.done), ("failed", self.failed))
            for unit, some in sorted(by_unit.items())
            if some
        ]

    def summary(self, request: Request) -> str:
        """The progress of the request, in words."""
        if not request.rows:
            return f"--again: no row meets {request.condition!r}"
        done, failed = (sum(map(len, rows.values())) for rows in (self.done, self.failed))
        kept = f", {failed:,} failed and keep their old version" if failed else ""
        left = request.rows - done - failed
        more = f", {left:,} left: run --again {request.condition!r} once more" if left else ""
        return f"--again: {done:,} of {request.rows:,} rows done again{kept}{more}"


def requested(storage: Storage, output: str, condition: str, run: str, lease: int, tell: Tell = silent) -> Request:
    """The open request if it has this condition; otherwise a new one. Raises RecipeError if another request is open.

    Args:
        storage: of the output.
        output: the output's path.
        condition: SQL over the columns of `data` (output/where.py).
        run: the recipe, as column `run` names it.
        lease: the number of the run's lease.
        tell: is called with the progress.
    """
    now = load(storage, output)
    if now is None:
        return _begin(storage, output, Request(condition=condition, run=run, since=lease), tell)
    if (now.condition, now.run) != (condition, run):
        other = "another recipe" if now.condition == condition else f"--again {now.condition!r}"
        raise RecipeError(
            f"--again: {output} is not yet done with {other}; finish that first, or delete {join(output, FOLDER)}."
        )
    return now


def load(storage: Storage, output: str) -> Request | None:
    """The open request of an output; None if there is none."""
    path = join(output, FOLDER, REQUEST)
    try:
        told = json.loads(storage.read(path))
        rows = pq.read_table(io.BytesIO(storage.read(join(output, FOLDER, ROWS))))
        return Request(**told, chosen=_chosen(rows))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise SystemFailure(f"{path}: is not the request of an --again; delete the folder and run again.") from error


def answers(storage: Storage, output: str, request: Request, tell: Tell = silent) -> Answers:
    """The answers: those stored before, and those in newer objects."""
    found = read_committed(storage, output, tell=tell, since=Written(number=request.since))
    done, failed = _stored_answers(storage, output)
    for unit, chosen in request.chosen.items():
        now = found.get(unit, Committed())
        done[unit] |= now.finished & chosen.rows
        failed[unit] |= (now.failed & chosen.rows) - done[unit]
    return Answers(done=done, failed=failed)


def settled(storage: Storage, output: str) -> list[str]:
    """Store the answers to the open request, before a repair removes rows that failed again. Remove the request if it
    is done. Returns a sentence about it."""
    request = load(storage, output)
    if request is None:
        return []
    given = answers(storage, output, request)
    if given.left(request):
        storage.put(join(output, FOLDER, ANSWERED), _parquet(given.rows()))
    else:
        for name in (REQUEST, ROWS, ANSWERED):  # the first one first: without it there is no request
            storage.delete(join(output, FOLDER, name))
    return [given.summary(request)]


def _stored_answers(storage: Storage, output: str) -> tuple[defaultdict[int, BitMap], defaultdict[int, BitMap]]:
    found: dict[str, defaultdict[int, BitMap]] = {"done": defaultdict(BitMap), "failed": defaultdict(BitMap)}
    try:
        content = storage.read(join(output, FOLDER, ANSWERED))
    except (FileNotFoundError, NotADirectoryError):
        content = _parquet([])
    for row in pq.read_table(io.BytesIO(content)).to_pylist():
        found[row["object"]][row["unit"]] = BitMap.deserialize(row["rows"])
    return found["done"], found["failed"]


def _begin(storage: Storage, output: str, request: Request, tell: Tell) -> Request:
    """Find the rows that meet the condition, and store the request. Each row must be in `data` once."""
    condition = Condition(text=request.condition, schema=output_schema(storage, output), option="--again")
    found = committed_objects(storage, output, [DATA])
    parts = scan(partial(_matching, storage, condition), found, "looking for rows to do again", tell)
    rows = [row for part in parts for row in part]
    storage.delete(join(output, FOLDER, ANSWERED))  # of a request that was deleted by hand
    storage.put(join(output, FOLDER, ROWS), _parquet(rows))
    told = {"condition": request.condition, "run": request.run, "since": request.since}
    storage.put(join(output, FOLDER, REQUEST), json.dumps(told).encode())
    return replace(request, chosen=_chosen(pa.Table.from_pylist(rows, SCHEMA)))


def _matching(storage: Storage, condition: Condition, folder: str, objects: Sequence[Stored]) -> list[Row]:
    tables = prefetched(partial(_read, storage, condition), objects)
    return [
        {"unit": unit, "object": stored.path.rpartition("/")[2], "rows": rows}
        for stored, table in zip(objects, tables, strict=True)
        for unit, rows in bitmaps(identities(table)[condition.of(table)])
    ]


def _read(storage: Storage, condition: Condition, stored: Stored) -> pa.Table:
    """The columns of an object that the condition needs, and the rows' identities."""
    with opened(storage, stored) as file:
        there = [name for name in condition.columns if name in file.schema_arrow.names]
        return file.read(columns=[*dict.fromkeys(["unit", "index", *there])], use_threads=False)


def _chosen(rows: pa.Table) -> dict[int, Chosen]:
    by_unit: defaultdict[int, list[tuple[str, BitMap]]] = defaultdict(list)
    for row in rows.to_pylist():
        by_unit[row["unit"]].append((row["object"], BitMap.deserialize(row["rows"])))
    return {
        unit: Chosen(rows=BitMap.union(*(rows for _, rows in found)), objects=tuple(name for name, _ in found))
        for unit, found in by_unit.items()
    }


def _parquet(rows: list[Row]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()
