"""`caprl-ray status` of an output that several drivers write: each part, and all together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caprl_ray.commands.judge import judge
from caprl_ray.output import lease
from caprl_ray.output.holder import FINISHED, Holder
from caprl_ray.output.part import Part
from caprl_ray.storage import Storage
from caprl_ray.watch import all_parts
from caprl_ray.watch.status import Status, place
from caprl_ray.watch.words import facts

PART_FINISHED, NOT_BEGUN, SETTLED_PART = "finished", "not begun", "taken over"
SHOWN = ("done", "rate", "state", "ETA", "failed")  # facts in a part's line


@dataclass(frozen=True, kw_only=True)
class SeenPart:
    """A part and its state.

    Attributes:
        status: None if it has reported nothing yet.
        state: one of the states of a run (commands/judge.py), PART_FINISHED, NOT_BEGUN or SETTLED_PART.
        sentence: what is wrong, for people.
        age_s: seconds since the status was written.
    """

    part: Part
    status: Status | None
    state: str
    sentence: str = ""
    age_s: float | None = None

    def report(self) -> dict[str, Any]:
        """Everything as plain data."""
        told = self.status.plain() if self.status else {}
        return {**told, "part": str(self.part), "state": self.state, "sentence": self.sentence, "age_s": self.age_s}

    def line(self) -> str:
        """All in one line."""
        found = facts(self.status) if self.status else {}
        told = [text if name in SHOWN[:3] else f"{name} {text}" for name, text in found.items() if name in SHOWN]
        return "  ".join([f"part {self.part}", self.state, *told, *filter(None, [self.sentence])])


def look(storage: Storage, output: str) -> list[SeenPart]:
    """All parts of an output, if drivers of parts have begun; otherwise none."""
    holders, statuses = lease.holders(storage, output), all_parts.statuses(storage, output)
    begun = {*holders, *statuses}
    if not begun:
        return []
    of = max(begun, key=lambda part: (_held(holders.get(part)), part)).of
    return [
        _seen(storage, output, part, holders, statuses.get(part))
        for part in (Part(number=number, of=of) for number in range(1, of + 1))
    ]


def _held(holder: Holder | None) -> bool:
    return holder is not None and lease.lives(holder)


def _seen(
    storage: Storage,
    output: str,
    part: Part,
    holders: Mapping[Part, Holder | None],
    status: Status | None,
) -> SeenPart:
    holder = holders.get(part)
    if holder is None:
        return SeenPart(part=part, status=status, state=NOT_BEGUN)
    age = storage.age(place(output, part))
    if holder.over:
        state, sentence = PART_FINISHED if holder.state == FINISHED else SETTLED_PART, ""
    else:
        told = status or all_parts.empty(output, part, holder)
        lease_age = storage.age(lease.path_of(output, part))
        state, sentence = judge(told, holder, lease_age, age, complete=False)
    return SeenPart(part=part, status=status, state=state, sentence=sentence, age_s=age)


def together(seen: Sequence[SeenPart]) -> str:
    """The number of parts in each state, in words."""
    counts = {state: sum(one.state == state for one in seen) for state in dict.fromkeys(one.state for one in seen)}
    return f"Of {len(seen)} parts, " + ", ".join(f"{count} {state}" for state, count in counts.items())
