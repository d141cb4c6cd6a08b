"""Questions that `caprl-ray curate` made, as a scoring recipe names them: by the output's folder."""

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA
from caprl_ray.output.record import read_run, stored_job
from caprl_ray.recipe.score import Score
from caprl_ray.storage import Storage


def parts(storage: Storage, settings: Score) -> dict[str, list[str]]:
    """The files of those paths of questions that are outputs of curation.

    Raises RecipeError for the output of another job, SystemFailure if storage fails.
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
        return [stored.path for stored in committed_objects(storage, path, (DATA,))[DATA]]
    except OSError as error:
        raise SystemFailure(f"score.questions: {path} cannot be read ({error.strerror}).") from None
