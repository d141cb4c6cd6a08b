"""Kill the processes that a dead engine or a dead replica leaves behind: none may keep a GPU's memory.

vLLM's core does not notice that its parent was killed (vLLM issue 55510). Ray kills a worker's direct children, on a
clean exit only. So every process of an engine starts with a mark in its environment, which its children inherit. This
file runs as a script beside it, with the standard library only. The script waits until a pipe from the replica closes,
however the replica ends, and kills all processes with the mark. It is daemonised, so that Ray does not kill it along
with the worker. At the end of the replica it also removes the folder of the engines' temporary files.
"""

import atexit
import functools
import multiprocessing.resource_tracker
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "CAPRL_RAY_ENGINE"
# With this variable set, a process that changes its title (setproctitle, as vLLM's do) keeps its environment readable.
READABLE = "SPT_NOENV"
FOLDER = "TMPDIR"  # where every process has its temporary files
# Seconds. A killed process is gone within milliseconds. Do not wait longer for one that a driver holds.
KILL_S = 20.0


class Reaper:
    """Ends the processes that start inside of `marking`: at `kill`, or when this process ends in any way."""

    def __init__(self) -> None:
        self.killed = False
        self.folder = _temporary()
        """The folder of temporary files, which goes with this process."""
        self._mark = uuid.uuid4().hex
        command = [sys.executable, "-I", "-S", __file__, self._mark, str(os.getpid()), self.folder]
        started = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        started.wait()  # the started script has daemonised itself
        self._pipe = started.stdin

    @contextmanager
    def marking(self) -> Iterator[None]:
        """Give the mark to processes that are spawned (not forked) inside of the block, and a folder for their
        temporary files, where the block's own are, too."""
        multiprocessing.resource_tracker.ensure_running()  # this process's own tracker, which must not carry the mark
        before, default = os.environ.get(FOLDER), tempfile.tempdir
        os.environ |= {MARK: self._mark, READABLE: "1", FOLDER: self.folder}
        tempfile.tempdir = self.folder
        try:
            yield
        finally:
            tempfile.tempdir = default
            del os.environ[MARK], os.environ[FOLDER]
            os.environ |= {FOLDER: before} if before else {}

    def processes(self) -> list[int]:
        """Ids of the living processes with the mark."""
        return marked(self._mark)

    def cpu_seconds(self) -> float:
        """The processor time that the living processes with the mark have used."""
        return sum(map(_cpu_seconds, self.processes()))

    def kill(self) -> None:
        """Kill them, and wait until they are gone."""
        self.killed = True
        kill_marked(self._mark)
        assert self._pipe
        self._pipe.close()


@functools.cache
def _temporary() -> str:
    """The folder of this process's engines: sockets, shared files of their processes, and torch's compiled code.

    It lives as long as this process: multiprocessing goes on using the folder of the first engine.
    """
    folder = tempfile.mkdtemp(prefix="caprl-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def marked(mark: str) -> list[int]:
    """Ids of the living processes with the mark. A zombie has no environment any more."""
    sought = f"{MARK}={mark}".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if sought in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
        except OSError:
            continue  # it has ended, or belongs to another user
    return found


def kill_marked(mark: str) -> None:
    """Kill every process with the mark, also those that are just starting, and wait for their end."""
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


def _cpu_seconds(process: int) -> float:
    """User and system time: fields 14 and 15 of /proc/PID/stat (man 5 proc)."""
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def remove_after(process: int, folder: str) -> None:
    """Remove the folder when the process has ended; not if only its engine has."""
    deadline = time.monotonic() + KILL_S
    while _lives(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    if not _lives(process):
        shutil.rmtree(folder, ignore_errors=True)


def _lives(process: int) -> bool:
    """Whether a process lives. A killed process loses its environment first, and open files (a GPU) later."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


if __name__ == "__main__":
    if os.fork():
        os._exit(0)
    sys.stdin.buffer.read()
    kill_marked(sys.argv[1])
    remove_after(int(sys.argv[2]), sys.argv[3])
