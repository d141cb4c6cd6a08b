"""Where an evaluation lies: folders beside the captions, named by a hash of what goes into them.

    images-HASH       the images of a sample
    questions-HASH    outputs of `curate`, one for each sample that had new images: what a questioner has asked
    answers-HASH      questions, captions, and the output of `score`

So what has been made once is found again: images by their bytes, questions by the image and the questioner, answers by
the questions, all captions together and the reader. Another output of the same images costs no questions.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from caprl_ray.curate.asking import ANSWER_PROMPT
from caprl_ray.errors import SystemFailure
from caprl_ray.evaluate.captions import Captions
from caprl_ray.evaluate.sample import Drawn
from caprl_ray.output.fingerprint import engine_fields, installed
from caprl_ray.output.folder import SUCCESS
from caprl_ray.recipe.curate import CurateRecipe
from caprl_ray.recipe.model import Model
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.score import judge
from caprl_ray.storage import Storage, join

FOLDER = "evaluations"
QUESTIONS, CAPTIONS, SCORES = "questions.parquet", "captions.parquet", "scores"
NAMED = ("source", "revision", "served_name")  # of a model
SETTINGS = {"questions", "model", "engine", "replicas"}  # of `score`, which do not say how is asked


@dataclass(frozen=True, kw_only=True)
class Place:
    """The folder of all evaluations of an output."""

    storage: Storage
    path: str

    def images(self, drawn: Sequence[Drawn]) -> str:
        """The folder of these images."""
        return join(self.path, f"images-{self.batch(drawn)}")

    def batch(self, drawn: Sequence[Drawn]) -> str:
        """A name of these images together."""
        return hashed(sorted(one.image.key for one in drawn))

    def questions(self, recipe: CurateRecipe) -> str:
        """The folder of all questions that this questioner has made."""
        return join(self.path, f"questions-{hashed(questioner(recipe))}")

    def answers(self, questions: str, captions: Captions, recipe: ScoreRecipe) -> str:
        """The folder of what this reader answers to questions of this name from these captions."""
        texts = sorted((captions.short(way), image, text) for (way, image), text in captions.texts.items())
        return join(self.path, f"answers-{hashed([questions, texts, reader(recipe)])}")

    def finished(self, out: str) -> bool:
        """Whether a job has finished an output."""
        return self.storage.lookup(join(out, SUCCESS)) is not None

    def put_once(self, path: str, content: Callable[[], bytes]) -> None:
        """Write an object that is named by what is in it, unless it is there."""
        with self.writing(path):
            if self.storage.lookup(path) is None:
                self.storage.put(path, content())

    @contextmanager
    def writing(self, path: str) -> Iterator[None]:
        """Raise SystemFailure where an evaluation cannot be written."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise SystemFailure(
                f"{path}: cannot be written ({reason}); give a folder for evaluations with --work."
            ) from None


def questioner(recipe: CurateRecipe) -> Mapping[str, Any]:
    """What of a questioner changes questions."""
    sections = {name: getattr(recipe, name).model_dump(mode="json") for name in ("prepare", "prompt", "sampling")}
    own = recipe.curate.model_dump(mode="json", exclude={"model", "engine", "replicas"})
    models = [_model(recipe.model), _model(recipe.curate.model)]
    return {**sections, "curate": own, "models": models, "prompt_of_answers": ANSWER_PROMPT}


def reader(recipe: ScoreRecipe) -> Mapping[str, Any]:
    """What of a reader changes answers."""
    own = recipe.score.model_dump(mode="json", exclude=SETTINGS)
    return {"score": own, "model": _model(recipe.model), "prompt": judge.PROMPT}


def hashed(content: Any) -> str:
    """A short hash of plain data."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return sha256(text.encode()).hexdigest()[:16]


def _model(model: Model) -> Mapping[str, Any]:
    """A model as far as it changes what it writes. A service may move; its models' names stay."""
    named = model.model_dump(mode="json", include=set(NAMED))
    fields = {name: str(value) for name, value in engine_fields(model).items()}
    return named | fields | ({} if model.endpoint else {"vllm": installed("vllm")})
