"""One engine at a time starts on a GPU that several share.

While vLLM starts, it counts all newly used memory of the GPU as its own ("we assume that the other processes using the
same GPU did not change their memory usage"). If two engines started together, each would count the other's weights and
have too little memory for its KV cache.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

PATIENCE_S = 3600.0  # then an engine starts anyway, and reports if memory is missing
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
