"""Placeholder images, which are not captioned: lists of the SHA-256 of their bytes (`input.placeholders`)."""

import re
from collections.abc import Iterator
from typing import Any

# A longer list belongs in a file, because the recipe is sent to every worker and written to run.json.
MOST_INLINE = 1000

_HASH = re.compile("[0-9a-fA-F]{64}")
# A line as sha256sum writes it: the hash, a space, a space or an asterisk, and the file's name.
_LINE = re.compile(r"([0-9a-fA-F]{64})(?: [ *].*)?")
SHOWN = 80  # characters of a wrong entry in a message


def check(value: Any) -> Any:
    """The checked value of input.placeholders: a list of hashes in lower case, or a path. Raises ValueError."""
    if isinstance(value, str) and _HASH.fullmatch(value.strip()):
        value = [value]
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(
                "'' is not allowed; it should be a list of SHA-256 in hex, or the path of a file that lists them"
            )
        return value
    if not isinstance(value, list):
        return value  # pydantic says what it should be
    if len(value) > MOST_INLINE:
        raise ValueError(
            f"it has {len(value):,} entries; write more than {MOST_INLINE:,} into a text file, one per line, and give "
            "its path"
        )
    return [_hash(entry, f"entry {number}") for number, entry in enumerate(value, 1)]


def lines(text: str) -> Iterator[str]:
    """The hashes in the text of a file, in lower case, without empty lines and comments after #. Raises ValueError."""
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        match = _LINE.fullmatch(content)
        if content:
            yield match[1].lower() if match else _hash(content, f"line {number}")


def _hash(entry: Any, where: str) -> str:
    if isinstance(entry, str) and _HASH.fullmatch(entry.strip()):
        return entry.strip().lower()
    shown = repr(entry[:SHOWN] if isinstance(entry, str) else entry)[: SHOWN + 2]
    raise ValueError(f"{where} is {shown}, which is not a SHA-256; it should be 64 hex digits")
