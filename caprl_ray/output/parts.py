"""Several drivers on one output, each with a part of its units (docs/design.md, D21).

The driver of a part holds the lease of the whole output only for its turns: to plan the input, if no plan is stored,
and to balance the whole ledger, if its part is the last one. Otherwise it holds only the lease of its part. A run of
the whole output holds the whole output's lease all the time.

Every driver first takes its own lease and then looks at the leases of the others. So of two that must not write at the
same time, at least one sees the other. A turn that began earlier may not have seen the lease of a part. So the driver
of the part waits for the end of that turn.
"""

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from caprl_ray import plan
from caprl_ray.errors import RecipeError
from caprl_ray.output import lease
from caprl_ray.output.counts import Counts
from caprl_ray.output.folder import SUCCESS
from caprl_ray.output.holder import FINISHED, HELD, Holder
from caprl_ray.output.lease import Busy, Lease
from caprl_ray.output.ledger import Ledger, Sums
from caprl_ray.output.part import FOLDER, STATUS, Part, part_of
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.storage import Storage, join

POLL_S = 1.0
SHOWN = 3  # parts


@contextmanager
def turn(storage: Storage, output: str, part: Part, *, patient: bool = False) -> Iterator[Lease]:
    """Hold the lease of the whole output for a while, on behalf of a part. Waits while another part has its turn.

    Raises Busy during a run of the whole output; if `patient`, waits for it, too.
    """
    with ExitStack() as stack:
        yield _awaited(storage, output, part, stack, patient)


def _awaited(storage: Storage, output: str, part: Part, stack: ExitStack, patient: bool) -> Lease:
    told = None
    while True:
        try:
            return stack.enter_context(lease.taken(storage, output, on_behalf=part))
        except Busy as busy:
            holder = busy.holder
            if not (busy.passing or (holder and (holder.part or patient))):
                raise
            if holder and not busy.passing and holder.run != told:
                told = holder.run
                sys.stderr.write(f"caprl-ray: part {part} waits for {_doing(storage, output, holder)}.\n")
        time.sleep(POLL_S)


def _doing(storage: Storage, output: str, holder: Holder) -> str:
    who = f"process {holder.pid} on {holder.host} ({f'part {holder.part}' if holder.part else 'no part'})"
    if plan.closed(storage, output):
        return f"{who}, which looks at the whole output"
    return f"the plan, which {who} writes"


def divide(storage: Storage, output: str, part: Part, own: Lease) -> list[Part]:
    """Divide the output into `part.of` parts. `own` is the turn. Returns the parts of earlier divisions, which are
    over.

    Late writes of their lost drivers do not count. Raises RecipeError if a driver still writes one of them.
    """
    others = refuse_otherwise(storage, output, part)
    lease.settle(storage, output, others)
    if others:
        own.check()
    for other in others:
        storage.delete(join(output, FOLDER, f"{other.name}{STATUS}"))
        storage.delete(lease.path_of(output, other))
    return [*others]


def refuse_otherwise(storage: Storage, output: str, part: Part) -> dict[Part, Holder | None]:
    """Raise RecipeError if a driver writes a part of another division. Returns the leases of other divisions."""
    others = {other: holder for other, holder in lease.holders(storage, output).items() if other.of != part.of}
    for other, holder in others.items():
        if holder and lease.lives(holder):
            raise RecipeError(
                f"--part: {output} is written in {other.of} parts, of which process {holder.pid} on {holder.host} "
                f"writes {other}; give a part K/{other.of} instead of {part}, or wait for the end of all."
            )
    return others


@contextmanager
def held(storage: Storage, output: str, part: Part) -> Iterator[Lease]:
    """Hold the lease of a part, while neither the whole output nor another number of parts is written.

    Raises RecipeError if it is, and SystemFailure if the output was divided again in the meantime.
    """
    with lease.taken(storage, output, part) as own:
        whole = lease.holder_of(storage, output)
        if whole and whole.part and whole.state == HELD:
            with turn(storage, output, part):  # an earlier turn may not have seen this lease
                own.check()
        elif whole and not whole.part and whole.state != FINISHED:
            raise Busy.of(f"output.path: another run has just begun or ended at {output}; try again.", whole)
        for other, holder in refuse_otherwise(storage, output, part).items():
            if not (holder and holder.over):
                raise RecipeError(
                    f"--part: {output} was written in {other.of} parts just now, and the run of {other} has not "
                    f"finished; run {part} again to divide it anew."
                )
        yield own


def living(holders: Mapping[Part, Holder | None]) -> list[Part]:
    """The parts that a driver is writing, by their holders."""
    return [part for part, holder in holders.items() if holder and lease.lives(holder)]


def shares(holders: Mapping[Part, Holder | None], whole: Ledger) -> list[Ledger]:
    """The ledger of each part, without its units, flags and codes; none of an output that has no parts."""
    of = max((part.of for part in [*living(holders), *holders][:1]), default=0)
    sums = {Part(number=number, of=of): Sums() for number in range(1, of + 1)}
    for unit in whole.units if of else ():
        sums[part_of(unit.unit, of)].add(unit)
    empty = replace(whole, units=(), counts=Counts(), left_out=LeftOut())
    return [replace(empty, summed=some, part=str(part)) for part, some in sums.items()]


def unfinished(storage: Storage, output: str, parts: Collection[Part]) -> list[Part]:
    """The unfinished ones of `parts`, by the state of their leases."""
    found = lease.holders(storage, output)
    ended = {part for part, holder in found.items() if holder and holder.over}
    return sorted({*parts} - ended)


def others_are_left(storage: Storage, output: str, found: Ledger) -> bool:
    """Whether a run has finished its part of an output that is not complete. Who completes it sums it up."""
    return bool(found.part) and storage.lookup(join(output, SUCCESS)) is None


def some(parts: Sequence[Part]) -> str:
    """The first of the parts in words, such as "1/3 and 2/3"; there is at least one."""
    shown, more = [str(part) for part in parts[:SHOWN]], len(parts) - SHOWN
    last = f"{more:,} more" if more > 0 else shown.pop()
    return f"{', '.join(shown)} and {last}" if shown else last


def being_written(parts: Sequence[Part]) -> str:
    """What `verify` says of the parts that drivers are writing; there is at least one."""
    if len(parts) == 1:
        return f"part {some(parts)} is being written; verify again when it has ended."
    return f"parts {some(parts)} are being written; verify again when they have ended."
