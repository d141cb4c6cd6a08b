"""The replicas of curation: those that write questions about images, and those that answer them."""

from collections.abc import Callable
from typing import Any

from ray.actor import ActorHandle

from caprl_ray.caption.several import prompt_columns
from caprl_ray.caption.writer import IDENTITY, PIXELS
from caprl_ray.cluster import resources
from caprl_ray.curate.answerer import Answerer
from caprl_ray.curate.questioner import Questioner
from caprl_ray.engines.protocol import Engine
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.curate import CurateRecipe
from caprl_ray.recipe.sections import Recipe
from caprl_ray.replica.actor import ReplicaActor, Writer
from caprl_ray.rows.schema import META_PREFIX


class Questioning(ReplicaActor):
    """One replica of the questioner: rows with pixels in, the same rows with pixels and questions out."""

    name = "question"

    def __init__(self, recipe: CurateRecipe, model: ModelRef, counter: ActorHandle, **options: Any) -> None:
        self._curation = recipe
        rows = resources.batch_rows(model.size_rule.max_pixels)
        super().__init__(recipe, model, counter, rows=rows, last=False, **options)
        self.needs = (*IDENTITY, *PIXELS, *(META_PREFIX + name for name in prompt_columns(recipe)))

    def _writing(self, recipe: Recipe, model: ModelRef) -> Callable[[Engine], Writer]:
        return lambda engine: Questioner(self._curation, model, engine, self._cut)


class Answering(ReplicaActor):
    """One replica of the answering model: rows with pixels and questions in, the same rows with their answers out."""

    name = "answer"
    needs = (*IDENTITY, *PIXELS, "key", "tried")
    drops = PIXELS

    def __init__(self, recipe: CurateRecipe, model: ModelRef, counter: ActorHandle, **options: Any) -> None:
        self._settings = recipe.curate
        rows = resources.batch_rows(model.size_rule.max_pixels)
        super().__init__(recipe.answering, model, counter, rows=rows, **options)

    def _writing(self, recipe: Recipe, model: ModelRef) -> Callable[[Engine], Writer]:
        return lambda engine: Answerer(self._settings, model, engine, self._cut)
