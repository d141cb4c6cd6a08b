"""Look at the files at some paths, for `caprl-ray init`: kinds, sizes and columns, and the choices of a recipe."""

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pyarrow as pa

from caprl_ray import plan, sources
from caprl_ray.caption.columns import output_columns
from caprl_ray.commands.plan import Totals
from caprl_ray.errors import RecipeError
from caprl_ray.output import place
from caprl_ray.plan import Unit
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.sources.checks import renames, unfit
from caprl_ray.sources.image_column import candidates, image_column
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage, join

SECONDS = 20.0  # after which a large input is not listed further
NAME = "captions"
# Names of columns that often hold the text which an image had before.
ALT_NAMES = ("alt_text", "alt", "alttext", "text", "txt", "caption", "captions", "title", "description")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The files at the paths of a recipe.

    `found` has the totals of each path by kind; they are lower bounds if not `whole`. `others` are columns that may
    hold the images, too. `alt` is a column of text in the output that the prompt may use.
    """

    document: dict[str, Any]
    found: dict[int, dict[str, Totals]]
    whole: bool
    others: tuple[str, ...] = ()
    alt: str | None = None


@dataclass(kw_only=True)
class _Look:
    """The units of an input, as far as they are listed in time."""

    found: dict[int, dict[str, Totals]] = field(default_factory=dict)
    columns: pa.Schema = field(default_factory=lambda: pa.schema([]))
    whole: bool = True

    def add(self, unit: Unit) -> None:
        """Count a unit."""
        number = unit.position.path if unit.position else 0
        self.found.setdefault(number, {}).setdefault(unit.kind, Totals()).add(unit.rows, unit.size)
        self.columns = plan.unified(self.columns, [unit])


def survey(document: dict[str, Any]) -> Survey:
    """Look at the paths of a recipe, given as plain data without its output. Returns a recipe that can be planned.

    Raises RecipeError if a run would refuse the input, and SystemFailure if storage cannot be listed.
    """
    recipe = parse(document | {"output": {"path": "-"}})
    chosen, others = _image_column(recipe)
    given = {**document["input"], **({"image_column": chosen} if chosen else {})}
    recipe = parse(document | {"input": given, "output": {"path": "-"}})
    look, adds = _look(Access.of(recipe)), output_columns(recipe)
    names = look.columns.names
    rename = renames(unfit(names, adds), names, recipe.input, adds)
    if rename:
        given["rename"] = rename
    output = document.get("output", {})
    output = output if "path" in output else {"path": _output(recipe), **output}
    alt = _alt(look.columns)
    return Survey(
        document=document | {"input": given, "output": output},
        found=look.found,
        whole=look.whole,
        others=others,
        alt=rename.get(alt, alt) if alt else None,
    )


def _alt(columns: pa.Schema) -> str | None:
    """The likeliest column of the text that an image had before."""
    texts = [field.name for field in columns if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    return next((name for wanted in ALT_NAMES for name in texts if name.lower() == wanted), None)


def _look(access: Access) -> _Look:
    look, end = _Look(), time.monotonic() + SECONDS
    for unit in sources.plan_units(access):
        look.add(unit)
        if time.monotonic() > end:
            look.whole = False
            break
    return look


def _image_column(recipe: Recipe) -> tuple[str | None, tuple[str, ...]]:
    """The image column to set, if none would be found without, and the others that it might be."""
    access = Access.of(recipe)
    wrong = None
    try:
        first = next(sources.plan_units(access), None)
    except RecipeError as error:
        first, wrong = None, error
    if recipe.input.image_column or (first and first.kind != "parquet"):
        return None, ()
    try:
        first = next(sources.plan_units(replace(access, images=False)), None)
    except RecipeError:  # other kinds of input are read with images only
        first = None
    found = candidates(first.columns) if first else []
    if wrong and not found:
        raise wrong
    if wrong:
        return found[0], tuple(found[1:])
    if first and found:
        taken = image_column(first.columns, None, first.entries[0].stored.path).name
        found = [name for name in found if name != taken]
    return None, tuple(found)


def _output(recipe: Recipe) -> str:
    """A folder for the output that is not inside the input, and free."""
    storage, paths = Storage(recipe.storage), recipe.input.paths
    folders = _above(paths[0])
    names = (NAME, *(f"{NAME}-{number}" for number in range(2, 10)))
    for folder, name in product(folders, names):
        path = join(folder, name) if folder else name
        if place.inside(storage, path, paths):
            continue
        with suppress(RecipeError):
            place.check(storage, path, paths)
            return path
    raise RecipeError(
        "output.path: no free folder was found beside the input; give one, such as output.path=/captions."
    )


def _above(path: str) -> list[str]:
    """Folders for the output, the best first: beside the input on S3, and the working folder otherwise."""
    if not path.startswith("s3://"):
        return ["", path.rstrip("/").rpartition("/")[0], ".."]
    parts = path.removeprefix("s3://").rstrip("/").split("/")
    return [*("s3://" + "/".join(parts[:number]) for number in range(len(parts) - 1, 0, -1)), ""]
