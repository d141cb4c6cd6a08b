"""Whether a process has ended."""

import time

import psutil


def gone(process: int, seconds: float = 20) -> bool:
    """Whether a process ends within so many seconds. A zombie has ended."""
    deadline = time.monotonic() + seconds
    while _lives(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _lives(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
