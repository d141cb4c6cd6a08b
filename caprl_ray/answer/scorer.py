"""Score one caption by one engine: its questions asked at the same time, and the answers judged."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from caprl_ray.engines.protocol import Engine
from caprl_ray.errors import RowFailure
from caprl_ray.models.chat import control_token_stripper
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.score import Score
from caprl_ray.score import ask, judge, prism
from caprl_ray.score.ask import Asking
from caprl_ray.score.question import Question
from caprl_ray.score.questions import Questions, joined
from caprl_ray.score.tally import CAPTION
from caprl_ray.text import plain

Answers = Sequence[dict[str, Any]]
SHOWN = 80  # characters of an answer that chooses nothing


class Scorer:
    """Scores captions. Use it on the engine's event loop."""

    def __init__(self, settings: Score, questions: Questions, model: ModelRef, engine: Engine) -> None:
        self._settings, self._questions, self._engine = settings, questions, engine
        self._label, self._prompt = model.label, prompt_name(settings)
        self._asking = Asking(settings, control_token_stripper(engine.control_tokens))

    def image(self, key: object) -> str:
        """The value that joins a caption with its questions."""
        return joined(self._settings.join, key)

    def about(self, image: str) -> list[Question]:
        """The questions about an image."""
        return self._questions.about(image)

    async def answers(self, caption: str, questions: Sequence[Question]) -> Answers:
        """The answers from a caption."""
        return await ask.answers(self._engine, self._asking.seen(questions, caption))

    async def blind(self, questions: Sequence[Question]) -> Answers:
        """The answers without a caption."""
        return await ask.answers(self._engine, self._asking.blind(questions))

    def worth(self, answers: Answers) -> float | RowFailure:
        """The score of a caption from its answers; if no answer was judged, the most frequent reason."""
        worth = ask.score(answers, draws=self._settings.mode == "sampled")
        if worth is not None:
            return worth
        codes = Counter(answer["code"] for answer in answers if answer["condition"] == CAPTION)
        ((code, count),) = codes.most_common(1)
        said = next((answer["raw"] for answer in answers if answer["code"] == code and answer["raw"]), None)
        example = f", such as {' '.join(plain(said[:SHOWN]).split())!r}" if said else ""
        return RowFailure(code, f"{count} of {codes.total()} answers{example}")

    def columns(self, image: str, answers: Answers, blind: Answers) -> dict[str, Any]:
        """The columns about a caption's answers, beside the score."""
        judged = [answer for answer in answers if answer["condition"] == CAPTION and answer["correct"] is not None]
        seen = sum(answer["condition"] == CAPTION for answer in answers)
        return {
            "answered": len(judged),
            "unscored": seen - len(judged),
            "can_not_answer": sum(answer["can_not_answer"] for answer in judged),
            "answers": [*answers, *blind],
            "image_questions": image,
            "answerer": self._label,
            "score_prompt": self._prompt,
        }


def prompt_name(settings: Score) -> str:
    """The name of the prompt in results."""
    if settings.mode == "prism":
        return prism.NAME
    return judge.PROMPT if settings.instruction is None else judge.OWN_PROMPT
