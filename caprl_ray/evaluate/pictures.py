"""The encoded images of a sample, read once from the sources and kept in parquet files.

The questioner and the page read them from there, so they do not need the sources again.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.errors import RecipeError
from caprl_ray.evaluate.folder import Place
from caprl_ray.evaluate.sample import Drawn
from caprl_ray.evaluate.words import MOST_SOURCE, one_line
from caprl_ray.output.scan import Tell, silent
from caprl_ray.report.facts import Facts
from caprl_ray.report.pictures import originals
from caprl_ray.storage import Storage, Stored, join

WHOLE = "images.json"  # written last; names the images that could not be read
AT_ONCE = 64  # images in memory
PIECE = 256 * 1024  # bytes of a request: one image of a file is read
MOST_GONE = 0.25  # of the sample: with more missing images, no questions are written
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("picture", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Stored images in a folder. By key, `places` has the file and the row group of an image, and `gone` the reason if
    it is missing."""

    storage: Storage
    folder: str
    places: Mapping[str, tuple[str, int]]
    gone: Mapping[str, str]

    def read(self, key: str) -> bytes:
        """The bytes of an image; empty if they could not be read."""
        if key not in self.places:
            return b""
        name, group = self.places[key]
        found = self.storage.lookup(join(self.folder, name))
        if not isinstance(found, Stored):
            return b""
        with self.storage.open(found, piece=PIECE) as stream:
            rows = pq.ParquetFile(stream, pre_buffer=False).read_row_group(group, columns=["picture"])
        return bytes(rows["picture"][0].as_py()["bytes"])


def stored(place: Place, facts: Facts, drawn: Sequence[Drawn], tell: Tell = silent) -> Pictures:
    """Read from the output's sources those images that are not stored yet, and store them. Raises SystemFailure if they
    cannot be written."""
    folder = place.images(drawn)
    told = _told(place.storage, folder) or {"places": {}, "gone": {}}
    rest = [one for one in drawn if one.image.key not in told["places"]]
    if rest:
        with place.writing(folder):
            told = _read(place.storage, folder, facts, rest, told["places"], tell)
    return Pictures(storage=place.storage, folder=folder, **told)


def _read(
    storage: Storage,
    folder: str,
    facts: Facts,
    drawn: Sequence[Drawn],
    places: Mapping[str, tuple[str, int]],
    tell: Tell,
) -> dict[str, Any]:
    """Read images, and return the places of stored images and the reasons of missing ones. `places` are of images that
    were read before."""
    told: dict[str, Any] = {"places": dict(places), "gone": {}}
    files = max((int(name.partition(".")[0]) + 1 for name, _ in places.values()), default=0)
    for number, some in enumerate(_chunks(drawn), files):
        seen = originals(facts, [one.rows[0] for one in some])
        found = {one.image.key: seen[one.rows[0]["id"]] for one in some}
        there = {key: picture.encoded for key, picture in found.items() if not picture.missing}
        told["gone"] |= {key: picture.missing for key, picture in found.items() if picture.missing}
        told["places"] |= {key: (f"{number:05d}.parquet", group) for group, key in enumerate(there)}
        if there:
            storage.put(join(folder, f"{number:05d}.parquet"), _content(there))
        tell("reading images", len(told["places"]) - len(places) + len(told["gone"]), len(drawn))
    storage.put(join(folder, WHOLE), json.dumps(told, indent=1).encode() + b"\n")
    return told


def refuse_gone(pictures: Pictures, drawn: Sequence[Drawn], path: str) -> None:
    """Raise RecipeError if too many images are gone for questions about the others."""
    gone = [one.image for one in drawn if one.image.key in pictures.gone]
    if len(gone) > MOST_GONE * len(drawn):
        said = pictures.gone[gone[0].key].rstrip(".")
        raise RecipeError(
            f"{path}: {len(gone):,} of {len(drawn):,} images of the sample cannot be read, such as "
            f"{one_line(gone[0].source, MOST_SOURCE)} ({said}); bring the sources back, or give --questions of an "
            "earlier evaluation."
        )


def _chunks(drawn: Sequence[Drawn]) -> Iterator[Sequence[Drawn]]:
    """Images in bounded groups, in the order of their rows, because a shard is read from its start."""
    rows = sorted(drawn, key=lambda one: one.rows[0]["id"])
    for start in range(0, len(rows), AT_ONCE):
        yield rows[start : start + AT_ONCE]


def _content(images: Mapping[str, bytes]) -> bytes:
    """A parquet file of images, each in a row group of its own."""
    rows: list[dict[str, Any]] = [{"key": key, "picture": {"bytes": of, "path": key}} for key, of in images.items()]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, row_group_size=1, compression="none")
    return buffer.getvalue()


def _told(storage: Storage, folder: str) -> dict[str, Any] | None:
    try:
        told: dict[str, Any] = json.loads(storage.read(join(folder, WHOLE)))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return told if {"places", "gone"} == told.keys() else None
