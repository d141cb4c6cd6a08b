"""The holder of an output's lease: the process, and whether it is known to have ended."""

import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

HELD = "held"
STOPPED = "stopped"  # the run ended early: its tasks on other nodes may still be writing
FINISHED = "finished"  # the run ended after its last task
SETTLED = "settled"  # the run of a part was lost, and its late writes do not count


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The driver that writes, as stored in the lease.

    Attributes:
        number: the lease's number, larger than that of every earlier lease of this output, or of this part.
        run: unique.
        host: the name of its machine, for messages.
        boot: the machine since its last start, and the namespaces of its process; see `boot`.
        pid: its process id, which has a meaning only where `boot` is the same.
        started: the start of its process in the kernel's clock ticks, which does not change when clocks are set.
        renewals: a counter, so that every renewal changes the lease's content and its version.
        until: when the lease expires, by the holder's own clock.
        state: HELD, STOPPED, FINISHED or SETTLED.
        part: the part that the driver writes, as K/N; empty for a run of the whole output.
    """

    number: int
    run: str
    host: str
    boot: str | None
    pid: int
    started: int | None
    renewals: int = 0
    until: str = ""
    state: str = HELD
    part: str = ""

    @classmethod
    def this_process(cls) -> "Holder":
        """A new holder for this process; it has no number yet."""
        pid, here = os.getpid(), boot()
        started = None if here is None else start_ticks(pid)
        return cls(number=0, run=uuid.uuid4().hex, host=socket.gethostname(), boot=here, pid=pid, started=started)

    @classmethod
    def parse(cls, content: bytes) -> "Holder | None":
        """The holder that a lease names; None for content that is not ours, or of an older version."""
        try:
            found = json.loads(content)
            holder = cls(**{field.name: found[field.name] for field in fields(cls) if field.name != "part"})
            holder = replace(holder, part=str(found.get("part", "")))
            holder.remaining()
        except (ValueError, TypeError, KeyError):
            return None
        return holder if isinstance(holder.number, int) and isinstance(holder.pid, int) else None

    @property
    def content(self) -> bytes:
        """The lease's content."""
        told = asdict(self)
        if not self.part:
            del told["part"]
        return json.dumps(told, indent=1).encode()

    @property
    def ended(self) -> bool:
        """Whether the run gave its lease back, or its process is known to have ended."""
        if self.state != HELD:
            return True
        return self.boot is not None and self.boot == boot() and _has_ended(self.pid, self.started)

    @property
    def over(self) -> bool:
        """Whether its run writes no more, or was settled, so that late writes do not count."""
        return self.state in (FINISHED, SETTLED)

    @property
    def of_this_process(self) -> bool:
        """Whether this process took the lease."""
        here = Holder.this_process()
        return here.boot is not None and (self.boot, self.pid, self.started) == (here.boot, here.pid, here.started)

    def remaining(self) -> timedelta:
        """The time to the lease's end, if the clocks of both machines agree."""
        return datetime.fromisoformat(self.until) - now()

    def renewed(self, seconds: float, state: str = HELD) -> "Holder":
        """The same holder with a new end."""
        until = (now() + timedelta(seconds=seconds)).isoformat(timespec="seconds")
        return replace(self, until=until, state=state, renewals=self.renewals + 1)


def now() -> datetime:
    """The time of day. It may be set at any moment, so only messages may depend on it alone."""
    return datetime.now(UTC)


def boot() -> str | None:
    """The scope of a process id and its start: this boot of the machine, and these namespaces.

    None if the system does not tell.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return " ".join([start, os.readlink("/proc/self/ns/pid"), _time_namespace()])
    except OSError:
        return None


def _time_namespace() -> str:
    """The time namespace, which shifts starts of processes (man 7 time_namespaces). Kernels before 5.6 have none."""
    try:
        return os.readlink("/proc/self/ns/time")
    except FileNotFoundError:
        return ""


def start_ticks(pid: int) -> int:
    """The start of a process in clock ticks since the boot: field 22 of /proc/PID/stat (man 5 proc)."""
    # The name in field 2 may hold blanks and parentheses.
    after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]
    return int(after_name.split()[19])


def _has_ended(pid: int, started: int | None) -> bool:
    """Whether there is no such process. False if the system does not tell."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # a process of another user
        pass
    try:
        return start_ticks(pid) != started
    except OSError:  # /proc may hide the processes of others
        return False
