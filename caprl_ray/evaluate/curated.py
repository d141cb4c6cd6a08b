"""The questions that a judge makes about the images of a sample.

Questions that this questioner wrote before are reused. So another sample costs only its new images.
"""

from collections.abc import Callable, Mapping, Sequence

from caprl_ray.answer import readers
from caprl_ray.curate import results
from caprl_ray.curate.job import curate_job
from caprl_ray.errors import RecipeError
from caprl_ray.evaluate import pictures, questions
from caprl_ray.evaluate.blame import NO_QUESTIONS, blamed, of_reader
from caprl_ray.evaluate.folder import Place
from caprl_ray.evaluate.pictures import Pictures
from caprl_ray.evaluate.questions import Asked
from caprl_ray.evaluate.sample import Sample
from caprl_ray.job import Job
from caprl_ray.output.folder import SUCCESS
from caprl_ray.output.ledger import Ledger
from caprl_ray.recipe.judge import Judge
from caprl_ray.report.facts import Facts
from caprl_ray.storage import Storage, join

Run = Callable[[Job], Ledger]


def curated(
    judge: Judge, place: Place, output: Facts, found: Sample, seen: Pictures, run: Run
) -> tuple[Asked, Sequence[str]]:
    """The questions about a sample, and the outputs of `curate` that hold them. `run` finishes a job.

    Raises RecipeError if images are gone or no question is kept, and whatever `run` raises.
    """
    pictures.refuse_gone(seen, found.drawn, output.path)
    there = [one for one in found.drawn if one.image.key not in seen.gone]
    folder = place.questions(judge.questioner("-", "-"))
    known = _known(place.storage, folder)
    outs = {known[one.image.key] for one in there if one.image.key in known}
    rest = [one for one in there if one.image.key not in known]
    if rest:
        images = seen if len(rest) == len(there) else pictures.stored(place, output, rest)
        out = join(folder, place.batch(rest))
        _make(judge, place.storage, images, out, run)
        outs.add(out)
    for out in outs:
        if place.storage.lookup(join(out, results.CURATED)) is None:
            results.write(place.storage, out, results.summed(place.storage, out))
    asked = questions.kept(place.storage, sorted(outs), [one.image.key for one in found.drawn])
    if not any(asked.values()):
        sums = results.sentences(results.summed(place.storage, max(outs)))
        said = "; ".join(" ".join(line.split()) for line in sums)
        raise RecipeError(f"curate: no question was kept, so nothing can be asked ({said}); give other models.")
    return asked, sorted(outs)


def _make(judge: Judge, storage: Storage, images: Pictures, out: str, run: Run) -> None:
    with of_reader():
        readers.resolved(judge.reader("-", "-", "-"))  # a missing model is found before hours of questions
    with blamed(storage, out, NO_QUESTIONS):
        run(curate_job(judge.questioner(images.folder, out)))


def _known(storage: Storage, folder: str) -> Mapping[str, str]:
    """The images that this questioner has seen, each with the output that has the result."""
    if storage.lookup(folder) is None:
        return {}
    ends = (stored.path for stored in storage.walk(folder) if stored.path.endswith(f"/{SUCCESS}"))
    outs = sorted(path.removesuffix(f"/{SUCCESS}") for path in ends)
    return {key: out for out in reversed(outs) for key in questions.asked_about(storage, out)}
