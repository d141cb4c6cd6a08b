"""`caprl-ray status`: the progress of an output's run, from its status.json and its lease."""

import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from caprl_ray import plan
from caprl_ray.commands import parts
from caprl_ray.commands.judge import COMPLETE, DIED, ENDED, RUNNING, SILENT, SLOW, judge, named, old
from caprl_ray.commands.parts import NOT_BEGUN, PART_FINISHED, SETTLED_PART, SeenPart
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output import lease
from caprl_ray.output.folder import SUCCESS
from caprl_ray.output.holder import Holder
from caprl_ray.output.record import read_run
from caprl_ray.storage import Storage, join
from caprl_ray.watch import all_parts
from caprl_ray.watch import status as status_module
from caprl_ray.watch.status import NotAStatus, Status
from caprl_ray.watch.view import fits, view
from caprl_ray.watch.words import line


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
    try:
        return _look_at_parts(storage, output) or _look_at_run(storage, output)
    except (FileNotFoundError, NotADirectoryError):
        raise _without_status(storage, output, hint) from None
    except OSError as error:
        path = join(output, status_module.NAME)
        raise SystemFailure(f"{path}: cannot be read ({error.strerror}){hint}.") from error


def _look_at_run(storage: Storage, output: str) -> Seen:
    """What the last run of the whole output has told."""
    path = join(output, status_module.NAME)
    try:
        status = Status.parse(storage.read(path))
    except NotAStatus as error:
        raise SystemFailure(f"{path}: {error}.") from None
    age, holder = storage.age(path), _holder(storage, output)
    state, sentence = judge(
        status, holder, storage.age(join(output, lease.NAME)), age, complete=_complete(storage, output)
    )
    return Seen(status=status, state=state, sentence=sentence, age_s=age)


def _complete(storage: Storage, output: str) -> bool:
    return storage.lookup(join(output, SUCCESS)) is not None


def _look_at_parts(storage: Storage, output: str) -> Seen | None:
    """The statuses of drivers of parts; None if there are none, or if a run of the whole output came after them.

    When an output is complete, status.json has the sum. Repair and compact hold the whole output, too, but write no
    status.
    """
    holder = _holder(storage, output)
    silent = old(storage.age(join(output, lease.NAME)), lease.EXPIRY_S)
    living = holder if holder and not holder.ended and not silent else None
    found = parts.look(storage, output)
    if not found and not (living and living.part):
        return None
    complete = _complete(storage, output)
    if (complete or (holder and not holder.part)) and _told_since(storage, output, found, holder, complete=complete):
        return _with_parts(_look_at_run(storage, output), found) if complete else None
    told = {one.part: one.status for one in found if one.status}
    running = [one.part for one in found if one.state in (RUNNING, SLOW)]
    missing = any(one.status is None for one in found)
    status = all_parts.total(told, running, missing) if told else all_parts.empty(output, holder=living)
    state, sentence = _judge_together(found, living, complete=complete)
    ages = [one.age_s for one in found if one.age_s is not None]
    return Seen(status=status, state=state, sentence=sentence, age_s=min(ages, default=None), parts=tuple(found))


def _with_parts(seen: Seen, found: list[SeenPart]) -> Seen:
    """What is told of a complete output, with its parts if these have done all of it."""
    all_told = all(one.status and one.state == PART_FINISHED for one in found)
    sum_of_parts = seen.status.run.run is None  # a run of the whole output tells which run it is
    return replace(seen, parts=tuple(found)) if all_told and sum_of_parts else seen


def _told_since(storage: Storage, output: str, found: list[SeenPart], holder: Holder | None, *, complete: bool) -> bool:
    """Whether status.json is of the holder's run, or else later than what the parts have told. When these have
    completed the output, it is as late as the last of them."""
    with suppress(OSError, NotAStatus):
        told = Status.parse(storage.read(join(output, status_module.NAME)))
        if holder and told.run.run == holder.run:
            return True
        latest = max((one.status.at for one in found if one.status), default="")
        return latest < told.at or (complete and latest == told.at)
    return False


def _judge_together(found: list[SeenPart], living: Holder | None, *, complete: bool) -> tuple[str, str]:
    """The same as `judge` of all parts. `living` holds the whole output: for the turn of a part, or all the time."""
    if complete:
        return COMPLETE, "The output is complete."
    states = {one.state for one in found}
    said = f"{parts.together(found)}." if found else ""
    if living:
        return RUNNING, " ".join(filter(None, [said, _doing(living, states)]))
    if states & {DIED, ENDED, SILENT, SETTLED_PART}:
        said += " Run the parts that are lost again, from anywhere."
    elif states == {PART_FINISHED}:
        why = next((one.status.ended for one in found if one.status and one.status.ended), "")
        said += f" The output is not complete: {why}" if why else " The output is not complete; run any part again."
    elif NOT_BEGUN in states:
        said += " Run the others, from anywhere."
    worst = next((state for state in (RUNNING, SLOW, SILENT, DIED) if state in states), ENDED)
    return worst, said


def _doing(living: Holder, states: set[str]) -> str:
    """What holds the whole output."""
    who = named(living).capitalize()
    if not living.part:
        return f"{who} holds the whole output: verify --repair, compact, or a run without --part that has just begun."
    doing = "checks the whole output" if states == {PART_FINISHED} else "plans the input or looks at it"
    return f"{who} (part {living.part}) {doing}."


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
