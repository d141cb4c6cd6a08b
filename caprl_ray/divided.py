"""The turns of a driver of a part: plan the input before, complete the output after (docs/design.md, D21)."""

from collections.abc import Callable
from dataclasses import replace

from caprl_ray.errors import LedgerUnbalanced, RecipeError
from caprl_ray.output import doubtful, parts
from caprl_ray.output.ended import ended
from caprl_ray.output.folder import Output, forgotten_if_refused
from caprl_ray.output.lease import Lease
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.part import Part, part_of, parts_with_units
from caprl_ray.read import while_planning
from caprl_ray.watch import all_parts, status_file
from caprl_ray.watch.steps import Steps

# Opens the output under a lease.
Opened = Callable[[Lease], Output]


def plan_once(seen: Output, opened: Opened, part: Part) -> None:
    """Plan the input of an output that several drivers write, or wait until another driver has planned it."""
    parts.refuse_otherwise(seen.storage, seen.path, part)  # before a possible wait
    with parts.turn(seen.storage, seen.path, part) as own:
        output = opened(own)
        over = parts.divide(output.storage, output.path, part, own)
        for name in ("", *(other.name for other in over)):  # of runs that ended before they could
            doubtful.settle(output.storage, output.path, name)
        with forgotten_if_refused(output), while_planning.begun(output.plan) as underway:
            whole = underway.whole()
            if output.adopted:
                output.check_columns(whole)


def complete(output: Output, opened: Opened, part: Part, done: Ledger) -> Ledger:
    """If this part is the last one, balance the whole ledger and mark the output. Otherwise report the unfinished
    parts.

    Waits for a run of the whole output that has begun since, because no other driver may come to complete the output.

    Raises LedgerUnbalanced if rows of this part are missing after all.
    """
    storage, path = output.storage, output.path
    with status_file.end_told(output), parts.turn(storage, path, part, patient=True) as own:
        whole = _whole(opened, own, part)
        plan = whole.plan()
        left = parts.unfinished(storage, path, parts_with_units(plan, part.of))
        if not left:
            doubtful.settle(storage, path)  # also late lists by drivers of another division
        if whole.marked():
            left = []
        elif not left:
            notes = [*done.notes, f"part {part} is finished, the last one"]
            found = ended(whole, plan, notes, worked=True, limited=True, tell=Steps())
            if found.balanced:
                all_parts.keep(storage, path)
                return found
            left = sorted({part_of(unit.unit, part.of) for unit in found.units if not unit.balanced})
            if part in left:
                raise LedgerUnbalanced(f"{path}: {found.summary()}; run the same command again to finish it.")
    others = [other for other in left if other != part]
    said = f"part {part} is finished"
    if others:
        said += f"; {len(others):,} {'other is' if len(others) == 1 else 'others are'} not: {parts.some(others)}"
    elif not left:
        said += ", and so is the whole output"
    return replace(done, notes=(*done.notes, said))


def _whole(opened: Opened, own: Lease, part: Part) -> Output:
    """The whole output, at the end of a part. Raises RecipeError if a driver of another part has meanwhile accepted
    another recipe for it."""
    try:
        return replace(opened(own), part=None)
    except RecipeError as error:
        raise RecipeError(
            f"part {part} is finished. {error} If the output is not complete, run any part again by the recipe that it "
            "belongs to."
        ) from None
