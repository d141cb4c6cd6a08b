"""Repair: remove superseded rows, so that every row is in the output once (docs/design.md, D7).

A finished row supersedes a failed one, then the highest `attempts` counts, then the first object by name. Only objects
that can hold such rows are read, and `data` only if it has a duplicate. Every object is replaced completely, so an
interrupted repair loses nothing and can run again.
"""

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from caprl_ray.output.committed import Committed, identities, opened
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA, FAILED, Written, parquet_bytes
from caprl_ray.output.scan import Tell, scan, silent
from caprl_ray.storage import SourceChanged, Storage, Stored
from caprl_ray.storage.prefetch import FETCHED_AHEAD, prefetched

# One of several rows with the same identity: the number of its object, and its position there.
STANDING = np.dtype([("identity", "<i8"), ("attempts", "<i4"), ("object", "<i4"), ("position", "<i4")])
Numbered = tuple[int, Stored]
Superseded = tuple[Stored, np.ndarray]


def repair(storage: Storage, output: str, units: Mapping[int, Committed], tell: Tell = silent) -> int:
    """Remove superseded rows; returns their number. Raises SystemFailure or OSError as reading and writing do."""
    return sum(_repair(storage, output, *rows, tell) for rows in _several(units))


def superseded(
    storage: Storage, output: str, units: Mapping[int, Committed], tell: Tell = silent
) -> dict[str, np.ndarray]:
    """The rows that a repair would remove: their positions in the objects that hold some, by the objects' paths."""
    found = (_find(storage, output, *rows, tell) for rows in _several(units))
    return {stored.path: positions for some in found for stored, positions in some}


def forget(storage: Storage, output: str, rows: Collection[tuple[int, int]], since: Written) -> int:
    """Remove rows, as (unit, index), from the objects of lease `since` and later ones of its part. Returns their
    number. A run then processes these rows again.
    """
    wanted = np.sort(np.asarray([unit << 32 | index for unit, index in rows], dtype=np.int64))
    return sum(_repair(storage, output, folder, wanted, wanted, silent, since) for folder in (DATA, FAILED))


def standing_more_than_once(units: Mapping[int, Committed], rows: Callable[[Committed], BitMap]) -> np.ndarray:
    """The rows of all units that `rows` selects, as sorted identities: unit * 2^32 + index."""
    found = [
        np.asarray(some.to_array(), dtype=np.int64) + (number << 32)
        for number, unit in sorted(units.items())
        if (some := rows(unit))
    ]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _several(units: Mapping[int, Committed]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """By folder, the duplicate rows, and those of them that must all be removed."""
    twice = standing_more_than_once(units, lambda unit: unit.extra_finished)
    yield DATA, twice, twice[:0]
    several = standing_more_than_once(units, lambda unit: unit.extra_failed)
    finished = standing_more_than_once(units, lambda unit: unit.extra_failed & unit.finished)
    yield FAILED, several, finished


def _repair(
    storage: Storage,
    output: str,
    folder: str,
    several: np.ndarray,
    lost: np.ndarray,
    tell: Tell,
    since: Written | None = None,
) -> int:
    """Leave one of `several` rows of each identity in a folder, and none of those that are `lost`."""
    rewrite = _find(storage, output, folder, several, lost, tell, since)
    for _ in scan(partial(_remove, storage), {folder: rewrite}, "removing superseded rows", tell):
        pass
    return sum(len(rows) for _, rows in rewrite)


def _find(
    storage: Storage,
    output: str,
    folder: str,
    several: np.ndarray,
    lost: np.ndarray,
    tell: Tell,
    since: Written | None = None,
) -> list[Superseded]:
    """The rows to remove, by object."""
    if not len(several):
        return []
    objects = list(enumerate(committed_objects(storage, output, [folder], since)[folder]))
    found = scan(partial(_standing, storage, several), {folder: objects}, "looking for superseded rows", tell)
    standing = np.concatenate(list(found))
    removed = _superseded(standing, lost)
    if not len(removed):
        return []
    numbers, starts = np.unique(removed["object"], return_index=True)
    parts = np.split(removed["position"], starts[1:])
    return [(objects[number][1], rows) for number, rows in zip(numbers.tolist(), parts, strict=True)]


def _superseded(standing: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """All rows but the one that counts of each identity, by object and position."""
    order = np.lexsort((standing["position"], standing["object"], -standing["attempts"], standing["identity"]))
    identity = standing["identity"][order]
    first = np.diff(identity, prepend=-1) != 0
    superseded = standing[order[~first | np.isin(identity, lost)]]
    return np.sort(superseded, order=["object", "position"])


def _standing(storage: Storage, several: np.ndarray, folder: str, objects: Sequence[Numbered]) -> np.ndarray:
    """The rows of some objects whose identities are among `several`."""
    found = prefetched(partial(_standing_in, storage, several), objects)
    return np.concatenate([np.empty(0, STANDING), *found])


def _standing_in(storage: Storage, several: np.ndarray, numbered: Numbered) -> np.ndarray:
    number, stored = numbered
    with opened(storage, stored) as file:
        if not may_hold(file.metadata, several):
            return np.empty(0, STANDING)
        table = file.read(columns=["unit", "index", "attempts"], use_threads=False)
    rows = identities(table)
    positions = np.flatnonzero(_among(rows, several))
    standing = np.empty(len(positions), STANDING)
    standing["identity"], standing["object"], standing["position"] = rows[positions], number, positions
    standing["attempts"] = table["attempts"].fill_null(0).to_numpy()[positions]
    return standing


def _among(rows: np.ndarray, several: np.ndarray) -> np.ndarray:
    """A mask of the rows that are in `several`, which is sorted and not copied."""
    places = np.searchsorted(several, rows)
    same: np.ndarray = several[np.minimum(places, len(several) - 1)] == rows
    return same


def may_hold(metadata: pq.FileMetaData, several: np.ndarray) -> bool:
    """Whether an object's statistics of `unit` allow one of `several`."""
    for column in _columns(metadata, "unit"):
        seen = column.statistics
        if seen is None or not seen.has_min_max:
            return True
        first, end = np.searchsorted(several, [seen.min << 32, (seen.max + 1) << 32])
        if first < end:
            return True
    return False


def _columns(metadata: pq.FileMetaData, name: str) -> Iterable[pq.ColumnChunkMetaData]:
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        yield next(column for column in columns if column.path_in_schema == name)


def _remove(storage: Storage, folder: str, superseded: Sequence[Superseded]) -> None:
    with ThreadPoolExecutor(FETCHED_AHEAD) as pool:  # its end waits for running writes
        for _ in pool.map(lambda item: _remove_from(storage, *item), superseded):
            pass


def _remove_from(storage: Storage, stored: Stored, positions: np.ndarray) -> None:
    try:
        with storage.open(stored) as stream:
            file = pq.ParquetFile(io.BytesIO(stream.read()), pre_buffer=False)
    except (SourceChanged, FileNotFoundError):
        return  # an earlier attempt of this Ray task has done it; the ledger, which is read afterwards, would tell
    keep = np.ones(file.metadata.num_rows, dtype=bool)
    keep[positions] = False
    if keep.any():
        table = file.read(use_threads=False)
        storage.put(stored.path, parquet_bytes(table.filter(pa.array(keep))))
    else:
        storage.delete(stored.path)
