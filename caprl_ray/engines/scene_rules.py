"""The answering model `embedded-viewer`. It is no model: it reads a rendered scene off the pixels by rules.

With the image it chooses the option that is true, or the last one if none is. Without the image it guesses: the same
option for the same question, whatever the order.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from PIL import Image

from caprl_ray.embedded import pixels, questions, rules
from caprl_ray.embedded.questions import Facts
from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, Picture
from caprl_ray.recipe.turns import Turns

KEPT = 64  # images: all questions about one come close to each other


class SceneRules:
    """Answers multiple-choice questions about scenes by rules."""

    control_tokens: Sequence[str] = ()
    arguments: Mapping[str, Any] = {}
    steps = 0

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Answer with a letter. The same prompt always gets the same one."""
        await asyncio.sleep(0)
        user = prompt.user if isinstance(prompt, Turns) else prompt
        facts = _facts(bytes(picture.pixels), picture.width, picture.height) if picture else None
        letter = rules.answered(user, facts)
        return Completion(
            text=f" {letter}",
            finish_reason="length",
            prompt_tokens=len(user.split()),
            caption_tokens=1,
        )

    def stop(self) -> None:
        """Do nothing: it has no process."""


@lru_cache(KEPT)
def _facts(content: bytes, width: int, height: int) -> Facts:
    return questions.facts(pixels.seen(Image.frombytes("RGB", (width, height), content)))
