"""WebDataset: the source's shards with captions in them, captions alone beside the shards, or new shards.

The same rows give the same bytes. Members of a shard are copied as they are, in order, in pieces of a megabyte.
"""

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, starmap
from typing import Any, BinaryIO

import pyarrow as pa

from caprl_ray.errors import RecipeError, RowFailure, SystemFailure
from caprl_ray.export.encode import encoded, struct
from caprl_ray.export.form import Writing
from caprl_ray.export.images import CHANGED, pictured, present
from caprl_ray.export.parts import SHARDS, Part, by_rows, by_source
from caprl_ray.export.rows import UnitRows, reader
from caprl_ray.export.source import NOT_TOLD, Source
from caprl_ray.export.tar import TarWriter
from caprl_ray.export.target import Written
from caprl_ray.plan import Entry
from caprl_ray.prepare.kinds import kind
from caprl_ray.read.sandbox import ReadSandbox
from caprl_ray.rows.schema import is_own
from caprl_ray.sources.samples import IMAGE_EXTENSIONS, sample_of
from caprl_ray.sources.source import Access, source_failures
from caprl_ray.sources.tar import TarDamaged, stream_members

ROWS = 5_000  # of a new shard
MEMBER = "caption"
EXTENSIONS = {"a JPEG": "jpg", "a PNG": "png", "WebP": "webp", "a GIF": "gif", "a TIFF": "tif", "a BMP": "bmp"}
EXTENSIONS |= {"AVIF": "avif", "HEIC": "heic", "JPEG XL": "jxl"}


@dataclass(frozen=True, slots=True)
class Row:
    """A row as a tar has it: the text of its caption, and all that is told of it as JSON. `theirs` are the source's own
    columns as JSON, if a new shard is to have them."""

    id: str
    key: str | None
    sha256: str | None
    text: bytes
    told: bytes
    theirs: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The form `webdataset`."""

    source: Source
    access: Access
    target: str
    rows: int
    member: str
    sidecars: bool

    @classmethod
    def of(cls, source: Source, target: str, rows: int | None, member: str | None, sidecars: bool) -> "Shards":
        """Raises RecipeError for sidecars of what are no shards, and for a name that no member can have."""
        member = member or MEMBER
        if not member.replace("_", "").replace("-", "").isalnum() or member != member.lower():
            raise RecipeError(f"--member: {member!r} cannot be part of a member's name; use small letters and digits.")
        if sidecars and any(ref.kind != SHARDS for ref in source.plan.units):
            raise RecipeError(
                f"--sidecars: not all images of {source.path} lie in shards, and captions alone need shards to be "
                "zipped with; leave it out."
            )
        access = source.access()
        return cls(source=source, access=access, target=target, rows=rows or ROWS, member=member, sidecars=sidecars)

    def parts(self, units: Sequence[UnitRows]) -> Iterator[Part]:
        """A tar for each shard under its name. Files and tables are cut by rows, and numbered."""
        new: list[Part] = []
        for is_shard, some in groupby(units, key=lambda unit: unit.ref.kind == SHARDS):
            if not is_shard:
                new += by_rows(some, self.rows, first=len(new))
        shards = [unit for unit in units if unit.ref.kind == SHARDS]
        return chain(new, by_source(self.source.storage, shards, {part.name for part in new}))

    def write(self, part: Part) -> Written:
        """One tar; an empty one without rows, so that numbers have no gaps."""
        writing = Writing(storage=self.source.storage, target=self.target, part=part)
        name = f"{part.name}.tar"
        if part.units[0].ref.kind != SHARDS:
            with writing.file(name) as file, ReadSandbox() as sandbox:
                self._pack(writing, file, sandbox)
        elif self.sidecars or not part.kept:
            with writing.file(name) as file:
                self._captions(writing, file)
        else:
            self._shard(writing, name)
        return writing.written()

    def finish(self, written: Mapping[str, Written]) -> None:
        """There is no common file."""

    def _rows(self, unit: UnitRows) -> Iterator[Row]:
        tables = reader(self.source.storage).rows(unit, self.source.own)
        return (row for table in tables for row in self._each(table))

    def _each(self, table: pa.Table) -> Iterator[Row]:
        """The rows of a table."""
        told = self.source.told(table.select(self.source.own.names))
        names = struct(name for name in told.schema.names if name not in NOT_TOLD)
        known = (table[name].to_pylist() for name in ("id", "key", "sha256"))
        texts = table["caption"].cast(pa.binary()).to_pylist()
        return starmap(Row, zip(*known, texts, encoded(told, names), strict=True))

    def _each_with_theirs(self, table: pa.Table) -> Iterator[Row]:
        """The rows of a table with the source's own columns, if there are any."""
        theirs = [name for name in self.source.schema.names if not is_own(self.source.schema, name)]
        if not theirs:
            return self._each(table)
        packed = map(_json, table.select(theirs).to_pylist())
        return (replace(row, theirs=content) for row, content in zip(self._each(table), packed, strict=True))

    def _captions(self, writing: Writing, file: BinaryIO) -> None:
        """The captions alone, under the keys of their samples."""
        tar = TarWriter(file)
        for row in self._rows(writing.part.units[0]):
            self._add_caption(tar, (row.key or "").encode(), row)
            writing.exported += 1
        tar.close()

    def _pack(self, writing: Writing, file: BinaryIO, sandbox: ReadSandbox) -> None:
        """Images of files or of a table, under the ids of their rows."""
        tar, held = TarWriter(file), reader(self.source.storage)
        for unit in writing.part.units:
            for one in pictured(held, unit, self.source.schema, self.access, sandbox, self._each_with_theirs):
                if one.image is None:
                    writing.missing[one.code] += 1
                    continue
                key = one.row.id.encode()
                tar.add(key + b"." + _extension(one.key, one.image), len(one.image), [one.image])
                if one.row.theirs:
                    _add(tar, key + b".json", one.row.theirs)
                self._add_caption(tar, key, one.row)
                writing.exported += 1
        tar.close()

    def _shard(self, writing: Writing, name: str) -> None:
        """A shard with captions. One that is gone, or has none of the images any more, is not written."""
        (unit,) = writing.part.units
        now, other = present(unit.ref.load(self.source.storage), self.access)
        (entry,) = now.entries
        code = CHANGED if other else "truncated_unit"  # of the images that are not there
        try:
            with (
                source_failures(entry.stored, self.access),
                self.source.storage.open(entry.stored) as stream,
                writing.file(name) as file,
                source_failures(entry.stored, self.access),  # before a fault of the source is one of the file
            ):
                exported = self._copy(stream, entry, unit, TarWriter(file), prove=other)
                if not exported:
                    raise RowFailure(code)
        except RowFailure as failure:
            exported = 0
            writing.missing[failure.code] += len(unit.kept)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise SystemFailure(f"{entry.stored.path}: cannot be read ({reason}).") from error
        if 0 < exported < len(unit.kept):
            writing.missing[code] += len(unit.kept) - exported
        writing.exported = exported

    def _copy(self, stream: BinaryIO, entry: Entry, unit: UnitRows, tar: TarWriter, *, prove: bool) -> int:
        """Copy the samples that are kept, each with its caption after its members; returns their number.

        If they are to `prove` that they are those that were captioned, others are left out.
        """
        rows, place_of = self._rows(unit), sample_of()
        last, current, copied = unit.kept.max(), -1, 0
        sample: _Copied | None = None
        try:
            for member in stream_members(stream, entry.stored.size):
                extension, index = place_of(member.text) or ("", current)
                if not extension:
                    continue
                if index != current:
                    copied += self._end(tar, sample)
                    sample, current = None, index
                    if index > last:
                        break
                    if index in unit.kept:
                        sample = _Copied(row=next(rows), key=_key(member.name), start=tar.offset, proved=not prove)
                if sample:
                    self._refuse_twice(extension, entry)
                    tar.add(member.name, member.size, member.pieces if sample.proved else sample.seen(member.pieces))
            copied += self._end(tar, sample)
        except TarDamaged:
            if sample:
                tar.back_to(sample.start)
        tar.close()
        return copied

    def _end(self, tar: TarWriter, sample: "_Copied | None") -> int:
        """Add the caption of a sample whose members are all there, or take back one that is another."""
        if sample is None:
            return 0
        if not sample.proved:
            tar.back_to(sample.start)
            return 0
        self._add_caption(tar, sample.key, sample.row)
        return 1

    def _refuse_twice(self, extension: str, entry: Entry) -> None:
        if extension in (f"{self.member}.txt", f"{self.member}.json"):
            raise RecipeError(
                f"--member: {entry.stored.path} has members {extension} of its own; give the captions another name, "
                f"such as --member=re{self.member}, and another --out."
            )

    def _add_caption(self, tar: TarWriter, key: bytes, row: Row) -> None:
        name = key + b"." + self.member.encode()
        _add(tar, name + b".json", row.told)
        _add(tar, name + b".txt", row.text)


@dataclass(kw_only=True)
class _Copied:
    """A sample under way: its row, its key as the shard has it, and where it begins in the tar.

    It is `proved` if one of its members is the image that was captioned, or if no proof is asked for.
    """

    row: Row
    key: bytes
    start: int
    proved: bool

    def seen(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces of a member, which proves the sample if it is the image."""
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            yield piece
        self.proved |= digest.hexdigest() == self.row.sha256


def _key(name: bytes) -> bytes:
    """The key of a member's sample: its name up to the first dot of its base name."""
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def _add(tar: TarWriter, name: bytes, content: bytes) -> None:
    tar.add(name, len(content), [content])


def _json(content: Mapping[str, Any]) -> bytes:
    text = ENCODER.encode(content)
    if "NaN" in text or "Infinity" in text:  # Python writes them, and JSON has no such numbers
        text = ENCODER.encode(_finite(content))
    return text.encode("utf-8", "replace")


def _finite(value: Any) -> Any:
    """A value with null in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    """A value that JSON has no type for, as text; bytes that are none as base64."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def _extension(key: str, image: bytes) -> bytes:
    """The ending of an image's name: as its key has it, or by its bytes."""
    ending = key.rpartition(".")[2].lower()
    return (ending if ending in IMAGE_EXTENSIONS else EXTENSIONS.get(kind(image), "img")).encode()


ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain)
