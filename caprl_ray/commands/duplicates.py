"""`caprl-ray duplicates`: which images and captions an output repeats."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray import plan
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output.committed import opened
from caprl_ray.output.duplicates import LIST, OF_PLAN, Duplicates, Found, find
from caprl_ray.output.partitions import Limits
from caprl_ray.output.scan import Tell, silent
from caprl_ray.storage import Storage
from caprl_ray.text import plain

EXAMPLE = ["id", "source", "key", "sha256", "caption"]
MOST_SHOWN = 200  # characters of a caption in the text

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result, with example rows of the largest groups."""

    output: str
    found: Duplicates
    examples: Mapping[int, Row]

    def report(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        return {
            "output": self.output,
            "rows": self.found.rows,
            "images": self._kind(self.found.images, "sha256"),
            "captions": self._kind(self.found.captions, "caption"),
        }

    def _kind(self, found: Found, shared: str) -> dict[str, Any]:
        largest = []
        for group in found.largest:
            rows = [self.examples[place] for place in group.places]
            examples = [{name: row[name] for name in ("id", "source", "key")} for row in rows]
            largest.append(
                {shared: rows[0].get(shared), "rows": group.rows, "images": group.images, "examples": examples}
            )
        return {"groups": found.groups, "rows": found.rows, "largest": largest}

    def summary(self) -> str:
        """Return text for people."""
        report = self.report()
        images, captions = report["images"], report["captions"]
        lines = [
            f"{self.output}: {self.found.rows:,} finished rows",
            f"same image: {images['groups']:,} groups of {images['rows']:,} rows, of which "
            f"{images['rows'] - images['groups']:,} repeat another row",
        ]
        for group in images["largest"]:
            lines += [f"  {group['rows']:,} rows: {group['sha256']}", *map(_shown, group["examples"])]
        lines.append(f"same caption of different images: {captions['groups']:,} captions of {captions['rows']:,} rows")
        for group in captions["largest"]:
            lines += [
                f"  {group['images']:,} images, {group['rows']:,} rows: {_line(group['caption'])}",
                *map(_shown, group["examples"]),
            ]
        return "\n".join(lines)


def duplicates(
    storage: Storage,
    output: str,
    *,
    listing: str | None = None,
    temporary: str | None = None,
    limits: Limits | None = None,
    tell: Tell = silent,
) -> Report:
    """Look for the same images and the same captions among the finished rows of an output.

    Args:
        listing: the path of a parquet file for the rows whose images stand there more than once.
        temporary: the folder for temporary files; if left out, the system's.

    Raises:
        RecipeError: there is no output, or no such folder.
        SystemFailure: an object cannot be read, or a file not be written.
    """
    if not plan.closed(storage, output):
        raise RecipeError(f"{output}: there is no plan in this folder, so it is not the output of a run.")
    if temporary and not Path(temporary).is_dir():
        raise RecipeError(f"--temp: {temporary} is not a folder; give one with room for about 100 bytes a row.")
    with (
        tempfile.TemporaryDirectory(prefix="caprl-ray-", dir=temporary) as folder,
        _listing(storage, output, listing, Path(folder)) as listed,
    ):
        found = find(storage, output, Path(folder), listed=listed, limits=limits, tell=tell)
    return Report(output=output, found=found, examples=_examples(storage, found))


@contextmanager
def _listing(storage: Storage, output: str, path: str | None, folder: Path) -> Iterator[Any]:
    """The function that takes the rows of the list, or None. The list is put in its place when it is complete."""
    if path is None:
        yield None
        return
    local = folder / "list.parquet"
    schema = LIST.with_metadata({OF_PLAN: plan.identity(storage, plan.load(storage, output).units)})
    with pq.ParquetWriter(local, schema, compression="zstd") as writer:
        yield writer.write_table
    try:
        storage.put(path, local.read_bytes())
    except OSError as error:
        raise SystemFailure(f"--list: {path} cannot be written ({error.strerror or error}).") from error


def _examples(storage: Storage, found: Duplicates) -> dict[int, Row]:
    """The rows at the places of the largest groups."""
    places = {place for kind in (found.images, found.captions) for group in kind.largest for place in group.places}
    return {place: _row(storage, found, place) for place in sorted(places)}


def _row(storage: Storage, found: Duplicates, place: int) -> Row:
    number, position = place >> 32, place & 0xFFFFFFFF
    with opened(storage, found.objects[number]) as file:
        names = [name for name in EXAMPLE if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if position < rows:
                table: pa.Table = file.read_row_group(group, columns=names, use_threads=False)
                row: Row = table.slice(position, 1).to_pylist()[0]
                return row
            position -= rows
    raise SystemFailure(f"{found.objects[number].path}: changed while it was read; run the command again.")


def _shown(example: Row) -> str:
    source, key = example["source"] or "", example["key"] or ""
    return f"      {example['id']} {_line(source if source.endswith(key) else f'{source} {key}')}"


def _line(text: str | None) -> str:
    text = plain(text or "").replace("\n", " ")
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
