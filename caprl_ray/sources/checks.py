"""Check while planning, before anything starts, that the recipe fits the columns of the input."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from caprl_ray import plan
from caprl_ray.errors import RecipeError
from caprl_ray.plan import Unit
from caprl_ray.recipe.input import Input
from caprl_ray.rows.features import KEY, classes
from caprl_ray.rows.schema import Fields, clashes
from caprl_ray.sources.image_column import shown
from caprl_ray.text import quoted

MORE_UNITS = 100  # to plan after a clash, so that its message names the clashes of all files


def checked(
    units: Iterator[Unit],
    settings: Input,
    adds: Fields,
    check: Callable[[Collection[str]], None],
    before: pa.Schema | None = None,
) -> Iterator[Unit]:
    """Yield the units unchanged.

    Args:
        adds: the columns that the job adds.
        check: is called with the names of all columns after the last unit; raises RecipeError if the job cannot work
            on them.
        before: the columns of earlier units.

    Raises:
        RecipeError: a column has a name that the output needs, or means something else than in the units before.
    """
    columns = pa.schema([]) if before is None else before
    for unit in units:
        if unfit(set(unit.columns.names).difference(columns.names), adds):  # older outputs may have a column `run`
            _refuse_names(unit, units, settings, adds)
        _check_meaning(columns, unit, settings)
        columns = plan.unified(columns, [unit])
        yield unit
    check(columns.names)


def unfit(names: Iterable[str], adds: Fields) -> list[str]:
    """The names of columns that the output cannot take over. Readers, such as `datasets`, cut a name at a NUL."""
    return sorted({*clashes(names, adds), *(name for name in names if "\0" in name)})


def _refuse_names(unit: Unit, units: Iterator[Unit], settings: Input, adds: Fields) -> None:
    names = dict.fromkeys(unit.columns.names)
    with suppress(RecipeError):
        for more in islice(units, MORE_UNITS):
            names |= dict.fromkeys(more.columns.names)
    path, taken = unit.entries[0].stored.path, unfit(unit.columns.names, adds)
    one, nul = len(taken) == 1, any("\0" in name for name in taken)
    rename = _renaming(unfit(names, adds), names, settings, adds)
    raise RecipeError(
        f"input: {path} has {'a column' if one else 'the columns'} {shown(taken)}, {'a name' if one else 'names'} that "
        f"{'has a NUL or that ' if nul else ''}the output needs for itself; rename {'it' if one else 'them'}, for "
        f"instance with '{rename}'."
    )


def _renaming(every: list[str], names: Collection[str], settings: Input, adds: Fields) -> str:
    """The command-line override that renames all clashing columns and keeps the recipe's own renames."""
    rename = renames(every, names, settings, adds)
    return f"input.rename={{{', '.join(f'{quoted(old)}: {quoted(new)}' for old, new in rename.items())}}}"


def renames(every: list[str], names: Collection[str], settings: Input, adds: Fields) -> dict[str, str]:
    """`input.rename`, completed by free names for the clashing columns `every`. `names`: all columns of the output."""
    sources = {new: old for old, new in settings.rename.items()}
    rename, used = dict(settings.rename), {*names, *settings.rename.values()}
    for name in every:
        stem = f"source_{name}".replace("\0", "_")
        free = (f"{stem}{end}" for end in chain([""], (f"_{number}" for number in range(2, len(names) + 3))))
        new = next(candidate for candidate in free if candidate not in used and not clashes([candidate], adds))
        rename[sources.get(name, name)] = new
        used.add(new)
    return rename


def _check_meaning(columns: pa.Schema, unit: Unit, settings: Input) -> None:
    """Raise RecipeError for a column whose type or classes do not fit those of the units before."""
    if columns.equals(unit.columns, check_metadata=True):
        return
    for field in unit.columns:
        number = columns.get_field_index(field.name)
        if number < 0 or columns.field(number).equals(field, check_metadata=True):
            continue
        other = columns.field(number)
        if not _fit(other, field):
            raise _differs(field.name, f"has the type {field.type}", f"it is {other.type}", unit, settings)
        ours, theirs = _classes(other), _classes(field)
        if ours and theirs and ours != theirs:
            raise _differs(field.name, f"has the classes {shown(theirs)}", f"they are {shown(ours)}", unit, settings)


def _fit(one: pa.Field, other: pa.Field) -> bool:
    try:
        pa.unify_schemas([pa.schema([one]), pa.schema([other])], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def _differs(name: str, here: str, before: str, unit: Unit, settings: Input) -> RecipeError:
    source = next((old for old, new in settings.rename.items() if new == name), name)
    dropped = ", ".join(map(quoted, [*settings.columns.drop, source]))
    return RecipeError(
        f"input: the column {source} of {unit.entries[0].stored.path} {here}, and in the files before {before}; make "
        "the files agree, caption them in separate runs, or leave the column out with "
        f"'input.columns.drop=[{dropped}]'."
    )


def _classes(field: pa.Field) -> list[str]:
    feature: Any = json.loads((field.metadata or {}).get(KEY, b"{}"))
    return classes(feature)
