"""Outputs of this program among the input. Their parquet files are captions already, and no input."""

import json
import re
from contextlib import suppress
from functools import lru_cache

from caprl_ray.storage import Storage, Stored, join

RUN = "run.json"
MAX_RUN_BYTES = 16 * 2**20
# The objects of data/ and failed/ of every version, the parts of a plan, and what an evaluation keeps (see
# evaluate/folder.py). Only these names cost a look at run.json.
_OBJECT = re.compile(
    r"(.*/)(?:(?:data|failed)/(?:\d{6,}-(?:\d+of\d+-)?)?[0-9a-f]{32}|plan/\d{5}"
    r"|evaluations/(?:images|answers)-[0-9a-f]{16}/\w+)\.parquet",
    re.DOTALL,
)


class OwnOutputs:
    """Finds the output folders that objects of a listing lie in.

    A listing comes in the order of paths, so the last folder that was found is enough to know.
    """

    def __init__(self, storage: Storage, own: str | None) -> None:
        self._storage = storage
        self._own = join(storage.real(own), "") if own is not None else None
        self._is_output = lru_cache(1024)(self._look)

    def folder(self, path: str, below: str) -> str | None:
        """The output of an object at a real path, if the output is not above the folder `below`."""
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
