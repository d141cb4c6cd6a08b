"""The readers of a run that captions: their questions, and the column that joins these with images."""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from caprl_ray.answer import readers
from caprl_ray.answer.fingerprint import while_captioning
from caprl_ray.cluster import resources
from caprl_ray.engines import launch
from caprl_ray.errors import RecipeError
from caprl_ray.models.resolve import ModelRef
from caprl_ray.plan import Entry, Unit
from caprl_ray.recipe.score_recipe import ScoreRecipe, in_section, reader_recipe
from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows.schema import META_PREFIX
from caprl_ray.score.questions import Questions, joined
from caprl_ray.storage import Storage

# Our columns that join, by the name in `score.join`, and examples of their values if the format is fixed.
OWN = {"id": "id", "key": "key", "path": "key", "sha256": "sha256"}
LOOKS = {"id": re.compile(r"\d{6,}-\d{8,}"), "sha256": re.compile(r"[0-9a-fA-F]{64}")}
EXAMPLES = {"id": "000000-00000000", "sha256": "of 64 digits of hex"}
SHOWN = 3  # keys in a message
ROW_BYTES = 2**20  # of a row without answers, at most: its captions, and what the source says (cluster/resources.py)


@dataclass(frozen=True, kw_only=True)
class Readers:
    """The settings of a pool of readers. They are sent to Ray's workers; the questions are in the object store.

    `column` is the column of rows between stages that joins them with questions. A batch has at most `rows`.
    """

    recipe: ScoreRecipe
    model: ModelRef
    column: str
    rows: int
    fingerprint: dict[str, Any] = field(repr=False)


def readers_of(recipe: Recipe, rows: int) -> tuple[Readers, Questions]:
    """The readers of a recipe with the section `score`, with batches of this many rows, and their questions. Raises
    RecipeError or SystemFailure if the questions or the readers' model are wrong."""
    own = reader_recipe(recipe)
    questions = readers.questions_of(own, Storage(recipe.storage), resources.WHOLE_BLOCK_BYTES // rows - ROW_BYTES)
    score = own.score
    if score.column is None:
        _refuse_other_kind(score.join, questions)
    try:
        launch.check_engine(own)
        model = readers.resolved(own)
    except RecipeError as error:
        raise in_section(error) from None
    column = OWN[score.join] if score.column is None else META_PREFIX + score.column
    told = while_captioning(own, model, questions)
    return Readers(recipe=own, model=model, column=column, rows=rows, fingerprint=told), questions


def check_column(readers: Readers, names: Collection[str]) -> None:
    """Raise RecipeError if the input lacks the column that joins. `names` are the columns of all rows."""
    column = readers.recipe.score.column
    if column is not None and column not in names:
        there = ", ".join(names) or "no columns besides its images"
        raise RecipeError(f"score.column: the input has no column {column}; it has {there}.")


def with_common(readers: Readers, questions: Questions, units: Iterator[Unit]) -> Iterator[Unit]:
    """Yield the units of a new plan unchanged. Raises RecipeError at their end if no image has a question, and if the
    questions of one image match several images.

    Only files have their keys in the plan. Other keys are known when the images are read.
    """
    join, seen, by_key = readers.recipe.score.join, list[str](), readers.column == "key"
    paths = dict[str, str | None].fromkeys(questions.images() if by_key and join == "path" else ())
    known = by_key
    for unit in units:
        files = unit.entries if by_key and unit.kind == "files" else ()
        if paths:
            _refuse_shared_names(paths, files)
        known = known and unit.kind == "files"
        for entry in files if known else ():
            if joined(join, entry.key) in questions:
                known = False
                break
            seen += [entry.key] if len(seen) < SHOWN else []
        yield unit
    if known and seen:
        raise RecipeError(
            f"score.join: there is no question about any image; images have {', '.join(seen)} as {join}, questions are "
            f"about {_some(questions)}. Give another score.join, or score.column."
        )


def _refuse_shared_names(paths: dict[str, str | None], files: Iterable[Entry]) -> None:
    """Raise RecipeError if two files have the same name and questions are about it. `paths` has the first path for each
    such name."""
    for entry in files:
        name, path = joined("path", entry.key), entry.stored.path
        if name not in paths:
            continue
        before = paths[name] = paths[name] or path
        if before != path:
            raise RecipeError(
                f"score.join: {before} and {path} have the same file name, by which path joins; give score.join: key, "
                "and in the questions the keys of the images."
            )


def _refuse_other_kind(join: str, questions: Questions) -> None:
    """Raise RecipeError if no question can match an image, because the values that join have another format."""
    looks = LOOKS.get(join)
    if looks and not any(looks.fullmatch(image) for image in questions.images()):
        raise RecipeError(
            f"score.join: {join} is the images' own {join}, such as {EXAMPLES[join]}, and questions are about "
            f"{_some(questions)}. Give another score.join, or in score.column the column of the input that has these."
        )


def _some(questions: Questions) -> str:
    return ", ".join(islice(questions.images(), SHOWN))
