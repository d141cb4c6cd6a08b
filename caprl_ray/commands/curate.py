"""Curate questions, sum them up, and say what they are."""

from collections.abc import Callable, Iterator

from caprl_ray.curate import results
from caprl_ray.curate.job import curate_job
from caprl_ray.job import Job
from caprl_ray.output import parts
from caprl_ray.output.ledger import Ledger
from caprl_ray.recipe.curate import CurateRecipe
from caprl_ray.storage import Storage


def curate(recipe: CurateRecipe, run: Callable[[Job], Ledger]) -> Iterator[str]:
    """Curate by `run`, and yield the lines for people. A run of a part sums up only a complete output.

    Raises RecipeError before anything starts, and whatever `run` raises."""
    out, storage = recipe.output.path, Storage(recipe.storage)
    ledger = run(curate_job(recipe))
    yield from (f"{out}: {line}" for line in (*ledger.notes, ledger.summary()))
    if not parts.others_are_left(storage, out, ledger):
        found = results.summed(storage, out)
        results.write(storage, out, found)
        yield from results.sentences(found)
