"""Score captions, sum the scores up, and say what they are, beside those of another output."""

from collections.abc import Callable, Iterator
from typing import Any

from caprl_ray.answer import results
from caprl_ray.answer.job import score_job
from caprl_ray.job import Job
from caprl_ray.output import parts
from caprl_ray.output.ledger import Ledger
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.score.summary import compared, difference, sentences
from caprl_ray.storage import Storage


def score(
    recipe: ScoreRecipe, run: Callable[[Job], Ledger], against: str | None, *, extend: bool = False
) -> Iterator[str]:
    """Score by `run`, and yield the lines for people. `against` is another scored output, to compare with. A run of a
    part sums up only a complete output. `extend`: `run` also scores captions that are new.

    Raises RecipeError before anything starts, and whatever `run` raises.
    """
    out, storage = recipe.output.path, Storage(recipe.storage)
    theirs = results.asked(storage, against) if against else {}
    job, questions = score_job(recipe, extend=extend)
    if against:
        results.refuse_asked_otherwise(against, theirs, job.fingerprint)
    ledger = run(job)
    if parts.others_are_left(storage, out, ledger):
        yield from (f"{out}: {line}" for line in (*ledger.notes, ledger.summary()))
        return
    found = results.summed(storage, out, recipe, questions)
    if against:
        found["against"] = {against: difference(results.tallied(storage, out), results.tallied(storage, against))}
    results.write(storage, out, found)
    yield from (f"{out}: {line}" for line in (*ledger.notes, ledger.summary(), _unmatched(found)))
    yield from sentences(found)
    if against:
        yield from compared(found["against"][against], against)


def _unmatched(found: dict[str, Any]) -> str:
    without, absent = found["captions_without_questions"], found["images_without_scores"]["count"]
    return f"{without:,} captions without questions, {absent:,} images with questions and no score"
