"""Counts of the input that is not captioned, by reason.

Files are left out while planning, members of a shard while it is read. Every reader of the counts shows a reason in
the same words: those of `REASONS`.
"""

import json
from collections.abc import Mapping
from typing import Any

from caprl_ray.text import plain, readable

MAX_EXAMPLE = 200  # characters

# A reason's name, and what was left out, in the singular and the plural.
REASONS: Mapping[str, tuple[str, str]] = {
    "unknown_ending": ("file of another kind", "files of other kinds"),
    "hidden": ("hidden file or folder", "hidden files or folders"),
    "housekeeping": ("file or folder of a tool's housekeeping", "files or folders of a tool's housekeeping"),
    "overlap": ("file or folder that was reached before", "files or folders that were reached before"),
    "own_output": ("output of a run", "outputs of runs"),
    "link": ("link that is not followed", "links that are not followed"),
    "special": ("device, pipe or socket", "devices, pipes or sockets"),
    "further_image": ("further image of a sample", "further images of samples"),
    "other_member": ("member that is neither image nor text", "members that are neither image nor text"),
    "unkeyed_member": ("member without a sample's key", "members without a sample's key"),
    "volume_part": ("part of a file from another volume", "parts of files from other volumes"),
    "no_end_marker": ("shard without its end marker, which may lack samples", "shards without their end marker"),
    "after_end": ("shard with bytes after its end", "shards with bytes after their end"),
}


class LeftOut:
    """Counts by reason, each with the first example. Bounded: it never holds more than one example of a reason."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count what was left out; `reason` is one of REASONS."""
        assert reason in REASONS
        self._count(reason, plain(readable(example)).replace("\n", " ")[:MAX_EXAMPLE], count)

    def _count(self, reason: str, example: str, count: int) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + count
        self._examples.setdefault(reason, example)

    def merge(self, other: "LeftOut") -> None:
        """Add another's counts. The examples so far stay."""
        for reason, count in other._counts.items():
            self._count(reason, other._examples[reason], count)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def report(self) -> dict[str, Any]:
        """Counts and examples by reason, as plain data."""
        return {r: {"count": c, "example": self._examples[r]} for r, c in sorted(self._counts.items())}

    def dump(self) -> str:
        """The counts as JSON; `load` reads it."""
        return json.dumps(self.report(), separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> "LeftOut":
        """Read what `dump` wrote. Reasons of newer versions are kept out."""
        found = cls()
        for reason, told in json.loads(text).items():
            if reason in REASONS:
                found._count(reason, told["example"], told["count"])
        return found

    def summary(self) -> str:
        """One line: "12 hidden files (such as a/.b.jpg), 1 link (c.jpg)"."""
        return ", ".join(
            f"{count:,} {REASONS[reason][count != 1]} ({'such as ' if count > 1 else ''}{self._examples[reason]})"
            for reason, count in sorted(self._counts.items(), key=lambda item: -item[1])
        )
