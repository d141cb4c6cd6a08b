"""The target folder of an export: its record, its finished parts, and its completion.

    OUT/_export/export.json   which export it is
    OUT/_export/done/*.json   which parts are written, of which rows
    OUT/_SUCCESS              its counts, when all parts are there

A part is done if it is recorded with the rows that it has now, and if its objects are there with the recorded sizes.
A part that is written but not recorded is written again, over itself.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.export.settings import Settings
from caprl_ray.output.place import BUCKET
from caprl_ray.storage import Folder, Storage, is_below, join
from caprl_ray.storage.local import in_the_way
from caprl_ray.storage.prefetch import prefetched

FOLDER, RECORD, DONE, SUCCESS = "_export", "export.json", "done", "_SUCCESS"
# Parts of one record. After so many, or after so long, a record is stored.
RECORDED, RECORD_S = 1000, 10.0
# The files that each form writes. Other files in the folder, such as a licence, are the user's and stay.
FILES = {
    "webdataset": re.compile(r".*\.tar"),
    "hf": re.compile(r"data/(?:train|validation|test)-\d+\.parquet"),
    "jsonl": re.compile(r"\d+\.jsonl"),
    "parquet": re.compile(r".*\.parquet"),
}
_HIDDEN = re.compile(r"(?:^|/)[._]")  # no file of a form has such a name


@dataclass(frozen=True, kw_only=True)
class Written:
    """A part as it was written.

    `rows` is a hash of which rows it has. `objects` are its files below the target, with their sizes. `left_out` counts
    rows that give nothing in this form, `missing` rows by the reason why their source could not be read. `tallies` are
    sums over the exported rows, for what is said about all of them.
    """

    part: str
    rows: str
    objects: Mapping[str, int]
    exported: int
    left_out: int = 0
    missing: Mapping[str, int] = field(default_factory=dict)
    tallies: Mapping[str, int] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Rows that are missing."""
        return sum(self.missing.values())


@dataclass(frozen=True, kw_only=True)
class Target:
    """The folder of one export. `export` is its record, `done` are the parts that earlier runs have recorded, by their
    names, and `there` the sizes of the files that are there."""

    storage: Storage
    path: str
    export: Mapping[str, Any]
    done: dict[str, Written]
    there: dict[str, int]

    @classmethod
    def open(cls, storage: Storage, settings: Settings) -> "Target":
        """Open a new folder, or that of the same export. Raises RecipeError for any other folder."""
        path = settings.target
        refuse_overlap(storage, path, settings.output)
        try:
            before = _record(storage, path)
            now = {"output": storage.real(settings.output).rstrip("/"), **settings.recorded()}
            if before is None:
                _refuse_files(storage, path)
                return cls(storage=storage, path=path, export=now, done={}, there={})
            _refuse_other(path, before, now)
            folder = join(storage.real(path), "")
            there = {stored.path.removeprefix(folder): stored.size for stored in storage.walk(folder)}
            return cls(storage=storage, path=path, export=now, done=_read_done(storage, path), there=there)
        except OSError as error:
            raise SystemFailure(f"--out: {path} cannot be used ({error.strerror or error}).") from error

    def has(self, part: str, same: Callable[[str], bool], *, allow_missing: bool) -> bool:
        """Whether a part is written with its rows: `same` tells it of a recorded hash. One with missing rows is tried
        again unless they are allowed."""
        written = self.done.get(part)
        return (
            written is not None
            and same(written.rows)
            and (allow_missing or not written.lost)
            and all(self.there.get(name) == size for name, size in written.objects.items())
        )

    def begin(self) -> None:
        """Record the export's settings, and remove the mark of a complete export."""
        if not self.there:
            self.storage.put(join(self.path, FOLDER, RECORD), json.dumps(self.export, indent=1).encode() + b"\n")
        self.storage.delete(join(self.path, SUCCESS))

    def record(self, parts: list[Written]) -> None:
        """Record that parts are written."""
        content = json.dumps([asdict(part) for part in parts], indent=0).encode()
        number = len(self.storage.objects(join(self.path, FOLDER, DONE), ".json"))
        while True:
            try:
                self.storage.create(join(self.path, FOLDER, DONE, f"{number:06d}.json"), content)
                return
            except FileExistsError:
                number += 1

    def sweep(self, kept: Mapping[str, Written]) -> None:
        """Remove old files that belong to no part, and files of killed writers."""
        names = {name for part in kept.values() for name in part.objects}
        for name in self.there.keys() - names:
            if FILES[self.export["to"]].fullmatch(name) and not _HIDDEN.search(name):
                self.storage.delete(join(self.path, name))
        for folder in {"", *(name.rpartition("/")[0] for name in names)}:
            self.storage.sweep(join(self.path, folder) if folder else self.path)

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Mark the export as complete."""
        self.storage.put(join(self.path, SUCCESS), json.dumps(counts, indent=1).encode() + b"\n")


def refuse_overlap(storage: Storage, target: str, output: str) -> None:
    """Raise RecipeError if an export may not lie at a path."""
    if BUCKET.fullmatch(target) or not target.strip("/"):
        raise RecipeError(f"--out: {target} is a whole bucket or disk; name a folder in it.")
    ours, theirs = storage.real(target).rstrip("/"), storage.real(output).rstrip("/")
    if ours == theirs or is_below(ours, theirs):
        raise RecipeError(f"--out: {target} lies in the output {output}; name a folder outside of it.")
    if is_below(theirs, ours):
        raise RecipeError(f"--out: {target} holds the output {output}; name a folder of its own.")


def _record(storage: Storage, path: str) -> dict[str, Any] | None:
    name = join(path, FOLDER, RECORD)
    try:
        found = json.loads(storage.read(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RecipeError(f"{name}: is not the record of an export; name an empty or a new folder with --out.")
    return found


def _refuse_files(storage: Storage, path: str) -> None:
    there, file = storage.lookup(path), in_the_way(path, of_folder=True)
    if file or (there is not None and not isinstance(there, Folder)):
        raise RecipeError(f"--out: {file or path} is in the way of the folder {path}; name another one.")
    for stored in islice(storage.walk(path) if there else (), 1):
        name = stored.path.removeprefix(join(storage.real(path), ""))
        raise RecipeError(f"--out: {path} has files of something else, such as {name}; name an empty or a new folder.")


def _refuse_other(path: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in sorted(before.keys() | now.keys()):
        was, wanted = before.get(name), now.get(name)
        if was != wanted:
            option = "the output" if name == "output" else f"--{name.replace('_', '-')}"
            raise RecipeError(
                f"--out: {path} holds another export: {option} was {was!r} and is {wanted!r}; give the same to finish "
                "it, or name a new folder."
            )


def _read_done(storage: Storage, path: str) -> dict[str, Written]:
    """The recorded parts. Of several records of one part the last counts."""
    objects = storage.objects(join(path, FOLDER, DONE), ".json")
    done: dict[str, Written] = {}
    for written in prefetched(lambda stored: list(_parts(storage, stored.path)), objects):
        done.update({part.part: part for part in written})
    return done


def _parts(storage: Storage, path: str) -> Iterator[Written]:
    try:
        yield from (Written(**told) for told in json.loads(storage.read(path)))
    except (ValueError, TypeError):
        raise SystemFailure(
            f"{path}: is not the record of written parts; remove it, and the command writes them again."
        ) from None
