"""A format of export: it groups units into parts, writes each part, and writes common files at the end."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from caprl_ray.errors import SystemFailure
from caprl_ray.export.parts import Part
from caprl_ray.export.rows import UnitRows
from caprl_ray.export.target import Written
from caprl_ray.storage import Storage, join


class Form(Protocol):
    """One form of export. It travels to Ray's workers."""

    def parts(self, units: Sequence[UnitRows]) -> Iterator[Part]:
        """Group the units of the plan, in order."""
        ...

    def write(self, part: Part) -> Written:
        """Write the files of a part. The same part gives the same files."""
        ...

    def finish(self, written: Mapping[str, Written]) -> None:
        """Write common files, such as a dataset card."""
        ...


@dataclass(kw_only=True)
class Writing:
    """A part in progress: its files, and its rows so far."""

    storage: Storage
    target: str
    part: Part
    objects: dict[str, int] = field(default_factory=dict)
    exported: int = 0
    left_out: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    tallies: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        """A file of the part, which is there when the block ends. Raises SystemFailure if it cannot be written."""
        path = join(self.target, name)
        try:
            with self.storage.written(path) as file:
                yield file
                self.objects[name] = file.seek(0, 2)
        except OSError as error:
            where = error.filename or path
            raise SystemFailure(f"{where}: {error.strerror or error}; run the same command again to resume.") from error

    def written(self) -> Written:
        """The part as it was written. Raises SystemFailure if its rows are not those that it should have."""
        if self.exported + self.left_out + self.missing.total() != self.part.kept:
            raise SystemFailure("the output changed while it was read; run the same command again to resume.")
        return Written(
            part=self.part.name,
            rows=self.part.rows,
            objects=self.objects,
            exported=self.exported,
            left_out=self.left_out,
            missing=dict(self.missing),
            tallies=dict(self.tallies),
        )
