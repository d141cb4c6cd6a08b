"""Ask a reader about one caption, and judge what it answers. A reader is any engine that answers prompts."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from caprl_ray.errors import RowFailure
from caprl_ray.recipe.score import Score
from caprl_ray.recipe.turns import Turns
from caprl_ray.score import judge, metrics, prism
from caprl_ray.score.judge import Shown
from caprl_ray.score.metrics import folded
from caprl_ray.score.question import Question
from caprl_ray.score.tally import AGAIN, BLIND, CAPTION

MOST_RAW = 2048  # characters of an answer that are kept
OPEN_TOKENS = 64  # of an answer to a question without options
# How readers sample, by mode.
SAMPLING: Mapping[str, Mapping[str, Any]] = {
    "deterministic": {"temperature": 0.0, "max_tokens": 1},
    "sampled": {"temperature": 0.6, "max_tokens": 10},  # CapRL's reward server
    "prism": {"temperature": 1.0, "max_tokens": 2048},  # CapRL's evaluation
}
NEUTRAL = {"top_p": 1.0, "repetition_penalty": 1.0, "repetition_detection": None}
UNCLEAR = "answer_unclear"
UNJUDGED = "answer_unjudged"
CODES = {
    UNCLEAR: "The reader's answer chooses none of the options, or does not have the form that the prompt asks for.",
    UNJUDGED: "The reader's answer is too long, or comparing it with the right one takes too long.",
}


class Answer(Protocol):
    """A reader's output. `logprobs` has the log-probability of each choice, if the prompt has choices."""

    @property
    def text(self) -> str: ...

    @property
    def logprobs(self) -> Mapping[str, float] | None: ...


class Reader(Protocol):
    """Answers prompts without a picture; every engine does. Raises RowFailure for a prompt that it cannot answer."""

    def caption(self, picture: None, prompt: Turns, sampling: Mapping[str, Any]) -> Awaitable[Answer]: ...


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question to a reader, and how its answer is parsed. `shown` has the options, if there are any."""

    question: Question
    condition: str
    turns: Turns
    sampling: Mapping[str, Any]
    shown: Shown | None = None

    def struct(self, text: str, logprobs: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The answer as a row has it."""
        parsed, correct, code = self._judged(text)
        refused = (
            self.shown.refused(parsed) if self.shown and parsed else folded(parsed or "").startswith(judge.REFUSAL)
        )
        return self._known() | {
            "raw": text[:MOST_RAW],
            "parsed": parsed,
            "correct": correct,
            "can_not_answer": refused,
            "code": code,
            "logprobs": [logprobs[letter] for letter in self.shown.letters] if logprobs and self.shown else None,
        }

    def failed(self, code: str) -> dict[str, Any]:
        """A missing answer, with its code."""
        nothing = {"raw": None, "parsed": None, "correct": None, "can_not_answer": False, "logprobs": None}
        return self._known() | nothing | {"code": code}

    def _known(self) -> dict[str, Any]:
        return {
            "benchmark": self.question.benchmark,
            "question_id": self.question.id,
            "question": self.question.text,
            "options": list(self.shown.options) if self.shown else [],
            "condition": self.condition,
            "right": self.shown.right if self.shown else " | ".join(self.question.answers),
            "metric": self.question.metric,
        }

    def _judged(self, text: str) -> tuple[str | None, float | None, str | None]:
        """The answer in a text, its value, and the code if it cannot be judged."""
        if self.shown:
            letter = judge.letter(text, self.shown, constrained=bool(self.turns.choices))
            return (letter, self.shown.correct(letter), None) if letter else (None, None, UNCLEAR)
        parsed = prism.answer(text) if self.question.own_prompt else judge.open_answer(text)
        if parsed is None:
            return None, None, UNCLEAR
        correct = metrics.judge(self.question.metric, parsed, self.question.answers)
        return parsed[:MOST_RAW], correct, UNJUDGED if correct is None else None


class Asking:
    """Makes the questions of a caption, as a recipe says. `strip` takes control tokens out of texts."""

    def __init__(self, settings: Score, strip: Callable[[str], str] = str) -> None:
        self._settings, self._strip = settings, strip

    def asks(self, questions: Sequence[Question], caption: str) -> list[Ask]:
        """All questions to ask about a caption, those without it at the end."""
        return [*self.seen(questions, caption), *self.blind(questions)]

    def seen(self, questions: Sequence[Question], caption: str) -> list[Ask]:
        """The questions with the caption. A repeated question follows the original."""
        seed, caption = self._settings.seed, self._strip(caption)
        found = []
        for number, question in enumerate(self._chosen(questions, caption)):
            every = list(self._of(question, caption, number))
            if every and judge.chosen(seed, question, "twice", self._settings.twice):
                every.insert(1, replace(every[0], condition=AGAIN))
            found += every
        return found

    def blind(self, questions: Sequence[Question]) -> list[Ask]:
        """The questions without a caption: the same for all captions of an image."""
        chosen = (q for q in questions if judge.chosen(self._settings.seed, q, "blind", self._settings.blind))
        return [ask for question in chosen for ask in self._of(question, None, 0)]

    def _chosen(self, questions: Sequence[Question], caption: str) -> Sequence[Question]:
        """All questions, or a draw with replacement, as in CapRL's reward."""
        if self._settings.mode != "sampled" or not questions:
            return questions
        numbers = (judge.number_of(self._settings.seed, questions[0], caption, n) for n in range(self._settings.draws))
        return [questions[number % len(questions)] for number in numbers]

    def _of(self, question: Question, caption: str | None, number: int) -> Iterator[Ask]:
        condition = BLIND if caption is None else CAPTION
        if question.own_prompt:
            text = self._strip(prism.user_turn(question.text, caption))
            turns = Turns(user=text, system=question.system, begin=question.begin)
            for sample in range(self._settings.samples):
                yield self._ask(question, condition, turns, caption, sample)
        elif not question.choices:
            turns = judge.open_turns(question, caption, self._settings.system)
            turns = replace(turns, user=self._strip(turns.user))
            yield self._ask(question, condition, turns, caption, number)
        else:
            for order in self._orders(question, caption, number):
                yield self._with_options(question, condition, caption, order, number)

    def _with_options(
        self, question: Question, condition: str, caption: str | None, order: tuple[int, ...], number: int
    ) -> Ask:
        shown = Shown(question=question, order=order, can_refuse=caption is not None)
        one_letter = self._settings.mode == "deterministic"
        settings = self._settings
        turns = shown.turns(caption, settings.instruction, one_letter=one_letter, system=settings.system)
        if (user := self._strip(turns.user)) != turns.user:
            turns = replace(turns, user=user, shared=0)
        return self._ask(question, condition, turns, caption, number, shown)

    def _orders(self, question: Question, caption: str | None, number: int) -> list[tuple[int, ...]]:
        """The orders of the options: rotations, or the one shuffle of a draw."""
        if self._settings.mode == "deterministic":
            return judge.rotations(question, self._settings.seed, self._settings.rotations)
        return [judge.shuffled(question, self._settings.seed, caption, number)]

    def _ask(
        self,
        question: Question,
        condition: str,
        turns: Turns,
        caption: str | None,
        number: int,
        shown: Shown | None = None,
    ) -> Ask:
        sampling: dict[str, Any] = {**NEUTRAL, **SAMPLING[self._settings.mode]}
        if self._settings.mode != "deterministic":
            sampling["seed"] = judge.number_of(self._settings.seed, question, caption, number, "sampling")
        if not shown and not question.own_prompt:
            sampling["max_tokens"] = OPEN_TOKENS
        return Ask(question=question, condition=condition, turns=turns, sampling=sampling, shown=shown)


async def answers(reader: Reader, asks: Sequence[Ask]) -> list[dict[str, Any]]:
    """The answers to all questions, asked concurrently. A failed one has a code and is not judged."""

    async def one(ask: Ask) -> dict[str, Any]:
        try:
            said = await reader.caption(None, ask.turns, ask.sampling)
        except RowFailure as failure:
            return ask.failed(failure.code)
        if ask.question.metric == "math":  # compared in a child process, which must not hold other answers up
            return await asyncio.to_thread(ask.struct, said.text, said.logprobs)
        return ask.struct(said.text, said.logprobs)

    return await asyncio.gather(*map(one, asks))


def score(answers: Sequence[Mapping[str, Any]], *, draws: bool = False) -> float | None:
    """The mean over a caption's questions of the mean of their judged answers; None if none was judged.

    `draws`: the mean of all its answers, as of CapRL's reward, which draws some questions more than once.
    """
    worth: dict[Any, list[float]] = {}
    for number, answer in enumerate(answers):
        if answer["condition"] == CAPTION and answer["correct"] is not None:
            key = number if draws else (answer["benchmark"], answer["question_id"])
            worth.setdefault(key, []).append(answer["correct"])
    means = [sum(values) / len(values) for values in worth.values()]
    return sum(means) / len(means) if means else None
