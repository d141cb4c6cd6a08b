"""Group the members of a tar shard into samples, as WebDataset does.

Keys, extensions and groups follow the rules of the `webdataset` library (`tariterators.base_plus_ext`,
`group_by_keys`, `tar_file_iterator`), with three differences. A faulty sample becomes a sample with a failure, not an
exception or a warning. An unfinished sample is never yielded. Files that tools leave in an archive (housekeeping.py)
belong to no sample. Members of a sample beside its image and its texts are counted.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyroaring import BitMap

from caprl_ray.errors import RowFailure
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.recipe.input import MAX_METADATA_BYTES, Input
from caprl_ray.sources import texts
from caprl_ray.sources.housekeeping import housekeeping
from caprl_ray.sources.tar import Member

IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "gif", "tif", "tiff", "bmp", "heic", "heif", "jxl"}
)
METADATA_EXTENSIONS = frozenset({"json", "txt", "cls"})
MOST_SHOWN = 10  # extensions of a sample in the detail of a failure
MOST_FLAGS = 16  # of a sample

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
                "(such as alt.txt or meta.json), and of a .json or .cls member that holds no JSON or no number; null "
                "when there are none."
            },
        ),
    ]
)

_RESERVED = re.compile(r"__[^/]*__($|/)")


@dataclass(kw_only=True)
class Sample:
    """One sample: its key, its image as stored, and its metadata.

    For WebDataset, `metadata` has a value or None for each column of METADATA, and the caller of `group_samples` sets
    `source`, the path of the shard. Parquet rows have their own columns; each value is an Arrow array of one row,
    because Python's types cannot hold all values exactly.

    `row`: its number in its file (rows/schema.py); None if it is not known.

    `flags`: remarks about the row, such as a text that could not be used (texts.py).

    `counted`: its size in bytes, if another process has made the sample. A copied array may have another size.
    """

    key: str
    image: bytes | None
    metadata: dict[str, str | int | pa.Array | None]
    failure: RowFailure | None
    source: str = ""
    row: int | None = None
    flags: tuple[str, ...] = ()
    counted: int | None = None

    @property
    def size(self) -> int:
        """The bytes of the image and of metadata."""
        if self.counted is not None:
            return self.counted
        return len(self.image or b"") + sum(map(_size, self.metadata.values()))


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How members become samples: the recipe's `input.image_key` by priority, and the limits of one sample.

    `max_metadata_bytes` limits the sum of a sample's texts, as its row carries them, and the sum of its extensions.
    Texts beyond it are left out of a sample, or fail it if `fail_long`.
    """

    max_image_bytes: int
    image_keys: tuple[str, ...] = ()
    max_metadata_bytes: int = MAX_METADATA_BYTES
    fail_long: bool = False

    @classmethod
    def of(cls, settings: Input, max_image_bytes: int) -> "Rules":
        """The recipe's rules."""
        keys = tuple(settings.image_key.split(";")) if settings.image_key else ()
        return cls(
            max_image_bytes=max_image_bytes,
            image_keys=keys,
            max_metadata_bytes=settings.max_metadata_bytes,
            fail_long=settings.long_metadata == "fail",
        )

    def is_image(self, extension: str) -> bool:
        """Whether a member is an image, to be captioned or counted."""
        return extension in self.image_keys or _kind(extension) in IMAGE_EXTENSIONS

    def may_be_captioned(self, extension: str) -> bool:
        """Whether a member may be the image that is captioned."""
        return extension in self.image_keys if self.image_keys else self.is_image(extension)


def member_limit(rules: Rules, done: BitMap | frozenset[int] = frozenset()) -> Callable[[str], int]:
    """Return a function that says how many bytes of a member `read_members` may hold in memory, given its name.

    It allows only what `group_samples` needs, and nothing for samples whose index is in `done`: those still count,
    but their content is not used. Call it once for every member, in the archive's order.
    """
    numbering = _Numbering()

    def limit(name: str) -> int:
        key, extension = _split(name)
        if not key or numbering.index(key) in done:
            return 0
        if rules.is_image(extension):
            return rules.max_image_bytes * rules.may_be_captioned(extension)
        return rules.max_metadata_bytes * (_kind(extension) in METADATA_EXTENSIONS)

    return limit


def group_samples(members: Iterator[Member], rules: Rules, left_out: LeftOut) -> Iterator[Sample]:
    """Group members, which were read with `member_limit`, into samples; yield the samples in order.

    If a sample has faults, `failure` is the first one; the key and all valid metadata are kept. `left_out` counts
    members that are in no row. A sample is yielded once the next key or the end of the archive shows that it is
    complete. TarDamaged from `members` passes through, so it arrives after all complete samples.
    """
    numbering = _Numbering()
    current: _SampleBuilder | None = None
    for member in members:
        key, extension = _split(member.name)
        if not key:
            left_out.add("housekeeping" if housekeeping(member.name) else "unkeyed_member", member.name)
            continue
        index = numbering.index(key)
        if current is None or current.index != index:
            if current is not None:
                yield current.sample()
            current = _SampleBuilder(key, index, rules, left_out)
        current.add(extension, member)
    if current is not None:
        yield current.sample()


def sample_of() -> Callable[[str], tuple[str, int] | None]:
    """Return a function from a member's name to its extension and the index of its sample, or None if it belongs to no
    sample. Call it once for every member, in the archive's order."""
    numbering = _Numbering()

    def of(name: str) -> tuple[str, int] | None:
        key, extension = _split(name)
        return (extension, numbering.index(key)) if key else None

    return of


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
    """Split a member's name at the first dot of its base name. Both parts are empty if WebDataset ignores the member,
    or if a tool left it behind.

    This equals the library's pattern, `^((?:.*/|)[^.]+)[.]([^/]*)$`, which takes quadratic time on hostile names. As
    with the pattern, the hidden file `a/.b` has the key `a/`, unless the name of its folder contains a dot.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    stands_alone = stem or (slash and "." not in folder.rpartition("/")[2])
    if not dot or not stands_alone or _RESERVED.match(name) or housekeeping(name):
        return "", ""
    return folder + slash + stem, extension.lower()


class _SampleBuilder:
    """Collects the members of one sample. Its memory is bounded, however many members there are."""

    def __init__(self, key: str, index: int, rules: Rules, left_out: LeftOut) -> None:
        self.key = key
        self.index = index
        self._rules = rules
        self._left_out = left_out
        self._image: tuple[int, str, Member] | None = None  # priority, extension, member
        self._images: list[str] = []
        self._columns: dict[str, str | int | None] = {"json": None, "txt": None, "cls": None}
        self._extra: dict[str, str] = {}
        self._failure: RowFailure | None = None
        self._flags: list[str] = []
        self._extensions: set[str] = set()
        self._extension_bytes = 0
        self._metadata_bytes = 0

    def add(self, extension: str, member: Member) -> None:
        """Add a member, or record why it was not added."""
        try:
            self._check_extension(extension)
            if self._rules.is_image(extension):
                self._add_image(extension, member)
            elif _kind(extension) in METADATA_EXTENSIONS:
                self._add_metadata(extension, member)
            else:
                self._left_out.add("other_member", member.name)
        except RowFailure as failure:
            # A new object: the caught one holds a traceback, which would keep the member's bytes in memory.
            self._failure = self._failure or RowFailure(failure.code, failure.detail)

    def sample(self) -> Sample:
        """Return the finished sample."""
        image = self._chosen()
        extra = json.dumps(self._extra, ensure_ascii=False) if self._extra else None
        return Sample(
            key=self.key,
            image=image,
            metadata={**self._columns, "extra": extra},
            failure=self._failure,
            flags=tuple(self._flags[:MOST_FLAGS]),
        )

    def _check_extension(self, extension: str) -> None:
        if extension in self._extensions:
            raise RowFailure("duplicate_member", texts.shown(extension))
        self._extension_bytes += len(extension.encode())
        if self._extension_bytes > self._rules.max_metadata_bytes:
            raise RowFailure("metadata_too_large", "too many members or too long extensions")
        self._extensions.add(extension)

    def _add_image(self, extension: str, member: Member) -> None:
        self._images.append(extension)
        keys = self._rules.image_keys
        if self._rules.may_be_captioned(extension):
            priority = keys.index(extension) if keys else 0
            if self._image is None or priority < self._image[0]:
                self._image = priority, extension, member

    def _chosen(self) -> bytes | None:
        """The image to caption. If there is none, the sample has failed. Counts further images."""
        if self._image and not self._ambiguous:
            self._count_further(self._image[1])
        if self._failure:
            return self._image[2].content if self._image else None
        if self._image is None:
            self._failure = RowFailure("no_image", self._without_image())
            return None
        member = self._image[2]
        if self._ambiguous:
            self._failure = RowFailure("ambiguous_image", _listed(self._images))
            return None
        if member.content is None:
            self._failure = RowFailure("image_too_large", f"{member.size} bytes")
        return member.content

    @property
    def _ambiguous(self) -> bool:
        return not self._rules.image_keys and len({name.rpartition(".")[0] for name in self._images}) > 1

    def _count_further(self, chosen: str) -> None:
        """Count the other images, also if the sample has failed: on a resume, its failure may not be seen again."""
        if len(self._images) > 1:
            further = next(name for name in self._images if name != chosen)
            self._left_out.add("further_image", f"{self.key}.{further}", len(self._images) - 1)

    def _without_image(self) -> str:
        if self._images:
            return f"no {' or '.join(self._rules.image_keys)} (input.image_key) among {_listed(self._images)}"
        said = f"only {_listed(sorted(self._extensions))}"
        if any(_kind(extension) not in METADATA_EXTENSIONS for extension in self._extensions):
            said += "; set input.image_key if one of them is the image"
        return f"{said}; a sample's members must stand together in one shard"

    def _add_metadata(self, extension: str, member: Member) -> None:
        if member.content is None:
            if member.size > self._rules.max_metadata_bytes:  # otherwise it is not needed (member_limit)
                self._too_large(extension)
            return
        text, note = texts.decoded(member.content)
        if note:
            self._flag(note, extension)
        if text is not None:
            self._keep(extension, text)

    def _keep(self, extension: str, text: str) -> None:
        """Keep a text in its column, if there is room. A text that does not fit its extension goes to `extra`."""
        kind = _kind(extension)
        value = texts.integer(text) if kind == "cls" else text
        valid = value is not None and (kind != "json" or texts.is_json(text))
        in_column = valid and extension in METADATA_EXTENSIONS
        carried = _size(text if in_column else json.dumps({extension: text}, ensure_ascii=False))
        if self._metadata_bytes + carried > self._rules.max_metadata_bytes:
            self._too_large(extension)
            return
        self._metadata_bytes += carried
        if in_column:
            self._columns[extension] = value
        else:
            self._extra[extension] = text
        if not valid:
            self._flag(texts.INVALID, extension)

    def _too_large(self, extension: str) -> None:
        if self._rules.fail_long:
            raise RowFailure("metadata_too_large", texts.shown(extension))
        self._flag(texts.TOO_LARGE, extension)

    def _flag(self, name: str, extension: str) -> None:
        self._flags.append(f"{name}:{texts.shown(extension)}")


def _size(value: str | int | pa.Array | None) -> int:
    """The bytes that a value takes in its row."""
    if isinstance(value, pa.Array):
        return int(value.nbytes)
    return len(value.encode()) if isinstance(value, str) else 8


def _kind(extension: str) -> str:
    return extension.rpartition(".")[2]


def _listed(extensions: list[str]) -> str:
    """Extensions as text for a message."""
    rest = [f"{len(extensions) - MOST_SHOWN} more"] if len(extensions) > MOST_SHOWN else []
    return ", ".join([*map(texts.shown, extensions[:MOST_SHOWN]), *rest])
