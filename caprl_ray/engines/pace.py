"""Adapt the number of concurrent requests to a service's 429s.

Each attempt of the openai client takes a place, including retries. A limit on requests instead of attempts would let
all retries after a burst of 429s come back at once.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import openai

# Seconds. The openai client does not wait longer for a service (Retry-After) either.
MOST_RETRY_AFTER = 120.0


class Pace:
    """Bounds concurrent attempts: half as many after a 429, one more after as many answers as attempts are running.

    The bound stays between 1 and `most`. A 429 to an attempt that was sent before the last halving does not count,
    because it says nothing about the new bound (additive increase, multiplicative decrease, as in RFC 5681).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bound = float(most)
        self._room = asyncio.Event()
        self.halvings = 0
        self.under_way = 0

    @property
    def bound(self) -> int:
        """How many attempts may run now."""
        return int(self._bound)

    async def enter(self) -> int:
        """Wait for a place. Returns the number of halvings so far; pass it to `refused`."""
        while self.under_way >= self.bound:
            self._room.clear()
            await self._room.wait()
        self.under_way += 1
        return self.halvings

    def leave(self) -> None:
        """Give the place back."""
        self.under_way -= 1
        self._room.set()

    def answered(self) -> None:
        """Note an answer."""
        self._bound = min(self._most, self._bound + 1 / self._bound)

    def refused(self, halvings: int) -> None:
        """Note a 429 to an attempt that entered after `halvings`."""
        if halvings == self.halvings:
            self._bound = max(1, self._bound / 2)
            self.halvings += 1


class CaptionTimeout(openai.APITimeoutError):
    """An answer that took too long. The openai client passes its own errors on and does not send them again."""


class PacedClient(openai.DefaultAsyncHttpxClient):
    """The HTTP client below the openai client. Every attempt takes a place of `pace`, and has `timeout_s` from then on.

    A refused attempt holds its place while the service asks to wait, so that no other attempt takes it at once.
    """

    def __init__(self, pace: Pace, timeout_s: float) -> None:
        super().__init__()
        self._pace = pace
        self._timeout_s = timeout_s

    async def send(self, request: Any, **options: Any) -> Any:
        halvings, wait = await self._pace.enter(), 0.0
        try:
            # httpx bounds the pauses between bytes only, not the whole.
            async with asyncio.timeout(self._timeout_s) as limit:
                response = await super().send(request, **options)
            if response.status_code == 429:
                self._pace.refused(halvings)
                wait = _retry_after(response.headers)
            elif response.is_success:
                self._pace.answered()
            return response
        except TimeoutError:
            if limit.expired():
                raise CaptionTimeout(request=request) from None
            raise
        finally:
            asyncio.get_running_loop().call_later(wait, self._pace.leave)


def _retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that a service asks to wait; 0 if it gives none, a date, or more than MOST_RETRY_AFTER."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return 0.0
    return seconds if 0 < seconds <= MOST_RETRY_AFTER else 0.0
