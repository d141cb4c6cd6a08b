"""The replica that scores batches of rows with captions."""

from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle

from caprl_ray.answer.captions import Captions
from caprl_ray.answer.readers import ROWS
from caprl_ray.answer.scorer import Scorer
from caprl_ray.answer.writer import ScoreWriter
from caprl_ray.engines.protocol import Engine
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.sections import Recipe
from caprl_ray.replica.actor import ReplicaActor
from caprl_ray.rows.schema import META_PREFIX


class Answerer(ReplicaActor):
    """One replica: rows with captions in, the same rows with scores out."""

    name = "score"

    def __init__(
        self, captions: Captions, model: ModelRef, counter: ActorHandle, questions: ray.ObjectRef, **options: Any
    ) -> None:
        """`questions`: the reference of all questions, which the nodes' object stores share."""
        self._captions, self._questions = captions, ray.get(questions)
        names = (captions.recipe.score.caption, captions.column)
        self.needs = ("unit", "index", *(META_PREFIX + name for name in dict.fromkeys(names)))
        super().__init__(captions.recipe, model, counter, rows=ROWS, **options)

    def _writing(self, recipe: Recipe, model: ModelRef) -> Callable[[Engine], ScoreWriter]:
        score, column = self._captions.recipe.score, self._captions.column
        return lambda engine: ScoreWriter(
            Scorer(score, self._questions, model, engine), score.caption, column, self._cut
        )
