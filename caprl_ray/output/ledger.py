"""The ledger: the progress of the plan, and whether every planned row is in the output exactly once."""

import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

from caprl_ray.output.committed import Committed, CommittedUnits
from caprl_ray.output.counts import Counts
from caprl_ray.plan import UnitRef
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.rows.codes import ASKED_FOR

SHOWN = 3  # codes of failed rows
SHOWN_FLAGS = 8  # of about fifteen checks


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitLedger:
    """The balance of one unit; `planned` is None while the unit's length is unknown."""

    unit: int
    planned: int | None
    finished: int
    failed: int
    duplicate: int
    beyond: int = 0
    """Rows with an index that the unit does not have."""
    lost: bool = False
    """Whether nothing of the unit could be read. How many images it holds is then not known."""
    ended: bool = False
    """Whether reading ended before the unit's end, after some rows."""

    @property
    def missing(self) -> int | None:
        """Planned rows that are not in the output; None if `planned` is None."""
        return None if self.planned is None else self.planned - self.finished - self.failed + self.beyond

    @property
    def balanced(self) -> bool:
        """Whether every planned row is in the output once."""
        return self.missing == 0 and not self.duplicate and not self.beyond


@dataclass
class Sums:
    """Sums over the units of a ledger."""

    units: int = 0
    balanced: int = 0
    planned: int = 0
    finished: int = 0
    failed: int = 0
    missing: int = 0
    duplicate: int = 0
    beyond: int = 0
    unknown: int = 0
    lost: int = 0
    ended: int = 0

    def add(self, unit: UnitLedger) -> None:
        """Count a unit."""
        self.units += 1
        self.balanced += unit.balanced
        self.planned += unit.planned or 0
        self.finished += unit.finished
        self.failed += unit.failed
        self.missing += unit.missing or 0
        self.duplicate += unit.duplicate
        self.beyond += unit.beyond
        self.unknown += unit.planned is None
        self.lost += unit.lost
        self.ended += unit.ended


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The balance of a whole output.

    Attributes:
        units: the balances of its units. `balance` returns a lazy sequence, which holds none of them.
        done: the job's word for finished rows, such as "captioned".
        noun: the job's word for rows, such as "image".
        counts: sums over the rows: flags, codes, and recipes. Objects of older versions give none.
        left_out: counts of the input that is not captioned.
        notes: sentences to print before the numbers.
        part: the part of the output whose units these are, as K/N; empty for all units.
        summed: the sums over its units, if `units` is empty.
    """

    units: Sequence[UnitLedger]
    done: str
    noun: str = "image"
    counts: Counts = field(default_factory=Counts)
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()
    part: str = ""
    summed: Sums | None = None

    @cached_property
    def sums(self) -> Sums:
        """The sums over all units, one unit after the other."""
        if self.summed:
            return self.summed
        sums = Sums()
        for unit in self.units:
            sums.add(unit)
        return sums

    @property
    def balanced(self) -> bool:
        """Whether every unit is."""
        return self.sums.balanced == self.sums.units

    @property
    def whole(self) -> bool:
        """Whether no row is missing; there may be duplicates."""
        return not (self.sums.unknown or self.sums.missing or self.sums.beyond)

    @property
    def finished(self) -> int:
        """Finished rows of all units."""
        return self.sums.finished

    @property
    def failed(self) -> int:
        """Failed rows of all units."""
        return self.sums.failed

    @property
    def planned(self) -> int:
        """Planned rows of the units whose length is known."""
        return self.sums.planned

    @property
    def asked_for(self) -> int:
        """The failed rows that the user asked for (rows/codes.py). They do not count towards failures.max_fraction."""
        # If a run of all units wrote before a part, the sums include both.
        return min(self.failed, sum(self.counts.codes[code] for code in ASKED_FOR))

    @property
    def duplicate(self) -> int:
        """Duplicate rows."""
        return self.sums.duplicate

    @property
    def beyond(self) -> int:
        """Rows with an index that their unit does not have."""
        return self.sums.beyond

    @property
    def unknown(self) -> int:
        """Units whose length is not known yet."""
        return self.sums.unknown

    @property
    def lost(self) -> int:
        """Units that could not be read at all."""
        return self.sums.lost

    @property
    def ended(self) -> int:
        """Units that could not be read to the end."""
        return self.sums.ended

    def report(self) -> dict[str, Any]:
        """The totals as plain data. The key of finished rows is `done`."""
        return {
            "balanced": self.balanced,
            "planned": None if self.unknown else self.planned,
            self.done: self.finished,
            "failed": self.failed,
            "duplicate": self.duplicate,
            "beyond": self.beyond,
            "units_lost": self.lost,
            "units_ended_early": self.ended,
            "flags": dict(self.counts.flags),
            "codes": dict(self.counts.codes),
            "runs": dict(self.counts.runs),
            "left_out": self.left_out.report(),
        }

    def short(self) -> dict[str, Any]:
        """The totals of a part as plain data."""
        planned = None if self.unknown else self.planned
        totals = {"planned": planned, self.done: self.finished, "failed": self.failed}
        return {"part": self.part, "balanced": self.balanced, **totals, "units": self.sums.units}

    def lines(self, more: Mapping[str, Any]) -> Iterator[str]:
        """The whole ledger as one JSON object, line by line: totals, `more`, and `units`, one after the other."""
        yield json.dumps({**self.report(), **more}, indent=1).removesuffix("\n}") + ","
        yield ' "units": ['
        comma = itertools.chain(itertools.repeat(",", len(self.units) - 1), [""])
        yield from (f"  {json.dumps(self._unit(unit))}{end}" for unit, end in zip(self.units, comma, strict=False))
        yield " ]\n}"

    def _unit(self, unit: UnitLedger) -> dict[str, Any]:
        return {
            "unit": unit.unit,
            "planned": unit.planned,
            self.done: unit.finished,
            "failed": unit.failed,
            "duplicate": unit.duplicate,
            "missing": unit.missing,
            "beyond": unit.beyond,
        }

    def summary(self) -> str:
        """One line for people."""
        flags = ", ".join(f"{count:,} {flag}" for flag, count in self.counts.flags.most_common(SHOWN_FLAGS))
        of = f"part {self.part}: " if self.part else ""
        parts = [
            f"{of}{self._images()}: {self.finished:,} {self.done}{_in_brackets(flags)}, "
            f"{self.failed:,} failed{_in_brackets(self.reasons())}"
        ]
        if self.lost:
            parts.append(f"{_counted(self.lost, 'unit')} lost")
        if self.ended:
            parts.append(f"{_counted(self.ended, 'unit')} not read to the end")
        if not self.balanced:
            parts.append(self._unbalanced())
        if self.left_out:
            parts.append(f"left out: {self.left_out.summary()}")
        return "; ".join(parts)

    def _images(self) -> str:
        """The planned rows in words. Those of a shard are known when it is read to its end."""
        if not self.unknown:
            return _counted(self.planned, self.noun)
        return f"at least {_counted(self.finished + self.failed + self.sums.missing, self.noun)}"

    def reasons(self, without: Collection[str] = ()) -> str:
        """The most frequent codes of failed rows, without those in `without`."""
        codes = Counter({code: count for code, count in self.counts.codes.items() if code not in without})
        return ", ".join(f"{code} {count:,}" for code, count in codes.most_common(SHOWN))

    def nothing_to_do(self, job: str, *, extended: bool = False, retried: bool = False) -> str:
        """The sentence for a run of a job without work."""
        said = f"nothing to {job}: every {self.noun} of the plan is {self.done} or failed"
        said += ", the input has nothing new" if extended else ""
        said += ", and no failed row has a code of --retry-failed" if retried else ""
        more = f"; --retry-failed tries failed rows again ({self.failed:,})" if self.failed and not retried else ""
        return said + more

    def _unbalanced(self) -> str:
        line = f"{self.sums.balanced:,} of {_counted(self.sums.units, 'unit')} balanced"
        line += f", {self.sums.missing:,} missing" if self.sums.missing else ""
        line += f", {self.duplicate:,} duplicate" if self.duplicate else ""
        line += f", {self.beyond:,} beyond their unit's end" if self.beyond else ""
        return line + (f", {_counted(self.unknown, 'unit')} of unknown length" if self.unknown else "")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def balance(
    refs: Sequence[UnitRef],
    committed: Mapping[int, Committed],
    done: str,
    noun: str = "image",
    left_out: LeftOut | None = None,
) -> Ledger:
    """Compare the plan with the committed rows.

    `done` and `noun` are the job's words for finished rows and for rows, `left_out` is what planning left out.
    """
    total = LeftOut()
    for some in (left_out, *(unit.left_out for ref in refs if (unit := committed.get(ref.unit)))):
        if some:
            total.merge(some)
    counts = committed.counts if isinstance(committed, CommittedUnits) else Counts()
    return Ledger(units=Balances(refs, committed), done=done, noun=noun, counts=counts, left_out=total)


class Balances(Sequence[UnitLedger]):
    """The balances of the units of a plan, in order. Each is made when it is asked for."""

    def __init__(self, refs: Sequence[UnitRef], committed: Mapping[int, Committed]) -> None:
        self._refs, self._committed = refs, committed

    def __len__(self) -> int:
        return len(self._refs)

    @overload
    def __getitem__(self, place: int) -> UnitLedger: ...

    @overload
    def __getitem__(self, place: slice) -> list[UnitLedger]: ...

    def __getitem__(self, place: int | slice) -> UnitLedger | list[UnitLedger]:
        if isinstance(place, slice):
            return list(map(self._of, self._refs[place]))
        return self._of(self._refs[place])

    def _of(self, ref: UnitRef) -> UnitLedger:
        unit = self._committed.get(ref.unit) or Committed()
        planned = unit.rows if unit.rows is not None else ref.rows
        nothing = 0 in unit.ended and not unit.finished
        return UnitLedger(
            unit=ref.unit,
            planned=planned,
            finished=len(unit.finished),
            failed=len(unit.failed),
            duplicate=len(unit.extra),
            beyond=len(unit.done) - unit.done.range_cardinality(0, planned) if planned is not None else 0,
            lost=nothing,
            ended=bool(unit.ended) and not nothing,
        )
