"""Let an engine answer the questions about images, with and without the image, and keep the good questions."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from caprl_ray.curate import asking
from caprl_ray.curate.columns import CAPTION_PROMPT, DATA_SOURCE
from caprl_ray.curate.drafts import Draft
from caprl_ray.curate.keep import Tried
from caprl_ray.curate.questioner import picture
from caprl_ray.engines.protocol import Engine, Picture
from caprl_ray.errors import RowFailure
from caprl_ray.models.chat import control_token_stripper
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.curate import Curate
from caprl_ray.replica.cut import Cut
from caprl_ray.rows.stage import Changes
from caprl_ray.score import judge
from caprl_ray.score.ask import UNCLEAR
from caprl_ray.score.metrics import LETTERS, option_letter
from caprl_ray.score.question import Question

NONE = "none"  # the answer "none of the options"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The number of the chosen option, or the number of options for "none of them"; or why there is no answer."""

    chosen: int | None = None
    code: str | None = None


class Answerer:
    """Answers questions. Use it on the engine's event loop. `cut` ends answers."""

    def __init__(self, settings: Curate, model: ModelRef, engine: Engine, cut: Cut) -> None:
        self._settings, self._engine, self._label, self._cut = settings, engine, model.label, cut
        self._strip = control_token_stripper(engine.control_tokens)
        self._rows = itertools.count()

    async def write(self, rows: list[dict[str, Any]]) -> Sequence[Changes | RowFailure]:
        """Answer the questions of all rows concurrently. A row that fails does not affect the others. Raises
        SystemFailure if the engine does."""
        return await asyncio.gather(*(self._cut(self._row(row)) for row in rows))

    def sums(self) -> dict[str, Counter[str]]:
        """No counters beside those in the rows."""
        return {}

    async def _row(self, row: dict[str, Any]) -> Changes | RowFailure:
        seen = picture(row, next(self._rows))
        questions = [asking.as_question(_draft(one), row["key"], number) for number, one in enumerate(row["tried"])]
        tried = await asyncio.gather(*(self._tried(seen, question) for question in questions))
        kept = [_asked(question) for question, one in zip(questions, tried, strict=True) if one["dropped"] is None]
        return {
            "image": {"bytes": None, "path": row["key"]},
            "prompt": [{"role": "user", "content": CAPTION_PROMPT}],
            "data_source": DATA_SOURCE,
            "reward_model": {"ground_truth": kept},
            "kept": len(kept),
            "tried": tried,
            "answerer": self._label,
        }

    async def _tried(self, seen: Picture, question: Question) -> dict[str, Any]:
        """A question as stored in a row, with its answers and the reason if it is dropped."""
        orders = asking.orders(question, self._settings.times, self._settings.seed)
        asks = [self._answer(image, question, order, k) for image in (seen, None) for k, order in enumerate(orders)]
        answers = await asyncio.gather(*asks)
        assert question.right is not None
        halves = [[one.chosen for one in some] for some in (answers[: len(orders)], answers[len(orders) :])]
        tried = Tried(right=question.right, seen=halves[0], unseen=halves[1])
        return {
            "question": question.text,
            "choices": list(question.choices),
            "answer": LETTERS[question.right],
            "with_image": [_letter(number, question) for number in tried.seen],
            "without_image": [_letter(number, question) for number in tried.unseen],
            "accuracy_with_image": tried.accuracy_seen,
            "accuracy_without_image": tried.accuracy_unseen,
            "dropped": tried.dropped(self._settings.least_with_image, self._settings.most_without_image),
            "code": next((one.code for one in answers if one.code), None),
        }

    async def _answer(self, seen: Picture | None, question: Question, order: Sequence[int], number: int) -> Answer:
        turns = (asking.with_image if seen else asking.without_image)(question, order)
        turns = replace(turns, user=self._strip(turns.user), system=self._settings.system)
        seed = judge.number_of(self._settings.seed, question, number, "with" if seen else "without")
        try:
            said = await self._engine.caption(seen, turns, {**asking.ANSWER_SAMPLING, "seed": seed})
        except RowFailure as failure:
            return Answer(code=failure.code)
        letter = option_letter(said.text)
        return Answer(chosen=asking.chosen(letter, order)) if letter in turns.choices else Answer(code=UNCLEAR)


def _draft(written: Mapping[str, Any]) -> Draft:
    right = LETTERS.index(written["answer"])
    return Draft(question=written["question"], choices=tuple(written["choices"]), right=right)


def _letter(number: int | None, question: Question) -> str | None:
    if number is None:
        return None
    return LETTERS[number] if number < len(question.choices) else NONE


def _asked(question: Question) -> Mapping[str, Any]:
    """A kept question in the form of CapRL-QA-75K."""
    assert question.right is not None
    choices = [f"{letter}) {text}" for letter, text in zip(LETTERS, question.choices, strict=False)]
    return {"question": question.text, "choices": choices, "answer": LETTERS[question.right]}
