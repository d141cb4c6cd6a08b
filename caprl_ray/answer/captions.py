"""The captions of a scoring run: the output of a caption run, or parquet; and what joins them with questions."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.answer.columns import SCORE
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output import again, doubtful, fence, lease
from caprl_ray.output.commit import DATA
from caprl_ray.output.committed import read_committed
from caprl_ray.output.record import read_run, stored_job
from caprl_ray.output.where import output_schema
from caprl_ray.recipe.score import ScoreRecipe
from caprl_ray.rows.schema import clashes
from caprl_ray.score.questions import Questions, joined
from caprl_ray.storage import Listed, Storage, Stored, join

# A caption run's own columns that stay, under names that this output does not need for itself.
RENAMED = {"id": "image_id", "key": "image_key", "source": "image_source", "sha256": "image_sha256"}
SHOWN = 3  # keys in a message
ROWS_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class Captions:
    """A recipe whose input names parquet, and where it has what joins captions and questions.

    `stored` is the column in the input, `column` the same under its name in rows.
    """

    recipe: ScoreRecipe
    stored: str
    column: str


def found(recipe: ScoreRecipe, storage: Storage) -> Captions:
    """The captions that a recipe names. Raises RecipeError for outputs that hold no captions."""
    paths = [_data(storage, path) for path in recipe.input.paths]
    ours = [named for path, named in zip(paths, recipe.input.paths, strict=True) if path != named]
    if ours and len(ours) < len(paths):
        raise RecipeError("input.paths: outputs of caption runs and other captions cannot be scored together.")
    stored = recipe.score.column or ({"path": "key"}.get(recipe.score.join) if ours else None) or recipe.score.join
    settings = recipe.input
    if ours:
        names = _columns(storage, ours)
        rename = {name: RENAMED[name] for name in RENAMED if name in names} | settings.rename
        own = [name for name in clashes(names, SCORE) if name not in rename]
        columns = settings.columns.model_copy(update={"drop": [*settings.columns.drop, *own]})
        update = {"paths": paths, "rename": rename, "columns": columns, "kind": "parquet"}
        settings = settings.model_copy(update=update)
    column = settings.rename.get(stored, stored)
    return Captions(recipe=recipe.model_copy(update={"input": settings}), stored=stored, column=column)


def check_columns(captions: Captions, names: Collection[str]) -> None:
    """Raise RecipeError if the captions lack a column. `names` are the columns of all rows."""
    there = ", ".join(names) or "none"
    for field, name in (("score.caption", captions.recipe.score.caption), ("score.column", captions.column)):
        if name not in names:
            raise RecipeError(f"{field}: the captions have no column {name}; they have {there}.")


def check_common(captions: Captions, questions: Questions, storage: Storage) -> None:
    """Raise RecipeError if no caption has a question, with keys of both sides, or if the questions of one image would
    go to captions of several. Reads keys up to the first that has a question; all of them only where they are paths."""
    score, seen = captions.recipe.score, list[str]()
    if score.join == "path":
        _refuse_shared_names(captions, questions, storage)
    for key in _keys(captions, storage):
        if joined(score.join, key) in questions:
            return
        if len(seen) < SHOWN:
            seen.append(str(key))
    if seen:
        asked = ", ".join(key for key, _ in zip(questions.images(), range(SHOWN), strict=False))
        raise RecipeError(
            f"score.join: no caption has a question; captions have {', '.join(seen)} in {captions.stored}, questions "
            f"are about {asked}. Give another score.join, or score.column."
        )


def _refuse_shared_names(captions: Captions, questions: Questions, storage: Storage) -> None:
    """Raise RecipeError if two paths of captions end in one file name that questions are about."""
    paths: dict[str, str | None] = dict.fromkeys(questions.images())
    for key in map(str, _keys(captions, storage)):
        name = joined("path", key)
        if name not in paths:
            continue
        before, paths[name] = paths[name], key
        if before not in (None, key):
            raise RecipeError(
                f"score.join: {before} and {key} in {captions.stored} have the same file name, by which path joins; "
                "give score.join: key and the paths as captions have them."
            )


def _data(storage: Storage, path: str) -> str:
    """The folder of an output's captions; any other path as it is."""
    try:
        run = read_run(storage, path)
        if run is None:
            return path
        if stored_job(run)["name"] != "caption":
            raise RecipeError(f"input.paths: {path} holds the rows of the job {stored_job(run)['name']}, not captions.")
        _refuse_unfinished(storage, path)
    except OSError as error:
        raise SystemFailure(f"input.paths: {path} cannot be read ({error.strerror}).") from None
    return join(path, DATA)


def _refuse_unfinished(storage: Storage, path: str) -> None:
    """Raise RecipeError for an output where a caption may stand twice, or may still change."""
    try:
        lease.refuse_held(storage, path)
    except RecipeError:
        raise RecipeError(f"input.paths: a run is writing {path}; wait for its end, or stop it.") from None
    if request := again.load(storage, path):
        raise RecipeError(
            f"input.paths: {path} is not yet done with --again {request.condition!r}; finish that first, or delete "
            f"{join(path, again.FOLDER)}."
        )
    if fence.late_objects(storage, path):
        raise RecipeError(f"input.paths: {path} has objects of a lost run; caprl-ray verify --repair removes them.")
    committed = read_committed(storage, path)
    if sick := doubtful.named(doubtful.standing(storage, path, committed)):
        raise RecipeError(f"input.paths: {path} has {sick}; run caption again, or caprl-ray verify --repair.")
    twice = sum(len(unit.extra_finished) for unit in committed.values())
    if twice:
        raise RecipeError(f"input.paths: {path} has {twice:,} rows twice; caprl-ray verify --repair removes them.")


def _objects(storage: Storage, paths: Collection[str]) -> Iterator[Stored]:
    for path in paths:
        for item in storage.find(storage.wanted(path)):
            if isinstance(item, Listed) and item.stored.path.endswith(".parquet"):
                yield item.stored


def _columns(storage: Storage, outputs: Collection[str]) -> list[str]:
    """The columns of caption runs' outputs. Objects of an older version may lack some."""
    names = dict.fromkeys(name for output in outputs for name in output_schema(storage, output).names)
    if not names:
        raise RecipeError(f"input.paths: there are no captions in {', '.join(outputs)}.")
    return list(names)


def _keys(captions: Captions, storage: Storage) -> Iterator[object]:
    """Every value of the column that joins; none of a file that cannot be read, which planning finds."""
    for stored in _objects(storage, captions.recipe.input.paths):
        try:
            with storage.open(stored) as stream:
                file = pq.ParquetFile(stream)
                if captions.stored not in file.schema_arrow.names:
                    return  # said when all columns are planned
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=[captions.stored]):
                    yield from (value for value in batch.column(0).to_pylist() if value is not None)
        except (pa.ArrowException, OSError):
            continue
