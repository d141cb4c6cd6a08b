"""Group the members of a tar shard into samples, as WebDataset does.

Keys, extensions and groups follow the rules of the `webdataset` library (`tariterators.base_plus_ext`,
`group_by_keys`, `tar_file_iterator`), with two differences. A faulty sample becomes a sample with a failure, not an
exception or a warning. An unfinished sample is never yielded.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyroaring import BitMap

from caprl_ray.errors import RowFailure
from caprl_ray.sources.tar import Member

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "gif", "tif", "tiff", "bmp"})
METADATA_EXTENSIONS = frozenset({"json", "txt", "cls"})
MAX_METADATA_BYTES = 256 * 1024  # per sample: limits the sum of its metadata members, and the sum of its extensions
LONG_METADATA = "long_metadata"
MAX_SHOWN = 80  # characters of an extension in the detail of a failure

METADATA = pa.schema(
    [
        pa.field("json", pa.string(), metadata={"description": "The text of the sample's .json member."}),
        pa.field("txt", pa.string(), metadata={"description": "The text of the sample's .txt member."}),
        pa.field("cls", pa.int64(), metadata={"description": "The number in the sample's .cls member."}),
        pa.field(
            "extra",
            pa.string(),
            metadata={
                "description": "A JSON object of the texts of the sample's other metadata members, by extension "
                "(such as alt.txt or meta.json); null when there are none."
            },
        ),
    ]
)

_RESERVED = re.compile(r"__[^/]*__($|/)")
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,19}\s*")


@dataclass(kw_only=True)
class Sample:
    """One sample: its key, its image as stored, and its metadata.

    For WebDataset, `metadata` has a value or None for each column of METADATA, and the caller of `group_samples` sets
    `source`, the path of the shard. Parquet rows have their own columns; each value is an Arrow array of one row,
    because Python's types cannot hold all values exactly.

    `flags` say what reading changed, such as LONG_METADATA: a value was longer than the recipe allows, and is null.

    `counted` is the size in bytes, if another process has made the sample: a copy of an array may have another size.
    """

    key: str
    image: bytes | None
    metadata: dict[str, str | int | pa.Array | None]
    failure: RowFailure | None
    source: str = ""
    flags: tuple[str, ...] = ()
    counted: int | None = None

    @property
    def size(self) -> int:
        """The bytes of the image and of metadata in arrays."""
        if self.counted is not None:
            return self.counted
        arrays = (int(value.nbytes) for value in self.metadata.values() if isinstance(value, pa.Array))
        return len(self.image or b"") + sum(arrays)


def member_limit(max_image_bytes: int, done: BitMap | frozenset[int] = frozenset()) -> Callable[[str], int]:
    """Return a function that says how many bytes of a member `read_members` may hold in memory, given its name.

    It allows only what `group_samples` needs, and nothing for samples whose index is in `done`: those still count,
    but their content is not used. Call it once for every member, in the archive's order.
    """
    numbering = _Numbering()

    def limit(name: str) -> int:
        key, extension = _split(name)
        if not key or numbering.index(key) in done:
            return 0
        kind = _kind(extension)
        return max_image_bytes if kind in IMAGE_EXTENSIONS else MAX_METADATA_BYTES * (kind in METADATA_EXTENSIONS)

    return limit


def group_samples(members: Iterator[Member]) -> Iterator[Sample]:
    """Group members, which were read with `member_limit`, into samples; yield the samples in order.

    The image is the first member with an image extension. If a sample has faults, `failure` is the first one; the key
    and all valid metadata are kept. A sample is yielded once the next key or the end of the archive shows that it is
    complete. TarDamaged from `members` passes through, so it arrives after all complete samples.
    """
    numbering = _Numbering()
    current: _SampleBuilder | None = None
    for member in members:
        key, extension = _split(member.name)
        if not key:
            continue
        index = numbering.index(key)
        if current is None or current.index != index:
            if current is not None:
                yield current.sample()
            current = _SampleBuilder(key, index)
        current.add(extension, member)
    if current is not None:
        yield current.sample()


class _Numbering:
    """Numbers the samples. Consecutive members with one key are one sample; a key that returns starts a new one."""

    def __init__(self) -> None:
        self._key = ""
        self._index = -1

    def index(self, key: str) -> int:
        """Return the sample index for the next member. Call it in order, for every member that has a key."""
        if key != self._key:
            self._key, self._index = key, self._index + 1
        return self._index


def _split(name: str) -> tuple[str, str]:
    """Split a member's name at the first dot of its base name. Both parts are empty if WebDataset ignores the member.

    This equals the library's pattern, `^((?:.*/|)[^.]+)[.]([^/]*)$`, which takes quadratic time on hostile names. As
    with the pattern, the hidden file `a/.b` has the key `a/`, unless the name of its folder contains a dot.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    stands_alone = stem or (slash and "." not in folder.rpartition("/")[2])
    if not dot or not stands_alone or _RESERVED.match(name):
        return "", ""
    return folder + slash + stem, extension.lower()


def _kind(extension: str) -> str:
    return extension.rpartition(".")[2]


class _SampleBuilder:
    """Collects the members of one sample. Its memory is bounded, however many members there are."""

    def __init__(self, key: str, index: int) -> None:
        self.key = key
        self.index = index
        self._image: Member | None = None
        self._columns: dict[str, str | int | None] = {"json": None, "txt": None, "cls": None}
        self._extra: dict[str, str] = {}
        self._failure: RowFailure | None = None
        self._extensions: set[str] = set()
        self._extension_bytes = 0
        self._metadata_bytes = 0

    def add(self, extension: str, member: Member) -> None:
        """Add a member, or record why it was not added."""
        try:
            self._check_extension(extension)
            if _kind(extension) in IMAGE_EXTENSIONS:
                self._add_image(member)
            elif _kind(extension) in METADATA_EXTENSIONS:
                self._add_metadata(extension, member.content)
        except RowFailure as failure:
            # A new object: the caught one holds a traceback, which would keep the member's bytes in memory.
            self._failure = self._failure or RowFailure(failure.code, failure.detail)

    def sample(self) -> Sample:
        """Return the finished sample."""
        if self._image is None:
            self._failure = self._failure or RowFailure("no_image")
        extra = json.dumps(self._extra, ensure_ascii=False) if self._extra else None
        image = self._image.content if self._image else None
        return Sample(key=self.key, image=image, metadata={**self._columns, "extra": extra}, failure=self._failure)

    def _check_extension(self, extension: str) -> None:
        if extension in self._extensions:
            raise RowFailure("duplicate_member", _shown(extension))
        self._extension_bytes += len(extension.encode())
        if self._extension_bytes > MAX_METADATA_BYTES:
            raise RowFailure("metadata_too_large", "too many members or too long extensions")
        self._extensions.add(extension)

    def _add_image(self, member: Member) -> None:
        if self._image is not None:
            return
        self._image = member
        if member.content is None:
            raise RowFailure("image_too_large", f"{member.size} bytes")

    def _add_metadata(self, extension: str, content: bytes | None) -> None:
        if content is None or self._metadata_bytes + len(content) > MAX_METADATA_BYTES:
            raise RowFailure("metadata_too_large", _shown(extension))
        self._metadata_bytes += len(content)
        text = _checked_text(extension, content)
        if extension not in METADATA_EXTENSIONS:
            self._extra[extension] = text
        else:
            self._columns[extension] = int(text) if extension == "cls" else text


def _checked_text(extension: str, content: bytes) -> str:
    """Decode a metadata member. Raises RowFailure if the content does not match the extension."""
    kind = _kind(extension)
    try:
        text = content.decode("utf-8-sig" if kind == "json" else "utf-8")  # utf-8-sig drops a byte order mark
        if kind == "json":
            json.loads(text, parse_int=str)  # int refuses numbers of more than 4,300 digits
        if kind == "cls" and not (_INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63):
            raise ValueError("not a 64-bit integer")
    except (ValueError, RecursionError) as error:
        raise RowFailure("metadata_invalid", _shown(extension)) from error
    return text


def _shown(extension: str) -> str:
    return extension[:MAX_SHOWN].encode("unicode_escape").decode("ascii")
