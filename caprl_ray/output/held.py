"""Keys and hashes of finished rows, to check whether a changed source still holds them."""

import hashlib
from collections.abc import Collection, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caprl_ray.output.committed import opened
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA
from caprl_ray.output.part import Part
from caprl_ray.output.repair import may_hold
from caprl_ray.output.scan import Tell, scan, silent
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.prefetch import prefetched

ROW = np.dtype([("unit", "<i4"), ("index", "<i8"), ("digest", "S8")])
# The finished rows of one unit, as fields `index` and `digest` of ROW. A row of unknown bytes has no digest.
Held = np.ndarray


def digest(key: str, sha256: str) -> bytes:
    """A digest of a finished row's key and bytes, without trailing zeros, as numpy returns it."""
    return hashlib.sha256(f"{key}\0{sha256}".encode("utf-8", "surrogateescape")).digest()[:8].rstrip(b"\0")


def held_rows(
    storage: Storage, output: str, units: Collection[int], tell: Tell = silent, part: Part | None = None
) -> dict[int, Held]:
    """The finished rows of those of `units` that have some; `part` is the part that the units belong to.

    Reads two further columns of the objects that may hold such rows, and the footers of all.
    """
    if not units:
        return {}
    numbers = np.asarray(sorted(units), dtype=np.int64)
    found = committed_objects(storage, output, [DATA], part=part)
    some = scan(partial(_rows, storage, numbers), found, "comparing changed sources", tell)
    rows = np.sort(np.concatenate([np.empty(0, ROW), *some]), order=["unit", "index"])
    present, starts = np.unique(rows["unit"], return_index=True)
    return dict(zip(present.tolist(), np.split(rows, starts[1:]), strict=False))


def _rows(storage: Storage, units: np.ndarray, folder: str, objects: Sequence[Stored]) -> np.ndarray:
    found = prefetched(lambda stored: _rows_in(storage, units, stored), objects)
    return np.concatenate([np.empty(0, ROW), *found])


def _rows_in(storage: Storage, units: np.ndarray, stored: Stored) -> np.ndarray:
    with opened(storage, stored) as file:
        if not may_hold(file.metadata, units << 32):
            return np.empty(0, ROW)
        table = file.read(columns=["unit", "index", "key", "sha256"], use_threads=False)
    table = table.filter(pc.is_in(table["unit"], pa.array(units, pa.int32())))
    rows = np.empty(table.num_rows, ROW)
    rows["unit"], rows["index"] = table["unit"].to_numpy(), table["index"].to_numpy()
    pairs = zip(table["key"].to_pylist(), table["sha256"].to_pylist(), strict=True)
    rows["digest"] = [digest(key or "", sha256) if sha256 else b"" for key, sha256 in pairs]
    return rows
