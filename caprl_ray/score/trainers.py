"""The reward in the forms that trainers call: GRPOTrainer of TRL, and verl. Neither needs to be installed here."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from caprl_ray.score.ask import Reader
from caprl_ray.score.reward import RELEASED, Reward, caption_reward, caption_reward_async

Rewards = list[float | None]


def trl_reward(engine: Reader, *, reward: Reward = RELEASED, column: str = "questions") -> Callable[..., Rewards]:
    """A reward function for GRPOTrainer's `reward_funcs`. `column`: the dataset's column of questions.

    TRL leaves a completion without a reward (None) out of this function's part.
    """

    def caption_questions(*, completions: Sequence[Any], completion_ids: Any = None, **columns: Any) -> Rewards:
        return caption_reward(
            _texts(completions), columns[column], engine, reward=reward, tokens=_lengths(completion_ids)
        )

    return caption_questions


def trl_reward_async(
    engine: Reader, *, reward: Reward = RELEASED, column: str = "questions"
) -> Callable[..., Awaitable[Rewards]]:
    """The same as a coroutine function, which GRPOTrainer runs beside other rewards."""

    async def caption_questions(*, completions: Sequence[Any], completion_ids: Any = None, **columns: Any) -> Rewards:
        return await caption_reward_async(
            _texts(completions), columns[column], engine, reward=reward, tokens=_lengths(completion_ids)
        )

    return caption_questions


def verl_reward(
    engine: Reader,
    *,
    reward: Reward = RELEASED,
    unscored: float | None = None,
    count: Callable[[str], int] | None = None,
) -> Callable[..., dict[str, float]]:
    """A `compute_score` for verl's `reward.custom_reward_function`. `ground_truth` is CapRL's list of questions.

    verl has no reward for "not scored": such a caption gets `unscored`, or, if that is None, RuntimeError is raised.
    `count` counts the tokens of a caption, for its length. verl calls it in threads, one caption each.
    """

    def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **more: Any
    ) -> dict[str, float]:
        tokens = _counted(solution_str, count)
        (worth,) = caption_reward([solution_str], [ground_truth], engine, reward=reward, tokens=tokens)
        return _verl_score(worth, unscored, data_source)

    return compute_score


def verl_reward_async(
    engine: Reader,
    *,
    reward: Reward = RELEASED,
    unscored: float | None = None,
    count: Callable[[str], int] | None = None,
) -> Callable[..., Awaitable[dict[str, float]]]:
    """The same as a coroutine function. verl waits for all captions of a batch at once, not for a few threads."""

    async def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **more: Any
    ) -> dict[str, float]:
        tokens = _counted(solution_str, count)
        (worth,) = await caption_reward_async([solution_str], [ground_truth], engine, reward=reward, tokens=tokens)
        return _verl_score(worth, unscored, data_source)

    return compute_score


def _verl_score(worth: float | None, unscored: float | None, data_source: str) -> dict[str, float]:
    given = unscored if worth is None else worth
    if given is None:
        raise RuntimeError(f"A caption of {data_source} could not be scored; give verl_reward(unscored=...).")
    return {"score": given, "scored": float(worth is not None)}


def _counted(caption: str, count: Callable[[str], int] | None) -> list[int] | None:
    return [count(caption)] if count else None


def _texts(completions: Sequence[Any]) -> list[str]:
    """The captions: texts, or conversations, whose last message is the caption."""
    return [one if isinstance(one, str) else _content(one[-1].get("content")) for one in completions]


def _content(content: Any) -> str:
    """The text of a message, which may be a list of parts, or nothing but a thought (None)."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


def _lengths(completion_ids: Any) -> list[int] | None:
    return None if completion_ids is None else [len(ids) for ids in completion_ids]
