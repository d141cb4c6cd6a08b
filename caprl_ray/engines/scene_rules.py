"""Questioner and viewer for rendered scenes: rules that recognize a scene take the place of large models.

`embedded-questioner` writes true questions in the format that curation requires. `embedded-viewer` answers them. With
the image, it chooses the true option, or the last one if none is true. Without the image, it guesses.
"""

import asyncio
import json
import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from PIL import Image

from caprl_ray.embedded import pixels, questions, rules
from caprl_ray.embedded.questions import Facts
from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, Picture
from caprl_ray.models.resolve import EMBEDDED_QUESTIONER, EMBEDDED_VIEWER
from caprl_ray.recipe.turns import Turns

KEPT = 64  # images in the cache: all prompts about an image come close to each other
COUNT = re.compile(r"(\d+) multiple-choice questions")
FEW = 5  # questions, if the prompt does not say how many
NO_SCENE = "This is no rendered scene."


class SceneRules:
    """An engine without a model: `answer` makes the text from the prompt and the scene, if there is one. The same
    prompt about the same picture always gets the same text.
    """

    control_tokens: Sequence[str] = ()
    arguments: Mapping[str, Any] = {}
    steps = 0

    def answer(self, prompt: str, facts: Facts | None) -> str:
        """The answer to a user's turn."""
        raise NotImplementedError

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Answer one prompt, after one turn of the event loop."""
        await asyncio.sleep(0)
        user = prompt.user if isinstance(prompt, Turns) else prompt
        text = self.answer(user, _facts(bytes(picture.pixels), picture.width, picture.height) if picture else None)
        count = len(text.split())
        return Completion(text=text, finish_reason="stop", prompt_tokens=len(user.split()), caption_tokens=count)

    def stop(self) -> None:
        """Do nothing: it has no process."""


class TrueQuestions(SceneRules):
    """Writes as many true questions about a scene as the prompt asks for, as a JSON list."""

    def answer(self, prompt: str, facts: Facts | None) -> str:
        """The questions, or a sentence if there is no scene."""
        if facts is None or not facts.things:
            return NO_SCENE
        count = COUNT.search(prompt)
        asked = questions.about_facts(facts, random.Random(repr(facts)), int(count[1]) if count else FEW)
        return json.dumps(
            [{"question": one.text, "options": list(one.choices), "answer": one.answer} for one in asked], indent=1
        )


class SceneViewer(SceneRules):
    """Answers multiple-choice questions with a letter."""

    def answer(self, prompt: str, facts: Facts | None) -> str:
        """The letter."""
        return f" {rules.answered(prompt, facts)}"


ENGINES = {EMBEDDED_QUESTIONER: TrueQuestions, EMBEDDED_VIEWER: SceneViewer}


@lru_cache(KEPT)
def _facts(content: bytes, width: int, height: int) -> Facts:
    image = Image.frombytes("RGB", (width, height), content)
    scene = pixels.seen(image)
    return questions.facts(scene) if pixels.alike(image, scene) else Facts(background=None, things=())
