"""The output's names for the source's own columns: their own names, or those of `input.rename`."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pyarrow as pa

from caprl_ray.errors import RecipeError
from caprl_ray.plan import Unit
from caprl_ray.sources.samples import Sample


def renamed(units: Iterator[Unit], names: Mapping[str, str]) -> Iterator[Unit]:
    """The units with the output's names for their columns.

    Raises RecipeError if two columns of a unit get one name, and at the end if a column to rename never came.
    """
    unseen = dict(names)
    seen: dict[str, None] = {}
    for unit in units:
        for name in unit.columns.names:
            unseen.pop(name, None)
            seen[name] = None
        yield replace(unit, columns=_renamed(unit, names)) if names else unit
    if unseen:
        raise RecipeError(
            f"input.rename: {next(iter(unseen))} is not a column of the input beside its images; "
            f"it has {', '.join(seen) or 'none'}."
        )


def renamed_samples(samples: Iterator[Sample | None], names: Mapping[str, str]) -> Iterator[Sample | None]:
    """The samples with the output's names in their metadata."""
    for sample in samples:
        metadata = {names.get(name, name): value for name, value in sample.metadata.items()} if sample else {}
        yield replace(sample, metadata=metadata) if sample else None


def _renamed(unit: Unit, names: Mapping[str, str]) -> pa.Schema:
    columns = pa.schema([field.with_name(names.get(field.name, field.name)) for field in unit.columns])
    for name in columns.names:
        if columns.names.count(name) > 1:
            raise RecipeError(f"input.rename: {unit.entries[0].stored.path} would have two columns {name}.")
    return columns
