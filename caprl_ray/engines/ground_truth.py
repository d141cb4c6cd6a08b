"""The questioner `embedded-questioner`. It is no model: it knows the truth about a rendered scene from a description.

The description is a column of the row's own, which the prompt has: `prompt.user: "… {scene}"`. What it writes has the
form that curation asks every questioner for, so nothing behind it can tell that it does not look.
"""

import asyncio
import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from caprl_ray.embedded import questions, rules
from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, Picture
from caprl_ray.recipe.turns import Turns

DESCRIPTION = re.compile(r"On an? \w+ background, [^.]+\.")
COUNT = re.compile(r"(\d+) multiple-choice questions")
FEW = 5  # questions, if the prompt does not say how many
NO_SCENE = "The prompt describes no rendered scene, and I do not look at images."


class GroundTruth:
    """Writes as many true questions about the scene of a prompt as the prompt asks for."""

    control_tokens: Sequence[str] = ()
    arguments: Mapping[str, Any] = {}
    steps = 0

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Write questions as JSON. The same prompt always gets the same ones."""
        await asyncio.sleep(0)
        asked = prompt.user if isinstance(prompt, Turns) else prompt
        text = written(asked)
        words = len(text.split())
        return Completion(
            text=text, finish_reason="stop", prompt_tokens=len(asked.split()), caption_tokens=words, logprobs=None
        )

    def stop(self) -> None:
        """Do nothing: it has no process."""


def written(prompt: str) -> str:
    """The answer to a prompt: a JSON list of questions, or a sentence if it describes no scene."""
    described, count = DESCRIPTION.search(prompt), COUNT.search(prompt)
    if not described:
        return NO_SCENE
    rng, most = random.Random(prompt), int(count[1]) if count else FEW
    asked = questions.about_facts(rules.stated(described[0]), rng, most)
    return json.dumps(
        [{"question": one.text, "options": list(one.choices), "answer": one.answer} for one in asked], indent=1
    )
