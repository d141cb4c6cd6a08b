"""What one actor beside the driver is told: how far the run is, which batches may have ended a replica, and the plan.

It imports nothing of the package, for an actor is a process that starts with every run.
"""

import collections
import time

import ray

# Every replica says so often that it is there: a thousand of them are 33 messages a second.
HERE_S = 30.0
# So many lost nodes are held against no row; one that goes on ending nodes must be found all the same.
FORGIVEN = 10
# Tasks whose attempts are counted: a task that died runs again soon.
MOST_TASKS = 2**16


class Counter:
    """Counts on the driver's node. A task that Ray runs again counts again: the ledger has the truth."""

    def __init__(self) -> None:
        self.rows = 0
        self.failed: collections.Counter[str] = collections.Counter()
        self._begun: dict[str, list[str]] = {}
        self._attempts: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._notes: dict[str, None] = {}
        self._work: list[bytes] | None = None
        self._began = time.monotonic()
        self._seen: float | None = None

    def add(self, rows: int, codes: list[str]) -> None:
        """One batch has left a replica; `codes` are those of its failed rows."""
        self.rows += rows
        self.failed.update(codes)

    def read(self) -> tuple[int, dict[str, int], float]:
        """Rows so far, failed rows by code, and for how many seconds there was no replica.

        One is taken to be there while it has not missed two messages.
        """
        since = self._began if self._seen is None else self._seen + 2 * HERE_S
        return self.rows, dict(self.failed), max(0.0, time.monotonic() - since)

    def begin(self, key: str, node: str) -> int:
        """A batch, or a row that is sent alone, is begun on a node; returns how often it was before and not ended.

        What was lost with its node is not counted: nodes are taken away, and no row is to blame for it.
        """
        begun = self._begun.setdefault(key, [])
        before = len(begun) - min(_gone(begun), FORGIVEN) if begun else 0
        begun.append(node)
        return before

    def put_off(self, key: str) -> None:
        """It is not begun after all."""
        self._begun[key].pop()

    def end(self, keys: list[str]) -> None:
        """They are finished: forget them."""
        for key in keys:
            self._begun.pop(key, None)

    def attempt(self, task: str) -> int:
        """How often a task was begun before. Each of its attempts asks once; the last tasks are remembered."""
        before = self._attempts.pop(task, 0)
        self._attempts[task] = before + 1
        if len(self._attempts) > MOST_TASKS:
            self._attempts.popitem(last=False)
        return before

    def note(self, line: str) -> None:
        """Something that the user should read once, whichever replica says it."""
        self._notes.setdefault(line)

    def notes(self) -> list[str]:
        """All notes so far, in order."""
        return list(self._notes)

    def here(self) -> None:
        """A replica has its GPU, whether or not its engine has started."""
        self._seen = time.monotonic()

    def plan(self, work: list[bytes]) -> None:
        """The plan is there: what each read task is to read."""
        self._work = work

    def work(self) -> list[bytes] | None:
        """What each read task is to read; None while the input is listed."""
        return self._work


def _gone(nodes: list[str]) -> int:
    """How many of these nodes the cluster no longer has."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return sum(node not in alive for node in nodes)
