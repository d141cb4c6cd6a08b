"""`caprl-ray plan`: show the work units of a recipe. It needs no model and writes nothing."""

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
from caprl_ray.plan import Unit, UnitRef
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
        counted = _Counted((ref, ref.bytes) for ref in stored.units)
        return Overview(
            stored=True,
            complete=stored.complete,
            kinds=counted.kinds,
            left_out=stored.left_out,
            differences=tuple(_differences(recipe, storage, stored.columns.names)) if stored.complete else (),
            warnings=tuple(_warnings(recipe, storage, counted)),
        )
    left_out = LeftOut()
    found = sources.plan_units(Access.of(recipe), left_out=left_out)
    units = checked(found, recipe.input, output_columns(recipe), partial(check_prompt, recipe))
    counted = _Counted((unit, unit.size) for unit in units)
    if not counted.kinds:
        raise RecipeError(f"input.paths: no image was found in {', '.join(recipe.input.paths)}{_left(left_out)}.")
    warnings = tuple(_warnings(recipe, storage, counted))
    return Overview(stored=False, complete=True, kinds=counted.kinds, left_out=left_out, warnings=warnings)


def _left(left_out: LeftOut) -> str:
    return f"; left out: {left_out.summary()}" if left_out else ""


class _Counted:
    """Units with their bytes, counted by kind, and the largest of them."""

    def __init__(self, units: Iterable[tuple[Unit | UnitRef, int]]) -> None:
        self.kinds: dict[str, Totals] = {}
        self.largest: Unit | UnitRef | None = None
        self.most = -1
        for unit, size in units:
            self.kinds.setdefault(unit.kind, Totals()).add(unit.rows, size)
            if size > self.most:
                self.largest, self.most = unit, size


def _warnings(recipe: Recipe, storage: Storage, counted: _Counted) -> Iterator[str]:
    """Warnings about the largest unit."""
    unit, every = counted.largest, counted.kinds.values()
    if unit is None:
        return
    largest = Largest(
        kind=unit.kind,
        bytes=counted.most,
        all_bytes=sum(totals.bytes for totals in every),
        images=None if any(totals.unknown for totals in every) else sum(totals.images for totals in every),
    )
    entry = next(plan.first_entries(storage, [unit])) if isinstance(unit, UnitRef) else unit.entries[0]
    if said := warning(readable(entry.stored.path), largest, recipe.replicas):
        yield said


def _differences(recipe: Recipe, storage: Storage, columns: Collection[str]) -> Iterator[str]:
    """How the input differs from the stored plan, whose own columns are `columns`."""
    known = PlannedVersions(storage, recipe.output.path)
    try:
        found = sources.plan_units(Access.of(recipe), known, columns=columns)
        new = _Counted((unit, unit.size) for unit in found).kinds
    except (RecipeError, SystemFailure) as error:
        yield f"the input cannot be compared: {error}"
        return
    for kind, totals in new.items():
        images = "" if totals.unknown else f" with {totals.images:,} images"
        yield f"new in the input: {totals.units:,} units of {kind}{images}; caption --extend adds them"
    yield from changes(known)
