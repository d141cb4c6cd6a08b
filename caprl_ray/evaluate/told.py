"""The request for an evaluation, and the facts about it beside its figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from caprl_ray.evaluate.answers import Evaluation
from caprl_ray.evaluate.folder import QUESTIONS
from caprl_ray.evaluate.pictures import Pictures
from caprl_ray.evaluate.sample import Sample
from caprl_ray.evaluate.words import MOST_SOURCE, one_line
from caprl_ray.recipe.judge import Judge
from caprl_ray.storage import join

IMAGES = 1000  # default size of the sample


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request for an evaluation.

    Attributes:
        outputs: the paths of outputs of caption runs.
        images: the largest number of images; None for all images with given questions, or else `IMAGES`.
        seed: of the sample and of swapped captions.
        questions: the path of given questions; None if the judge writes them.
        work: the folder of evaluations; None for one in the first output.
        by, old_column: columns of the first output's source with the kind of an image and with the old text.
    """

    outputs: Sequence[str]
    judge: Judge
    images: int | None = None
    seed: int = 0
    questions: str | None = None
    work: str | None = None
    by: str | None = None
    old_column: str | None = None


def told(
    request: Request,
    evaluation: Evaluation,
    found: Sample,
    seen: Pictures,
    folder: str,
    unfinished: Sequence[str] = (),
    *,
    made: bool,
) -> dict[str, Any]:
    """The folder, relative to the first output, which may be moved; the judge; and notes for users. `unfinished` are
    paths of incomplete outputs. `made`: the judge wrote the questions."""
    folder = folder.removeprefix(join(request.work or request.outputs[0], ""))
    reader = request.judge.reader("-", "-", "-").model.source
    questioner = request.judge.questioner("-", "-").model.source if made else None
    said = f"{reader} answered what {questioner} asked" if questioner else f"{reader} answered given questions"
    return {
        "folder": folder,
        "questions": join(folder, QUESTIONS),
        "questioner": questioner,
        "given": request.questions,
        "reader": reader,
        "seed": request.seed,
        "common": found.common,
        "notes": [said, *_notes(request, evaluation, found, seen), *map(_unfinished, unfinished)],
    }


def _notes(request: Request, evaluation: Evaluation, found: Sample, seen: Pictures) -> Iterator[str]:
    """Notes that qualify the numbers."""
    drawn, asked = len(found.drawn), len(evaluation.images)
    which = "captioned by all outputs" if len(request.outputs) > 1 else "captioned"
    which += " and have questions" if request.questions else ""
    of = " of the part that was looked at" if found.every > 1 else ""
    if drawn == found.common:
        yield f"{found.common:,} images{of} are {which}; all of them are in the sample"
    elif request.questions:
        yield f"{found.common:,} images{of} are {which}; {drawn:,} of them are in the sample, and --sample takes more"
    if found.every > 1:
        yield f"only one of {found.every} images of the outputs was looked at, the same ones in each"
    if asked < drawn:
        yield f"{drawn - asked:,} of the {drawn:,} images drawn have no question, and are left out"
    gone = [one.image for one in found.drawn if one.image.key in seen.gone]
    if gone:
        said = seen.gone[gone[0].key].rstrip(".")
        example = one_line(gone[0].source, MOST_SOURCE)
        yield f"{len(gone):,} images cannot be read and are not shown, such as {example} ({said})"


def _unfinished(path: str) -> str:
    return f"{path} is not complete; only what it has so far was looked at"
