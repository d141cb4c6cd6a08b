"""Turn the rows of a parquet file into samples: an image, and all other columns as metadata.

Metadata values are Arrow arrays of one row. Python's own types would lose some values (nanoseconds of a time of day)
and refuse others (dates after the year 9999).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
from pyroaring import BitMap

from caprl_ray.errors import RowFailure
from caprl_ray.plan import Entry, batched
from caprl_ray.sources.image_column import ImageColumn
from caprl_ray.sources.image_path import is_web_address
from caprl_ray.sources.image_roots import Roots
from caprl_ray.sources.named_image import read_named_image
from caprl_ray.sources.samples import MAX_METADATA_BYTES, Sample
from caprl_ray.sources.source import Access
from caprl_ray.text import readable

IMAGES_AT_ONCE = 8  # images of one unit that are read in parallel, if the rows hold paths


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Makes the samples of one unit.

    `rows_before` is the number of rows in the file before the unit. `columns` are the metadata columns of the output.
    `image` is None if the job needs no images; `roots` says which images rows may name by a path.
    """

    entry: Entry
    access: Access
    image: ImageColumn | None
    roots: Roots
    columns: pa.Schema
    rows_before: int
    pool: ThreadPoolExecutor

    def samples(self, batch: pa.RecordBatch, start: int, done: BitMap) -> Iterator[Sample | None]:
        """Yield the batch's rows in order; the first has the index `start`. None is yielded for rows in `done`."""
        numbers = range(batch.num_rows)
        sound = _is_sound(batch)

        def sample(number: int) -> Sample | None:
            index = start + number
            return None if index in done else self._sample(batch.slice(number, 1), index, sound=sound)

        content = self.image.parts(batch)[0] if self.image else None
        if self.image is None or (content is not None and not content.null_count):
            yield from map(sample, numbers)
            return
        for few in batched(numbers, IMAGES_AT_ONCE):
            yield from self.pool.map(sample, few)

    def _sample(self, row: pa.RecordBatch, index: int, *, sound: bool) -> Sample:
        sample = Sample(
            source=self.entry.stored.path,
            key=f"{readable(self.entry.key)}:{self.rows_before + index}",
            image=None,
            metadata={},
            failure=None,
        )
        try:
            if not sound and not _is_sound(row):
                raise RowFailure("metadata_invalid", "a value is not what its column's type says")
            self._fill(sample, row)
        except RowFailure as failure:
            # A new object: the caught one holds a traceback, which would keep the row in memory.
            sample.failure = RowFailure(failure.code, failure.detail)
        return sample

    def _fill(self, sample: Sample, row: pa.RecordBatch) -> None:
        """Fill in metadata, then key and image. Raises RowFailure if something is missing or refused."""
        if self.image is None:
            sample.metadata = self._metadata(row, 0)
            return
        contents, paths = self.image.parts(row)
        path = paths[0].as_py() if paths is not None else None
        sample.metadata = self._metadata(row, len(path or ""))
        if path and not is_web_address(path):
            sample.key = path
        if contents is not None and contents[0].is_valid:
            sample.image = self._bytes(contents[0])
        elif path:
            image = self.roots.named(path)
            sample.source = image.path
            sample.image = read_named_image(image, self.access)
        else:
            raise RowFailure("no_image")

    def _metadata(self, row: pa.RecordBatch, size: int) -> dict[str, pa.Array]:
        """The row's metadata. `size` bytes of other content also count towards the limit."""
        values = {field.name: _cast(row.column(field.name), field.type) for field in self.columns}
        if size + sum(value.nbytes for value in values.values()) > MAX_METADATA_BYTES:
            raise RowFailure("metadata_too_large", "all columns but the image together")
        return values

    def _bytes(self, content: pa.Scalar) -> bytes:
        stored = content.value if isinstance(content, pa.DictionaryScalar) else content
        buffer = stored.as_buffer()
        if buffer.size > self.access.max_bytes:
            raise RowFailure("image_too_large", f"{buffer.size} bytes")
        return bytes(buffer.to_pybytes())


def _cast(value: pa.Array, kind: pa.DataType) -> pa.Array:
    return value if value.type == kind else value.cast(kind)


def _is_sound(rows: pa.RecordBatch) -> bool:
    """Whether all values fit their types: text is UTF-8, and dictionaries have an entry for every index."""
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
