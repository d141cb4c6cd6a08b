"""Questions that `caprl-ray curate` made, as a scoring recipe names them: by the output's folder."""

import sys
from collections.abc import Mapping

from caprl_ray import plan
from caprl_ray.answer import unfinished
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output import ledger
from caprl_ray.output.committed import Committed
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA
from caprl_ray.output.record import read_run, stored_job
from caprl_ray.recipe.score import Score
from caprl_ray.storage import Storage


def parts(storage: Storage, settings: Score) -> dict[str, list[str]]:
    """The files of those paths of questions that are outputs of curation.

    An incomplete output is used, with a warning. Raises RecipeError for the output of another job, or one whose rows
    may change or are duplicate, SystemFailure if storage fails.
    """
    found = {file.path: _parts(storage, file.path) for file in settings.questions}
    return {path: files for path, files in found.items() if files is not None}


def _parts(storage: Storage, path: str) -> list[str] | None:
    try:
        run = read_run(storage, path)
        if run is None:
            return None
        if stored_job(run)["name"] != "curate":
            raise RecipeError(
                f"score.questions: {path} holds the rows of the job {stored_job(run)['name']}, not questions."
            )
        _say_missing(storage, path, unfinished.refuse(storage, path, "score.questions", "curate"))
        return [stored.path for stored in committed_objects(storage, path, (DATA,))[DATA]]
    except OSError as error:
        raise SystemFailure(f"score.questions: {path} cannot be read ({error.strerror}).") from None


def _say_missing(storage: Storage, path: str, committed: Mapping[int, Committed]) -> None:
    """Warn if images have no questions yet: with their questions, it would be another scoring."""
    units = ledger.balance(plan.load(storage, path).units, committed, "curated").units
    missing = sum(unit.missing or 0 for unit in units)
    if missing or any(unit.planned is None for unit in units):
        count = f"{missing:,} images are" if missing else "some of it is"
        sys.stderr.write(
            f"caprl-ray: score.questions: {path} is not finished, {count} left; this run uses the questions that "
            "are there, and can be resumed only with the same ones.\n"
        )
