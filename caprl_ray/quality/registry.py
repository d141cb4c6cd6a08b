"""Every check of the package by name, in order of severity, the worst fault first."""

from collections.abc import Mapping
from types import MappingProxyType

from caprl_ray.quality.check import Check
from caprl_ray.quality.copied import CopiesAltText, PromptEcho
from caprl_ray.quality.encoding import Mojibake
from caprl_ray.quality.garbage import Garbage
from caprl_ray.quality.language import Language
from caprl_ray.quality.length import Empty, TooLong, TooShort, Truncated
from caprl_ray.quality.loop import Loop
from caprl_ray.quality.refusal import Refusal
from caprl_ray.quality.structured import Json
from caprl_ray.quality.wording import Boilerplate, Opener, Url

_WORST_FIRST: tuple[type[Check], ...] = (
    *(Empty, Garbage, Refusal, Loop, Json, Language, Truncated, PromptEcho),
    *(TooShort, CopiesAltText, Mojibake, Boilerplate, TooLong, Url, Opener),
)

CHECKS: Mapping[str, type[Check]] = MappingProxyType({check.name: check for check in _WORST_FIRST})
