"""Count the running and waiting requests of any engine."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, Engine, Picture
from caprl_ray.recipe.turns import Turns


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Means over a time: requests that have a place in the engine, and requests that wait for one."""

    running: float
    waiting: float


class Meter:
    """An Engine that counts the requests of another one, which runs `places` at once.

    vLLM has the same numbers, but only with its statistics on, which cost time for every token (engines/internals.py).
    It may run fewer than `places` if it has no memory left for their keys and values.
    """

    def __init__(self, engine: Engine, places: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.places = places
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._open = 0
        self._since = self._changed = clock()
        self._running = self._waiting = 0.0

    @property
    def control_tokens(self) -> Sequence[str]:
        """Those of the engine."""
        return self._engine.control_tokens

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Caption one picture, or answer, by the engine."""
        self._change(1)
        try:
            return await self._engine.caption(picture, prompt, sampling)
        finally:
            self._change(-1)

    def requests(self) -> Requests:
        """The means since the last call."""
        with self._lock:
            self._add()
            seconds = self._changed - self._since
            running, waiting = self._running, self._waiting
            self._since, self._running, self._waiting = self._changed, 0.0, 0.0
            if seconds <= 0:
                running, waiting, seconds = self._now()[0], self._now()[1], 1.0
        return Requests(running=running / seconds, waiting=waiting / seconds)

    def _now(self) -> tuple[int, int]:
        return min(self._open, self.places), max(0, self._open - self.places)

    def _change(self, by: int) -> None:
        with self._lock:
            self._add()
            self._open += by

    def _add(self) -> None:
        """Add the time since the last change."""
        now = self._clock()
        running, waiting = self._now()
        self._running += running * (now - self._changed)
        self._waiting += waiting * (now - self._changed)
        self._changed = now
