"""Write synthetic outputs that look like those of an interrupted run: a plan of shards, and objects with most rows.

The job's own code writes them: `plan.store`, and the sink `CommittedRows` with rows of the job's schema. All captions
are the same text, and hashes repeat in every object, so that a hundred million rows fit on a disk. Resume reads neither
of them. With `different` every row has a hash and a caption of its own, but for some (`image_of`). Shards are hard
links to one tar, so that every unit can be opened.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from caprl_ray import plan
from caprl_ray.caption.columns import CAPTION
from caprl_ray.output.commit import CommittedRows
from caprl_ray.plan import Entry, Unit
from caprl_ray.rows.schema import row_id, row_schema
from caprl_ray.sources.samples import METADATA
from caprl_ray.storage import Storage

UNITS = 10_000
UNDONE = 100  # one of this many units is half done, beginning with the first
MOST_LINKS = 50_000  # to one file; ext4 allows 65,000
ROWS_PER_OBJECT = 2048  # the default of output.rows_per_object
BATCH = 32  # rows of one unit that reach a write task together (a caption batch)
OPEN_UNITS = 64  # units that are read at the same time, so that their batches are mixed
FAILED_OBJECTS = 10  # one of this many write tasks has a failed row
FAILED_ROWS = 100  # of an output with many failures, one of this many rows
CODE = "caption_empty"
LAYOUTS = ("mixed", "sorted")
SCHEMA = row_schema(METADATA, CAPTION)


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """One output: its folder, the number of planned rows, and its layout.

    In the layout `sorted` an object has rows of one unit, in `mixed` of many units. With `failures`, one of FAILED_ROWS
    rows has failed.
    """

    folder: Path
    rows: int
    layout: str
    failures: bool = False
    different: bool = False
    units: int = UNITS
    rows_per_object: int = ROWS_PER_OBJECT

    @property
    def unit_rows(self) -> int:
        """Rows of one unit."""
        return self.rows // self.units

    @property
    def out(self) -> Path:
        """The output folder."""
        name = f"{self.layout}-{self.rows}" + (f"-{self.units}" if self.units != UNITS else "")
        return self.folder / f"{name}{'-failures' * self.failures}{'-different' * self.different}"

    @property
    def shards(self) -> Path:
        """The input folder."""
        return self.folder / f"shards-{self.rows}-{self.units}"

    def done(self, unit: int) -> int:
        """How many of the unit's rows are in the output. They are its first rows."""
        return self.unit_rows // 2 if unit % UNDONE == 0 else self.unit_rows


class Unsynced(Storage):
    """Local storage without fsync, which would be slow for a million files."""

    def put(self, path: str, content: bytes) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)


def write(output: Synthetic, processes: int = 2) -> int:
    """Write shards, plan and rows, unless they exist. Returns the number of rows that are done."""
    done = sum(output.done(unit) for unit in range(output.units))
    if (output.out / "data").exists():
        return done
    shards(output)
    plan.store(Storage(), str(output.out), planned(output))
    parts = [range(n * output.units // processes, (n + 1) * output.units // processes) for n in range(processes)]
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(commit, [output] * processes, parts))
    os.sync()
    return done


def shards(output: Synthetic) -> None:
    """Write a tar for each unit. MOST_LINKS of them are links to the same file."""
    if output.shards.exists():
        return
    output.shards.mkdir(parents=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(output.unit_rows):
            info = tarfile.TarInfo(f"{number:08d}.jpg")
            info.size = 400
            tar.addfile(info, io.BytesIO(hashlib.sha512(b"%d" % number).digest().ljust(400)))
    for number in range(output.units):
        shard = output.shards / f"{number:05d}.tar"
        if number % MOST_LINKS == 0:
            first = shard
            first.write_bytes(buffer.getvalue())
        else:
            os.link(first, shard)


def planned(output: Synthetic) -> Iterator[Unit]:
    """The units as `sources.plan_units` would find them."""
    for number in range(output.units):
        stored = Storage().lookup(str(output.shards / f"{number:05d}.tar"))
        yield Unit(
            kind="webdataset", rows=None, entries=[Entry(stored=stored, key=f"{number:05d}.tar")], columns=METADATA
        )


def commit(output: Synthetic, units: range) -> None:
    """Write the rows of these units, one object at a time."""
    sink = CommittedRows(Unsynced(), str(output.out), output.rows_per_object, CAPTION, 1)
    for number, (unit, index) in enumerate(objects(output, units)):
        failed = failed_rows(index) if output.failures else np.arange(len(index)) == -(number % FAILED_OBJECTS)
        sink.write([rows(output, unit, index, failed)], None)


def failed_rows(index: np.ndarray) -> np.ndarray:
    """Which rows of an output with failures have failed."""
    return index % FAILED_ROWS == FAILED_ROWS // 2


def retried(output: Synthetic) -> int:
    """Write what a retry of all failed rows would write: every second one is captioned now. Returns their number."""
    sink = CommittedRows(Unsynced(), str(output.out), output.rows_per_object, CAPTION, 2)
    unit = np.repeat(np.arange(output.units), [len(failed_of(output, unit)) for unit in range(output.units)])
    index = np.concatenate([failed_of(output, unit) for unit in range(output.units)])
    for start in range(0, len(unit), output.rows_per_object):
        part = slice(start, start + output.rows_per_object)
        failed = index[part] // FAILED_ROWS % 2 == 1
        sink.write([rows(output, unit[part], index[part], failed, attempts=2)], None)
    os.sync()
    return len(unit)


def failed_of(output: Synthetic, unit: int) -> np.ndarray:
    """The failed rows of a unit."""
    index = np.arange(output.done(unit))
    return index[failed_rows(index)]


def objects(output: Synthetic, units: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Unit and index of each object's rows."""
    left = np.empty((2, 0), dtype=np.int64)
    together = OPEN_UNITS if output.layout == "mixed" else 1
    for first in range(units.start, units.stop, together):
        left = np.hstack([left, mixed(output, range(first, min(first + together, units.stop)))])
        whole = left.shape[1] // output.rows_per_object * output.rows_per_object
        for start in range(0, whole, output.rows_per_object):
            yield left[0, start : start + output.rows_per_object], left[1, start : start + output.rows_per_object]
        left = left[:, whole:]
    if left.shape[1]:
        yield left[0], left[1]


def mixed(output: Synthetic, units: range) -> np.ndarray:
    """Unit and index of the rows of units that are read together, batch by batch in the order of captioning."""
    rng = np.random.default_rng(units.start)
    batches = [
        (start + rng.uniform(0, 4 * BATCH), unit, start, min(start + BATCH, output.done(unit)))
        for unit in units
        for start in range(0, output.done(unit), BATCH)
    ]
    if output.layout == "mixed":
        batches.sort()
    unit = np.repeat([unit for _, unit, _, _ in batches], [end - start for _, _, start, end in batches])
    return np.vstack([unit, np.concatenate([np.arange(start, end) for _, _, start, end in batches])])


def rows(output: Synthetic, unit: np.ndarray, index: np.ndarray, failed: np.ndarray, attempts: int = 1) -> pa.Table:
    """Rows as the caption stage returns them. `failed` says which of them have failed."""
    numbers, positions, count, shards = unit.tolist(), index.tolist(), len(unit), str(output.shards)
    hashes = [image_of(number) for number in (unit * output.unit_rows + index).tolist()] if output.different else None
    columns = {
        "id": [row_id(u, i) for u, i in zip(numbers, positions, strict=True)],
        "unit": unit,
        "index": index,
        "unit_rows": pa.array(np.full(count, output.unit_rows), mask=index != output.unit_rows - 1),
        "source": [f"{shards}/{u:05d}.tar" for u in numbers],
        "key": [f"{i:08d}" for i in positions],
        "sha256": hashes or HASHES[:count],
        "caption": [text * 4 for text in hashes] if hashes else ["A red circle."] * count,
        "finish_reason": ["stop"] * count,
        "flags": [[]] * count,
        "model": ["internlm/CapRL-3B@0123456789abcdef"] * count,
        "code": pa.array([CODE] * count, mask=~failed),
        **{name: np.full(count, value) for name, value in (NUMBERS | {"attempts": attempts}).items()},
    }
    return pa.table(
        [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type) for f in SCHEMA],
        schema=SCHEMA,
    )


NUMBERS = {"width": 640, "height": 480, "attempts": 1, "prompt_tokens": 400, "caption_tokens": 4}
HASHES = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(ROWS_PER_OBJECT)]


def image_of(number: int) -> str:
    """The hash of a row's image: one in a hundred stands for a missing one, one in fifty repeats an earlier one."""
    number = 0 if number % 100 == 7 else number - 1 if number % 50 == 3 else number
    return hashlib.sha256(b"%d" % number).hexdigest()
