"""`caprl-ray plan`: show the work units of a recipe. It needs no model and writes nothing."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from caprl_ray import plan, sources
from caprl_ray.caption.columns import check_prompt, output_columns
from caprl_ray.caption.rules import Rules
from caprl_ray.commands.large_units import Largest, warning
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output.extension import changes
from caprl_ray.plan.known import PlannedVersions
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.recipe.sections import Recipe
from caprl_ray.sources import placeholders
from caprl_ray.sources.checks import checked
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage
from caprl_ray.text import readable


@dataclass
class Totals:
    """Totals of the units of one kind. `unknown` counts the units whose number of images is not known yet."""

    units: int = 0
    images: int = 0
    unknown: int = 0
    bytes: int = 0

    def add(self, rows: int | None, size: int) -> None:
        """Count a unit."""
        self.units += 1
        self.images += rows or 0
        self.unknown += rows is None
        self.bytes += size

    def said(self, kind: str) -> str:
        """One line for people."""
        images = f"{self.images:,} images" if not self.unknown else "images not known before they are read"
        return f"{kind}: {self.units:,} units, {images}, {self.bytes / 1e9:,.3f} GB"


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A plan in numbers. `stored` says whether it is the plan that the output folder holds, `complete` whether the
    input was planned to its end."""

    stored: bool
    complete: bool
    kinds: dict[str, Totals]
    left_out: LeftOut
    differences: tuple[str, ...] = ()
    """How the input differs now from the plan that the output holds, a sentence each."""
    warnings: tuple[str, ...] = ()
    """What would make the replicas wait, a sentence each."""

    def report(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        kinds = {kind: asdict(totals) for kind, totals in self.kinds.items()}
        return {
            "stored": self.stored,
            "complete": self.complete,
            "kinds": kinds,
            "left_out": self.left_out.report(),
            "differences": list(self.differences),
            "warnings": list(self.warnings),
        }

    def summary(self) -> str:
        """Return text for people, with one line per kind."""
        lines = ["the plan that the output holds" if self.stored else "the plan that a first run would store"]
        if not self.complete:
            lines = ["the plan that the output holds so far; a run goes on with it"]
        lines += [f"  {totals.said(kind)}" for kind, totals in self.kinds.items()]
        if self.left_out:
            lines.append(f"  left out: {self.left_out.summary()}")
        lines += [f"  {difference}" for difference in self.differences]
        lines += [f"  warning: {warning}." for warning in self.warnings]
        return "\n".join(lines)


def overview(recipe: Recipe) -> Overview:
    """Summarize the stored plan, or else the plan that a first run would make.

    A stored plan that is complete is compared with the input. Raises RecipeError if the input has nothing to plan, or
    columns or checks with which a run would not start, SystemFailure if storage cannot be listed.
    """
    storage = Storage(recipe.storage)
    placeholders.load(storage, recipe.input)  # refuses a wrong list, as a run does,
    Rules(recipe.quality, recipe.sampling)  # and wrong checks
    stored = plan.load(storage, recipe.output.path)
    if stored.units:
        kinds = _totals((ref.kind, ref.rows, ref.bytes) for ref in stored.units)
        differences = tuple(_differences(recipe, storage, stored.columns.names)) if stored.complete else ()
        largest = max(stored.units, key=lambda ref: ref.bytes)
        (entry,) = plan.first_entries(storage, [largest])
        warnings = _warnings(recipe, kinds, largest.kind, largest.bytes, entry.stored.path)
        return Overview(
            stored=True,
            complete=stored.complete,
            kinds=kinds,
            left_out=stored.left_out,
            differences=differences,
            warnings=warnings,
        )
    left_out = LeftOut()
    found = sources.plan_units(Access.of(recipe), left_out=left_out)
    units = checked(found, recipe.input, output_columns(recipe), partial(check_prompt, recipe))
    largest_unit: tuple[str, int, str] = ("", 0, "")

    def seen() -> Iterator[tuple[str, int | None, int]]:
        nonlocal largest_unit
        for unit in units:
            if unit.size > largest_unit[1]:
                largest_unit = unit.kind, unit.size, unit.entries[0].stored.path
            yield unit.kind, unit.rows, unit.size

    kinds = _totals(seen())
    warnings = _warnings(recipe, kinds, *largest_unit)
    return Overview(stored=False, complete=True, kinds=kinds, left_out=left_out, warnings=warnings)


def _warnings(recipe: Recipe, kinds: dict[str, Totals], kind: str, size: int, path: str) -> tuple[str, ...]:
    """What to say of the largest unit, whose kind, bytes and object these are."""
    units = Totals()
    for totals in kinds.values():
        units.images, units.unknown = units.images + totals.images, units.unknown + totals.unknown
        units.bytes += totals.bytes
    known = None if units.unknown else units.images
    largest = Largest(kind=kind, bytes=size, all_bytes=units.bytes, images=known)
    return tuple(filter(None, [warning(readable(path), largest, recipe.replicas)]))


def _differences(recipe: Recipe, storage: Storage, columns: Collection[str]) -> Iterator[str]:
    """How the input differs from the stored plan, whose own columns are `columns`."""
    known = PlannedVersions(storage, recipe.output.path)
    try:
        found = sources.plan_units(Access.of(recipe), known, columns=columns)
        new = _totals((unit.kind, unit.rows, unit.size) for unit in found)
    except (RecipeError, SystemFailure) as error:
        yield f"the input cannot be compared: {error}"
        return
    for kind, totals in new.items():
        images = "" if totals.unknown else f" with {totals.images:,} images"
        yield f"new in the input: {totals.units:,} units of {kind}{images}; caption --extend adds them"
    yield from changes(known)


def _totals(units: Iterable[tuple[str, int | None, int]]) -> dict[str, Totals]:
    kinds: dict[str, Totals] = defaultdict(Totals)
    for kind, rows, size in units:
        kinds[kind].add(rows, size)
    return dict(kinds)
