"""GRPO by TRL's own trainer: the embedded captioner, scenes with their questions, and CapRL's reward."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from caprl_ray.answer.reader import start_reader, stop_reader
from caprl_ray.embedded import grpo
from caprl_ray.embedded.rules import Rules, Said
from caprl_ray.errors import RowFailure
from caprl_ray.models.resolve import EMBEDDED_ANSWERER
from caprl_ray.recipe.turns import Turns
from caprl_ray.score.reward import caption_reward
from caprl_ray.score.trainers import trl_reward, trl_reward_async

STEPS, RISE = 16, 0.1  # it rises by 0.19


class Moody(Rules):
    """Does not answer about captions that speak of stars."""

    async def caption(self, picture: None, prompt: Turns, sampling: Mapping[str, Any]) -> Said:
        if "star" in prompt.user.rpartition("<Caption Start>")[2].partition("<Caption End>")[0]:
            raise RowFailure("engine_error")
        return await super().caption(picture, prompt, sampling)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The sums of several threads differ from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trainer(folder: Path, reward: Any, **settings: Any) -> Any:
    data, held_out = grpo.dataset(16, seed=1), grpo.dataset(32, seed=2)
    return grpo.trainer(grpo.unsure(), reward, data, grpo.settings(folder, **settings), held_out)


def rewards(run: Any) -> list[float]:
    """The mean reward of each step."""
    return [step["reward"] for step in run.state.log_history if "reward" in step]


def test_trl_trains_on_the_reward_of_each_caption_and_leaves_out_what_has_none(tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    plain = trl_reward(Moody())

    def noted(**named: Any) -> Any:
        given.update(named, rewards=plain(**named))
        return given["rewards"]

    runs = [trainer(tmp_path, reward, max_steps=2) for reward in (noted, trl_reward_async(Moody()))]
    before = runs[0].model.lm_head.weight.clone()
    for run in runs:
        torch.manual_seed(3)
        run.train()
    synced, awaited = map(rewards, runs)
    assert len(synced) == 2 and synced == pytest.approx(awaited)
    weights = [run.model.lm_head.weight for run in runs]
    assert not torch.equal(before, weights[0]) and torch.allclose(*weights)

    captions = [completion[-1]["content"] for completion in given["completions"]]
    assert given["rewards"] == caption_reward(captions, given["questions"], Moody())
    worth = [one for one in given["rewards"] if one is not None]
    assert 0 < len(worth) < len(captions) and sum(worth) / len(worth) == pytest.approx(synced[-1])
    assert sum(worth) / len(worth) > 0.4, "a caption answers the questions about its own image"
    advantages = dict(zip(captions, runs[0]._logs["advantages"], strict=True))
    assert {advantages[text] for text, one in zip(captions, given["rewards"], strict=True) if one is None} == {0.0}


@pytest.fixture
def answerer() -> Iterator[Any]:
    """A language model that answers in this process."""
    reader = start_reader({"source": EMBEDDED_ANSWERER})
    yield reader
    stop_reader(reader)


def rises(folder: Path, reward: Any) -> None:
    run = trainer(folder, reward, max_steps=STEPS)
    before = run.evaluate()["eval_reward"]
    run.train()
    after = run.evaluate()["eval_reward"]
    assert before < 0.7 and after > before + RISE, (before, after, rewards(run))


@pytest.mark.slow
def test_the_reward_rises(tmp_path: Path) -> None:
    rises(tmp_path, trl_reward(Rules()))


@pytest.mark.slow
@pytest.mark.engine
def test_the_reward_rises_with_a_language_model_for_a_reader(answerer: Any, tmp_path: Path) -> None:
    rises(tmp_path, trl_reward_async(answerer))
