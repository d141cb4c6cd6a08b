"""Read the rows of a manifest, a text file that names images: CSV, tab-separated values, or JSON lines.

Reading can start at any byte where a row begins. Lines and bytes are counted. A row that cannot be parsed becomes a row
with a fault, so that the numbers of the other rows never change.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from caprl_ray.plan import Lines
from caprl_ray.sources.unpacked import LONGEST_MAGIC, Unpacked, compression

MOST_ROW = 2**20  # bytes of a row, which is held in memory
MOST_COLUMNS = 1000  # of all rows together
ENDINGS = {".csv": ",", ".tsv": "\t", ".jsonl": None, ".ndjson": None, ".json": None}  # ending: delimiter
PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
_MARK = "utf-8".encode("utf-8-sig")[:3]
_OTHER_MARKS = (b"\xff\xfe", b"\xfe\xff")

Values = dict[str, Any]


class NoManifest(Exception):
    """The file is not a manifest. The message gives the reason and what to do. It is written after the file's name."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row. `values`: by column, none if it has a fault. `first`, `last`: its lines, from 1. `end`: the byte after."""

    values: Values
    first: int
    last: int
    end: int
    fault: str = ""

    @property
    def lines(self) -> str:
        """The row's lines in words."""
        return f"line {self.first}" if self.first == self.last else f"lines {self.first} to {self.last}"


def named(path: str) -> bool:
    """Whether a path or pattern has the ending of a manifest."""
    return path.lower().endswith(tuple(ending + packed for ending in ENDINGS for packed in PACKED))


class Manifest:
    """An open manifest.

    `names`: the columns of its header; None for JSON lines, where each row names its own. `packed`: whether it is
    compressed; then byte positions are those of the plain text. Raises NoManifest, and TarDamaged for a compressed
    stream that is damaged.
    """

    def __init__(self, stream: BinaryIO, path: str) -> None:
        front = stream.read(LONGEST_MAGIC)
        self.packed = compression(front) is not None
        stream.seek(0)
        self._text = _Text(io.BufferedReader(_Plain(stream), 2**16) if self.packed else stream)
        delimiter = self._begin(path)
        self.names = None if delimiter is None else self._header(delimiter)
        self._rows: Callable[[_Text], Iterator[Row]] = (
            _json_rows if self.names is None else partial(_csv_rows, names=self.names, delimiter=delimiter or ",")
        )

    def rows(self, lines: Lines | None = None) -> Iterator[Row]:
        """The rows of `lines`, or all that follow. Raises NoManifest for a row that is too long."""
        if lines:
            self._text.go_to(lines)
        for row in self._rows(self._text):
            yield row
            if lines and row.end >= lines.end:
                return

    @property
    def place(self) -> tuple[int, int]:
        """The byte at which the next line begins, and the number of lines before it."""
        return self._text.offset, self._text.line

    def _begin(self, path: str) -> str | None:
        """Check the encoding. Returns the delimiter, by the file's name or else by its first line; None for JSON."""
        first = self._text.peek()
        # Without a mark, each letter has a zero beside it.
        if first.startswith(_OTHER_MARKS) or 4 * first.count(0) >= len(first) > 0:
            raise NoManifest("is UTF-16; write it as UTF-8")
        plain = path.lower()
        for packed in PACKED[1:]:
            plain = plain.removesuffix(packed)
        lines_of_json = first.lstrip().startswith((b"{", b"["))
        delimiter = "\t" if b"\t" in first else ","
        found = next((found for ending, found in ENDINGS.items() if plain.endswith(ending)), delimiter)
        found = None if lines_of_json and not plain.endswith((".csv", ".tsv")) else found
        if found is None and first.lstrip().startswith(b"["):
            raise NoManifest(
                "is one JSON array; a manifest has one JSON object a line, which `jq -c '.[]' FILE > FILE.jsonl` writes"
            )
        return found

    def _header(self, delimiter: str) -> Sequence[str]:
        for row in _csv_rows(self._text, None, delimiter):
            if row.fault:
                raise NoManifest(f"has a faulty header ({row.lines}: {row.fault}); correct it")
            # As pandas does when it reads its own index, which it writes as a column without a name.
            return [name or f"Unnamed: {number}" for number, name in enumerate(row.values)]
        return []


class _Plain(io.RawIOBase):
    """The plain bytes of a compressed stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self._unpacked = Unpacked(stream, stream.read(LONGEST_MAGIC))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._unpacked.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


class _Text:
    """The lines of a file. `offset`, `line`: the bytes and lines before the next line."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._next: bytes | None = None
        self._first, self._begun = 1, 0
        self.offset = self.line = 0
        if self.peek().startswith(_MARK):
            self._next, self.offset = self.peek()[len(_MARK) :], len(_MARK)

    def peek(self) -> bytes:
        """The next line, empty at the end."""
        if self._next is None:
            self._next = self._stream.readline(MOST_ROW + 1)
        return self._next

    def go_to(self, lines: Lines) -> None:
        """Continue at the first of `lines`. A compressed stream cannot seek, so it is read up to there."""
        if lines.start == self.offset:
            return
        if self._stream.seekable():
            self._stream.seek(lines.start)
        else:
            left = lines.start - self.offset - len(self.peek())
            while left > 0 and (part := self._stream.read(min(left, MOST_ROW))):
                left -= len(part)
        self._next = None
        self.offset, self.line = lines.start, lines.line

    def begin(self) -> int:
        """Begin a row. Returns the number of its first line."""
        self._first, self._begun = self.line + 1, self.offset
        return self._first

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line, self._next = self.peek(), None
        if not line:
            raise StopIteration
        self.offset += len(line)
        self.line += 1
        if self.offset - self._begun > MOST_ROW:
            raise self.too_long()
        return line.decode("utf-8", "surrogateescape")

    def too_long(self) -> NoManifest:
        """The exception for a row that is too long."""
        return NoManifest(
            f"has a row of more than {MOST_ROW:,} bytes, or a field of more than {csv.field_size_limit():,}, that "
            f"begins in line {self._first}; close its quote, or write one row a line"
        )

    def too_wide(self) -> NoManifest:
        """The exception for a row with too many columns."""
        return NoManifest(f"has more than {MOST_COLUMNS:,} columns in line {self._first}; keep those that are needed")

    def row(self, values: Values, fault: str = "") -> Row:
        """The row that began last and ends here."""
        return Row(values={} if fault else values, first=self._first, last=self.line, end=self.offset, fault=fault)


def _csv_rows(text: _Text, names: Sequence[str] | None, delimiter: str) -> Iterator[Row]:
    """Yield the rows; an empty field is None. Without `names`, each row is read as a header: `values` has its names."""
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        text.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field larger than field limit" in str(error):
                raise text.too_long() from None
            yield text.row({}, str(error))
            continue
        if not fields:
            continue
        if names is None:
            yield _header_row(text, fields)
        elif len(fields) != len(names):
            yield text.row({}, f"{len(fields)} fields, and the header has {len(names)}")
        elif not _is_unicode("".join(fields)):
            yield text.row({}, "not UTF-8")
        else:
            yield text.row(dict(zip(names, (field or None for field in fields), strict=True)))


def _header_row(text: _Text, fields: list[str]) -> Row:
    if len(fields) > MOST_COLUMNS:
        raise text.too_wide()
    names = dict.fromkeys(fields)
    if not _is_unicode("".join(fields)):
        return text.row({}, "text that is not UTF-8")
    twin = next((name for name in fields if fields.count(name) > 1), None) if len(names) < len(fields) else None
    if twin is not None:
        return text.row({}, f"{fields.count(twin)} columns named {twin[:80]!r}")
    return text.row(names)


def _json_rows(text: _Text) -> Iterator[Row]:
    while True:
        text.begin()
        line = next(text, None)
        if line is None:
            return
        if line.strip():
            yield _json_row(text, line)


def _json_row(text: _Text, line: str) -> Row:
    try:
        values = json.loads(line)
        if isinstance(values, dict) and len(values) > MOST_COLUMNS:
            raise text.too_wide()
        flat = {name: _flat(value) for name, value in values.items()} if isinstance(values, dict) else None
    except RecursionError:
        return text.row({}, "JSON nested too deeply")
    except ValueError as error:
        return text.row({}, f"not JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else "not JSON")
    if flat is None:
        return text.row({}, "JSON, but not an object")
    texts = (value for value in (*flat, *flat.values()) if isinstance(value, str))
    if not _is_unicode(line) or ("\\ud" in line.lower() and not _is_unicode("".join(texts))):  # lone surrogates
        return text.row({}, "not UTF-8")
    return text.row(flat)


def _flat(value: Any) -> Any:
    """A value, or the JSON text of an object or a list."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
