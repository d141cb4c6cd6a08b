"""A reader without a model: it parses captions of scenes and questions about them by rules, without errors.

It replaces a language model where a model is too slow, or where a reader without errors is needed.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caprl_ray.embedded import kinds, questions
from caprl_ray.embedded.kinds import COLOR, PLACE, SHAPE, SIZE, VALUES, Kind
from caprl_ray.embedded.questions import Facts
from caprl_ray.recipe.turns import Turns

_THING = re.compile(r"at the ([a-z ]+?) a (\w+) (\w+) (\w+)")
_BACKGROUND = re.compile(r"On an? (\w+) background")
_OPTION = re.compile(r"^- ([A-Z])\) (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Said:
    """An answer."""

    text: str
    logprobs: Mapping[str, float] | None = None


class Rules:
    """An engine that answers with the option that the caption states, or with the last one, "can not answer"."""

    async def caption(self, picture: None, prompt: Turns, sampling: Mapping[str, Any]) -> Said:
        """Answer one prompt of the judge (score/judge.py) that has a caption."""
        _, _, last = prompt.user.rpartition("<Caption Start> ")
        caption, _, _ = last.partition(" <Caption End>\n")
        letter = answered(prompt.user, stated(caption))
        return Said(letter if prompt.choices else f" {letter}")


def answered(prompt: str, facts: Facts | None) -> str:
    """The letter of the answer to the question at the end of a prompt.

    It is the option that the facts state. If they state none, or if the question is not about scenes, it is the last
    option. If `facts` is None it is a guess, which for the same question is the same option in any order.
    """
    asked = prompt.rpartition("Question: ")[2]
    options: dict[str, str] = {text: letter for letter, text in _OPTION.findall(asked)}
    question = asked.partition("\n")[0]
    if facts is None:
        texts = sorted(options)
        return options[random.Random(f"{question} {texts}").choice(texts)]
    try:
        answer = questions.stated_answer(*understood(question), facts)
    except ValueError:
        answer = None
    return options.get(answer or "", list(options.values())[-1])


def stated(caption: str) -> Facts:
    """The facts in a caption of a scene."""
    background = _BACKGROUND.match(caption)
    things = (dict(zip((PLACE, SIZE, COLOR, SHAPE), found, strict=True)) for found in _THING.findall(caption))
    return Facts(background=background and background[1], things=tuple(things))


def understood(text: str) -> tuple[Kind, dict[str, str]]:
    """The kind of a question about a scene, and the attributes that name its thing. Other texts raise ValueError."""
    for kind in kinds.KINDS:
        names = {f"{{{name}}}": f"(?P<{name}>{'|'.join(VALUES[name])})" for name in kind.by}
        for phrase in kind.texts:
            pattern = re.escape(phrase)
            for slot, values in names.items():
                pattern = pattern.replace(re.escape(slot), values)
            if found := re.fullmatch(pattern, text):
                return kind, found.groupdict()
    raise ValueError(text)
