"""An evaluation on one page: sample -> images -> questions -> captions -> answers -> figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from caprl_ray.answer.job import score_job
from caprl_ray.curate import results
from caprl_ray.curate.job import curate_job
from caprl_ray.errors import RecipeError, TooManyFailures
from caprl_ray.evaluate import captions, judged, pictures, questions
from caprl_ray.evaluate.answers import Answer, Evaluation
from caprl_ray.evaluate.captions import Captions
from caprl_ray.evaluate.cost import cost
from caprl_ray.evaluate.folder import CAPTIONS, FOLDER, QUESTIONS, SCORES, Place
from caprl_ray.evaluate.pictures import Pictures
from caprl_ray.evaluate.questions import Asked, Given
from caprl_ray.evaluate.sample import NothingDrawn, Sample, sample
from caprl_ray.evaluate.told import Request, told
from caprl_ray.job import Job
from caprl_ray.output import verdict
from caprl_ray.output.folder import SUCCESS
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.scan import Tell, silent
from caprl_ray.recipe.judge import Judge
from caprl_ray.report.facts import Facts, facts
from caprl_ray.storage import Storage, join
from caprl_ray.watch.breaker import SickReplicas

Run = Callable[[Job], Ledger]
QUESTIONER = (
    "the questioner makes no question that can be used about so many images; give the judge another model, or say the "
    "form in its prompt.user, and run the same command again; a higher failures.max_fraction allows it."
)
READER = (
    "the reader answers so few questions; give the judge another score.model, or score.mode=deterministic, in which an "
    "answer can only be an option, and run the same command again; a higher failures.max_fraction allows it."
)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation, and what `evaluation.json` says of it beside its figures (told.py)."""

    evaluation: Evaluation
    told: Mapping[str, Any]


def evaluate(request: Request, run: Run, tell: Tell = silent) -> Evaluated:
    """Evaluate outputs by `run`, which finishes a job. What was done before is not done again.

    Raises RecipeError for what is wrong with the request, the judge or the outputs, and whatever `run` raises.
    """
    judge, storage = request.judge, Storage(request.judge.storage)
    judge.reader("-", "-", "-")  # refuses a wrong one before anything is read
    outputs = [facts(storage, path, tell) for path in _distinct(request.outputs)]
    given = questions.given(storage, request.questions) if request.questions else None
    place = Place(storage=storage, path=request.work or join(outputs[0].path, FOLDER))
    found = _sampled(request, outputs, given, tell)
    texts = captions.captions(outputs, found.drawn, request.seed, old_column=request.old_column, tell=tell)
    seen = _seen(place, outputs[0], found, tell)
    asked, made = (given.about(found.drawn), None) if given else _made(judge, place, outputs[0], found, seen, run)
    folder = _answered(judge, place, {key: of for key, of in asked.items() if of}, texts, run)
    evaluation = _evaluation(place, folder, made, found, texts, seen)
    return Evaluated(evaluation=evaluation, told=told(request, evaluation, found, seen, folder, made=bool(made)))


def _distinct(paths: Sequence[str]) -> Sequence[str]:
    for number, path in enumerate(paths):
        if path.rstrip("/") in [other.rstrip("/") for other in paths[:number]]:
            raise RecipeError(f"OUT: {path} is named twice; evaluate each output once.")
    return paths


def _sampled(request: Request, outputs: Sequence[Facts], given: Given | None, tell: Tell) -> Sample:
    draw = partial(sample, outputs, request.images, request.seed, column=request.by, tell=tell)
    if given is None:
        return draw()
    try:
        found = draw(wanted=given.wanted(), most=given.images)
    except NothingDrawn:
        raise given.refuse([one.rows[0] for one in draw().drawn]) from None
    given.check(found.drawn)
    return found


def _seen(place: Place, output: Facts, found: Sample, tell: Tell) -> Pictures:
    """The images of the sample, stored."""
    folder = place.images([one.image.key for one in found.drawn])
    with place.writing(folder):
        return pictures.stored(place.storage, folder, output, found.drawn, tell)


def _made(judge: Judge, place: Place, output: Facts, found: Sample, seen: Pictures, run: Run) -> tuple[Asked, str]:
    """The questions that the judge makes about the images of the sample, and where they are."""
    pictures.refuse_gone(seen, found.drawn, output.path)
    keys = [one.image.key for one in found.drawn]
    out = place.questions(keys, judge.questioner(seen.files, place.path))
    if not _finished(place.storage, out):
        with _blamed(place.storage, out, QUESTIONER):
            run(curate_job(judge.questioner(seen.files, out)))
    if place.storage.lookup(join(out, results.CURATED)) is None:
        results.write(place.storage, out, results.summed(place.storage, out))
    asked = questions.kept(place.storage, out, keys)
    if not any(asked.values()):
        said = "; ".join(" ".join(line.split()) for line in results.sentences(results.summed(place.storage, out)))
        raise RecipeError(f"curate: no question was kept, so nothing can be asked ({said}); give other models.")
    return asked, out


def _answered(judge: Judge, place: Place, asked: Asked, texts: Captions, run: Run) -> str:
    """Let the judge answer the questions from the captions. Returns the folder with its answers."""
    folder = place.answers(questions.name(asked), texts, judge.reader("-", "-", "-"))
    named, read, out = (join(folder, name) for name in (QUESTIONS, CAPTIONS, SCORES))
    place.put_once(named, lambda: questions.table(asked))
    place.put_once(read, lambda: judged.table(texts, asked))
    if not _finished(place.storage, out):
        job, _ = score_job(judge.reader(read, named, out))
        with _blamed(place.storage, out, READER):
            run(job)
    return folder


def _evaluation(
    place: Place, folder: str, made: str | None, found: Sample, texts: Captions, seen: Pictures
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
        cost=cost(storage, [path for path in (made, scores) if path], made) | _counts(given, asked),
    )


def _counts(given: Sequence[Answer], asked: Asked) -> dict[str, float]:
    return {"questions_asked": sum(map(len, asked.values())), "answers": len(given)}


def _finished(storage: Storage, out: str) -> bool:
    return storage.lookup(join(out, SUCCESS)) is not None


@contextmanager
def _blamed(storage: Storage, out: str, advice: str) -> Iterator[None]:
    """Say whose fault it is that too many rows failed, with examples, in place of what another command could do."""
    try:
        yield
    except SickReplicas:
        raise
    except TooManyFailures as error:
        counted = str(error).partition("; ")[0]
        raise TooManyFailures(f"{counted}; {verdict.examples(storage, out)}{advice}") from error
