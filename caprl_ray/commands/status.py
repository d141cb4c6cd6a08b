"""`caprl-ray status`: the progress of an output's run, from its status.json and its lease."""

import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from caprl_ray import plan
from caprl_ray.commands import parts
from caprl_ray.commands.parts import NOT_BEGUN, PART_FINISHED, SETTLED_PART, SeenPart
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output import lease
from caprl_ray.output.folder import SUCCESS
from caprl_ray.output.holder import FINISHED, STOPPED, Holder
from caprl_ray.output.record import read_run
from caprl_ray.storage import Storage, join
from caprl_ray.watch import all_parts
from caprl_ray.watch import status as status_module
from caprl_ray.watch.status import NotAStatus, Status
from caprl_ray.watch.view import fits, view
from caprl_ray.watch.words import clock, line

RUNNING, SLOW, SILENT, DIED = "running", "slow", "silent", "died"
ENDED, COMPLETE = "ended", "complete"
# The limits of a running state: two missing renewals of the lease, or a status that is late by more than one period and
# the time of a write.
LATE_S = 2 * lease.RENEWAL_S
STATUS_LATE_S = 90.0
AGAIN = "the same command continues it"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A status and its judgement.

    Attributes:
        state: RUNNING, SLOW, SILENT, DIED, ENDED or COMPLETE.
        sentence: the same in words; empty while the run is fine.
        age_s: seconds since the status was written, by the store's clock if it has one.
        parts: of an output that several drivers write. Then the status is their sum.
    """

    status: Status
    state: str
    sentence: str
    age_s: float | None
    parts: tuple[SeenPart, ...] = ()

    @property
    def over(self) -> bool:
        """Whether the status will not change any more."""
        return self.state in (DIED, ENDED, COMPLETE)

    def report(self) -> dict[str, Any]:
        """Everything as plain data."""
        told = {"state": self.state, "sentence": self.sentence, "age_s": self.age_s, **self.status.plain()}
        return {**told, "parts": [part.report() for part in self.parts]} if self.parts else told


def look(storage: Storage, output: str, hint: str = "") -> Seen:
    """Read the status of a run. `hint` is added to the message if nothing is found.

    Raises RecipeError if there is no such folder or no run has written there, SystemFailure if the status cannot be
    read.
    """
    path = join(output, status_module.NAME)
    try:
        by_parts = _look_at_parts(storage, output)
        if by_parts:
            return by_parts
        content = storage.read(path)
    except (FileNotFoundError, NotADirectoryError):
        raise _without_status(storage, output, hint) from None
    except OSError as error:
        raise SystemFailure(f"{path}: cannot be read ({error.strerror}){hint}.") from error
    try:
        status = Status.parse(content)
    except NotAStatus as error:
        raise SystemFailure(f"{path}: {error}.") from None
    age, holder = storage.age(path), _holder(storage, output)
    done = storage.lookup(join(output, SUCCESS)) is not None
    state, sentence = judge(status, holder, storage.age(join(output, lease.NAME)), age, complete=done)
    return Seen(status=status, state=state, sentence=sentence, age_s=age)


def _look_at_parts(storage: Storage, output: str) -> Seen | None:
    """The statuses of drivers of parts; None if there are none, or if a run of the whole output came after them. Repair
    and compact hold the whole output, too, but write no status.
    """
    holder = _holder(storage, output)
    silent = _old(storage.age(join(output, lease.NAME)), lease.EXPIRY_S)
    turn = holder if holder and holder.part and not holder.ended and not silent else None
    whole = holder if holder and not holder.part else None
    found = [] if whole and lease.lives(whole) else parts.look(storage, output, partial(judge, complete=False))
    if not (found or turn) or (whole and _told_since(storage, output, found)):
        return None
    told = {one.part: one.status for one in found if one.status}
    running = [one.part for one in found if one.state in (RUNNING, SLOW)]
    missing = any(one.status is None for one in found)
    status = all_parts.total(told, running, missing) if told else all_parts.empty(output, holder=turn)
    complete = storage.lookup(join(output, SUCCESS)) is not None
    state, sentence = _judge_together(found, turn, complete=complete)
    ages = [one.age_s for one in found if one.age_s is not None]
    return Seen(status=status, state=state, sentence=sentence, age_s=min(ages, default=None), parts=tuple(found))


def _told_since(storage: Storage, output: str, found: list[SeenPart]) -> bool:
    """Whether a run of the whole output has written a status since the parts have."""
    with suppress(OSError, NotAStatus):
        at = Status.parse(storage.read(join(output, status_module.NAME))).at
        return all(one.status is None or one.status.at < at for one in found)
    return False


def _judge_together(found: list[SeenPart], turn: Holder | None, *, complete: bool) -> tuple[str, str]:
    if complete:
        return COMPLETE, "The output is complete."
    states = {one.state for one in found}
    said = f"{parts.together(found)}." if found else ""
    if turn:
        doing = "checks the whole output" if states <= {PART_FINISHED} and found else "plans the input or looks at it"
        return RUNNING, " ".join(filter(None, [said, f"{_named(turn).capitalize()} (part {turn.part}) {doing}."]))
    if states & {DIED, ENDED, SILENT, SETTLED_PART}:
        said += " Run the parts that are lost again, from anywhere."
    elif states == {PART_FINISHED}:
        said += " The output is not complete; run any part again."
    elif NOT_BEGUN in states:
        said += " Run the others, from anywhere."
    worst = next((state for state in (RUNNING, SLOW, SILENT, DIED) if state in states), ENDED)
    return worst, said


def judge(
    status: Status, holder: Holder | None, lease_age: float | None, age: float | None, *, complete: bool
) -> tuple[str, str]:
    """The state of the run, and a sentence if something is wrong.

    The driver renews its lease every lease.RENEWAL_S, whatever its run does. So an old lease means that the driver is
    gone or cut off. An old status with a fresh lease means that the driver is slow.
    """
    if complete:
        return COMPLETE, "The output is complete."
    if holder is None:
        return ENDED, f"Nobody holds the lease, so no run is active; {AGAIN}."
    return _ended(status, holder) or _late(status, holder, lease_age, age)


def _ended(status: Status, holder: Holder) -> tuple[str, str] | None:
    """The sentence about a run that has ended; None if it may be running."""
    if holder.state == FINISHED:
        return ENDED, f"The run has ended, and rows are left; {AGAIN}."
    if holder.state == STOPPED:
        why = ((not _of_another(status, holder) and status.ended) or "nobody says why").rstrip(".")
        if why.startswith("stopped"):  # by a signal: it says what to do (watch/ending.py)
            return ENDED, f"The run was {why}."
        return ENDED, f"The run was stopped: {why}; {AGAIN}."
    if holder.ended:
        return DIED, f"The driver has died: {_named(holder)} is not there any more; {AGAIN}."
    return None


def _late(status: Status, holder: Holder, lease_age: float | None, age: float | None) -> tuple[str, str]:
    """Whether a run that holds its lease gives signs of life."""
    since = f"{_named(holder)} renewed its lease {clock(lease_age or 0)} ago"
    if _old(lease_age, lease.EXPIRY_S):
        return SILENT, (
            f"The driver has gone silent: {since}, and should every {lease.RENEWAL_S:.0f} seconds; it has died, or "
            f"cannot write to the output. If it is gone, {AGAIN}."
        )
    if _old(lease_age, LATE_S):
        return SLOW, f"The driver is late: {since}."
    if _of_another(status, holder):
        return RUNNING, f"{_named(holder).capitalize()} has just begun another run; this is the run before."
    if status.ended is not None:
        doing = "it checks the whole output and balances the ledger"
        return RUNNING, f"The run is at its end: {(status.ended or doing).rstrip('.')}."
    if _old(age, STATUS_LATE_S):
        return SLOW, f"The driver lives, but this is {clock(age or 0)} old: {_named(holder)} or its storage is slow."
    return RUNNING, ""


def _of_another(status: Status, holder: Holder) -> bool:
    """Whether a status is that of a run before the holder's, which has written none yet."""
    return status.run.lease not in (None, holder.number)


def _old(age: float | None, limit: float) -> bool:
    return age is not None and age > limit


def _named(holder: Holder) -> str:
    return f"process {holder.pid} on {holder.host}"


def _holder(storage: Storage, output: str) -> Holder | None:
    try:
        return Holder.parse(storage.read(join(output, lease.NAME)))
    except OSError:
        return None


def _without_status(storage: Storage, output: str, hint: str) -> RecipeError:
    """The error for a missing status.json."""
    try:
        there, run = storage.lookup(output), read_run(storage, output)
        begun = run is not None or plan.load(storage, output).units or _holder(storage, output)
    except RecipeError as error:
        return error
    except OSError as error:
        raise SystemFailure(f"{output}: cannot be read ({error.strerror}){hint}.") from error
    if there is None:
        return RecipeError(f"{output}: there is no such folder{hint}.")
    if begun:
        return RecipeError(
            f"{output}: there is no status yet, or an older version wrote the output; try again in a minute, or run "
            "caprl-ray verify."
        )
    return RecipeError(f"{output}: no run has written in this folder{hint}.")


class Display:
    """Shows what was seen: on a terminal the view, with `live` in one place; elsewhere a line."""

    def __init__(self, *, live: bool) -> None:
        self._console = Console()
        self._fits = fits(self._console)
        self._stack = ExitStack()
        self._live = Live(console=self._console, auto_refresh=False) if live and self._fits else None

    def __enter__(self) -> "Display":
        if self._live:
            self._stack.enter_context(self._live)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show(self, seen: Seen) -> None:
        """Show it."""
        if not self._fits:
            lines = [*(part.line() for part in seen.parts), line(seen.status), *filter(None, [seen.sentence])]
            sys.stdout.write("".join(f"{one}\n" for one in lines))
            sys.stdout.flush()
            return
        each = [Text(part.line(), overflow="ellipsis", no_wrap=True) for part in seen.parts]
        drawn = Group(*each, view(seen.status, self._console.width, seen.sentence))
        if self._live:
            self._live.update(drawn, refresh=True)
        else:
            self._console.print(drawn)
