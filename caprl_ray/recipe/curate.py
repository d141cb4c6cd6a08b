"""The section `curate` of a recipe, and the recipe of the curation job, which writes questions about images."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from caprl_ray.errors import RecipeError
from caprl_ray.recipe.fields import Section
from caprl_ray.recipe.load import parse_as
from caprl_ray.recipe.model import Model
from caprl_ray.recipe.prompts import Prompt
from caprl_ray.recipe.replicas import Engine, Replicas
from caprl_ray.recipe.sampling import Sampling
from caprl_ray.recipe.sections import Recipe

# CapRL's models (arXiv 2509.22647, section 3.2).
QUESTIONER, ANSWERER = "Qwen/Qwen2.5-VL-72B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"
COUNT = "questions"  # the placeholder in the prompt for curate.questions
# The name of the default prompt in results. Change it whenever ASKED changes.
PROMPT = "image-questions-1"
OWN_PROMPT = "own prompt"
ASKED = """Write {questions} multiple-choice questions about this image, for people who know it only from a description.

- Ask about what can be seen: things, their number, colors, places, texts, actions, values in a chart. Ask about \
different things, and about small ones, too.
- Nobody who does not see the image should be able to guess the answer from the question and its options.
- Each question has four options. All of them look likely, and exactly one is right.
- No option is about the other options: no "all of the above", no "none of the above".

Answer with a JSON list and nothing else:

[{{"question": "...", "options": ["...", "...", "...", "..."], "answer": "the text of the right option"}}, ...]"""
# How CapRL's code samples questions. Loops are not detected, because a list of similar questions may look like one.
SAMPLED: dict[str, Any] = {
    "temperature": 0.1,
    "top_p": 1.0,
    "repetition_penalty": 1.05,
    "max_tokens": 2048,
    "repetition_detection": None,
}
# Sections of a captioning recipe that a curation recipe cannot have.
FOREIGN = ("prompts", "quality", "score")


def _with_source(document: Any, source: str) -> Any:
    """The document with `source` as model.source, if its section `model` names no model."""
    model = document.get("model") if isinstance(document, dict) else None
    return {**document, "model": {"source": source, **model}} if isinstance(model, dict) else document


class Curate(Section):
    """How questions about images are written and chosen.

    A second model answers each question with the image and without it. A question is kept if the model is right with
    the image and wrong without it.
    """

    questions: Annotated[int, Field(ge=1, le=20)] = 5
    """The number of questions that the questioner should write about each image. If it writes more, the rest is
    ignored."""
    times: Annotated[int, Field(ge=1, le=16)] = 4
    """How often each question is answered with the image, and as often without it. The order of the options changes
    each time."""
    least_with_image: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """A question is kept only if more than this share of its answers with the image is right: with 0.75, more than
    three of four."""
    most_without_image: Annotated[float, Field(gt=0, le=1)] = 0.25
    """A question is kept only if less than this share of its answers without the image is right: with 0.25, fewer than
    one of four."""
    seed: int = 0
    """The seed for the orders of the options and for sampling the answers."""
    system: str | None = "You are a helpful assistant."
    """The system turn of the answering model's prompts. null means no system turn. With an endpoint it must be a
    text."""
    model: Model = Model(source=ANSWERER)
    """The model that answers the questions, with the fields of the section `model`."""
    engine: Engine = Engine()
    """How the answering model's engines are kept alive, with the fields of the section `engine`."""
    replicas: Replicas = Replicas()
    """The answering model's replicas, with the fields of the section `replicas`. Both models run at the same time and
    share the cluster."""

    @model_validator(mode="before")
    @classmethod
    def _answerer(cls, document: Any) -> Any:
        return _with_source(document, ANSWERER)


class Answering(Recipe):
    """The recipe that the answering model's replicas run."""

    @property
    def image_again(self) -> bool:
        return True


class CurateRecipe(Recipe):
    """The recipe of a curation run. Its input is images, and its output is questions about them."""

    model: Model = Model(source=QUESTIONER)
    prompt: Prompt = Prompt(user=ASKED)
    sampling: Sampling = Sampling(**SAMPLED)
    curate: Curate = Curate()

    @model_validator(mode="before")
    @classmethod
    def _only_curation(cls, document: Any) -> Any:
        foreign = [name for name in FOREIGN if isinstance(document, dict) and name in document]
        if foreign:
            raise ValueError(f"{foreign[0]} is for captioning; a recipe for questions cannot have it")
        document = _with_source(document, QUESTIONER)
        for name, defaults in (("prompt", {"user": ASKED}), ("sampling", SAMPLED)):
            given = document.get(name) if isinstance(document, dict) else None
            if isinstance(given, dict):
                document = {**document, name: defaults | given}
        return document

    @model_validator(mode="after")
    def _check_curation(self) -> "CurateRecipe":
        if self.sampling.n > 1:
            raise ValueError("sampling.n: only one answer of the questioner is read; leave it out")
        if self.curate.model.endpoint and self.curate.system is None:
            raise ValueError(
                "curate.system: null is not possible with an endpoint, because the service's own chat template may add "
                "a system turn; give it a text"
            )
        return self

    @property
    def answering(self) -> Answering:
        """The recipe of the answering model's replicas. Raises RecipeError for settings that do not fit together."""
        own = {"model": self.curate.model, "engine": self.curate.engine, "replicas": self.curate.replicas}
        shared = {"input": self.input, "prepare": self.prepare, "storage": self.storage, "output": self.output}
        try:
            return parse_as(Answering, own | shared)
        except RecipeError as error:
            raise RecipeError(f"curate.{error}") from None

    @property
    def prompt_name(self) -> str:
        """The name of the questioner's prompt in results."""
        return PROMPT if self.prompt.user == ASKED else OWN_PROMPT
