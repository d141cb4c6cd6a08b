"""The process in which vLLM runs the model, forked from one that has already imported vLLM.

vLLM spawns its core from the replica, so the two import vLLM one after the other, for several seconds. Here Python's
forkserver imports it in parallel, and the core is forked from there. The server only imports, and touches no GPU. It
ends with the replica.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from caprl_ray.cluster.optional import plain
from caprl_ray.engines import internals
from caprl_ray.engines.chunks import Chunks

# Imports that the core needs before it has read its configuration. vLLM's own parent process imports no more before it
# forks (its default outside of Ray). A process that has touched a GPU cannot be forked.
IMPORTED = ["vllm.v1.engine.core"]
TITLE = "caprl_ray.engines.title"  # before them


class CoreProcess(ForkServerProcess):
    """A process forked from the preload server, with the environment of its starter: the server's copy is out of date.

    If it fails while it starts, it writes the exception to a file, because vLLM tells its parent only that it failed.
    With several GPUs it knows only that one of its own workers failed.
    """

    fault: Path  # the file
    chunked: bool  # whether to send tokens in chunks

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.update(self._environment)
        internals.look_seldom_for_loops()
        if self.chunked:
            internals.send_in_chunks(Chunks().pass_on)
        try:
            super().run()
        except Exception as error:
            with suppress(OSError):  # the folder is gone once the engine has started
                said = ": ".join(filter(None, (type(error).__name__, str(error).strip())))
                self.fault.write_text(said, encoding="utf-8", errors="replace")
            raise


class _Context(ForkServerContext):
    def __init__(self, fault: Path, *, chunked: bool) -> None:
        super().__init__()
        self._fault, self._chunked = fault, chunked

    def Process(self, *arguments: Any, **named: Any) -> CoreProcess:  # type: ignore[override]  # noqa: N802
        process = CoreProcess(*arguments, **named)
        process.fault, process.chunked = self._fault, self._chunked
        return process


def import_ahead() -> None:
    """Begin to import what a core needs, in the server's process; returns at once."""
    if not plain():
        multiprocessing.set_forkserver_preload([TITLE, *IMPORTED])
        forkserver.ensure_running()


@contextmanager
def forked(*, chunked: bool) -> Iterator[Path]:
    """Fork the cores that vLLM starts, while the block runs. Gives the file that says why a core failed.

    With `chunked` they send tokens in chunks, if this vLLM's cores can.
    """
    with tempfile.TemporaryDirectory(prefix="core-", ignore_cleanup_errors=True) as folder:
        fault = Path(folder) / "fault"
        chunked = chunked and internals.can_chunk()
        with internals.core_context(partial(_Context, fault, chunked=chunked)):
            yield fault
