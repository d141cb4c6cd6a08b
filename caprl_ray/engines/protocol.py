"""Engines: what turns one image and one prompt into a caption. The rest of the job cannot tell them apart (D9)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Picture:
    """RGB pixels at the size that the model sees: `pixels` is height x width x 3 bytes."""

    pixels: memoryview
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What an engine wrote for one image."""

    text: str
    finish_reason: str
    prompt_tokens: int | None  # None where a service does not say
    caption_tokens: int | None


class Engine(Protocol):
    """An engine on an event loop of its own.

    `caption` raises RowFailure where this one request is at fault and SystemFailure where every request would be.
    """

    @property
    def control_tokens(self) -> Sequence[str]:
        """What the model's chat format is made of, to be cut out of the dataset's own texts."""
        ...

    async def caption(self, picture: Picture, prompt: str) -> Completion:
        """Caption one picture; `prompt` is the user's turn, the engine adds its chat format."""
        ...


class EngineDied(Exception):
    """An engine's core is gone, or was ended because it hung. Never leaves a replica: `revival` starts another."""


class MortalEngine(Engine, Protocol):
    """An Engine whose core may die: `caption` then raises EngineDied."""

    @property
    def steps(self) -> int:
        """Grows with every step that the core has computed for any row, long before a caption is whole."""
        ...

    def stop(self) -> None:
        """End the core, dead or alive: afterwards no process of it is left."""
        ...
