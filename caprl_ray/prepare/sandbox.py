"""Decode images in a child process, because an image may kill it (docs/design.md, D11). Each image has a timeout.

Decoding in the worker itself has the same timeout. It uses the kernel's timer, because no Python thread runs while a
decoder in C holds the interpreter's lock.
"""

import json
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from caprl_ray.child import GONE, Child, main, reason
from caprl_ray.errors import RowFailure, SystemFailure

if TYPE_CHECKING:  # the child starts without Arrow and Ray
    from caprl_ray.prepare.decode import Prepared
    from caprl_ray.rows.stage import Changes

# Seconds for a child to start, which imports Pillow on a busy machine, and starts that are tried before the run ends.
START_S, STARTS = 60.0, 3
# Seconds to wait for a child beyond the image's timeout. Usually the child ends itself at the timeout.
SLACK_S = 10.0


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End this process with SIGALRM if the block takes longer than `seconds`. For workers only, never the driver."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def outcome(decode: "Callable[[bytes], Prepared]", image: bytes) -> "Changes | RowFailure":
    """Decode an image. Returns the columns of its pixels, or the failure that `decode` raised."""
    try:
        return vars(decode(image))
    except RowFailure as failure:
        return failure


class Sandbox:
    """Context manager that runs `outcome` in a child process. The child starts with the first image.

    An image that kills the child is tried once more in a new child. So neither an external kill nor leftovers of an
    earlier image fail a row. If the new child dies too, the row fails as `decode_crash`, or as `decode_timeout` after
    `timeout_s` seconds. Each image costs at most two children.
    """

    def __init__(self, decode: "Callable[[bytes], Prepared]", timeout_s: float) -> None:
        self._decode = decode
        self._timeout_s = timeout_s
        self._child: _Child | None = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        if self._child:
            self._child.end()

    def __call__(self, image: bytes) -> "Changes | RowFailure":
        """Prepare one image. Raises SystemFailure if no child starts, or for an error that the row did not cause."""
        result = self._try(image)
        return result if self._child else self._try(image)

    def _try(self, image: bytes) -> "Changes | RowFailure":
        self._child = child = self._child or self._started()
        try:
            return child.outcome(image)
        except GONE:
            self._child = None
            return child.death()

    def _started(self) -> "_Child":
        for _ in range(STARTS):
            child = _Child(self._timeout_s)
            with suppress(*GONE):
                child.begin(self._decode)
                return child
            detail = child.death().detail
        raise SystemFailure(
            f"prepare: the process for sandboxed decoding does not start ({detail}); see the worker's log."
        )


class _Child(Child):
    """One child process. Its methods raise EOFError or ConnectionError when it is gone."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(__name__)
        self._timeout_s = timeout_s

    def begin(self, decode: "Callable[[bytes], Prepared]") -> None:
        """Send the function to run, pickled by its import path."""
        with self.ended_after(START_S):
            self.connection.send_bytes(pickle.dumps((decode, self._timeout_s)))
            self.connection.recv_bytes()

    def outcome(self, image: bytes) -> "Changes | RowFailure":
        """Have the child decode one image."""
        with self.ended_after(self._timeout_s + SLACK_S):
            self.connection.send_bytes(image)
            answer = json.loads(self.connection.recv_bytes())
            if "error" in answer:
                raise SystemFailure(f"prepare: {answer['error']} while an image was decoded; see the worker's log.")
            if "failure" in answer:
                return RowFailure(*answer["failure"])
            columns: Changes = answer["columns"]
            return columns | {"pixels": self.connection.recv_bytes()}

    def death(self) -> RowFailure:
        """The failure of the image that the child was decoding when it died."""
        code = self.died()
        if self.late or code == -signal.SIGALRM:
            return RowFailure("decode_timeout", f"more than {self._timeout_s:g} s")
        return RowFailure("decode_crash", reason(code))


def serve(connection: Connection) -> None:
    """Run in the child: answer each image with its outcome. An image that hangs ends the child at the timeout."""
    decode, timeout_s = pickle.loads(connection.recv_bytes())
    connection.send_bytes(b"ready")
    while True:
        image = connection.recv_bytes()
        try:
            with limited(timeout_s):
                result = outcome(decode, image)
        except BaseException as error:
            connection.send_bytes(json.dumps({"error": type(error).__name__}).encode())
            raise
        _answer(connection, result)


def _answer(connection: Connection, result: "Changes | RowFailure") -> None:
    """Send a result as JSON and plain bytes. No pickle: an image may have taken over this process."""
    if isinstance(result, RowFailure):
        connection.send_bytes(json.dumps({"failure": [result.code, result.detail]}).encode())
        return
    columns = {name: value for name, value in result.items() if name != "pixels"}
    connection.send_bytes(json.dumps({"columns": columns}).encode())
    connection.send_bytes(result["pixels"])


if __name__ == "__main__":
    main(serve)
