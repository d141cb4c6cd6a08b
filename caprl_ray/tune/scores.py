"""Scores of the captions of settings that may change them, beside those of the recipe.

The greedy captions of a tune are the input of an ordinary scoring run (docs/score.md). There is one run for all
settings, so that the reader starts once. It can be resumed.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.answer.job import score_job
from caprl_ray.commands.estimate import Interval, mean
from caprl_ray.errors import RecipeError
from caprl_ray.pipeline import run
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.rows.schema import META_PREFIX
from caprl_ray.score.questions import joined
from caprl_ray.score.read import read
from caprl_ray.storage import Storage

FOLDER, CAPTIONS = "scores", "captions.parquet"
IMAGE, SETTING, CAPTION = "image", "setting", "caption"
SAMPLED = {"key": "key", "path": "key", "sha256": "sha256"}  # columns of the sample by what joins questions with them


def joining(recipe: ScoreRecipe, images: pa.Table) -> list[str | None]:
    """The value of each image of the sample that joins it with questions. Raises RecipeError if the sample has no such
    column."""
    name = recipe.score.column or SAMPLED.get(recipe.score.join, recipe.score.join)
    for column in (META_PREFIX + name, name):
        if column in images.column_names and (recipe.score.column is None or column.startswith(META_PREFIX)):
            return [None if value is None else str(value) for value in images[column].to_pylist()]
    raise RecipeError(
        f"score.join: a tune knows no {name} of its images; give score.join: key, path or sha256, or a column of the "
        "input as score.column."
    )


def scored(
    recipe: ScoreRecipe, folder: Path, images: Sequence[str | None], captions: Mapping[str, Sequence[str | None]]
) -> dict[str, Interval]:
    """The mean score of each setting's captions, over images with questions; empty if no image has any.

    Raises what a scoring run raises.
    """
    asked = read(Storage(recipe.storage), recipe.score)
    rows = [
        {IMAGE: image, SETTING: setting, CAPTION: caption}
        for setting, texts in captions.items()
        for image, caption in zip(images, texts, strict=False)
        if image is not None and caption is not None and joined(recipe.score.join, image) in asked
    ]
    if not rows:
        return {}
    name = blake2b(repr(rows).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    place = (folder / FOLDER / name).absolute()
    place.mkdir(parents=True, exist_ok=True)
    if not (place / CAPTIONS).exists():
        pq.write_table(pa.Table.from_pylist(rows), place / CAPTIONS)
    job, _ = score_job(_over(recipe, place))
    run(job)
    return _means(place / "out" / "data")


def _over(recipe: ScoreRecipe, place: Path) -> ScoreRecipe:
    """The scoring recipe with our captions as its input, without repeated and blind questions, which comparing does not
    need."""
    document: dict[str, Any] = recipe.model_dump(exclude_unset=True)
    document["input"] = {"paths": [str(place / CAPTIONS)], "kind": "parquet"}
    document["output"] = {"path": str(place / "out")}
    document["score"] |= {"column": IMAGE, "caption": CAPTION, "blind": 0.0, "twice": 0.0}
    return ScoreRecipe.model_validate(document)


def _means(data: Path) -> dict[str, Interval]:
    found: defaultdict[str, list[float]] = defaultdict(list)
    table = pq.read_table(data, columns=[SETTING, "score"])
    for setting, score in zip(table[SETTING].to_pylist(), table["score"].to_pylist(), strict=True):
        if score is not None:
            found[setting].append(score)
    return {setting: mean(scores) for setting, scores in found.items()}
