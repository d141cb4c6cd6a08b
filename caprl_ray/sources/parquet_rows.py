"""Turn the rows of a parquet file into samples: an image, and all other columns as metadata.

Metadata values are Arrow arrays of one row. Python's own types would lose some values (nanoseconds of a time of day)
and refuse others (dates after the year 9999).
"""

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyroaring import BitMap

from caprl_ray.errors import RowFailure
from caprl_ray.plan import Entry, batched
from caprl_ray.sources import texts
from caprl_ray.sources.image_column import ImageColumn, is_text
from caprl_ray.sources.image_path import may_be_path
from caprl_ray.sources.image_roots import Roots
from caprl_ray.sources.inline_image import decode_inline, inline
from caprl_ray.sources.named_image import read_named_image
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access
from caprl_ray.text import readable

IMAGES_AT_ONCE = 8  # images of one unit that are read in parallel, if the rows hold paths


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of an image. `row`: the number of its row in the batch. `number`: its number in the row's list, if the
    row holds one. `image`: its number among the images of the batch; None if the row's list is empty.
    """

    row: int
    image: int | None
    number: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Makes the samples of one unit.

    `image`: the image column; None if the job needs no images. `roots`: the images that rows may name by a path.
    `columns`: the metadata columns of the output. `partitions`: the values of those that the file's folders give.
    `pool`: reads the images that the rows of a batch name.
    """

    entry: Entry
    access: Access
    image: ImageColumn | None
    roots: Roots
    columns: pa.Schema
    partitions: Mapping[str, pa.Array]
    pool: ThreadPoolExecutor | None = None

    def places(self, batch: pa.RecordBatch) -> list[Place]:
        """The places of a batch's images, in order. Each is one sample. A row without an image has one too."""
        if not (self.image and self.image.listed):
            return [Place(row=number, image=number) for number in range(batch.num_rows)]
        return _listed(pc.list_value_length(batch.column(self.image.name)).to_pylist())

    def samples(
        self, batch: pa.RecordBatch, places: list[Place], row: int, start: int, done: BitMap
    ) -> Iterator[Sample | None]:
        """Yield the samples of a batch in order. None is yielded for samples in `done`.

        Args:
            row: the number of the batch's first row in the file.
            start: the index of the first sample in the unit.
        """
        sound = _is_sound(batch)
        images = self._images(batch)

        def sample(index: int) -> Sample | None:
            return None if index in done else self._sample(batch, images, places[index - start], row, sound=sound)

        numbers = range(start, start + len(places))
        content = self.image.parts(images)[0] if self.image else None
        if self.image is None or (content is not None and not content.null_count):
            yield from map(sample, numbers)
            return
        assert self.pool
        for few in batched(numbers, IMAGES_AT_ONCE):
            yield from self.pool.map(sample, few)

    def sample(self, row: pa.RecordBatch, number: int) -> Sample:
        """The sample of a batch of one row, which has this number in the file. The row holds no list of images."""
        place = Place(row=0, image=0)
        return self._sample(row, self._images(row), place, number, sound=_is_sound(row))

    def _images(self, batch: pa.RecordBatch) -> pa.Array | None:
        if self.image is None:
            return None
        column = batch.column(self.image.name)
        return column.flatten() if self.image.listed else column

    def _sample(self, batch: pa.RecordBatch, images: pa.Array | None, place: Place, row: int, *, sound: bool) -> Sample:
        row += place.row
        key = f"{readable(self.entry.key)}:{row}" + ("" if place.number is None else f"[{place.number}]")
        sample = Sample(source=self.entry.stored.path, row=row, key=key, image=None, metadata={}, failure=None)
        values = batch.slice(place.row, 1)
        try:
            unsound = () if sound else [name for name in batch.schema.names if not _is_sound(values.column(name))]
            self._fill_metadata(sample, values, unsound)
            if self.image is not None:
                if self.image.name in unsound:
                    raise RowFailure("metadata_invalid", "the image column holds a value that does not fit its type")
                if images is None or place.image is None:
                    raise RowFailure("no_image")
                self._fill_image(sample, images.slice(place.image, 1))
        except RowFailure as failure:
            # A new object: the caught one holds a traceback, which would keep the row in memory.
            sample.failure = RowFailure(failure.code, failure.detail)
        return sample

    def _fill_image(self, sample: Sample, image: pa.Array) -> None:
        """Fill in key, source and image. Raises RowFailure if the image is missing or refused."""
        assert self.image
        contents, paths = self.image.parts(image)
        path = str((paths[0].as_py() if paths is not None else None) or "")
        text = inline(path)
        if path and text is None and may_be_path(path) and not self.image.listed:
            sample.key = path
        if contents is not None and contents[0].is_valid:
            sample.image = self._bytes(contents[0])
        elif text is not None:
            sample.image = decode_inline(text, self.access.max_bytes, known=True)
        elif path:
            named = self.roots.named(path)
            sample.source = named.path
            sample.image = read_named_image(named, self.access)
        else:
            raise RowFailure("no_image")

    def _fill_metadata(self, sample: Sample, row: pa.RecordBatch, unsound: Collection[str]) -> None:
        """Fill in the row's metadata without `unsound` columns, and without its largest values if all are too large."""
        values = {field.name: self._value(field, row) for field in self.columns if field.name not in unsound}
        left = self.access.input.max_metadata_bytes - sum(value.nbytes for value in values.values())
        if left < 0 and self.access.input.long_metadata == "fail":
            raise RowFailure("metadata_too_large", "all columns except the image together")
        dropped = [f"{texts.INVALID}:{texts.shown(name)}" for name in self.columns.names if name in unsound]
        for name in sorted(values, key=lambda name: -int(values[name].nbytes)):
            if left >= 0:
                break
            left += values.pop(name).nbytes
            dropped.append(f"{texts.TOO_LARGE}:{texts.shown(name)}")
        sample.metadata, sample.flags = values, tuple(dropped)

    def _value(self, field: pa.Field, row: pa.RecordBatch) -> pa.Array:
        given = self.partitions.get(field.name)
        return _cast(row.column(field.name), field.type) if given is None else given

    def _bytes(self, content: pa.Scalar) -> bytes:
        stored = content.value if isinstance(content, pa.DictionaryScalar) else content
        if is_text(stored.type):
            return decode_inline(stored.as_py(), self.access.max_bytes)
        buffer = stored.as_buffer()
        if buffer.size > self.access.max_bytes:
            raise RowFailure("image_too_large", f"{buffer.size} bytes")
        return bytes(buffer.to_pybytes())


def _listed(lengths: list[int | None]) -> list[Place]:
    """The places in lists of these lengths; None is a null list. A list without images has one place too."""
    places, image = [], 0
    for row, length in enumerate(lengths):
        if not length:
            places.append(Place(row=row, image=None))
        for number in range(length or 0):
            places.append(Place(row=row, image=image, number=number))
            image += 1
    return places


def _cast(value: pa.Array, kind: pa.DataType) -> pa.Array:
    return value if value.type == kind else value.cast(kind)


def _is_sound(rows: pa.RecordBatch | pa.Array) -> bool:
    """Whether all values fit their types: text is UTF-8, and dictionaries have an entry for every index."""
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
