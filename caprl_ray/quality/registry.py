"""Every check of the package, by name, the worst fault first."""

from collections.abc import Mapping
from types import MappingProxyType

from caprl_ray.quality.check import Check
from caprl_ray.quality.garbage import Garbage
from caprl_ray.quality.length import Empty, TooLong, TooShort, Truncated
from caprl_ray.quality.loop import Loop
from caprl_ray.quality.refusal import Refusal

_WORST_FIRST: tuple[type[Check], ...] = (Empty, Garbage, Refusal, Loop, Truncated, TooShort, TooLong)

CHECKS: Mapping[str, type[Check]] = MappingProxyType({check.name: check for check in _WORST_FIRST})
