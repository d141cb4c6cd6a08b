"""Choose the best of several captions of an image."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from caprl_ray.quality.checks import Checks


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A caption: its flags, and its score if it has one."""

    flags: Collection[str]
    score: float | None = None


def best(candidates: Sequence[Candidate], checks: Checks) -> int:
    """The number of the caption that is kept.

    The rules, in this order: least severe flags, highest score, mildest flags, first. A caption without a score comes
    after those with one. So without any scores, it is the first caption with the least severe flags.
    """
    return min(range(len(candidates)), key=lambda number: _against(candidates[number], checks))


def _against(candidate: Candidate, checks: Checks) -> tuple[Any, ...]:
    """The sort key of a caption; the lowest one is the best."""
    severe = [flag for flag in candidate.flags if flag in checks.severe]
    score = math.inf if candidate.score is None else -candidate.score
    return checks.severity(severe), score, checks.severity(candidate.flags)
