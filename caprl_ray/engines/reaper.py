"""Ends what an engine leaves behind: no process of a dead engine, or of a dead replica, may keep a GPU's memory.

vLLM's core does not notice that its parent was killed (vLLM issue 55510), and Ray kills the children only of a worker
that could still say goodbye, and not theirs. So every process of an engine is started with a mark in its environment,
which its own children inherit, and beside it runs this file as a script with nothing but the standard library: it waits
for the end of a pipe that the replica holds, whatever ends the replica, and kills all that carry the mark. It is
nobody's child, or Ray would kill it first.
"""

import multiprocessing.resource_tracker
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "CAPRL_RAY_ENGINE"
# Where this is set, a process that gives itself a title (setproctitle, as vLLM's do) leaves its environment readable.
READABLE = "SPT_NOENV"
# A killed process is gone within milliseconds; one that a driver holds is not waited for any longer.
KILL_S = 20.0


class Reaper:
    """Ends the processes that are started inside of `marking`: at `kill`, or when this process ends in any way."""

    def __init__(self) -> None:
        self.killed = False
        self._mark = uuid.uuid4().hex
        command = [sys.executable, "-I", "-S", __file__, self._mark]
        started = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        started.wait()  # what was started has left a process of its own behind
        self._pipe = started.stdin

    @contextmanager
    def marking(self) -> Iterator[None]:
        """Processes that are spawned (not forked) inside of it carry the mark."""
        multiprocessing.resource_tracker.ensure_running()  # this process's own, which must not carry it
        os.environ |= {MARK: self._mark, READABLE: "1"}
        try:
            yield
        finally:
            del os.environ[MARK]

    def processes(self) -> list[int]:
        """Ids of the living processes that carry the mark."""
        return marked(self._mark)

    def kill(self) -> None:
        """Kill them, and wait until they are gone."""
        self.killed = True
        kill_marked(self._mark)
        assert self._pipe
        self._pipe.close()


def marked(mark: str) -> list[int]:
    """Ids of the living processes that were started with the mark; a zombie has no environment any more."""
    sought = f"{MARK}={mark}".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if sought in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
        except OSError:
            continue  # it has ended, or is another user's
    return found


def kill_marked(mark: str) -> None:
    """Kill every process that carries the mark, also those that are only being started, and see them end."""
    deadline = time.monotonic() + KILL_S
    killed: set[int] = set()
    while (found := marked(mark)) or any(map(_lives, killed)):
        if time.monotonic() > deadline:
            return
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        killed.update(found)
        time.sleep(0.02)


def _lives(process: int) -> bool:
    """A killed process loses its environment first, and what it has open (a GPU) only then."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


if __name__ == "__main__":
    if os.fork():
        os._exit(0)
    sys.stdin.buffer.read()
    kill_marked(sys.argv[1])
