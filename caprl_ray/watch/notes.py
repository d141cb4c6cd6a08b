"""Notes for the user, from any number of replicas: the first few of each kind, then only counts.

A thousand replicas may each say the same about their own node. The driver fetches all lines every second and prints
the new ones, so they must be few.
"""

import collections

from caprl_ray.cluster.messages import kind

SHOWN = 3  # lines of one kind that are shown whole
MOST_KINDS = 50  # kinds that are told apart; the rest is one kind


class Notes:
    """Invariant: at most SHOWN lines of each of MOST_KINDS + 1 kinds, and one for each further power of ten."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._shown: set[str] = set()
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, line: str) -> None:
        """Add a line. One that was shown before is none."""
        if line in self._shown:
            return
        name = kind(line)
        if name not in self._counts and len(self._counts) >= MOST_KINDS:
            name = ""
        self._counts[name] += 1
        count = self._counts[name]
        if count <= SHOWN:
            self._shown.add(line)
            self._lines.append(line)
        elif count == 10 ** (len(str(count)) - 1):
            self._lines.append(f"{count:,} notes like this one so far: {line}")

    def lines(self) -> list[str]:
        """All lines that are shown, in order."""
        return list(self._lines)
