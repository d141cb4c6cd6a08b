"""A dataset folder that `datasets.load_dataset` opens: parquet files by split, and a dataset card."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from caprl_ray.errors import RecipeError
from caprl_ray.export.card import card
from caprl_ray.export.form import Writing
from caprl_ray.export.images import pictured
from caprl_ray.export.parts import Part, by_rows, with_columns
from caprl_ray.export.rows import Reader, UnitRows, reader
from caprl_ray.export.source import CAPTION, NOT_TOLD, Source
from caprl_ray.export.target import Written
from caprl_ray.output.objects import fitted
from caprl_ray.read.sandbox import ReadSandbox
from caprl_ray.rows import features
from caprl_ray.sources.source import Access

ROWS, ROWS_WITH_IMAGES = 100_000, 5_000  # of a file
GROUP_BYTES, GROUP_ROWS = 16 * 2**20, 1000  # of a row group, which memory holds
IMAGE = "image"
IMAGES = pa.field(IMAGE, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
README = "README.md"
# The words in a path by which `datasets` finds splits.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORD = re.compile("[a-z]+")
Row = tuple[pa.Table, int]  # a table, and the number of the row in it


def split_of(key: str) -> str:
    """The split of an image's, a shard's or a table's path: the first word that names one, otherwise train."""
    known = {word: split for split, words in SPLITS.items() for word in words}
    return next((known[word] for word in _WORD.findall(key.lower()) if word in known), "train")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The form `hf`. `access` tells how images are read, if they are wanted."""

    source: Source
    access: Access | None
    target: str
    rows: int
    license: str

    @classmethod
    def of(cls, source: Source, target: str, rows: int | None, license: str, *, images: bool) -> "Folder":
        """Raises RecipeError if the images would have another column's name."""
        if images and IMAGE in source.schema.names:
            raise RecipeError(f"--images: the rows of {source.path} have a column {IMAGE} already; leave it out.")
        rows = rows or (ROWS_WITH_IMAGES if images else ROWS)
        access = source.access() if images else None
        return cls(source=source, access=access, target=target, rows=rows, license=license)

    def parts(self, units: Sequence[UnitRows]) -> Iterator[Part]:
        """Whole units, up to a number of rows."""
        return with_columns(by_rows(units, self.rows), self.schema)

    def write(self, part: Part) -> Written:
        """One file for each split that the part has."""
        writing = Writing(storage=self.source.storage, target=self.target, part=part)
        held = reader(self.source.storage)
        with _Files(writing=writing, schema=self.schema) as files, ReadSandbox() as sandbox:
            for unit in part.units:
                entry = None if unit.ref.kind == "files" else unit.ref.load(self.source.storage).entries[0].key
                for rows in self._rows(held, unit, writing, sandbox):
                    files.add(self.source.told(rows), None if entry is None else split_of(entry))
        return writing.written()

    def finish(self, written: Mapping[str, Written]) -> None:
        """The dataset card."""
        tallies: dict[str, int] = {}
        for part in written.values():
            for name, count in part.tallies.items():
                tallies[name] = tallies.get(name, 0) + count
        writing = Writing(storage=self.source.storage, target=self.target, part=Part(name=README, number=0, units=()))
        with writing.file(README) as file:
            file.write(card(self.source, self.schema, self.license, tallies).encode())

    @property
    def schema(self) -> pa.Schema:
        """The columns, with what `datasets` knows of them beyond their types."""
        own = (field for field in self.source.schema if field.name not in NOT_TOLD)
        ours = [field.with_type(features.readable(field.type)) for field in own]
        known = {name: json.loads(told) for name, told in features.features(self.source.schema.metadata).items()}
        told = {name: feature for name, feature in known.items() if name not in NOT_TOLD}
        if self.access:
            ours, told = [IMAGES, *ours], {IMAGE: {"_type": "Image"}, **told}
        return pa.schema(ours, {features.KEY: json.dumps({"info": {"features": told}}).encode()} if told else None)

    def _rows(self, held: Reader, unit: UnitRows, writing: Writing, sandbox: ReadSandbox) -> Iterator[pa.Table]:
        if self.access is None:
            yield from held.rows(unit, self.source.schema)
            return
        some: list[Row] = []
        images: list[tuple[bytes, str]] = []
        size = 0
        for one in pictured(held, unit, self.source.schema, self.access, sandbox, _each):
            if one.image is None:
                writing.missing[one.code] += 1
                continue
            some.append(one.row)
            images.append((one.image, one.key.rpartition("/")[2]))
            size += len(one.image)
            if size >= GROUP_BYTES or len(some) >= GROUP_ROWS:
                yield _with_images(some, images)
                some, images, size = [], [], 0
        if some:
            yield _with_images(some, images)


def _each(table: pa.Table) -> Iterator[Row]:
    return ((table, number) for number in range(table.num_rows))


def _with_images(rows: list[Row], images: list[tuple[bytes, str]]) -> pa.Table:
    content, names = (pa.array(part) for part in zip(*images, strict=True))
    of_each = (list(some) for _, some in groupby(rows, key=lambda row: id(row[0])))
    tables = [_taken(some[0][0], [number for _, number in some]) for some in of_each]
    return pa.concat_tables(tables).append_column(
        IMAGES, pa.StructArray.from_arrays([content, names], fields=[*IMAGES.type])
    )


def _taken(table: pa.Table, numbers: list[int]) -> pa.Table:
    """Some rows of a table, in order. Those that stand together are not copied."""
    first, count = numbers[0], len(numbers)
    return table.slice(first, count) if numbers[-1] - first == count - 1 else table.take(pa.array(numbers))


def _packed(schema: pa.Schema) -> dict[str, str]:
    """How parquet packs each of its columns: images are packed already."""
    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty)
    paths = [column.path for column in pq.ParquetFile(empty.getvalue()).schema]
    return {path: "none" if path == f"{IMAGE}.bytes" else "zstd" for path in paths}


@dataclass(kw_only=True)
class _Files:
    """The files of a part by split, opened when they get their first rows, and there when the block ends."""

    writing: Writing
    schema: pa.Schema
    open: ExitStack = field(default_factory=ExitStack)
    writers: dict[str, pq.ParquetWriter] = field(default_factory=dict)

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self.open.__exit__(*error)

    def add(self, rows: pa.Table, split: str | None) -> None:
        """Add rows of one split; without one, each row's key tells it."""
        splits = pa.array([] if split else map(split_of, rows["key"].to_pylist()), pa.string())
        self._count(rows)
        for name in (split,) if split else splits.unique().to_pylist():
            of_one = rows if split else rows.filter(pc.equal(splits, name))
            self._writer(name).write_table(fitted(of_one, self.schema), row_group_size=GROUP_ROWS)
            self.writing.tallies[f"split {name}"] += of_one.num_rows

    def _count(self, rows: pa.Table) -> None:
        tallies = self.writing.tallies
        self.writing.exported += rows.num_rows
        tallies["tokens"] += pc.sum(rows["caption_tokens"]).as_py() or 0
        tallies["characters"] += pc.sum(pc.utf8_length(rows["caption"])).as_py() or 0
        tallies["flagged"] += pc.sum(pc.greater(pc.list_value_length(rows["flags"]), 0)).as_py() or 0
        for model, count in (one.values() for one in pc.value_counts(rows["model"]).to_pylist()):
            tallies[f"model {model}"] += count

    def _writer(self, split: str) -> pq.ParquetWriter:
        if split not in self.writers:
            file = self.open.enter_context(self.writing.file(f"data/{split}-{self.writing.part.name}.parquet"))
            repeating = [name for name in self.schema.names if name not in (IMAGE, CAPTION)]
            writer = pq.ParquetWriter(
                file,
                self.schema,
                compression=_packed(self.schema),
                use_dictionary=repeating,
                write_statistics=repeating,  # the smallest image says nothing
            )
            self.writers[split] = self.open.enter_context(writer)
        return self.writers[split]
