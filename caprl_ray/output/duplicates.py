"""Rows of an output with the same image, and different images with the same caption, in bounded memory.

Every row becomes a record of 48 bytes in temporary files, by hashes of its image (output/partitions.py). All rows with
the same image lie in one file. So do all pairs of the same image and caption: each file adds to each caption the number
of its images, in a second set of files. A billion rows take 48 to 96 GB there.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyroaring import BitMap

from caprl_ray.output.committed import identities, opened
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA
from caprl_ray.output.partitions import KEY, Limits, Part, Partitions, aggregated, grouped, hashed, records
from caprl_ray.output.scan import Tell, silent
from caprl_ray.rows.schema import row_id
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.prefetch import prefetched

SHOWN = 20  # largest groups of each kind
BATCH = 2**16  # rows that are Python objects at once: of an object, with their captions, and of the list
COLUMNS = ["unit", "index", "sha256", "caption"]

# `place` is the number of the row's object << 32 | its position there.
ROW = np.dtype([("image", KEY), ("caption", KEY), ("identity", "<i8"), ("place", "<i8")])
CAPTION = np.dtype([("caption", KEY), ("rows", "<i8"), ("images", "<i8"), ("least", "<i8"), ("most", "<i8")])
SUMS = {"rows": "sum", "images": "sum", "least": "min", "most": "max"}
NO_CAPTION = pa.scalar(bytes(16), pa.binary(16))  # of another job's rows
OF_PLAN = b"caprl_ray.plan"  # in a list's metadata: the identity of the plan whose rows it names
LIST = pa.schema(
    [
        pa.field("id", pa.string(), metadata={"description": "The row."}),
        pa.field(
            "group", pa.string(), metadata={"description": "The first 32 digits of the SHA-256 that its image shares."}
        ),
        pa.field("keep", pa.bool_(), metadata={"description": "Whether it is the first row of its group."}),
    ]
)


@dataclass(order=True, frozen=True)
class Group:
    """Rows with the same image, or with the same caption. `key` is its hash, `places` are of two of the rows."""

    rows: int
    images: int
    key: bytes
    places: tuple[int, ...]


@dataclass
class Found:
    """The groups of one kind: their number, that of their rows, and the largest ones, the largest first."""

    groups: int = 0
    rows: int = 0
    largest: list[Group] = field(default_factory=list)

    def add(self, groups: pa.Table, key: str, by: str) -> None:
        """Count groups. `by` is the column that says how large a group is."""
        self.groups += groups.num_rows
        self.rows += pc.sum(groups["rows"]).as_py() or 0
        top = groups.take(pc.select_k_unstable(groups, SHOWN, [(by, "descending"), (key, "ascending")]))
        new = [
            Group(row["rows"], row["images"], row[key], tuple(dict.fromkeys((row["least"], row["most"]))))
            for row in top.to_pylist()
        ]
        order = (lambda group: (group.images, group.rows)) if by == "images" else (lambda group: (group.rows, 0))
        self.largest = heapq.nsmallest(
            SHOWN, [*self.largest, *new], key=lambda group: (*(-n for n in order(group)), group.key)
        )


@dataclass
class Duplicates:
    """The repeats of an output: all `rows`, groups of the same image, and different images with the same caption."""

    objects: Sequence[Stored]
    rows: int = 0
    images: Found = field(default_factory=Found)
    captions: Found = field(default_factory=Found)


def find(
    storage: Storage,
    output: str,
    folder: Path,
    *,
    listed: Callable[[pa.Table], None] | None = None,
    limits: Limits | None = None,
    tell: Tell = silent,
) -> Duplicates:
    """Find them among the finished rows.

    `folder` takes the temporary files. `listed` gets the rows whose images stand there more than once, as tables of the
    schema LIST.

    Raises SystemFailure for an object that cannot be read.
    """
    limits = limits or Limits()
    found = Duplicates(committed_objects(storage, output, [DATA])[DATA])
    rows = Partitions(folder / "rows", ROW, "image", limits)
    captions = Partitions(folder / "captions", CAPTION, "caption", limits)
    for some in _read(storage, found.objects, tell):
        found.rows += len(some)
        rows.add(some)
    rows.close()
    for part in rows:
        _images(part, found.images, listed)
        for counted in _captions(part):
            captions.add(counted)
    captions.close()
    for part in captions:
        _same_captions(part, found.captions)
    return found


def _read(storage: Storage, objects: Sequence[Stored], tell: Tell) -> Iterator[np.ndarray]:
    """The records of all objects. A row that is in two objects has one record (docs/design.md, D7)."""
    seen: dict[int, BitMap] = {}
    numbered = enumerate(objects)
    for done, part in enumerate(prefetched(lambda item: _object(storage, *item), numbered), 1):
        yield part[_new(part["identity"], seen)]
        tell("reading the output's objects", done, len(objects))


def _new(rows: np.ndarray, seen: dict[int, BitMap]) -> np.ndarray:
    """A mask of the rows that are new."""
    new = np.ones(len(rows), bool)
    units, indices = rows >> 32, rows.astype(np.uint32)
    for unit in np.unique(units).tolist():
        mine = np.flatnonzero(units == unit)
        before = seen.setdefault(unit, BitMap())
        bitmap = BitMap(indices[mine])
        if before.intersect(bitmap) or len(bitmap) < len(mine):
            for place in mine.tolist():
                new[place] = int(indices[place]) not in before
                before.add(int(indices[place]))
        before |= bitmap
        before.run_optimize()
    return new


def _object(storage: Storage, number: int, stored: Stored) -> np.ndarray:
    parts, rows = [], 0
    with opened(storage, stored) as file:
        names = [name for name in COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH, columns=names, use_threads=False):
            parts.append(_records(pa.Table.from_batches([batch]), number << 32 | rows))
            rows += batch.num_rows
    return np.concatenate([*parts, np.empty(0, ROW)])


def _records(rows: pa.Table, place: int) -> np.ndarray:
    """The records of rows that have an image. `place` is that of the first row."""
    out = np.empty(rows.num_rows, ROW)
    hashes = rows["sha256"].to_pylist()
    out["image"] = _keys(bytes.fromhex(text[:32]) if text else bytes(16) for text in hashes)
    out["caption"] = _keys(_caption_keys(rows))
    out["identity"] = identities(rows)
    out["place"] = np.arange(place, place + rows.num_rows)
    kept: np.ndarray = out[np.array([bool(text) for text in hashes], bool)]
    return kept


def _caption_keys(rows: pa.Table) -> Iterable[bytes]:
    if "caption" not in rows.schema.names:  # another job's rows
        return (bytes(16) for _ in range(rows.num_rows))
    texts = rows["caption"].cast(pa.binary()).to_pylist()
    return (blake2b(text or b"", digest_size=16).digest() for text in texts)


def _keys(keys: Iterable[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(keys), KEY)


def _images(part: Part, found: Found, listed: Callable[[pa.Table], None] | None) -> None:
    """Count the repeated images of a file, and list their rows."""
    for chunks in part.passes(lambda rows: hashed(rows["image"], 1)):
        images = grouped(
            chunks(),
            ["image"],
            {"rows": "sum", "images": "max", "first": "min", "least": "min", "most": "max"},
            _with(rows=1, images=1, first="identity", least="place", most="place"),
        )
        if images is None:
            continue
        images = images.filter(pc.greater(images["rows"], 1))
        found.add(images, "image", "rows")
        if listed and images.num_rows:
            for chunk in chunks():
                for some in _listed(chunk, images):
                    listed(some)


def _captions(part: Part) -> Iterator[np.ndarray]:
    """The captions of a file, each with its rows and the number of different images. A pair of image and caption is in
    no other file and in no other pass, so these numbers add up."""
    for chunks in part.passes(lambda rows: hashed(rows["image"], 1) ^ hashed(rows["caption"], 1)):
        pairs = grouped(
            chunks(),
            ["caption", "image"],
            {"rows": "sum", "least": "min", "most": "max"},
            _with(rows=1, least="place", most="place"),
        )
        if pairs is None:
            continue
        yield records(aggregated(_with(images=1)(pairs), ["caption"], SUMS), CAPTION)


def _same_captions(part: Part, found: Found) -> None:
    for chunks in part.passes(lambda rows: hashed(rows["caption"], 1)):
        captions = grouped(chunks(), ["caption"], SUMS, lambda rows: rows)
        if captions is not None:
            several = pc.and_(pc.greater(captions["images"], 1), pc.not_equal(captions["caption"], NO_CAPTION))
            found.add(captions.filter(several), "caption", "images")


def _with(**columns: int | str) -> Callable[[pa.Table], pa.Table]:
    """Add columns: a number for all rows, or another column under this name."""

    def added(rows: pa.Table) -> pa.Table:
        for name, value in columns.items():
            values = rows[value] if isinstance(value, str) else pa.array(np.full(rows.num_rows, value))
            rows = rows.append_column(name, values)
        return rows

    return added


def _listed(chunk: np.ndarray, images: pa.Table) -> Iterator[pa.Table]:
    """The rows of a chunk with repeated images."""
    keys = pa.Array.from_buffers(pa.binary(16), len(chunk), [None, pa.py_buffer(chunk["image"].tobytes())])
    place = pc.index_in(keys, images["image"].combine_chunks())
    rows = chunk[place.is_valid().to_numpy(zero_copy_only=False)]
    keep = rows["identity"] == images["first"].to_numpy()[place.drop_null().to_numpy()]
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        ids = [row_id(row >> 32, row & 0xFFFFFFFF) for row in some["identity"].tolist()]
        groups = [bytes(key).hex() for key in some["image"]]
        yield pa.table(
            [pa.array(ids, pa.string()), pa.array(groups, pa.string()), pa.array(keep[start : start + BATCH])],
            schema=LIST,
        )
