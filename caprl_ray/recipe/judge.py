"""The judge of an evaluation: the models that write questions about images and answer them from captions.

One file with the sections of a recipe for questions (recipe/curate.py), and in its section `score` the reader's, as a
recipe that scores while it captions has it (recipe/score.py). What is asked about, and where results go, the evaluation
says.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from caprl_ray.errors import RecipeError
from caprl_ray.recipe.curate import QUESTIONER, CurateRecipe
from caprl_ray.recipe.load import document, merged, parse_as
from caprl_ray.recipe.score import Score
from caprl_ray.recipe.score_recipe import READER, ScoreRecipe, in_section
from caprl_ray.recipe.sections import Recipe
from caprl_ray.recipe.storage import Storage

GPUS = 4  # of CapRL's questioner
QUESTIONER_SECTIONS = ("prepare", "model", "engine", "replicas", "prompt", "sampling", "curate")
SHARED = ("failures", "storage")
READING = ("mode", "rotations", "draws", "seed", "system", "instruction")  # of the section `score`, beside READER
# How many rows may fail, where the judge's recipe does not say it: a sample is small, and what fails is mostly a fault
# of the judge.
QUESTION_FAILURES = {"max_fraction": 0.5, "min_rows": 50}
ANSWER_FAILURES = {"max_fraction": 0.25, "min_rows": 50}


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A judge's recipe as plain data."""

    content: Mapping[str, Any]

    @property
    def storage(self) -> Storage:
        """How outputs are accessed."""
        place = {"input": {"paths": ["-"]}, "output": {"path": "-"}}
        return parse_as(Recipe, {**place, "storage": self.content.get("storage") or {}}).storage

    def check(self, *, asks: bool) -> None:
        """Raise RecipeError for a judge that is wrong. `asks`: it makes questions, too."""
        self.reader("-", "-", "-")
        if asks:
            self.questioner("-", "-")

    def questioner(self, images: str, out: str) -> CurateRecipe:
        """The recipe by which questions about stored images are made. Raises RecipeError."""
        own = {name: self.content[name] for name in (*QUESTIONER_SECTIONS, *SHARED) if name in self.content}
        source = {"kind": "parquet", "paths": [images], "image_column": "picture", "columns": {"keep": []}}
        given = {"input": source, "output": {"path": out}}
        return parse_as(CurateRecipe, deepcopy(merged({"failures": QUESTION_FAILURES}, own) | given))

    def reader(self, captions: str, questions: str, out: str) -> ScoreRecipe:
        """The recipe by which captions are read. Raises RecipeError."""
        section = dict(self.content.get("score") or {})
        reader = {name: section.pop(name) for name in READER if name in section}
        asked = {"questions": [questions], "join": "sha256", "column": "image", "blind": 0.0, "twice": 0.0}
        given = {"input": {"paths": [captions]}, "output": {"path": out}, "score": {**section, **asked}}
        shared = {name: self.content[name] for name in SHARED if name in self.content}
        try:
            recipe = parse_as(ScoreRecipe, deepcopy(merged({"failures": ANSWER_FAILURES}, shared) | reader | given))
        except RecipeError as error:
            raise in_section(error) from None
        if recipe.score.mode == "prism":
            raise RecipeError(
                "score.mode: prism is for the files of CapRL's evaluation, not for an evaluation of outputs; give "
                "deterministic or sampled."
            )
        return recipe


def judge(path: str | None, overrides: Sequence[str] = ()) -> Judge:
    """Read a judge's recipe; without a path, use CapRL's models. Raises RecipeError for fields that a judge cannot
    have."""
    return as_judge(document(path, overrides, CurateRecipe))


def as_judge(content: dict[str, Any]) -> Judge:
    """The same for a recipe as plain data."""
    unknown = [name for name in content if name not in (*QUESTIONER_SECTIONS, *SHARED, "score")]
    if unknown:
        there = ", ".join((*QUESTIONER_SECTIONS, "score", *SHARED))
        raise RecipeError(f"{unknown[0]}: a judge's recipe has only {there}; leave it out.")
    score = content.get("score")
    if score is not None and not isinstance(score, dict):
        raise RecipeError("score: it should be a section, a mapping of fields.")
    decided = [name for name in score or () if name in Score.model_fields and name not in READING]
    if decided:
        raise RecipeError(f"score.{decided[0]}: an evaluation decides it; leave it out of the judge's recipe.")
    if "model" not in content:
        content = merged(_default(content.get("replicas")), content)
    return Judge(content=content)


def _default(replicas: Any) -> dict[str, Any]:
    """CapRL's questioner, on as many GPUs as the section `replicas` says."""
    gpus = replicas.get("gpus", GPUS) if isinstance(replicas, dict) else GPUS
    size = int(gpus) if isinstance(gpus, (int, float)) and 1 <= gpus < math.inf else 1
    return {"model": {"source": QUESTIONER, "engine": {"tensor_parallel_size": size}}, "replicas": {"gpus": GPUS}}
