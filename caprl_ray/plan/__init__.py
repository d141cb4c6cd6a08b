"""The plan: the input cut into work units, written once under the output and never changed.

One read task streams a unit: a tar shard, a slice of loose files, or a range of a parquet file's row groups. The number
of a unit is its identity (docs/design.md, D2). The plan holds the size and version of each source, so that a changed
source is noticed. The driver holds one small `UnitRef` per unit and no image's name.
"""

from caprl_ray.plan.left_out import LeftOut
from caprl_ray.plan.parts import discard, store, unified
from caprl_ray.plan.planning import Planning
from caprl_ray.plan.stored import (
    EMPTY,
    FOLDER,
    Plan,
    UnitRef,
    closed,
    first_entries,
    identified,
    identity,
    load,
    load_units,
)
from caprl_ray.plan.units import Entry, Lines, Position, Unit, batched

__all__ = [
    "EMPTY",
    "FOLDER",
    "Entry",
    "LeftOut",
    "Lines",
    "Plan",
    "Planning",
    "Position",
    "Unit",
    "UnitRef",
    "batched",
    "closed",
    "discard",
    "first_entries",
    "identified",
    "identity",
    "load",
    "load_units",
    "store",
    "unified",
]
