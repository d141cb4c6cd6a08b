"""The end of a run: remove duplicate rows and balance the ledger."""

from dataclasses import replace

from caprl_ray.errors import LedgerUnbalanced
from caprl_ray.output import again, fence, ledger, verdict
from caprl_ray.output.committed import CommittedUnits, read_committed
from caprl_ray.output.extension import GONE
from caprl_ray.output.folder import Output
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.repair import repair
from caprl_ray.output.scan import Tell
from caprl_ray.plan import Plan


def ended(
    output: Output,
    plan: Plan,
    notes: list[str],
    known: CommittedUnits | None = None,
    *,
    worked: bool,
    limited: bool,
    tell: Tell,
) -> Ledger:
    """Remove duplicate rows from the output, and balance the ledger.

    Args:
        output: the output, under its lease.
        plan: its whole plan.
        notes: what the user should read before the numbers.
        known: the rows of the output, if the run has added none.
        worked: whether the run had work. Only then its failed rows are judged.
        limited: whether rows may be missing.
        tell: hears of the progress.

    Raises LedgerUnbalanced and TooManyFailures.
    """
    if output.part:
        return _part_ended(output, plan, notes, known, tell)
    storage, path, job = output.storage, output.path, output.job
    output.confirm()
    fence.sweep(storage, path)
    notes += again.settled(storage, path)
    committed = read_committed(storage, path, tell=tell) if known is None else known
    if repair(storage, path, committed, tell):
        committed = read_committed(storage, path, tell=tell)
    balance = ledger.balance(plan.units, committed, job.done, job.noun, plan.left_out)
    # An output that was complete and has no new rows was accepted before, perhaps with another limit.
    limits, gone = job.recipe.failures, GONE if output.extend else frozenset()
    over = verdict.over(balance, limits, *output.accepted(), gone) if worked else None
    refused = verdict.refusal(over, storage, path) if over else None
    output.finish(balance, limited=limited, refused=refused)
    return replace(balance, notes=tuple(notes))


def _part_ended(output: Output, plan: Plan, notes: list[str], known: CommittedUnits | None, tell: Tell) -> Ledger:
    """The ledger of a part whose rows are all there.

    Duplicate rows, as after a retry, are removed at the end of the whole output, because another part may have rows in
    the same object.
    """
    storage, path, job = output.storage, output.path, output.job
    output.confirm()
    fence.sweep(storage, path, output.part_name)
    committed = read_committed(storage, path, tell=tell, part=output.part) if known is None else known
    balance = ledger.balance(plan.units, committed, job.done, job.noun)
    balance = replace(balance, notes=tuple(notes), part=str(output.part))
    if not balance.whole:
        raise LedgerUnbalanced(f"{path}: {balance.summary()}; run the same command again to finish it.")
    return balance
