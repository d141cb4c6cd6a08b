"""The reward in the forms that trainers call: GRPOTrainer of TRL, and verl. Neither needs to be installed here."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from caprl_ray.score.ask import Reader
from caprl_ray.score.reward import RELEASED, Reward, caption_reward, caption_reward_async

Rewards = list[float | None]


def trl_reward(engine: Reader, *, reward: Reward = RELEASED, column: str = "questions") -> Callable[..., Rewards]:
    """Make a reward function for the `reward_funcs` of TRL's GRPOTrainer.

    Args:
        engine: the reader, from `start_reader`.
        reward: RELEASED, STRICT or your own settings.
        column: the dataset's column of questions.

    Returns: A function that takes `completions` (texts or conversations) and the dataset's columns, and returns the
    reward of each. TRL ignores a reward of None. If every reward function gives None for a completion, TRL leaves it
    out of its group.
    """

    def caption_questions(*, completions: Sequence[Any], completion_ids: Any = None, **columns: Any) -> Rewards:
        return caption_reward(
            _texts(completions), columns[column], engine, reward=reward, tokens=_lengths(completion_ids)
        )

    return caption_questions


def trl_reward_async(
    engine: Reader, *, reward: Reward = RELEASED, column: str = "questions"
) -> Callable[..., Awaitable[Rewards]]:
    """Make the same as a coroutine function, which GRPOTrainer runs beside other rewards."""

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
    """Make a function for verl's `reward.custom_reward_function`. verl calls it in threads, with one caption each.

    Args:
        engine: the reader, from `start_reader`.
        reward: RELEASED, STRICT or your own settings.
        unscored: the reward of a caption that cannot be scored, because verl has no missing rewards.
        count: counts the tokens of a caption; only `length_weight` needs it.

    Returns: A function that takes `data_source`, `solution_str` (the caption) and `ground_truth` (the list of its
    questions), and returns `score`, and `scored`: 1.0 if the caption could be scored, otherwise 0.0. It raises
    RuntimeError for a caption that cannot be scored if `unscored` is None.
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
    """Make the same as a coroutine function. verl then waits for all captions of a batch at once, not for a few
    threads."""

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
