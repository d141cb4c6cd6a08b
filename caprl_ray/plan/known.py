"""The paths of a plan, at 16 bytes each: millions of paths without holding one."""

import hashlib
import io

import numpy as np
import pyarrow.parquet as pq

from caprl_ray.plan import FOLDER
from caprl_ray.storage import Storage, join


class PlannedPaths:
    """The set of a stored plan's paths, as 128-bit hashes. Two of a billion paths collide in one of 10^20 plans."""

    def __init__(self, storage: Storage, output: str) -> None:
        digests = b"".join(
            _digest(entry["path"])
            for stored in storage.objects(join(output, FOLDER), ".parquet")
            for batch in pq.ParquetFile(io.BytesIO(storage.read(stored.path))).iter_batches(64, columns=["entries"])
            for unit in batch.column("entries").to_pylist()
            for entry in unit
        )
        self._high, self._low = _sorted(np.frombuffer(digests, dtype="<u8").reshape(-1, 2))

    def __contains__(self, path: object) -> bool:
        if not isinstance(path, str):
            return False
        high, low = np.frombuffer(_digest(path), dtype="<u8")
        first, end = np.searchsorted(self._high, high, "left"), np.searchsorted(self._high, high, "right")
        return bool((self._low[first:end] == low).any())

    def __len__(self) -> int:
        return len(self._high)


def _digest(path: str) -> bytes:
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _sorted(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    digests = digests[np.argsort(digests[:, 0])]
    return np.ascontiguousarray(digests[:, 0]), np.ascontiguousarray(digests[:, 1])
