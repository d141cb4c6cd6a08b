"""The folders of an evaluation, beside the captions, each named by a hash of its inputs.

    images-HASH       the images of a sample
    questions-HASH    outputs of `curate`, one for each sample that had new images: what a questioner has asked
    answers-HASH      questions, captions, and the output of `score`

So results are reused: images by their bytes, questions by image and questioner, answers by questions, captions and
reader. Another output of the same images costs no questions.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from caprl_ray.answer import fingerprint as of_score
from caprl_ray.curate import fingerprint as of_curate
from caprl_ray.curate.job import of_answering
from caprl_ray.errors import SystemFailure
from caprl_ray.evaluate.blame import of_reader
from caprl_ray.evaluate.captions import Captions
from caprl_ray.evaluate.questions import Asked, named
from caprl_ray.evaluate.sample import Drawn
from caprl_ray.models.resolve import resolve
from caprl_ray.output import numbering
from caprl_ray.output.fingerprint import installed
from caprl_ray.output.folder import SUCCESS
from caprl_ray.recipe.curate import CurateRecipe
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.storage import Storage, join

FOLDER = "evaluations"
QUESTIONS, CAPTIONS, SCORES = "questions.parquet", "captions.parquet", "scores"


@dataclass(frozen=True, kw_only=True)
class Place:
    """The folder of all evaluations of an output."""

    storage: Storage
    path: str

    def images(self, drawn: Sequence[Drawn]) -> str:
        """The folder of this set of images."""
        return join(self.path, f"images-{self.batch(drawn)}")

    def batch(self, drawn: Sequence[Drawn]) -> str:
        """A name for this set of images."""
        return hashed(sorted(one.image.key for one in drawn))

    def questions(self, recipe: CurateRecipe) -> str:
        """The folder of all questions by this questioner. Raises what resolving its models raises."""
        return join(self.path, f"questions-{hashed(questioner(recipe))}")

    def answers(self, asked: Asked, captions: Captions, recipe: ScoreRecipe) -> str:
        """The folder of this reader's answers to these questions from these captions. Raises what resolving its model
        raises."""
        texts = sorted((captions.short(way), image, text) for (way, image), text in captions.texts.items())
        return join(self.path, f"answers-{hashed([texts, reader(recipe, asked)])}")

    def finished(self, out: str) -> bool:
        """Whether a job has finished an output."""
        return self.storage.lookup(join(out, SUCCESS)) is not None

    def put_once(self, path: str, content: Callable[[], bytes]) -> None:
        """Write an object that is named by its content, unless it exists."""
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
    """The settings of a questioner that change its questions: the fingerprint of its output."""
    questioner, answering = resolve(recipe), recipe.answering
    with of_answering():
        answerer = resolve(answering)
    return _shared() | of_curate.fingerprint(recipe, questioner, answerer)


def reader(recipe: ScoreRecipe, asked: Asked) -> Mapping[str, Any]:
    """The same of a reader and its answers."""
    with of_reader():
        return _shared() | of_score.fingerprint(recipe, resolve(recipe), named(asked))


def hashed(content: Any) -> str:
    """A short hash of plain data."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return sha256(text.encode()).hexdigest()[:16]


def _shared() -> dict[str, Any]:
    """The settings that change rows in every job."""
    return {numbering.NUMBERING: numbering.NOW, "version.caprl_ray": installed("caprl_ray")}
