"""Find outputs of this program among the input. Their parquet files hold captions and are not read as input."""

import json
import re
from contextlib import suppress
from functools import lru_cache

from caprl_ray.storage import Storage, Stored, join

RUN = "run.json"
MAX_RUN_BYTES = 16 * 2**20
# Objects of data/ and failed/ of every version, parts of a plan, and files of an evaluation (evaluate/folder.py). Only
# these names cause a request for run.json.
_OBJECT = re.compile(
    r"(.*/)(?:(?:data|failed)/(?:\d{6,}-(?:\d+of\d+-)?)?[0-9a-f]{32}|plan/\d{5}"
    r"|evaluations/(?:images|answers)-[0-9a-f]{16}/\w+)\.parquet",
    re.DOTALL,
)


class OwnOutputs:
    """Finds the outputs that hold the objects of a listing. Remembers the folders that it has looked at."""

    def __init__(self, storage: Storage, own: str | None) -> None:
        self._storage = storage
        self._own = join(storage.real(own), "") if own is not None else None
        self._is_output = lru_cache(1024)(self._look)

    def folder(self, path: str, below: str) -> str | None:
        """The folder of the output that holds an object, by its real path. An output above `below` does not count."""
        if self._own is not None and path.startswith(self._own):
            return self._own
        match = _OBJECT.fullmatch(path) if path.endswith(".parquet") else None
        if match and (match[1] == below or not below.startswith(match[1])) and self._is_output(match[1]):
            return match[1]
        return None

    def _look(self, folder: str) -> bool:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError, ValueError):
            stored = self._storage.lookup(folder + RUN)
            if isinstance(stored, Stored) and stored.size <= MAX_RUN_BYTES:
                run = json.loads(self._storage.read(folder + RUN))
                return isinstance(run, dict) and "fingerprint" in run
        return False
