"""Whether a run goes on, by its lease and its status, and the sentence that says what is wrong."""

from caprl_ray.output import lease
from caprl_ray.output.holder import FINISHED, STOPPED, Holder
from caprl_ray.watch.status import Status
from caprl_ray.watch.words import clock

RUNNING, SLOW, SILENT, DIED = "running", "slow", "silent", "died"
ENDED, COMPLETE = "ended", "complete"
# The limits of a running state: two missing renewals of the lease, or a status that is late by more than one period and
# the time of a write.
LATE_S = 2 * lease.RENEWAL_S
STATUS_LATE_S = 90.0
AGAIN = "the same command continues it"


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
        return DIED, f"The driver has died: {named(holder)} is not there any more; {AGAIN}."
    return None


def _late(status: Status, holder: Holder, lease_age: float | None, age: float | None) -> tuple[str, str]:
    """Whether a run that holds its lease gives signs of life."""
    since = f"{named(holder)} renewed its lease {clock(lease_age or 0)} ago"
    if old(lease_age, lease.EXPIRY_S):
        return SILENT, (
            f"The driver has gone silent: {since}, and should every {lease.RENEWAL_S:.0f} seconds; it has died, or "
            f"cannot write to the output. If it is gone, {AGAIN}."
        )
    if old(lease_age, LATE_S):
        return SLOW, f"The driver is late: {since}."
    if _of_another(status, holder):
        return RUNNING, f"{named(holder).capitalize()} has just begun another run; this is the run before."
    if status.ended is not None:
        doing = "it checks the whole output and balances the ledger"
        return RUNNING, f"The run is at its end: {(status.ended or doing).rstrip('.')}."
    if old(age, STATUS_LATE_S):
        return SLOW, f"The driver lives, but this is {clock(age or 0)} old: {named(holder)} or its storage is slow."
    return RUNNING, ""


def _of_another(status: Status, holder: Holder) -> bool:
    """Whether a status is that of a run before the holder's, which has written none yet."""
    return status.run.lease not in (None, holder.number)


def old(age: float | None, limit: float) -> bool:
    """Whether something is older than a limit, in seconds."""
    return age is not None and age > limit


def named(holder: Holder) -> str:
    """The driver in words."""
    return f"process {holder.pid} on {holder.host}"
