"""A part of an output: the units that one of several drivers writes (docs/design.md, D21)."""

import re
import zlib
from dataclasses import dataclass, replace

from caprl_ray.errors import RecipeError
from caprl_ray.plan import Plan

FOLDER = "parts"
LEASE, STATUS = ".lease.json", ".status.json"  # endings of the names in FOLDER
_WRITTEN = re.compile(r"([1-9]\d{0,5})/([1-9]\d{0,5})")
_NAME = re.compile(r"([1-9]\d{0,5})of([1-9]\d{0,5})")


@dataclass(frozen=True, kw_only=True, order=True)
class Part:
    """Part `number` of `of`, from 1."""

    of: int
    number: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """The part that a user writes as K/N. Raises RecipeError."""
        found = cls._matched(_WRITTEN, text)
        if found is None:
            raise RecipeError(f"--part: {text!r} is not a part; give K/N with K from 1 to N, such as 1/3.")
        return found

    @classmethod
    def named(cls, name: str) -> "Part | None":
        """The part in the name of a file of the output; None if the name has none."""
        return cls._matched(_NAME, name)

    @classmethod
    def _matched(cls, pattern: re.Pattern[str], text: str) -> "Part | None":
        match = pattern.fullmatch(text)
        found = cls(number=int(match[1]), of=int(match[2])) if match else None
        return found if found and found.number <= found.of else None

    @property
    def name(self) -> str:
        """How names of the output call it."""
        return f"{self.number}of{self.of}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def share(self, whole: Plan) -> Plan:
        """The plan with the units of this part only."""
        return replace(whole, units=[ref for ref in whole.units if part_of(ref.unit, self.of) == self])


def part_of(unit: int, of: int) -> Part:
    """The part that a unit belongs to.

    Each group of `of` consecutive units is spread over all parts, so that parts have equally many units. Each group
    starts at another part, so that a pattern in the input (a file's short last unit) does not always meet the same
    part. The part of a unit does not depend on other units, so an extension moves none.
    """
    group, place = divmod(unit, of)
    return Part(number=(place + zlib.crc32(group.to_bytes(8, "big"))) % of + 1, of=of)


def parts_with_units(whole: Plan, of: int) -> list[Part]:
    """The parts that have units: all, unless there are fewer units than parts."""
    return sorted({part_of(ref.unit, of) for ref in whole.units[:of]})
