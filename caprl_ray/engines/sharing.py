"""One engine at a time starts on a GPU that several share.

vLLM takes for its own whatever is taken of a GPU's memory while it starts ("we assume that the other processes using
the same GPU did not change their memory usage"). Two engines that start together would each find the other's weights in
what they need themselves, and have too little left for keys and values, or none.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

PATIENCE_S = 3600.0  # then an engine starts anyway, and says itself what it lacks
POLL_S = 0.5


@contextmanager
def starting_alone(share: float, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Wait until no other engine starts on this process's GPU, if it has only a share of it, and keep others waiting
    while the block runs.

    A name in the kernel's own namespace of sockets is the lock: it leaves no file, and goes with its process.
    """
    if not 0 < share < 1:
        yield
        return
    device = blake2b(os.environ.get("CUDA_VISIBLE_DEVICES", "").encode(), digest_size=8).hexdigest()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        until = time.monotonic() + patience_s
        while not _bound(lock, f"\0caprl-ray-starts-on-{device}") and time.monotonic() < until:
            time.sleep(POLL_S)
        yield


def _bound(lock: socket.socket, name: str) -> bool:
    try:
        lock.bind(name)
    except OSError:  # another engine has it
        return False
    return True
