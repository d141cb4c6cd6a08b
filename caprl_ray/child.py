"""A child process for work that may kill it. It talks with its parent over a pipe, and ends with its parent."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

ENDING_S = 1.0

# What a broken pipe raises when the other process is gone.
GONE = (EOFError, ConnectionError)


class Child:
    """One child process, which runs a module of the package with `main`. Its pipe is `connection`."""

    def __init__(self, module: str) -> None:
        self.late = False
        self.connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},  # Ray adds paths of its own to a worker's
            )

    @contextmanager
    def ended_after(self, seconds: float) -> Iterator[None]:
        """Kill the child, which is then `late`, if the block takes longer. A stopped child must not block us."""
        timer = threading.Timer(seconds, self._end_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end(self) -> int:
        """End and reap the child; returns its exit code, or the code of a child that is already dead."""
        self.connection.close()
        self._process.kill()
        return self._process.wait()

    def died(self) -> int:
        """The exit code of a child that is dying; negative for a signal."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING_S)  # its pipe has ended before its process: a kill now would hide the reason
        return self.end()

    def _end_late(self) -> None:
        self.late = True
        self._process.kill()


def reason(code: int) -> str:
    """An exit code in words, such as SIGSEGV."""
    names = {-number: number.name for number in signal.Signals}
    return names.get(code, f"exit code {code}")


def main(serve: Callable[[Connection], None]) -> None:
    """Run the child's side until its parent is gone."""
    # A child inherits a worker's signal settings. Timeouts need SIGALRM as the system sets it.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    _as_first_victim()
    with suppress(*GONE):
        serve(Connection(int(sys.argv[1])))


def _as_first_victim() -> None:
    """If memory runs out, the kernel should end this process and not its worker (proc(5), oom_score_adj)."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
