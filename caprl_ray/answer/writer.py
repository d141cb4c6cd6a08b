"""Score the captions of rows by one engine: questions found, asked at the same time, and answers judged."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from caprl_ray.answer.columns import NO_CAPTION, NO_KEY
from caprl_ray.engines.chat import control_token_stripper
from caprl_ray.engines.protocol import Engine
from caprl_ray.errors import RowFailure
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.score import Score
from caprl_ray.replica.cut import Cut
from caprl_ray.rows.codes import NO_QUESTIONS
from caprl_ray.rows.schema import META_PREFIX
from caprl_ray.rows.stage import Changes
from caprl_ray.score import ask, judge, prism
from caprl_ray.score.ask import Asking
from caprl_ray.score.questions import Questions, joined
from caprl_ray.score.tally import CAPTION


class Scorer:
    """Scores captions. Use it on the engine's event loop. `column` joins rows and questions, `cut` ends answers."""

    def __init__(
        self, settings: Score, column: str, questions: Questions, model: ModelRef, engine: Engine, cut: Cut
    ) -> None:
        self._cut = cut
        self._settings, self._questions, self._engine = settings, questions, engine
        self._label, self._prompt = model.label, prompt_name(settings)
        self._caption, self._column = META_PREFIX + settings.caption, META_PREFIX + column
        self._asking = Asking(settings, control_token_stripper(engine.control_tokens))

    async def write(self, rows: list[dict[str, Any]]) -> Sequence[Changes | RowFailure]:
        """Score rows at the same time. Each fails alone. Raises SystemFailure as the engine does."""
        return await asyncio.gather(*(self._cut(self._row(row)) for row in rows))

    def sums(self) -> dict[str, Counter[str]]:
        """Nothing beside what the rows say."""
        return {}

    async def _row(self, row: dict[str, Any]) -> Changes | RowFailure:
        caption, key = row[self._caption], row[self._column]
        if key is None or str(key) == "":
            return RowFailure(NO_KEY)
        questions = self._questions.about(image := joined(self._settings.join, key))
        if not questions:
            return RowFailure(NO_QUESTIONS)
        if caption is None:
            return RowFailure(NO_CAPTION)
        answers = await ask.answers(self._engine, self._asking.asks(questions, str(caption)))
        worth = ask.score(answers, draws=self._settings.mode == "sampled")
        if worth is None:
            return _unscored(answers)
        seen = [answer for answer in answers if answer["condition"] == CAPTION]
        judged = [answer for answer in seen if answer["correct"] is not None]
        return {
            "score": worth,
            "answered": len(judged),
            "unscored": len(seen) - len(judged),
            "can_not_answer": sum(answer["can_not_answer"] for answer in judged),
            "answers": answers,
            "image_questions": image,
            "answerer": self._label,
            "score_prompt": self._prompt,
        }


def prompt_name(settings: Score) -> str:
    """The name of the prompt in results."""
    if settings.mode == "prism":
        return prism.NAME
    return judge.PROMPT if settings.instruction is None else judge.OWN_PROMPT


def _unscored(answers: Sequence[dict[str, Any]]) -> RowFailure:
    """The failure of a row of which no answer was judged: the most frequent reason."""
    codes = Counter(answer["code"] for answer in answers if answer["condition"] == CAPTION)
    ((code, count),) = codes.most_common(1)
    return RowFailure(code, f"{count} of {codes.total()} answers")
