"""The best of several captions is kept, and the gain is summed up."""

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from caprl_ray.answer.scorer import Scorer
from caprl_ray.caption.best import Candidate, best
from caprl_ray.caption.rules import Rules
from caprl_ray.caption.scoring import CaptionReader, CaptionScorer
from caprl_ray.embedded import scenes
from caprl_ray.engines.stub import stub_answer
from caprl_ray.errors import RowFailure
from caprl_ray.output.scores import content, sentences
from caprl_ray.output.tallies import tallies
from caprl_ray.recipe.quality import Quality
from caprl_ray.recipe.sampling import Sampling
from caprl_ray.recipe.score import Score
from caprl_ray.recipe.turns import Turns
from caprl_ray.replica.actor import ReplicaActor
from caprl_ray.replica.cut import Cut
from caprl_ray.rows.codes import UNFINISHED
from caprl_ray.score.question import Question
from caprl_ray.score.questions import Questions
from caprl_ray.score.reward import RELEASED, STRICT, Reward, caption_reward

CHECKS = Rules(Quality(), Sampling()).checks


def kept(*captions: tuple[Sequence[str], float | None]) -> int:
    return best([Candidate(flags=flags, score=score) for flags, score in captions], CHECKS)


def test_severe_flags_count_first_then_the_score_then_mild_flags_then_the_order() -> None:
    assert kept(([], 0.2), ([], 0.9), ([], 0.9)) == 1
    assert kept((["loop"], 1.0), ([], 0.1)) == 1
    assert kept((["truncated"], 0.1), (["garbage"], 1.0)) == 0, "the less severe one"
    assert kept((["url"], 0.9), ([], 0.5)) == 0, "a mild flag is no reason to keep a worse caption"
    assert kept((["url"], 0.5), ([], 0.5)) == 1
    assert kept(([], None), ([], 0.0)) == 1, "a caption without a score is no better than one with score 0"
    assert kept((["url"], None), ([], None), ([], None)) == 1, "without scores: the first with the least severe flags"


class Reader:
    """Answers by the stub's rule, and refuses captions with a certain word."""

    control_tokens: Sequence[str] = ()

    async def caption(self, picture: None, prompt: Turns, sampling: Mapping[str, Any]) -> Any:
        if "unreadable" in prompt.user:
            raise RowFailure("engine_rejected")
        return stub_answer(prompt)


SCENE = scenes.Scene(
    background="blue",
    things=(
        scenes.Thing(size="large", colour="red", kind="circle", row=0, column=0),
        scenes.Thing(size="small", colour="white", kind="star", row=2, column=1),
    ),
)
RIGHT = scenes.caption(SCENE)
HALF, WRONG = RIGHT.replace("white star", "black star"), RIGHT.replace("red", "green").replace("white", "black")
QUESTIONS = [
    Question(id=str(number), image="k", text="What is there?", metric="choice", benchmark="scenes", right=0,
             choices=tuple(f"at the {place} a {thing.size} {colour} {thing.kind}" for colour in colours))
    for number, thing in enumerate(SCENE.things)
    for place in [scenes.POSITIONS[thing.row][thing.column]]
    for colours in [(thing.colour, "green", "black", "pink")]
]  # fmt: skip


def row_of(*captions: tuple[str | None, Sequence[str]], key: str | None = "k") -> dict[str, Any]:
    """A row as captioners hand it on, with its first caption as the kept one."""
    every = [
        {"prompt": "prompt", "text": text, "flags": list(flags), "finish_reason": "stop", "tokens": n, "decodes": 1,
         "repaired": [], "prompt_tokens": 10 + n}
        for n, (text, flags) in enumerate(captions)
    ]  # fmt: skip
    return {"key": key, "caption": captions[0][0], "captions": every, "source_flags": ["blank"]}


def scored(row: dict[str, Any], questions: Sequence[Question] = QUESTIONS, **settings: Any) -> dict[str, Any]:
    asked = Score.model_validate({"questions": ["-"], "join": "key", "twice": 0.0, **settings})
    model: Any = SimpleNamespace(label="reader")
    scorer = Scorer(asked, Questions.of(questions), model, Reader())

    async def run() -> Any:
        return await CaptionScorer(scorer, "key", CHECKS, Cut()).write([row])

    (result,) = asyncio.run(run())
    assert isinstance(result, dict), result
    return result


@pytest.mark.parametrize("reward", [STRICT, RELEASED])
def test_the_caption_that_says_what_is_there_is_kept_by_the_reward_of_training(reward: Reward) -> None:
    mode = {"mode": reward.mode, "draws": reward.draws}
    row = scored(row_of((WRONG, []), (None, ["engine_error"]), (HALF, []), (RIGHT, ["url"]), (RIGHT, ["loop"])), **mode)
    assert (row["caption"], row["flags"], row["caption_tokens"], row["prompt_tokens"]) == (
        RIGHT,
        ["blank", "url"],
        3,
        13,
    )
    scores = [one["score"] for one in row["captions"]]
    texts = [WRONG, HALF, RIGHT, RIGHT]
    assert [score for score in scores if score is not None] == caption_reward(
        texts, [QUESTIONS] * 4, Reader(), reward=reward
    )
    assert (
        scores[1] is None and (row["score"], row["first_score"]) == (1.0, scores[0]) and scores[0] == 0 < scores[2] < 1
    )
    seen = [answer for answer in row["answers"] if answer["condition"] == "caption"]
    assert all(answer["correct"] for answer in seen) and row["answered"] == len(seen) == 8
    assert len(row["answers"]) - len(seen) == (8 if reward is STRICT else 2), (
        "blind, once for all captions of the image"
    )


def test_a_caption_that_cannot_be_scored_stays_and_says_why() -> None:
    one = {"key": "k", "caption": "unreadable"}
    assert scored(one) | {"answers": []} == {
        "score": None, "score_code": "engine_rejected", "answered": 0, "unscored": 8, "can_not_answer": 0,
        "answers": [], "image_questions": "k", "answerer": "reader", "score_prompt": "caption-questions-1",
    }  # fmt: skip
    assert scored({"key": "other", "caption": RIGHT}) == {"score": None, "score_code": "no_questions"}
    assert scored({"key": None, "caption": RIGHT}) == {"score": None, "score_code": "no_key"}
    row = scored(row_of(("unreadable", []), (WRONG, [])))
    assert (row["caption"], row["score"], row["first_score"]) == (WRONG, 0.0, None)
    assert [(one["score"], one["score_code"]) for one in row["captions"]] == [(None, "engine_rejected"), (0.0, None)]


def test_a_row_that_kills_readers_keeps_its_caption_and_a_stopped_one_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [RowFailure("engine_crash", "twice alone"), RowFailure(UNFINISHED), {"score": 1.0}]
    monkeypatch.setattr(ReplicaActor, "apply", lambda *_: results)
    kept, cut, done = CaptionReader.apply(object.__new__(CaptionReader), [{}] * 3)
    assert (kept, done) == ({"score": None, "score_code": "engine_crash"}, {"score": 1.0})
    assert isinstance(cut, RowFailure) and cut.code == UNFINISHED


def test_the_gain_has_an_interval_over_images_and_adds_up_over_objects() -> None:
    def summed(*rows: tuple[float | None, float | None, str | None]) -> Any:
        names = ("score", "first_score", "score_code")
        return tallies(pa.table({name: pa.array(column, pa.string() if name == names[2] else pa.float64())
                                 for name, column in zip(names, zip(*rows, strict=True), strict=True)}))  # fmt: skip

    one = summed((1.0, 0.0, None), (0.5, 0.5, None), (None, None, "no_questions"))
    other = summed((1.0, 0.25, None), (0.75, None, None), (None, None, "answer_unclear"))
    for name, counts in other.items():
        one[name].update(counts)
    (found,) = content(one).values()
    assert (found["rows"], found["mean"]["value"]) == (4, pytest.approx(0.8125))
    assert found["unscored"] == {"no_questions": 1, "answer_unclear": 1}
    best_of = found["best"]
    assert (best_of["rows"], best_of["kept"], best_of["first"]) == (3, pytest.approx(2.5 / 3), pytest.approx(0.25))
    differences = np.array([1.0, 0.0, 0.75])
    half = 1.96 * differences.std(ddof=1) / np.sqrt(3)
    assert (best_of["gain"]["value"], best_of["gain"]["low"]) == (
        pytest.approx(differences.mean()),
        pytest.approx(differences.mean() - half, abs=1e-4),
    )
    scores, gain = sentences(content(one))
    assert scores.endswith("over 4 captions, 2 without a score (no_questions 1, answer_unclear 1)")
    assert "0.833 on average, and 0.250 without scores: +0.583 [-0.006, +1.172]" in gain and gain.endswith(
        "over 3 images"
    )
    assert not content({}) and not list(sentences({}))
