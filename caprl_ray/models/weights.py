"""A model's files: listed in a bucket, fetched once to each node under a lock, and checked before an engine opens them.

Only safetensors files count as weights. A pickle can run any code, so pickles are neither fetched nor loaded.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.local import sync_folder

CACHE = "CAPRL_RAY_CACHE"
INDEX = "model.safetensors.index.json"
SAFETENSORS = ".safetensors"
PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")

MOST_FILES = 1000  # a model has some dozens of files; a prefix with more is not one model
MOST_READ_BYTES = 64 * 2**20  # of a configuration file, which the driver holds: three times the largest known
# A large file is fetched in pieces, several at a time, each in reads of READ_BYTES. Memory holds FETCHED_AT_ONCE times
# a few reads. A piece is a whole number of reads, because the storage's buffer of that size would read past its end.
FETCHED_AT_ONCE, PIECE_BYTES, READ_BYTES = 8, 64 * 2**20, 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model below a prefix, as the driver listed it. Replicas fetch exactly these versions of its files."""

    source: str
    storage: Storage
    files: dict[str, Stored]

    @property
    def digest(self) -> str:
        """A name for exactly these files, in hex. It changes with any file's name, size or version."""
        listing = sorted((name, stored.size, stored.version) for name, stored in self.files.items())
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    @property
    def label(self) -> str:
        """The value of the column `model`."""
        return f"{self.source}@{self.digest[:12]}"

    def read(self, name: str) -> bytes | None:
        """A small file as a whole; None if the model has no such file.

        Raises RecipeError if it is too large, SystemFailure if the storage does not give it.
        """
        if name not in self.files:
            return None
        if self.files[name].size > MOST_READ_BYTES:
            raise RecipeError(f"model.source: {self.source}/{name} is too large to be a configuration.")
        try:
            with self.storage.open(self.files[name]) as stream:
                return stream.read()
        except OSError as error:
            raise SystemFailure(f"model.source: {self.source}/{name} cannot be read ({error.strerror}).") from None


def list_model(source: str, storage: Storage) -> StoredModel:
    """The model below an `s3://` prefix. Raises RecipeError if it is none, SystemFailure if there is no answer."""
    source = source.rstrip("/")
    if not re.match("s3://[^/]", source):
        raise RecipeError(f"model.source: {source} names no bucket; give s3://bucket/prefix.")
    try:
        found = list(islice(storage.walk(source + "/"), MOST_FILES + 1))
    except OSError as error:
        raise SystemFailure(f"model.source: {source} cannot be listed ({error.strerror}).") from None
    if not found:
        raise RecipeError(f"model.source: {source} holds no files; give the prefix that holds config.json.")
    if len(found) > MOST_FILES:
        raise RecipeError(f"model.source: {source} holds more than {MOST_FILES} files; give one model's own prefix.")
    files = {_name(stored.path, source): stored for stored in found}
    fault = _missing(files)
    if fault:
        raise RecipeError(f"model.source: {source} {fault}.")
    wanted = {name: stored for name, stored in files.items() if not name.endswith(PICKLED)}
    return StoredModel(source=source, storage=storage, files=wanted)


def _name(path: str, source: str) -> str:
    """A file's path inside the model's folder. It must not lead out of that folder."""
    name = path.removeprefix(source + "/")
    if {"", ".", ".."} & set(name.split("/")) or "\0" in name:
        raise RecipeError(f"model.source: {path!r} cannot be a file of a model's folder; rename or remove it.")
    return name


def cache_folder(cache_dir: str | None) -> Path:
    """The folder where this node keeps fetched models: the recipe's, the environment's, or the user's cache."""
    root = os.environ.get(CACHE) or "~/.cache/caprl_ray"
    return Path(cache_dir or f"{root}/models").expanduser().absolute()


def fetch(model: StoredModel, cache: Path) -> Path:
    """The folder on this node that holds the model. The first replica that asks fetches it; the others wait.

    The folder gets its name only when it is complete and checked. Raises SystemFailure.
    """
    from filelock import FileLock

    folder = cache / model.digest
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{model.digest}.lock"):  # the system releases it when its holder dies
            if _difference(model, folder) or fault_of(folder):
                _fetch(model, folder)
    except OSError as error:
        what, reason = error.filename or model.source, error.strerror or type(error).__name__
        raise SystemFailure(f"model.source: {what} cannot be fetched to {cache} ({reason}).") from None
    return folder


def _fetch(model: StoredModel, folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    for stale in (partial, folder):  # left by a replica that died, or damaged since
        shutil.rmtree(stale, ignore_errors=True)
    _check_room(model, folder.parent)
    partial.mkdir()
    _fetch_files(model, partial)
    fault = _difference(model, partial) or fault_of(partial)
    if fault:
        shutil.rmtree(partial)
        raise SystemFailure(f"model.source: {model.source} {fault}.")
    os.replace(partial, folder)
    sync_folder(folder.parent)


def _check_room(model: StoredModel, cache: Path) -> None:
    needed, free = sum(stored.size for stored in model.files.values()), shutil.disk_usage(cache).free
    if needed > free:
        raise SystemFailure(
            f"model.cache_dir: {cache} has room for {free / 1e9:.1f} GB and the model has {needed / 1e9:.1f} GB; make "
            "room or give another folder."
        )


def _fetch_files(model: StoredModel, folder: Path) -> None:
    for name, stored in model.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "xb") as file:
            file.truncate(stored.size)
    with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
        for _ in pool.map(lambda piece: _copy(model.storage, *piece), _pieces(model, folder)):
            pass  # raises what a piece raised; pieces that have not begun are given up


def _pieces(model: StoredModel, folder: Path) -> Iterator[tuple[Stored, Path, int]]:
    """(object, file, start of the piece); an empty file has none."""
    for name, stored in model.files.items():
        for start in range(0, stored.size, PIECE_BYTES):
            yield stored, folder / name, start


def _copy(storage: Storage, stored: Stored, target: Path, start: int) -> None:
    end = min(start + PIECE_BYTES, stored.size)
    with storage.open(stored) as source, open(target, "r+b") as file:
        source.seek(start)
        file.seek(start)
        while (left := end - file.tell()) > 0:
            content = source.read(min(READ_BYTES, left))
            if not content:
                raise OSError(errno.EIO, "it ended early", stored.path)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _difference(model: StoredModel, folder: Path) -> str | None:
    """How a folder differs from the listing, by names and sizes."""
    for name, stored in model.files.items():
        file = folder / name
        if not file.is_file():
            return f"has {name}, which is not in {folder}"
        if file.stat().st_size != stored.size:
            return f"has {stored.size} bytes in {name}, and {folder} has {file.stat().st_size}"
    return None


def check_folder(folder: Path) -> None:
    """Raise SystemFailure if this node's own copy of a local model is missing or incomplete."""
    fault = fault_of(folder)
    if fault:
        raise SystemFailure(f"model.source: {folder} on the node {os.uname().nodename} {fault}.")


def fault_of(folder: Path) -> str | None:
    """The fault of the weights in a folder, as the rest of a sentence. Reads headers, not tensors."""
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    index = folder / INDEX
    return (
        _missing(names)
        or (missing_shard(index.read_bytes(), names) if index.is_file() else None)
        or next(filter(None, map(_damage, sorted(folder.glob(f"*{SAFETENSORS}")))), None)
    )


def _missing(names: Collection[str]) -> str | None:
    top = [name for name in names if "/" not in name]
    if any(name.endswith(SAFETENSORS) for name in top):
        return None
    if any(name.endswith(PICKLED) for name in top):
        return "holds only pickled weights, which can run code and are never loaded; convert them to safetensors"
    return f"holds no weights (no *{SAFETENSORS} file)"


def missing_shard(index: bytes, names: Collection[str]) -> str | None:
    """The fault of the index of a model with files of these names."""
    try:
        shards = set(json.loads(index)["weight_map"].values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"has an {INDEX} that is no index of weights; copy the model again"
    absent = sorted(str(shard) for shard in shards if shard not in names)
    return f"has no {absent[0]}, which its {INDEX} names; copy the model again" if absent else None


def _damage(shard: Path) -> str | None:
    """Whether a file's size equals the sum in its header. The library bounds the header and reads nothing else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="np"):
            return None
    except (SafetensorError, OSError, ValueError):
        size = shard.stat().st_size
    with open(shard, "rb") as file:
        pointer = file.read(8) == b"version "
    reason = "is a Git LFS pointer; run git lfs pull" if pointer else "is damaged or cut short; copy it again"
    return f"has a {shard.name} of {size} bytes that {reason}"
