"""The images of exported rows, read from their sources as a run reads them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import pyarrow as pa
from pyroaring import BitMap

from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.export.rows import Reader, UnitRows
from caprl_ray.plan import Entry, LeftOut, Unit
from caprl_ray.read.sandbox import ReadSandbox
from caprl_ray.read.unit import Read
from caprl_ray.sources.files import read_image
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access
from caprl_ray.storage import Stored

CHANGED, FILES = "source_changed", "files"
Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Pictured(Generic[Row]):
    """A row with the bytes of its image. Without an image, `code` says why."""

    row: Row
    key: str
    image: bytes | None
    code: str = ""


def pictured(
    reader: Reader,
    unit: UnitRows,
    schema: pa.Schema,
    access: Access,
    sandbox: ReadSandbox,
    each: Callable[[pa.Table], Iterable[Row]],
) -> Iterator[Pictured[Row]]:
    """The kept rows of a unit, each with its image. Deadly sources are read in a child (docs/design.md, D11).

    `each` makes the rows of a table."""
    if not unit.kept:
        return
    read = sandbox if unit.deadly else sandbox.plain
    planned, other = present(unit.ref.load(access.storage), access)
    rows = (row for table in reader.rows(unit, schema) for row in zip(each(table), *_known(table), strict=True))
    found = _samples(planned, unit.kept, unit.rows, access, read)
    for (row, at, named, sha256), (index, sample, code) in zip(rows, found, strict=True):
        key = named or ""
        assert at == index, "rows and images of a unit are in one order"
        image = sample.image if sample and not code else None
        if code == CHANGED and planned.kind == FILES:
            image = _present(planned.entries[index], sha256, access)
        another = other and image is not None and hashlib.sha256(image).hexdigest() != sha256
        if image is None or another:
            yield Pictured(row=row, key=key, image=None, code=CHANGED if another else code or "no_image")
        else:
            yield Pictured(row=row, key=key, image=image)


def present(unit: Unit, access: Access) -> tuple[Unit, bool]:
    """The unit of a shard or table as it is stored now, and whether that is another version than the planned one.

    Each of its images then has to prove that it is the one that was captioned (docs/design.md, D14).
    """
    if unit.kind == FILES:
        return unit, False
    (entry,) = unit.entries
    try:
        now = access.storage.lookup(entry.stored.path)
    except OSError:
        now = None  # reading it tells why
    if not isinstance(now, Stored) or now == entry.stored:
        return unit, False
    return replace(unit, entries=[Entry(stored=now, key=entry.key)]), True


def _known(table: pa.Table) -> tuple[list[int], list[str | None], list[str | None]]:
    """The index, the key and the hash of the image of each row."""
    return table["index"].to_pylist(), table["key"].to_pylist(), table["sha256"].to_pylist()


def _samples(
    unit: Unit, kept: BitMap, rows: int, access: Access, read: Read
) -> Iterator[tuple[int, Sample | None, str]]:
    """The samples of the rows in `kept`; without one, the code of its failure."""
    found = read(unit, BitMap(range(max(rows, kept.max() + 1))) - kept, access, LeftOut())
    left, last = kept.copy(), kept.max()
    try:
        for index, sample in enumerate(found):
            if index in kept:
                left.discard(index)
                failure = sample.failure if sample else None
                yield index, sample, failure.code if failure else ""
            if index == last:
                return
        raise RowFailure(CHANGED, "it has fewer rows")
    except RowFailure as failure:
        code = failure.code
    except OSError as error:
        raise SystemFailure(
            f"{unit.entries[0].stored.path}: cannot be read ({error.strerror or type(error).__name__})."
        ) from error
    finally:
        close = getattr(found, "close", None)
        if close:
            close()
    yield from ((index, None, code) for index in left)


def _present(entry: Entry, sha256: str | None, access: Access) -> bytes | None:
    """A file in another version than the planned one, if it is the image that was captioned: a retry reads a file as it
    is then, and the plan stays."""
    try:
        now = access.storage.lookup(entry.stored.path)
        image = read_image(now, access) if isinstance(now, Stored) else b""
    except (RowFailure, OSError):
        return None
    return image if sha256 and hashlib.sha256(image).hexdigest() == sha256 else None
