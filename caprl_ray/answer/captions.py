"""The captions of a scoring run (the output of a caption run, parquet, or JSON lines), and the column that joins them
with questions."""

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray import plan, sources
from caprl_ray.answer import unfinished
from caprl_ray.answer.columns import SCORE
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output.objects import DATA
from caprl_ray.output.record import read_run, stored_job
from caprl_ray.output.where import output_schema
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.rows.schema import clashes
from caprl_ray.score.questions import Questions, joined
from caprl_ray.sources.manifest_text import Manifest, NoManifest
from caprl_ray.sources.source import Access
from caprl_ray.sources.tape import TarDamaged
from caprl_ray.storage import Storage, Stored, join

# Columns, mostly of a caption run, that are renamed because the output needs their names.
RENAMED = {"id": "image_id", "key": "image_key", "source": "image_source", "sha256": "image_sha256"}
SHOWN = 3  # keys in a message
ROWS_AT_ONCE = 8192
ROWS_LOOKED_AT = 64  # of JSON lines, for their columns
# The columns that a join may compare, the likeliest first. Our JSON lines have the key of an image in `image`.
COLUMNS = {"path": ("path", "image"), "key": ("key", "image")}
OWN_COLUMNS = {"path": "key"}  # of a caption run's output


@dataclass(frozen=True, kw_only=True)
class Captions:
    """A recipe whose input is parquet or JSON lines, and the column that joins captions and questions.

    `stored` is the column in the input, `column` the same under its name in rows. `of_runs`: the input's paths are
    folders of caption runs' objects.
    """

    recipe: ScoreRecipe
    stored: str
    column: str
    of_runs: bool = False


def found(recipe: ScoreRecipe, storage: Storage) -> Captions:
    """The captions that a recipe names. Raises RecipeError for outputs that hold no captions."""
    paths = [_data(storage, path) for path in recipe.input.paths]
    ours = [named for path, named in zip(paths, recipe.input.paths, strict=True) if path != named]
    if ours and len(ours) < len(paths):
        raise RecipeError(
            "input.paths: outputs of caption runs cannot be scored together with other captions; score them one by one."
        )
    names = _columns(storage, ours) if ours else _names(recipe, storage)
    stored, settings = recipe.score.column or _joining(recipe.score.join, names, own=bool(ours)), recipe.input
    clashing = (name for name in RENAMED if name in names and settings.columns.keeps(name))
    rename = {name: RENAMED[name] for name in clashing} | settings.rename
    update: dict[str, Any] = {"rename": rename}
    if ours:
        own = [name for name in clashes(names, SCORE) if name not in rename]
        columns = settings.columns.model_copy(update={"drop": [*settings.columns.drop, *own]})
        update |= {"paths": paths, "columns": columns, "kind": "parquet"}
    settings = settings.model_copy(update=update)
    column = settings.rename.get(stored, stored)
    return Captions(
        recipe=recipe.model_copy(update={"input": settings}), stored=stored, column=column, of_runs=bool(ours)
    )


def _joining(join: str, names: Collection[str], *, own: bool) -> str:
    """The column of captions that a join compares."""
    if own:
        return OWN_COLUMNS.get(join, join)
    return next((name for name in COLUMNS.get(join, ()) if name in names), join)


def check_columns(captions: Captions, names: Collection[str]) -> None:
    """Raise RecipeError if the captions lack a column. `names` are the columns of all rows."""
    there = ", ".join(names)
    if not names:
        raise RecipeError("input.paths: the captions have no rows; give other files, or write these again.")
    for field, name in (("score.caption", captions.recipe.score.caption), ("score.column", captions.column)):
        if name not in names:
            llava = "; for captions alone, export with --to jsonl and without --form llava"
            llava = llava if "conversations" in names else ""
            raise RecipeError(f"{field}: the captions have no column {name}; they have {there}{llava}.")


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


def refuse_replaced(captions: Captions, storage: Storage) -> None:
    """Raise RecipeError if objects of a caption run that this output has planned are gone or have other rows now: an
    extension would score what has replaced them once more."""
    if not captions.of_runs:
        return
    sizes = {
        storage.real(path): {_name(stored): stored.size for stored in storage.objects(path, ".parquet")}
        for path in captions.recipe.input.paths
    }
    folder, gone = cache(storage.real), set[str]()
    for entry in plan.first_entries(storage, plan.load(storage, captions.recipe.output.path).units):
        there = sizes.get(folder(entry.stored.path.rpartition("/")[0]))
        if there is not None and there.get(_name(entry.stored)) != entry.stored.size:
            gone.add(entry.stored.path)
    if gone:
        raise RecipeError(
            "--extend: caprl-ray compact or caption --again has replaced files of captions since they were scored "
            f"({len(gone):,}, such as {min(gone)}); what replaced them would be scored once more, so give a new "
            "output.path."
        )


def _name(stored: Stored) -> str:
    return stored.path.rpartition("/")[2]


def _data(storage: Storage, path: str) -> str:
    """The folder of an output's captions; any other path as it is."""
    try:
        run = read_run(storage, path)
        if run is None:
            return path
        if stored_job(run)["name"] != "caption":
            raise RecipeError(
                f"input.paths: {path} holds the rows of the job {stored_job(run)['name']}, not captions; "
                "give the output of caprl-ray caption."
            )
        unfinished.refuse(storage, path, "input.paths", "caption")
    except OSError as error:
        raise SystemFailure(f"input.paths: {path} cannot be read ({error.strerror}).") from None
    return join(path, DATA)


def _columns(storage: Storage, outputs: Collection[str]) -> list[str]:
    """The columns of caption runs' outputs. Objects of an older version may lack some."""
    names = dict.fromkeys(name for output in outputs for name in output_schema(storage, output).names)
    if not names:
        raise RecipeError(f"input.paths: there are no captions in {', '.join(outputs)}; finish the caption run first.")
    return list(names)


def _keys(captions: Captions, storage: Storage) -> Iterator[object]:
    """Every value of the column that joins; none of a file that cannot be read, which planning finds."""
    values = {"parquet": _parquet_values, "manifest": _line_values}
    for kind, found in sources.objects(Access.of(captions.recipe, images=False)):
        with suppress(pa.ArrowException, OSError, NoManifest, TarDamaged):
            for value in values[kind](storage, found.stored, captions.stored):
                if value is not None:
                    yield value


def _parquet_values(storage: Storage, stored: Stored, column: str) -> Iterator[object]:
    with storage.open(stored) as stream:
        file = pq.ParquetFile(stream)
        if column in file.schema_arrow.names:  # if not, it is said when all columns are planned
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
                yield from batch.column(0).to_pylist()


def _line_values(storage: Storage, stored: Stored, column: str) -> Iterator[object]:
    with storage.open(stored) as stream:
        yield from (row.values.get(column) for row in Manifest(stream, stored.path).rows())


def _names(recipe: ScoreRecipe, storage: Storage) -> list[str]:
    """The columns of the first file of captions that can be read, and those that are planned under another name: they
    keep it, whatever the files are now."""
    planned = plan.load(storage, recipe.output.path).columns.names
    return [*_first_columns(recipe, storage), *(name for name, renamed in RENAMED.items() if renamed in planned)]


def _first_columns(recipe: ScoreRecipe, storage: Storage) -> list[str]:
    columns = {"parquet": _parquet_columns, "manifest": _line_columns}
    for kind, found in sources.objects(Access.of(recipe, images=False)):
        try:
            return columns[kind](storage, found.stored)
        except (pa.ArrowException, NoManifest, TarDamaged):
            continue  # planning finds it
        except OSError as error:
            if error.errno is None:  # of pyarrow: the file is damaged
                continue
            raise SystemFailure(f"input.paths: {found.stored.path} cannot be read ({error.strerror}).") from None
    return []


def _parquet_columns(storage: Storage, stored: Stored) -> list[str]:
    with storage.open(stored) as stream:
        return list(pq.read_schema(stream).names)


def _line_columns(storage: Storage, stored: Stored) -> list[str]:
    with storage.open(stored) as stream:
        manifest = Manifest(stream, stored.path)
        first = islice(manifest.rows(), ROWS_LOOKED_AT)
        return list(dict.fromkeys(manifest.names or [name for row in first for name in row.values]))
