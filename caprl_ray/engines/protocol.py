"""The protocol of engines. The rest of the job cannot tell them apart (docs/design.md, D9)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from caprl_ray.recipe.turns import Turns


@dataclass(frozen=True, kw_only=True)
class Picture:
    """RGB pixels at the size that the model sees: `pixels` holds height x width x 3 bytes.

    `name` tells the engine's caches that a picture is captioned again. It is unique to the picture, or empty.
    """

    pixels: memoryview
    width: int
    height: int
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """An engine's answer for one image, or for a prompt without one.

    `finish_reason` is stop, length (it met max_tokens) or repetition (the engine stopped a loop). `logprobs`: the
    log-probability of each of the prompt's choices, if it has any and the engine knows.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None  # None if a service does not say
    caption_tokens: int | None
    logprobs: Mapping[str, float] | None = None


AS_THE_RECIPE: Mapping[str, Any] = {}


class Engine(Protocol):
    """An engine on its own event loop.

    `caption` raises RowFailure for a fault of this request, and SystemFailure for a fault that every request would
    meet.
    """

    @property
    def control_tokens(self) -> Sequence[str]:
        """The tokens of the model's chat format, to be removed from the dataset's own texts."""
        ...

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Caption one picture. `prompt` is the user's turn; the engine adds its chat format.

        Or answer: then `prompt` is the turns before the answer (recipe/turns.py), and there need be no picture. A
        picture stands before the user's text. `sampling` holds the fields of the recipe's sampling that differ for
        this caption.
        """
        ...


class EngineDied(Exception):
    """An engine's core died, or was ended because it hung. It never leaves a replica: `revival` starts another."""


class MortalEngine(Engine, Protocol):
    """An Engine whose core may die: `caption` then raises EngineDied."""

    @property
    def steps(self) -> int:
        """Grows with every step that the core has computed for any row, long before a caption is complete."""
        ...

    def stop(self) -> None:
        """End the core, alive or dead. Afterwards none of its processes is left."""
        ...
