"""CapRL's reward: how many questions about an image can be answered from its caption (arXiv 2509.22647, 3.2).

`RELEASED` asks as CapRL's reward server does: questions drawn with replacement, options shuffled for each, "can not
answer" last, the answer begun with "The answer is", temperature 0.6, ten tokens, the first letter, the mean. It differs
on purpose in five things. It is seeded. The letter of "can not answer" is the next one, not always F. The first letter
must stand alone. Letters from J on can be chosen. A question that the reader did not answer is left out; CapRL counts
it as wrong, even while the server is down.

`STRICT` asks every question, once in each rotation of its options, greedily.
"""

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from caprl_ray.recipe.score import Score
from caprl_ray.score import ask
from caprl_ray.score.ask import Asking, Reader
from caprl_ray.score.question import Question, options

T = TypeVar("T")
# CapRL++ (arXiv 2606.09393) adds up to `weight` for a caption of at most FULL_TOKENS, and nothing from NO_TOKENS on.
FULL_TOKENS, NO_TOKENS = 2048, 3072


@dataclass(frozen=True, kw_only=True)
class Reward:
    """The settings of the reward.

    Attributes:
        mode: `sampled`, as CapRL's server asks, or `deterministic`.
        draws: how many questions are drawn for each caption; only for sampled.
        rotations: in how many orders each question is asked; only for deterministic. None: as many as its options.
        seed: decides draws, orders and sampling. The same caption and questions have the same reward.
        system: the system turn of the prompts; None for none, as CapRL's server asks. A reader at an endpoint needs a
            text, because the service's own chat template may add a turn.
        length_weight: is added for a caption of at most 2,048 tokens, nothing from 3,072 on, and a share in between;
            0.2 in CapRL++.

    Raises ValueError for a wrong setting.
    """

    mode: str = "sampled"
    draws: int = 8
    rotations: int | None = None
    seed: int = 0
    system: str | None = None
    length_weight: float = 0.0

    def __post_init__(self) -> None:
        _ = self._score  # a trainer would meet the error after minutes

    @property
    def _score(self) -> Score:
        return Score.model_validate(
            {
                "questions": ["-"],
                "mode": self.mode,
                "draws": self.draws,
                "rotations": self.rotations,
                "seed": self.seed,
                "system": self.system,
                "blind": 0.0,
                "twice": 0.0,
            }
        )

    async def of(self, caption: str, questions: Sequence[Question], reader: Reader, tokens: int | None) -> float | None:
        """One caption's reward; None if there is no question, or none was answered."""
        answers = await ask.answers(reader, Asking(self._score).asks(questions, caption))
        worth = ask.score(answers, draws=self.mode == "sampled")
        if worth is None or not self.length_weight:
            return worth
        if tokens is None:
            raise ValueError("length_weight needs the number of tokens of each caption; give `tokens`.")
        return worth + self.length_weight * length_share(tokens)


RELEASED = Reward()
STRICT = Reward(mode="deterministic")


def length_share(tokens: int) -> float:
    """1 for a caption of at most FULL_TOKENS, 0 from NO_TOKENS on, and linear between them."""
    return min(1.0, max(0.0, (NO_TOKENS - tokens) / (NO_TOKENS - FULL_TOKENS)))


def caption_reward(
    captions: Sequence[str],
    questions: Sequence[Any],
    engine: Reader,
    *,
    reward: Reward = RELEASED,
    tokens: Sequence[int] | None = None,
) -> list[float | None]:
    """Score captions by the questions that a reader can answer from them.

    Args:
        captions: the captions.
        questions: for each caption, the list of its questions: dicts of `question`, `choices` and `answer`, as in
            CapRL-QA-75K.
        engine: the reader, from `start_reader`. All readers are asked on one event loop, in a thread of its own.
        reward: RELEASED, STRICT or your own settings.
        tokens: the number of tokens of each caption; only `length_weight` needs it.

    Returns: The reward of each caption: 0 to 1, and up to `length_weight` more. None if the caption has no question, or
    none was answered.

    Raises:
        ValueError: a question is wrong, `tokens` are missing, or the lists differ in length.
        SystemFailure: the reader answers nothing any more.
    """
    return on_loop(_rewards(captions, questions, engine, reward, tokens))


async def caption_reward_async(
    captions: Sequence[str],
    questions: Sequence[Any],
    engine: Reader,
    *,
    reward: Reward = RELEASED,
    tokens: Sequence[int] | None = None,
) -> list[float | None]:
    """The same as `caption_reward`, for callers on an event loop of their own."""
    asked = _rewards(captions, questions, engine, reward, tokens)
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, _loop()))


def on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on the event loop of all readers, which a thread of its own runs: engines belong to one loop."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()


async def _rewards(
    captions: Sequence[str],
    questions: Sequence[Any],
    engine: Reader,
    reward: Reward,
    tokens: Sequence[int] | None,
) -> list[float | None]:
    counts: Sequence[int | None] = tokens if tokens is not None else [None] * len(captions)
    rows = zip(captions, map(as_questions, questions), counts, strict=True)
    return await asyncio.gather(*(reward.of(text, asked, engine, count) for text, asked, count in rows))


def as_questions(given: Sequence[Any]) -> list[Question]:
    """Questions as they are, or from dicts of question, choices and answer. Raises ValueError for a wrong one."""
    return [one if isinstance(one, Question) else _question(number, one) for number, one in enumerate(given)]


def _question(number: int, given: Mapping[str, Any]) -> Question:
    try:
        choices, right = options(list(given["choices"]), str(given["answer"]))
        text = str(given["question"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"question {number} has no {error}; it needs question, choices and answer") from None
    except ValueError as error:
        raise ValueError(f"question {number}: {error}") from None
    return Question(
        id=f"{number}#{text}", image="", text=text, metric="choice", benchmark="", choices=choices, right=right
    )


def _loop() -> asyncio.AbstractEventLoop:
    with _STARTING:  # trainers call from several threads, and there must be one loop
        return _started_loop()


_STARTING = threading.Lock()


@cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="readers", daemon=True).start()
    return loop
