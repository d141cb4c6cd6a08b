"""Group more rows than memory holds: fixed-width records in temporary files, one for each range of a key's hashes.

All records of one key lie in one file. A file is read in pieces. A file that is too large is read in several passes,
each over the keys with another remainder. So memory holds about `rows` records, however the keys are distributed: the
records of one key are combined piece by piece.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

# Files of one set, and records that are held in memory, of 48 bytes: in the files' buffer, and of one file. Grouping a
# million takes 400 MiB. Of a billion rows each file has a million, so it is read in one pass.
FILES, ROWS = 1024, 2**20
KEY = "V16"  # 128 bits of a hash: among a billion keys, two collide with a probability of 10^-21


@dataclass(frozen=True)
class Limits:
    """The number of files, and of records in memory."""

    files: int = FILES
    rows: int = ROWS


class Partitions:
    """Records of one dtype, in files by the hashes of their field `key`. Read them after `close`."""

    def __init__(self, folder: Path, kind: np.dtype, key: str, limits: Limits) -> None:
        folder.mkdir()
        self._folder, self._kind, self._key, self._limits = folder, kind, key, limits
        self._held: list[np.ndarray] = []
        self._rows = 0

    def add(self, records: np.ndarray) -> None:
        """Add records."""
        self._held.append(records)
        self._rows += len(records)
        if self._rows >= self._limits.rows:
            self._flush(self._limits.files)

    def close(self) -> None:
        """Write the records in memory. If no file was written before, one file is enough."""
        if self._held:
            self._flush(self._limits.files if any(self._folder.iterdir()) else 1)

    def __iter__(self) -> Iterator["Part"]:
        """The files, in the order of their keys' hashes. Each is removed when the next one is asked for."""
        for path in sorted(self._folder.iterdir()):
            yield Part(path, self._kind, self._limits.rows)
            path.unlink()

    def _flush(self, files: int) -> None:
        records = np.concatenate(self._held)
        self._held, self._rows = [], 0
        numbers = hashed(records[self._key], 0) % files
        order = np.argsort(numbers, kind="stable")
        ends = np.cumsum(np.bincount(numbers, minlength=files))
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if end > start:
                with open(self._folder / f"{number:05d}", "ab") as file:
                    file.write(records[order[start:end]].tobytes())


@dataclass(frozen=True)
class Part:
    """One file of a set."""

    path: Path
    kind: np.dtype
    rows: int

    def chunks(self) -> Iterator[np.ndarray]:
        """All its records, a bounded number at a time."""
        with open(self.path, "rb") as file:
            while len(records := np.fromfile(file, self.kind, self.rows)):
                yield records

    def passes(self, keys: Callable[[np.ndarray], np.ndarray]) -> Iterator[Callable[[], Iterator[np.ndarray]]]:
        """The file in several passes, so that each fits into memory. `keys` returns a number for each record; records
        with the same number are in the same pass. Each pass can be read several times."""
        total = -(-self.path.stat().st_size // (self.kind.itemsize * self.rows))
        for number in range(total):
            yield lambda number=number: (  # type: ignore[misc]
                chunk if total == 1 else chunk[keys(chunk) % total == number] for chunk in self.chunks()
            )


def hashed(keys: np.ndarray, word: int) -> np.ndarray:
    """One of the four 32-bit words of each key."""
    words: np.ndarray = np.ascontiguousarray(keys).view(np.uint32).reshape(-1, 4)[:, word].astype(np.int64)
    return words


def table(records: np.ndarray) -> pa.Table:
    """Records as an Arrow table."""
    return pa.table({name: _array(np.ascontiguousarray(records[name])) for name in records.dtype.names or ()})


def records(rows: pa.Table, kind: np.dtype) -> np.ndarray:
    """The rows of an Arrow table as records."""
    out = np.empty(rows.num_rows, kind)
    for name in kind.names or ():
        column = rows[name].combine_chunks()
        out[name] = keys_of(column) if pa.types.is_fixed_size_binary(column.type) else column.to_numpy()
    return out


def keys_of(column: pa.FixedSizeBinaryArray) -> np.ndarray:
    """The keys of an Arrow column."""
    return np.frombuffer(column.buffers()[1] or b"", KEY, len(column), offset=16 * column.offset)


def _array(values: np.ndarray) -> pa.Array:
    if values.dtype == np.dtype(KEY):
        return pa.Array.from_buffers(pa.binary(16), len(values), [None, pa.py_buffer(values.tobytes())])
    return pa.array(values)


def aggregated(rows: pa.Table, keys: list[str], how: Mapping[str, str]) -> pa.Table:
    """One row per key. `how` says for each other column how rows are combined: sum, min or max."""
    found = rows.group_by(keys, use_threads=False).aggregate(list(how.items()))
    return found.select([*keys, *(f"{name}_{of}" for name, of in how.items())]).rename_columns([*keys, *how])


def grouped(
    chunks: Iterator[np.ndarray], keys: list[str], how: Mapping[str, str], begin: Callable[[pa.Table], pa.Table]
) -> pa.Table | None:
    """Group records, a chunk at a time, so that only one row of each key is held; None without records.

    `how` as in `aggregated`. `begin` gives these columns to a chunk.
    """
    held: pa.Table | None = None
    for chunk in chunks:
        new = begin(table(chunk)).select([*keys, *how])
        held = aggregated(pa.concat_tables([held, new]) if held else new, keys, how)
    return held
