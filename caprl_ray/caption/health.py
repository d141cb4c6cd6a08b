"""Count how many of a replica's latest captions fail a check (watch/sick.py handles the result)."""

import collections
from collections.abc import Collection, Mapping

# Fewer captions are not enough for a decision.
LEAST = 32
SHOWN, SHOWN_CHARACTERS = 3, 60


class Health:
    """The flags of the latest `window` first decodings of one replica, and the largest share for each flag.

    First decodings, because a later one with other sampling may hide the fault.
    """

    def __init__(self, limits: Mapping[str, float], window: int) -> None:
        self._limits = limits
        self._flags: collections.deque[frozenset[str]] = collections.deque(maxlen=window)
        self._counts: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, collections.deque[str]] = {flag: collections.deque(maxlen=SHOWN) for flag in limits}

    def add(self, flags: Collection[str], text: str) -> None:
        """Count one caption."""
        if len(self._flags) == self._flags.maxlen:
            self._counts.subtract(self._flags[0])
        seen = frozenset(flags) & self._limits.keys()
        self._flags.append(seen)
        self._counts.update(seen)
        for flag in seen:
            self._examples[flag].append(text[:SHOWN_CHARACTERS])

    @property
    def whole(self) -> bool:
        """Whether the window is full."""
        return len(self._flags) == self._flags.maxlen

    def sick(self) -> str | None:
        """The fault, in one sentence with examples; None while every share is within its limit."""
        seen = len(self._flags)
        for flag, limit in self._limits.items():
            if seen >= LEAST and self._counts[flag] > limit * seen:
                shown = ", ".join(repr(text) for text in self._examples[flag])
                return (
                    f"quality.limits.{flag}: {self._counts[flag]} of the latest {seen} captions of a replica are "
                    f"flagged {flag}, more than {limit:g} allows (such as {shown})"
                )
        return None
