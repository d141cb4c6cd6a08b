"""The judge of an evaluation: the models that write questions about images and answer them from captions.

A judge's recipe is one file. It has the sections of a curation recipe (recipe/curate.py) for the questioner, and a
section `score` for the reader, as in a captioning recipe (recipe/score.py). The evaluation sets the inputs and outputs.
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

GPUS = 4  # for a replica of CapRL's questioner
QUESTIONER_SECTIONS = ("prepare", "model", "engine", "replicas", "prompt", "sampling", "curate")
SHARED = ("failures", "storage")
# The fields of the section `score` that a judge may have, beside those in READER.
READING = ("mode", "rotations", "draws", "seed", "system", "instruction")
# The defaults of the section `failures`. A run is stopped after fewer rows than usual, because a sample is small and
# most failures are the judge's fault.
QUESTION_FAILURES = {"max_fraction": 0.5, "min_rows": 50}
ANSWER_FAILURES = {"max_fraction": 0.25, "min_rows": 50}


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A judge's recipe as plain data."""

    content: Mapping[str, Any]

    @property
    def storage(self) -> Storage:
        """The section `storage`, for the outputs."""
        place = {"input": {"paths": ["-"]}, "output": {"path": "-"}}
        return parse_as(Recipe, {**place, "storage": self.content.get("storage") or {}}).storage

    def check(self, *, asks: bool) -> None:
        """Raise RecipeError if the judge's recipe is wrong. `asks`: whether the judge also writes questions."""
        self.reader("-", "-", "-")
        if asks:
            self.questioner("-", "-")

    def questioner(self, images: str, out: str) -> CurateRecipe:
        """The recipe that writes questions about the images in parquet files to the folder `out`. Raises RecipeError.

        `images` is the path of the files.
        """
        own = {name: self.content[name] for name in (*QUESTIONER_SECTIONS, *SHARED) if name in self.content}
        source = {"kind": "parquet", "paths": [images], "image_column": "picture", "columns": {"keep": []}}
        given = {"input": source, "output": {"path": out}}
        return parse_as(CurateRecipe, deepcopy(merged({"failures": QUESTION_FAILURES}, own) | given))

    def reader(self, captions: str, questions: str, out: str) -> ScoreRecipe:
        """The recipe that answers the questions from the captions and writes to the folder `out`. Raises RecipeError.

        `captions` and `questions` are paths of files.
        """
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
    """As `judge`, for a recipe as plain data."""
    unknown = [name for name in content if name not in (*QUESTIONER_SECTIONS, *SHARED, "score")]
    if unknown:
        there = ", ".join((*QUESTIONER_SECTIONS, "score", *SHARED))
        raise RecipeError(f"{unknown[0]}: a judge's recipe can have only {there}; leave it out.")
    score = content.get("score")
    if score is not None and not isinstance(score, dict):
        raise RecipeError("score: it should be a section, a mapping of fields.")
    decided = [name for name in score or () if name in Score.model_fields and name not in READING]
    if decided:
        raise RecipeError(f"score.{decided[0]}: the evaluation sets it; leave it out of the judge's recipe.")
    if "model" not in content:
        content = merged(_default(content.get("replicas")), content)
    return Judge(content=content)


def _default(replicas: Any) -> dict[str, Any]:
    """CapRL's questioner, on as many GPUs as the section `replicas` says."""
    gpus = replicas.get("gpus", GPUS) if isinstance(replicas, dict) else GPUS
    size = int(gpus) if isinstance(gpus, (int, float)) and 1 <= gpus < math.inf else 1
    return {"model": {"source": QUESTIONER, "engine": {"tensor_parallel_size": size}}, "replicas": {"gpus": GPUS}}
