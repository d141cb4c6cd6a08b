"""The state of all replicas, and the nodes that cannot start any. The counter actor keeps it, and the driver decides
(replicas.py)."""

import collections
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from caprl_ray.watch.record import Replicas

# Consecutive failed starts after which a node gets no more replicas. A single start may fail because the GPU's memory
# is not free yet.
STARTS = 3
# Seconds without a sign of life after which a replica counts as gone.
GONE_S = 60.0
MAIN = ""  # the name of the pool of the job's own stage; a further one has the name of its section in the recipe


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The replicas of a run: how many run and how many start, and for how many seconds fewer than wanted have run.

    `struck` are the nodes that get no more replicas, with the reason of the last failed start. `passed_s` are the
    seconds since a later pool has last finished rows of this one; endless if none has.
    """

    running: int = 0
    starting: int = 0
    short_s: float = 0.0
    passed_s: float = math.inf
    struck: dict[str, str] = field(default_factory=dict)


class Starts:
    """Keeps the failed starts of each node and the signs of life of each replica of one pool."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, int] = collections.Counter()
        self._struck: dict[str, str] = {}
        self._replicas: dict[str, tuple[bool, float]] = {}
        self._began: dict[str, float] = {}
        self._ended: set[str] = set()
        self._lost, self._spent = 0, 0.0
        self._enough = self._created = clock()
        self._seen: float | None = None
        self._passed = -math.inf

    def here(self) -> None:
        """A replica has its place, even if its engine has not started."""
        self._seen = self._clock()

    def absent(self, since: float | None = None) -> float:
        """The seconds without a replica, at first since that moment, or since this was made. A replica counts as gone
        when it has missed two signs of life."""
        began = self._created if since is None else since
        return max(0.0, self._clock() - (began if self._seen is None else self._seen + GONE_S))

    def passed(self) -> None:
        """A later pool has finished rows of this one, whose replicas Ray Data removes when they have no rows left. So
        it is not absent."""
        self._seen = self._passed = self._clock()

    @property
    def seen(self) -> bool:
        """Whether there was ever a replica."""
        return self._seen is not None

    def alive(self, replica: str, *, runs: bool) -> None:
        """A replica lives; its engine runs, or is being started."""
        if replica not in self._ended:
            self._replicas[replica] = (runs, self._clock())
            self._began.setdefault(replica, self._clock())

    def captioned(self, node: str) -> None:
        """A replica has captioned a batch. A node that was struck stays so: too many of its starts fail."""
        self._failed.pop(node, None)

    def failed(self, replica: str, node: str, reason: str) -> bool:
        """A replica's engine has not started, or captions nothing. Returns True if this strikes the node."""
        self._end(replica, self._clock())
        self._failed[node] += 1
        if self._failed[node] < STARTS:
            return False
        new = node not in self._struck
        self._struck[node] = reason
        return new

    def left(self, replica: str) -> int:
        """A replica leaves, for another reason. Returns how many there were with it."""
        now = self._clock()
        alive = sum(now - seen < GONE_S for _, seen in self._replicas.values())
        self._end(replica, now)
        return alive

    def _end(self, replica: str, when: float) -> None:
        """A replica is lost."""
        self._ended.add(replica)
        self._lost += 1
        self._replicas.pop(replica, None)
        self._spent += when - self._began.pop(replica, when)

    def alive_now(self) -> set[str]:
        """The replicas that give signs of life. Those that have stopped are lost: they cost until their last sign."""
        now = self._clock()
        for replica, (_, seen) in list(self._replicas.items()):
            if now - seen >= GONE_S and replica in self._began:
                self._lost += 1
                self._spent += seen - self._began.pop(replica)
                del self._replicas[replica]  # they would become many on spot capacity
        return {replica for replica, (_, seen) in self._replicas.items() if now - seen < GONE_S}

    def counts(self) -> Replicas:
        """The replicas now, those that were lost, and the seconds of all together."""
        alive, now = self.alive_now(), self._clock()
        running = sum(self._replicas[replica][0] for replica in alive)
        seconds = self._spent + sum(now - began for began in self._began.values())
        return Replicas(running=running, starting=len(alive) - running, lost=self._lost, seconds=seconds)

    def struck(self) -> dict[str, str]:
        """The nodes that get no more replicas, each with a reason."""
        return dict(self._struck)

    def pool(self, least: int) -> Pool:
        """The replicas now. Ask often: the seconds with fewer than `least` are counted from the last question with
        enough."""
        now = self._clock()
        alive = [runs for runs, seen in self._replicas.values() if now - seen < GONE_S]
        if sum(alive) >= least:
            self._enough = now
        return Pool(
            running=sum(alive),
            starting=len(alive) - sum(alive),
            short_s=now - self._enough,
            passed_s=now - self._passed,
            struck=self.struck(),
        )
