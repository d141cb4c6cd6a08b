"""The actor that holds one engine and scores batches of rows: a captioner's frame with another writer."""

from typing import Any

import ray
from ray.actor import ActorHandle

from caprl_ray.answer.captions import Captions
from caprl_ray.answer.writer import Scorer
from caprl_ray.caption.rules import Rules
from caprl_ray.caption.stage import Captioner
from caprl_ray.engines.protocol import Engine
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows.schema import META_PREFIX

# Rows of a batch. With five questions of four options, each in four rotations and as often blind, eight captions have
# 320 prompts, more than an engine takes at once.
ROWS = 8


class Answerer(Captioner):
    """One replica: rows with captions in, the same rows with scores out."""

    name = "score"
    drops = ()  # type: ignore[assignment]

    def __init__(
        self, captions: Captions, model: ModelRef, counter: ActorHandle, questions: ray.ObjectRef, **options: Any
    ) -> None:
        """`questions`: the reference of all questions, which the nodes' object stores share."""
        self._captions, self._questions = captions, ray.get(questions)
        super().__init__(captions.recipe, model, counter, **options)
        names = (captions.recipe.score.caption, captions.column)
        self.needs = ("unit", "index", *(META_PREFIX + name for name in dict.fromkeys(names)))

    def _begun_writer(self, recipe: Recipe, model: ModelRef, rules: Rules, engine: Engine) -> Any:
        return Scorer(self._captions.recipe.score, self._captions.column, self._questions, model, engine, self._cut)
