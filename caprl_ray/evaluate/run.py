"""An evaluation on one page: sample -> images -> questions -> captions -> answers -> figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from caprl_ray.answer.job import score_job
from caprl_ray.errors import RecipeError
from caprl_ray.evaluate import captions, judged, questions
from caprl_ray.evaluate.answers import Answer, Evaluation
from caprl_ray.evaluate.blame import NO_ANSWERS, blamed, of_reader
from caprl_ray.evaluate.captions import Captions
from caprl_ray.evaluate.cost import cost
from caprl_ray.evaluate.curated import Run, curated
from caprl_ray.evaluate.folder import CAPTIONS, FOLDER, QUESTIONS, SCORES, Place
from caprl_ray.evaluate.pictures import Pictures, stored
from caprl_ray.evaluate.questions import Asked, Given
from caprl_ray.evaluate.sample import NothingDrawn, Sample, sample
from caprl_ray.evaluate.told import IMAGES, Request, told
from caprl_ray.output.scan import Tell, silent
from caprl_ray.recipe.judge import Judge
from caprl_ray.report.facts import Facts, facts
from caprl_ray.storage import Storage, join


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation, and the facts for `evaluation.json` beside its figures (told.py)."""

    evaluation: Evaluation
    told: Mapping[str, Any]


def evaluate(request: Request, run: Run, tell: Tell = silent) -> Evaluated:
    """Evaluate outputs. `run` runs a job to its end. Results of earlier evaluations are reused.

    Raises RecipeError for a wrong request, judge or output, and whatever `run` raises.
    """
    judge, storage = request.judge, Storage(request.judge.storage)
    judge.check(asks=request.questions is None)
    outputs = [facts(storage, path, tell) for path in _distinct(request.outputs)]
    given = questions.given(storage, request.questions) if request.questions else None
    place = Place(storage=storage, path=request.work or join(outputs[0].path, FOLDER))
    found = _sampled(request, outputs, given, tell)
    texts = captions.captions(outputs, found.drawn, request.seed, old_column=request.old_column, tell=tell)
    seen = stored(place, outputs[0], found.drawn, tell)
    asked, made = (given.about(found.drawn), ()) if given else curated(judge, place, outputs[0], found, seen, run)
    folder = _answered(judge, place, {key: of for key, of in asked.items() if of}, texts, run)
    evaluation = _evaluation(place, folder, made, found, texts, seen)
    unfinished = [facts.path for facts in outputs if not facts.balanced]
    said = told(request, evaluation, found, seen, folder, unfinished, made=bool(made))
    return Evaluated(evaluation=evaluation, told=said)


def _distinct(paths: Sequence[str]) -> Sequence[str]:
    for number, path in enumerate(paths):
        if path.rstrip("/") in [other.rstrip("/") for other in paths[:number]]:
            raise RecipeError(f"OUT: {path} is named twice; evaluate each output once.")
    return paths


def _sampled(request: Request, outputs: Sequence[Facts], given: Given | None, tell: Tell) -> Sample:
    size = request.images or (given.images if given else IMAGES)
    draw = partial(sample, outputs, size, request.seed, column=request.by, tell=tell)
    if given is None:
        return draw()
    try:
        return draw(wanted=given.wanted(), most=given.images, check=given.check)
    except NothingDrawn:
        raise given.refuse([one.rows[0] for one in draw().drawn]) from None


def _answered(judge: Judge, place: Place, asked: Asked, texts: Captions, run: Run) -> str:
    """Let the judge answer the questions from the captions. Returns the folder with its answers."""
    folder = place.answers(asked, texts, judge.reader("-", "-", "-"))
    named, read, out = (join(folder, name) for name in (QUESTIONS, CAPTIONS, SCORES))
    place.put_once(named, lambda: questions.table(asked))
    _put_kinds(place, named, asked)
    place.put_once(read, lambda: judged.table(texts, asked))
    if not place.finished(out):
        with of_reader(), blamed(place.storage, out, NO_ANSWERS):
            job, _ = score_job(judge.reader(read, named, out))
            run(job)
    return folder


def _put_kinds(place: Place, path: str, asked: Asked) -> None:
    """Update the kinds of the stored questions."""
    before = questions.by_image(place.storage, path)
    if (now := questions.with_kinds(before, asked)) != before:
        with place.writing(path):
            place.storage.put(path, questions.table(now))


def _evaluation(
    place: Place, folder: str, made: Sequence[str], found: Sample, texts: Captions, seen: Pictures
) -> Evaluation:
    storage = place.storage
    asked = questions.by_image(storage, join(folder, QUESTIONS))
    there = {at: text for at, text in texts.texts.items() if at[1] in asked}
    scores = join(folder, SCORES)
    given = tuple(judged.answers(storage, scores, texts, asked))
    return Evaluation(
        outputs=texts.outputs,
        references=texts.references,
        images={one.image.key: one.image for one in found.drawn if one.image.key in asked},
        captions=there,
        answers=given,
        pictures=seen.read,
        cost=cost(storage, [*made, scores], made) | _counts(given, asked),
    )


def _counts(given: Sequence[Answer], asked: Asked) -> dict[str, float]:
    return {"questions_asked": sum(map(len, asked.values())), "answers": len(given)}
