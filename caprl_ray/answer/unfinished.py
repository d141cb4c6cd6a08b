"""Check outputs of other jobs that a scoring run reads: they must have no duplicate rows, and must not change."""

from collections.abc import Mapping

from caprl_ray.errors import RecipeError
from caprl_ray.output import again, doubtful, fence, lease
from caprl_ray.output.committed import Committed, read_committed
from caprl_ray.storage import Storage, join


def refuse(storage: Storage, path: str, field: str, command: str) -> Mapping[int, Committed]:
    """Raise RecipeError for an output with duplicate rows, or whose rows may still change. Returns its rows by unit.

    `field` of the recipe names the output, and `command` has written it.
    """
    try:
        lease.refuse_held(storage, path)
    except RecipeError:
        raise RecipeError(f"{field}: a run is writing {path}; wait for its end, or stop it.") from None
    if request := again.load(storage, path):
        raise RecipeError(
            f"{field}: {path} is not yet done with --again {request.condition!r}; finish that first, or delete "
            f"{join(path, again.FOLDER)}."
        )
    if fence.late_objects(storage, path):
        raise RecipeError(f"{field}: {path} has objects of a lost run; caprl-ray verify --repair removes them.")
    committed = read_committed(storage, path)
    if sick := doubtful.named(doubtful.standing(storage, path, committed)):
        raise RecipeError(f"{field}: {path} has {sick}; run {command} again, or caprl-ray verify --repair.")
    twice = sum(len(unit.extra_finished) for unit in committed.values())
    if twice:
        raise RecipeError(f"{field}: {path} has {twice:,} rows twice; caprl-ray verify --repair removes them.")
    return committed
