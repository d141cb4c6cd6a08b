"""The process that vLLM runs the model in, forked from one that has imported vLLM already.

vLLM spawns its core from the replica, so that one imports vLLM after the other: several seconds in which nothing else
happens. Here a server of Python's own (multiprocessing's forkserver) imports it beside the replica, and the core is
forked from there. The server only imports, and touches no GPU; it ends with the replica.
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

# What the core needs before it has read its configuration; no more than vLLM's own parent has imported where it forks
# (its default outside of Ray), for a process that has touched a GPU cannot be forked.
IMPORTED = ["vllm.v1.engine.core"]
TITLE = "caprl_ray.engines.title"  # before them


class CoreProcess(ForkServerProcess):
    """A forked process with the environment of the one that starts it: that of the server is older.

    What it fails with while it starts is written to a file, for vLLM tells its parent only that it failed. Where it has
    workers of its own, on several GPUs, it knows no more of them than that one failed.
    """

    fault: Path  # the file

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.update(self._environment)
        try:
            super().run()
        except Exception as error:
            with suppress(OSError):  # gone where it had started, and nobody asks
                said = ": ".join(filter(None, (type(error).__name__, str(error).strip())))
                self.fault.write_text(said, encoding="utf-8", errors="replace")
            raise


class _Context(ForkServerContext):
    def __init__(self, fault: Path) -> None:
        super().__init__()
        self._fault = fault

    def Process(self, *arguments: Any, **named: Any) -> CoreProcess:  # type: ignore[override]  # noqa: N802
        process = CoreProcess(*arguments, **named)
        process.fault = self._fault
        return process


def import_ahead() -> None:
    """Begin to import what a core needs, in the server's process; returns at once."""
    if not plain():
        multiprocessing.set_forkserver_preload([TITLE, *IMPORTED])
        forkserver.ensure_running()


@contextmanager
def forked() -> Iterator[Path]:
    """Fork the cores that vLLM starts, while the block runs; gives the file that says why a core failed."""
    with tempfile.TemporaryDirectory(prefix="core-", ignore_cleanup_errors=True) as folder:
        fault = Path(folder) / "fault"
        with internals.core_context(partial(_Context, fault)):
            yield fault
