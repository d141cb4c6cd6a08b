"""The process that vLLM runs the model in, forked from one that has imported vLLM already.

vLLM spawns its core from the replica, so that one imports vLLM after the other: several seconds in which nothing else
happens. Here a server of Python's own (multiprocessing's forkserver) imports it beside the replica, and the core is
forked from there. The server only imports, and touches no GPU; it ends with the replica.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess

# What the core needs before it has read its configuration; no more than vLLM's own parent has imported where it forks
# (its default outside of Ray), for a process that has touched a GPU cannot be forked.
IMPORTED = ["vllm.v1.engine.core"]


class CoreProcess(ForkServerProcess):
    """A forked process with the environment of the one that starts it: that of the server is older."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        for name, value in self._environment.items():
            # What is set anew moves, and where all has moved setproctitle finds no place for the core's title.
            if os.environ.get(name) != value:
                os.environ[name] = value
        super().run()


class _Context(ForkServerContext):
    Process = CoreProcess


def import_ahead() -> None:
    """Begin to import what a core needs, in the server's process; returns at once."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()


def end() -> None:
    """End the server, if there is one, and reap it; its cores are seen to elsewhere (guard.py)."""
    with suppress(OSError):  # its socket lies in a temporary folder, which somebody may have cleaned
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


@contextmanager
def forked() -> Iterator[None]:
    """Cores that vLLM starts inside of it are forked from the server's process."""
    from vllm.v1.engine import utils

    spawning = utils.get_mp_context
    utils.get_mp_context = _Context
    try:
        yield
    finally:
        utils.get_mp_context = spawning
