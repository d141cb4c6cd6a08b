"""Manifests: text files whose rows name images (manifest_text.py). A unit is a range of one file's lines. A job that
reads no images uses the rows alone.

Planning streams a manifest once, to find where its rows are and which columns it has. It holds only the ranges.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import pyarrow as pa
from pyroaring import BitMap

from caprl_ray.errors import RecipeError, RowFailure
from caprl_ray.plan import Entry, LeftOut, Lines, Unit, batched
from caprl_ray.sources.image_column import PATH_NAMES, ImageColumn, image_column
from caprl_ray.sources.image_roots import Roots
from caprl_ray.sources.manifest_text import MOST_COLUMNS, MOST_ROW, Manifest, NoManifest, Row, named
from caprl_ray.sources.manifest_types import arrays, common, type_of
from caprl_ray.sources.parquet_looks import ROWS_LOOKED_AT, look_at
from caprl_ray.sources.parquet_rows import IMAGES_AT_ONCE, Rows
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access, Found, planning_failures, source_failures
from caprl_ray.sources.tape import TarDamaged
from caprl_ray.storage import Stored
from caprl_ray.storage.prefetch import prefetched
from caprl_ray.text import readable

UNIT_ROWS = 1000
# A unit of a compressed manifest reads everything before it again, so such a manifest has few units.
MOST_PACKED_UNITS = 32
PIECE = 2**18  # bytes per request of a unit
DELIMITERS = ";\t|"  # of lists that are not read
NO_IMAGE = "\0"  # the image column's name if no images are read; no column of the output has it


def takes(stored: Stored) -> bool:
    """Whether a file is a manifest, by its name."""
    return named(stored.path)


def plan(found: Iterator[Found], access: Access) -> Iterator[Unit]:
    """Yield units of lines, in the order of the files. A file without rows has no unit.

    Raises RecipeError if a file is not a manifest, if its image column is not clear, or if its rows name no image that
    may be read. Raises SystemFailure if a file cannot be opened.
    """
    looked = False
    for file in found:
        with _refused(file.stored):
            survey = _survey(file.stored, access, first=not looked)
            if not survey.ranges:
                continue
            schema = pa.schema([pa.field(name, kind) for name, kind in survey.types.items()])
            if not access.images:
                yield from _units(file, survey, _metadata(schema, NO_IMAGE))
                continue
            if access.input.image_column is None:
                _refuse_delimiter(schema.names)
            image = image_column(schema, access.input.image_column, file.stored.path)
            if not looked:
                texts = list(islice(_texts(file.stored, image, access), ROWS_LOOKED_AT))
                look_at(texts, _texts(file.stored, image, access), file.stored, image, access)
                looked = True
            yield from _units(file, survey, _metadata(schema, image.name))


def row(unit: Unit, index: int) -> int | None:
    """The number within its file of the unit's row at an index, if the plan tells it."""
    return unit.lines.row + index if unit.lines else None


@dataclass(kw_only=True)
class _Survey:
    """Where the rows of a manifest are, how many there are in each range, and the types of its columns."""

    types: dict[str, pa.DataType] = field(default_factory=dict)
    ranges: list[tuple[Lines, int]] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def add(self, row: Row) -> None:
        for name, value in row.values.items():
            kind = type_of(value)
            if self.types.get(name) != kind:
                self.types[name] = common(self.types.get(name, pa.null()), kind)
        if self.types.keys() - self._known:
            self._known |= self.types.keys()
            if len(self.types) > MOST_COLUMNS or sum(map(len, self.types)) > MOST_ROW:
                raise NoManifest(f"has more than {MOST_COLUMNS:,} columns up to line {row.last}, or too long names")


def _survey(stored: Stored, access: Access, *, first: bool) -> _Survey:
    """Read a whole manifest. Raises NoManifest for the `first` one if its first rows are all faulty. In a later one,
    such rows fail, because one faulty file must not end a run over many."""
    survey, number = _Survey(), 0
    with planning_failures(stored.path), access.storage.open(stored) as stream:
        manifest = Manifest(stream, stored.path)
        survey.types = dict.fromkeys(manifest.names or (), pa.string())
        start, line = manifest.place
        rows = manifest.rows()
        for row in rows:
            last, count, sound = row, 0, bool(survey.ranges)
            for last in chain([row], islice(rows, UNIT_ROWS - 1)):  # holds the first row and the current one
                count += 1
                sound = sound or not last.fault
                if manifest.names is None:
                    survey.add(last)
            if not sound and (first or manifest.names is None):  # JSON lines then have no columns
                raise NoManifest(f"has no row in its first lines ({row.lines}: {row.fault})")
            survey.ranges.append((Lines(start=start, end=last.end, row=number, line=line), count))
            start, line, number = last.end, last.last, number + count
        if manifest.packed:
            survey.ranges = list(map(_joined, batched(survey.ranges, len(survey.ranges) // MOST_PACKED_UNITS + 1)))
    return survey


def _refuse_delimiter(names: list[str]) -> None:
    """Spreadsheets write CSV with semicolons where a comma stands in numbers."""
    found = next((sign for sign in DELIMITERS if len(names) == 1 and sign in names[0]), None)
    if found:
        raise NoManifest(f"has {found!r} between its columns; write it with commas, or with tabs as .tsv")


def _joined(ranges: list[tuple[Lines, int]]) -> tuple[Lines, int]:
    return replace(ranges[0][0], end=ranges[-1][0].end), sum(rows for _, rows in ranges)


def _units(file: Found, survey: _Survey, columns: pa.Schema) -> Iterator[Unit]:
    entry, last = Entry(stored=file.stored, key=file.key), survey.ranges[-1][0]
    for lines, rows in survey.ranges:
        yield Unit(
            kind="manifest",
            rows=rows,
            entries=[entry],
            columns=columns,
            lines=lines,
            bytes=lines.end - lines.start,
            more=lines is not last,
        )


def _metadata(schema: pa.Schema, image: str) -> pa.Schema:
    own = (column for column in schema if column.name != image)
    return pa.schema([f.with_metadata({"description": f"The source's column {f.name}."}) for f in own])


def _texts(stored: Stored, image: ImageColumn, access: Access) -> Iterator[str]:
    """The texts in the image column, in order, without nulls."""
    with planning_failures(stored.path), access.storage.open(stored, piece=PIECE) as stream:
        for row in Manifest(stream, stored.path).rows():
            text = row.values.get(image.name)
            if isinstance(text, str) and text:
                yield text


@contextmanager
def _refused(stored: Stored) -> Iterator[None]:
    """Raise RecipeError for a file that is not a manifest, because its rows cannot be located."""
    try:
        yield
    except (NoManifest, TarDamaged) as error:
        raise RecipeError(f"input: {stored.path} {_said(error)}.") from None


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, NoManifest) else f"cannot be read: {error}"


def read(unit: Unit, done: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
    """Yield the samples of the unit's lines in order. None is yielded in place of samples in `done`.

    Raises RowFailure at the end if there are not as many rows as planned. Then another version of the file is read, and
    its rows are not the planned ones.
    """
    (entry,) = unit.entries
    lines = unit.lines
    assert lines is not None
    try:
        with source_failures(entry.stored, access), access.storage.open(entry.stored, piece=PIECE) as stream:
            rows = islice(Manifest(stream, entry.stored.path).rows(lines), unit.rows)
            reader = _Reader(entry=entry, access=access, roots=Roots.of(entry.stored.path, access), done=done)
            found = 0
            for sample in reader.samples(rows, lines.row):
                yield sample
                found += 1
    except (NoManifest, TarDamaged) as error:
        raise RowFailure("truncated_unit", f"the manifest {_said(error)}") from None
    if found != unit.rows:
        raise RowFailure("source_changed", f"planned: {unit.rows} rows in these lines; found: {found}")


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Makes the samples of rows."""

    entry: Entry
    access: Access
    roots: Roots
    done: BitMap

    def samples(self, rows: Iterable[Row], first: int) -> Iterator[Sample | None]:
        """Yield the samples of rows. `first`: the number of the first row in the file."""

        def sample(numbered: tuple[int, Row]) -> Sample | None:
            number, row = numbered
            return None if number in self.done else self._sample(row, first + number)

        return prefetched(sample, enumerate(rows), IMAGES_AT_ONCE)

    def _sample(self, row: Row, number: int) -> Sample:
        key, source = f"{readable(self.entry.key)}:{number}", self.entry.stored.path
        if row.fault:
            failure = RowFailure("bad_line", f"{row.lines}: {row.fault}")
            return Sample(source=source, row=number, key=key, image=None, metadata={}, failure=failure)
        image = _image_of(row.values, self.access.input.image_column) if self.access.images else NO_IMAGE
        batch = pa.RecordBatch.from_pydict(arrays({image: None, **row.values}))
        columns = [f for f in _metadata(batch.schema, image) if self.access.input.columns.keeps(f.name)]
        made = Rows(
            entry=self.entry,
            access=self.access,
            image=ImageColumn(name=image, fields=(), has_bytes=False) if self.access.images else None,
            roots=self.roots,
            columns=pa.schema(columns),
            partitions={},
        )
        return made.sample(batch, number)


def _image_of(values: Mapping[str, Any], configured: str | None) -> str:
    """The image column of a row. A row may lack it. Planning has checked that only one column of the file fits."""
    texts = (name for name, value in values.items() if isinstance(value, str) and name.lower() in PATH_NAMES)
    return configured or next(texts, PATH_NAMES[0])
