"""Looks at the processes of a way while it runs alone below this one, by what Ray and vLLM title them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

# How the titles of the processes begin, or how their commands end; the driver is our own child.
PARTS = {
    "read": "ray::Read",
    "prepare": "ray::MapBatches(",
    "replica": "ray::MapWorker(",
    "engine": "VLLM::EngineCore",
    "commit": "ray::Write",
    "counter": "ray::TimedCounter",
    "workers starting": "ray::IDLE",
    "raylet": "raylet",
    "gcs": "gcs_server",
}
DRIVER, OTHER = "driver", "other"

Look = Callable[[str, psutil.Process], None]


@contextmanager
def sampled(look: Look, seconds: float) -> Iterator[None]:
    """Call `look` with each process and its part, every so many seconds, from a thread."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(seconds):
            for child in psutil.Process().children():
                _look(look, child, DRIVER)
                for process in _below(child):
                    _look(look, process, None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _below(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):  # it, or one of them, has just ended
        return process.children(recursive=True)
    return []


def _look(look: Look, process: psutil.Process, part: str | None) -> None:
    with suppress(psutil.Error):  # it has just ended
        look(part or _part(process.cmdline()), process)


def _part(command: list[str]) -> str:
    title = command[0] if command else ""
    return next((part for part, words in PARTS.items() if title.startswith(words) or title.endswith(words)), OTHER)
