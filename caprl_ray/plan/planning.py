"""The shared state of the planning thread and the run that waits for it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from caprl_ray.errors import Abandoned
from caprl_ray.plan.left_out import LeftOut

THREAD = "plan"  # the name of the thread


class Planning:
    """One making of a plan.

    The run may end while a request of the listing has no answer yet. It does not wait for that request. Once `leave`
    has returned, nothing more is stored.
    """

    def __init__(self) -> None:
        self.begun = threading.Event()
        """Set when the plan's first part is stored, or when planning has ended."""
        self.objects = 0
        self.confirm: Callable[[], None] = lambda: None
        """Raises SystemFailure if the output may no longer be written."""
        self.left_out = LeftOut()
        """What the listing has left out up to the last unit that it yielded, or to its end."""
        self.notes: list[str] = []
        """What an extension found of the planned input, a sentence each."""
        self._storing = threading.Lock()
        self._left = False

    def status(self) -> str:
        """The progress, in words."""
        return f"listing the input, {self.objects:,} files or shards so far"

    def check(self) -> None:
        """Raise Abandoned if the run has ended."""
        if self._left:
            raise Abandoned("the run ended while its input was listed.")

    @contextmanager
    def storing(self) -> Iterator[None]:
        """A block that writes into the output. `leave` waits for its end.

        Raises Abandoned if the run has ended, and SystemFailure if another run has taken the output.
        """
        with self._storing:
            self.check()
            self.confirm()
            yield

    def leave(self) -> None:
        """The run ends."""
        self._left = True
        with self._storing:
            pass
