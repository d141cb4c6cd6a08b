"""Sample the processes of a way while it runs. Processes are recognized by the titles that Ray and vLLM give them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

# How a process title begins, or how its command ends. The driver is a child of this process.
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
    """Every `seconds` seconds, call `look(part, process)` for each process, from a thread, inside the block."""
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
    with suppress(psutil.Error):  # the process or one of its children has just ended
        return process.children(recursive=True)
    return []


def _look(look: Look, process: psutil.Process, part: str | None) -> None:
    with suppress(psutil.Error):  # it has just ended
        look(part or _part(process.cmdline()), process)


def _part(command: list[str]) -> str:
    title = command[0] if command else ""
    return next((part for part, words in PARTS.items() if title.startswith(words) or title.endswith(words)), OTHER)
