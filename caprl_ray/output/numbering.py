"""How the rows of a unit are numbered. --adopt refuses another numbering, because a partly finished unit would be
resumed at the wrong rows."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from caprl_ray.errors import RecipeError
from caprl_ray.sources.image_column import LISTED

NUMBERING = "numbering"  # a field of the fingerprint; outputs of 0.1.0 have none
NOW = 2  # members of a shard that belong to tools have no number
IMAGE_COLUMN = "input.image_column"


def refuse_other(
    path: str, stored: Mapping[str, Any], wanted: Mapping[str, Any], kinds: Callable[[], Collection[str]]
) -> None:
    """Raise RecipeError if rows of an output would have other numbers now.

    `stored` and `wanted` are fingerprints. `kinds` reads which kinds of units the output's plan holds, which takes time
    for a large one.
    """
    if stored.get(NUMBERING) != wanted.get(NUMBERING) and "webdataset" in kinds():
        raise RecipeError(
            f"output.path: {path} holds shards, whose samples another version of caprl_ray numbered differently; "
            "--adopt cannot accept that: caption into a new output.path."
        )
    was, now = stored.get(IMAGE_COLUMN), wanted.get(IMAGE_COLUMN)
    if _listed(was) != _listed(now) and "parquet" in kinds():
        raise RecipeError(
            f"output.path: {path} belongs to another recipe: {IMAGE_COLUMN} was {was!r} and is {now!r}, which numbers "
            "the rows differently; --adopt cannot accept that: give the stored value, or use a new output.path."
        )


def _listed(column: str | None) -> bool:
    return (column or "").endswith(LISTED)
