"""The recipe, the YAML file that describes a run: all sections, and the checks between them.

`load.load` reads the file, applies `section.field=value` overrides and returns a frozen `Recipe`. The recipe is checked
before anything starts. An error is a `RecipeError` of one sentence: the field, its value, and what is allowed.

Each section has a module of its name. The docstrings below the fields are the reference of the recipe: the docs page
and `caprl-ray schema` have them.
"""

import math
from typing import Annotated

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from caprl_ray.recipe.fields import Section
from caprl_ray.recipe.input import Input
from caprl_ray.recipe.model import PACKAGED, PARALLEL_SIZES, Model
from caprl_ray.recipe.output import Failures, Output
from caprl_ray.recipe.prepare import Prepare
from caprl_ray.recipe.prompts import Prompt, PromptName, PromptText
from caprl_ray.recipe.quality import Quality
from caprl_ray.recipe.replicas import Engine, Replicas
from caprl_ray.recipe.sampling import Sampling
from caprl_ray.recipe.score import Scoring, check_system
from caprl_ray.recipe.storage import Storage

MOST_CAPTIONS = 16  # per image; each is cut to its share of the characters that a row may have (caption/redecode.py)


class Recipe(Section):
    """The whole recipe: one captioning run over one dataset."""

    input: Input
    prepare: Prepare = Prepare()
    model: Model = Model()
    engine: Engine = Engine()
    replicas: Annotated[Replicas, Field(validate_default=True)] = Replicas()
    prompt: Prompt = Prompt()
    prompts: dict[PromptName, PromptText] = {}
    """Several prompts by name, in place of prompt.user: {dense: "Describe…", short: "Shorten this: {dense}"}. A prompt
    may contain the caption of an earlier prompt, by its name in braces. The column `captions` has all captions, and
    `caption` has the best one: the first of those with the least severe flags. With the section `score`, it is the one
    with the highest score among those without severe flags."""
    sampling: Sampling = Sampling()
    quality: Quality = Quality()
    score: Scoring | None = None
    """How a second pool of replicas scores captions while they are written: {questions: …, model: …, replicas: …}. If
    left out, captions are not scored. With several captions per image, the one with the highest score is kept."""
    failures: Failures = Failures()
    storage: Storage = Storage()
    output: Output

    @field_validator("replicas")
    @classmethod
    def _without_gpus(cls, replicas: Replicas, others: ValidationInfo) -> Replicas:
        """Set `gpus` to 0 for an endpoint, whatever the recipe says, because its replicas only send requests; and for a
        tiny model of the package, unless the recipe sets `gpus`."""
        model = others.data.get("model")
        gpus = {"gpus": 0, "accelerator_type": None}
        tiny = model and model.source in PACKAGED and "gpus" not in replicas.model_fields_set
        return replicas.model_copy(update=gpus) if model and (model.endpoint or tiny) else replicas

    @model_validator(mode="after")
    def _check_system_turn(self) -> "Recipe":
        if self.model.endpoint and self.prompt.system is None:
            raise ValueError(
                "prompt.system: null is not possible with model.endpoint, because the service's own chat template may "
                "add a system turn; give it a text"
            )
        return self

    @property
    def named_prompts(self) -> dict[str, str]:
        """The prompts by name, in order. A recipe without `prompts` has one, named `prompt`."""
        return self.prompts or {"prompt": self.prompt.user}

    @property
    def captions(self) -> int:
        """How many captions a row has."""
        return len(self.named_prompts) * self.sampling.n

    @model_validator(mode="after")
    def _check_captions(self) -> "Recipe":
        if self.captions > MOST_CAPTIONS:
            raise ValueError(
                f"prompts and sampling.n give {self.captions} captions per image; at most {MOST_CAPTIONS} can be kept, "
                "of 65,536 characters together"
            )
        return self

    @model_validator(mode="after")
    def _check_score(self) -> "Recipe":
        if not isinstance(self.score, Scoring):
            return self
        check_system(self.score.model, self.score, "score.")
        if "caption" in self.score.model_fields_set:
            raise ValueError("score.caption is not for captions that this run writes; leave it out")
        if self.score.mode == "prism" and self.several:
            raise ValueError(
                "score.mode: prism is an evaluation and no reward, so it cannot choose among several captions of an "
                "image; give deterministic or sampled"
            )
        return self

    @property
    def several(self) -> bool:
        """Whether a row has several captions."""
        return self.captions > 1

    @property
    def image_again(self) -> bool:
        """Whether the model gets each image several times, in prompts that are equal up to the end of the image."""
        return self.several

    @property
    def text_only(self) -> bool:
        """Whether the model gets prompts without images (recipe/score_recipe.py)."""
        return False

    @model_validator(mode="after")
    def _check_prompts(self) -> "Recipe":
        if self.prompts and "user" in self.prompt.model_fields_set:
            raise ValueError("prompt.user and prompts cannot both be given; make prompt.user one of prompts")
        return self

    @model_validator(mode="after")
    def _check_retries(self) -> "Recipe":
        given = "retries" in self.quality.model_fields_set
        for number, fields in enumerate(self.quality.retries if given else ()):
            if "n" in fields:
                raise ValueError(f"quality.retries[{number}]: n cannot be changed; a retry gives one caption")
            try:
                changed = self.sampling.changed(fields)
            except ValueError as error:
                raise ValueError(f"quality.retries[{number}]: {_first_message(error)}") from None
            if changed == self.sampling:
                raise ValueError(
                    f"quality.retries[{number}]: {fields} does not change sampling, and the same sampling often gives "
                    "the same fault; change a field, or leave the entry out"
                )
        return self

    @model_validator(mode="after")
    def _check_parallelism(self) -> "Recipe":
        sizes = {name: self.model.engine.get(name, 1) for name in sorted(PARALLEL_SIZES)}
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise ValueError(
                    f"model.engine.{name}: {size!r} is not allowed; it should be a whole number of at least 1"
                )
        parallel = math.prod(sizes.values())
        if self.replicas.gpus >= 1 and parallel != self.replicas.gpus:
            raise ValueError(
                f"replicas.gpus is {self.replicas.gpus:g}, but model.engine's tensor and pipeline parallel sizes "
                f"multiply to {parallel}; make them equal"
            )
        return self


def _first_message(error: ValueError) -> str:
    """Pydantic's message about the first fault, with the field."""
    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors(include_url=False)[0]
    said = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else fault["msg"]
    return ": ".join(filter(None, [".".join(map(str, fault["loc"])), said]))
