"""The demonstration's questions: made from its scenes, and answered from the captions alone."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.answer.results import SCORES
from caprl_ray.commands.score import score
from caprl_ray.embedded import questions
from caprl_ray.embedded.scenes import Scene
from caprl_ray.job import Job
from caprl_ray.output.ledger import Ledger
from caprl_ray.recipe.load import parse_as
from caprl_ray.recipe.score_recipe import ScoreRecipe

OWN, SWAPPED = "scenes", "scenes, captions swapped"  # the two benchmarks of the questions
EACH = 1  # questions about each scene


def write_questions(file: Path, scenes: Mapping[str, Scene], own: Path | None = None, seed: int = 1) -> float:
    """Write questions about each scene, twice: for its own caption, and for the caption of the next scene. The former
    alone go to the file `own`, too.

    Returns the share of swapped questions that the other caption answers by chance.
    """
    rng, rows, lucky = random.Random(seed), [], []
    keys = list(scenes)
    for key, other in zip(keys, [*keys[1:], keys[0]], strict=True):
        stated = questions.facts(scenes[other])
        for number, question in enumerate(questions.about(scenes[key], rng, EACH)):
            for caption, benchmark in ((key, OWN), (other, SWAPPED)):
                rows.append(questions.row(question, key=caption, question_id=f"{key}#{number}", benchmark=benchmark))
            lucky.append(questions.told(question, stated) == question.answer)
    pq.write_table(pa.Table.from_pylist(rows), file)
    if own:
        pq.write_table(pa.Table.from_pylist([row for row in rows if row["benchmark"] == OWN]), own)
    return sum(lucky) / len(lucky)


def score_recipe(captions: Path, asked: Path, out: Path) -> dict[str, Any]:
    """The recipe that scores the demonstration's captions, as plain data."""
    return {
        "input": {"paths": [str(captions)]},
        "model": {"source": "embedded-answerer"},
        "replicas": {"gpus": 0},
        "score": {"questions": [str(asked)], "join": "key", "rotations": 1},
        "output": {"path": str(out)},
    }


def judge_recipe() -> dict[str, Any]:
    """The reader that evaluates the demonstration's output, as plain data."""
    return {"score": {"model": {"source": "embedded-answerer"}, "replicas": {"gpus": 0}, "rotations": 1}}


def scored(document: Mapping[str, Any], run: Callable[[Job], Ledger], lucky: float) -> Iterator[str]:
    """Score by a recipe, and yield what it says about right and about swapped captions."""
    for _ in score(parse_as(ScoreRecipe, dict(document)), run, None):
        pass
    out = Path(document["output"]["path"])
    found = json.loads((out / SCORES).read_text(encoding="utf-8"))["benchmarks"]
    own, swapped = found[OWN], found[SWAPPED]
    yield (
        f"from the captions alone, {_share(own['accuracy'])} of {own['questions']:,} questions about the scenes are "
        f'answered right; "can not answer": {own["can_not_answer"]:.1%}'
    )
    yield (
        f"from the captions of other scenes, {_share(swapped['accuracy'])} of the same questions are; a perfect reader "
        f'gets {lucky:.1%}, by accident; "can not answer": {swapped["can_not_answer"]:.1%}'
    )
    yield f"scores: {out}, {SCORES}"


def _share(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "none"
    bounds = "" if value["low"] is None else f" [{value['low']:.1%}, {value['high']:.1%}]"
    return f"{value['value']:.1%}{bounds}"
