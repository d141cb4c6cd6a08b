"""Choose and rename the source's columns for the output, as `input.columns` and `input.rename` say."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import pyarrow as pa

from caprl_ray.errors import RecipeError
from caprl_ray.plan import Unit
from caprl_ray.recipe.input import Input
from caprl_ray.sources.image_column import BYTES_NAMES, PATH_NAMES, shown
from caprl_ray.sources.samples import Sample


def selected(units: Iterator[Unit], settings: Input, *, first: bool) -> Iterator[Unit]:
    """Yield the units with the columns that `input.columns` keeps.

    After the last unit, raises RecipeError if `input.columns` names a column that no unit had. Only if these are the
    `first` units, because the columns that an earlier plan left out are not known.
    """
    columns = settings.columns
    images = {settings.image_column, *BYTES_NAMES, *PATH_NAMES}
    unseen = [name for name in (*(columns.keep or ()), *columns.drop) if name not in images]
    seen: dict[str, None] = {}
    for unit in units:
        seen |= dict.fromkeys(unit.columns.names)
        kept = [field for field in unit.columns if columns.keeps(field.name)]
        yield unit if len(kept) == len(unit.columns) else replace(unit, columns=pa.schema(kept))
    missing = [name for name in unseen if name not in seen]
    if missing and first:
        raise RecipeError(
            f"input.columns: the input has no column {missing[0]} besides its images; it has {shown(list(seen))}."
        )


def renamed(units: Iterator[Unit], names: Mapping[str, str], before: Collection[str] = ()) -> Iterator[Unit]:
    """Yield the units with renamed columns. `names` maps names in the source to names in the output. `before`: the
    names in the output that earlier units have.

    Raises RecipeError if two columns of a unit would get the same name. After the last unit, raises RecipeError
    if no unit had one of the columns to rename.
    """
    unseen = {name: renamed for name, renamed in names.items() if renamed not in before}
    seen: dict[str, None] = {}
    for unit in units:
        for name in unit.columns.names:
            unseen.pop(name, None)
            seen[name] = None
        yield replace(unit, columns=_renamed(unit, names)) if names else unit
    if unseen:
        raise RecipeError(
            f"input.rename: the input has no column {next(iter(unseen))} besides its images; "
            f"it has {shown(list(seen))}."
        )


def renamed_samples(samples: Iterator[Sample | None], names: Mapping[str, str]) -> Iterator[Sample | None]:
    """Yield the samples with renamed metadata. None stays None."""
    for sample in samples:
        metadata = {names.get(name, name): value for name, value in sample.metadata.items()} if sample else {}
        yield replace(sample, metadata=metadata) if sample else None


def _renamed(unit: Unit, names: Mapping[str, str]) -> pa.Schema:
    columns = pa.schema([field.with_name(names.get(field.name, field.name)) for field in unit.columns])
    for name in columns.names:
        if columns.names.count(name) > 1:
            raise RecipeError(f"input.rename: {unit.entries[0].stored.path} would have two columns named {name}.")
    return columns
