"""The ways that resume.py measures. Each runs in its own process up to the first row that is not done yet.

Both read the same plan, and get their rows from the same reader through Ray. To the file `notes` a way appends one line
per finished step: its name and the wall-clock seconds.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from synthetic_output import CODE, UNDONE

NOTES, FIRST_ROW = "notes.txt", "first_row"


def note(file: str, name: str) -> None:
    """Append a line: this step is finished now. Short appends are atomic, also from several processes."""
    with open(file, "a", encoding="ascii") as lines:
        lines.write(f"{name} {time.time():.3f}\n")


def caprl_ray(out: Path, shards: Path, checkpoint: Path, notes: str) -> None:
    """Do what `pipeline.run` does before the first row is prepared."""
    from caprl_ray import pipeline, plan
    from caprl_ray.caption.columns import CAPTION
    from caprl_ray.caption.job import caption_job
    from caprl_ray.cluster import session
    from caprl_ray.output.committed import read_committed
    from caprl_ray.read.datasource import PlannedRows, remaining
    from caprl_ray.rows.schema import row_schema

    recipe, access = _input(out, shards)
    note(notes, "imported")
    stored = plan.load(access.storage, recipe.output.path)
    note(notes, "plan")
    committed = read_committed(access.storage, recipe.output.path)
    note(notes, "committed")
    work = remaining(stored.units, committed)
    with session.session(caption_job(recipe), debug=False):
        note(notes, "session")
        rows = pipeline.read(PlannedRows(work, row_schema(stored.columns, CAPTION), access))
        row = next(iter(rows.iter_rows()))
        note(notes, FIRST_ROW)
        assert row["index"] not in committed[row["unit"]].done, "a row that is done was read again"
        os._exit(0)


def retry(out: Path, shards: Path, checkpoint: Path, notes: str) -> None:
    """As `caprl_ray`, up to the first failed row that is read again."""
    from caprl_ray import pipeline, plan
    from caprl_ray.caption.columns import CAPTION
    from caprl_ray.caption.job import caption_job
    from caprl_ray.cluster import session
    from caprl_ray.output.committed import read_committed
    from caprl_ray.read.datasource import PlannedRows, remaining
    from caprl_ray.rows.schema import row_schema

    recipe, access = _input(out, shards)
    note(notes, "imported")
    stored = plan.load(access.storage, recipe.output.path)
    note(notes, "plan")
    committed = read_committed(access.storage, recipe.output.path, {CODE})
    note(notes, "committed")
    work = remaining(stored.units, committed)
    with session.session(caption_job(recipe), debug=False):
        note(notes, "session")
        rows = pipeline.read(PlannedRows(work, row_schema(stored.columns, CAPTION), access))
        row = next(row for row in rows.iter_rows() if row["attempts"] > 1)
        note(notes, FIRST_ROW)
        assert row["index"] in committed[row["unit"]].failed and row["failed_before"] == CODE
        os._exit(0)


def repair(out: Path, shards: Path, checkpoint: Path, notes: str) -> None:
    """Do what `pipeline.run` does after the last row of a retry: read, repair, read again."""
    from caprl_ray.cluster import session
    from caprl_ray.output.committed import read_committed
    from caprl_ray.output.repair import repair as repaired
    from caprl_ray.storage import Storage

    storage = Storage()
    with session.connected():
        note(notes, "session")
        committed = read_committed(storage, str(out))
        note(notes, "committed")
        removed = repaired(storage, str(out), committed)
        note(notes, "repaired")
        committed = read_committed(storage, str(out))
        note(notes, "again")
        assert removed and not any(unit.extra for unit in committed.values())


def ray_checkpoint(out: Path, shards: Path, checkpoint: Path, notes: str) -> None:
    """Resume with Ray Data's checkpoint of the same rows, by their `id`.

    It reads the same units as the other way. On its own it would read more of the input again; this is not counted.
    """
    import pyarrow as pa
    from pyroaring import BitMap
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    from caprl_ray import pipeline, plan
    from caprl_ray.caption.columns import CAPTION
    from caprl_ray.caption.job import caption_job
    from caprl_ray.cluster import session
    from caprl_ray.read.datasource import PlannedRows, Work
    from caprl_ray.rows.schema import row_schema

    def first(rows: pa.Table) -> pa.Table:
        if rows.num_rows:
            note(notes, FIRST_ROW)
        return rows.select(["id"])

    recipe, access = _input(out, shards)
    note(notes, "imported")
    stored = plan.load(access.storage, recipe.output.path)
    note(notes, "plan")
    work = [Work(ref=ref, done=BitMap(), rows=None) for ref in stored.units if ref.unit % UNDONE == 0]
    with session.session(caption_job(recipe), debug=False):
        note(notes, "session")
        DataContext.get_current().checkpoint_config = CheckpointConfig(
            id_column="id", checkpoint_path=str(checkpoint), delete_checkpoint_on_success=False
        )
        rows = pipeline.read(PlannedRows(work, row_schema(stored.columns, CAPTION), access))
        rows = rows.map_batches(first, batch_size=None, batch_format="pyarrow")
        writing = threading.Thread(target=rows.write_parquet, args=(f"{notes}.rows",), daemon=True)
        writing.start()
        while FIRST_ROW not in Path(notes).read_text():
            assert writing.is_alive(), "Ray Data ended without a new row"
            time.sleep(0.02)
        os._exit(0)


def plan(out: Path, shards: Path, checkpoint: Path, notes: str) -> None:
    """Plan the shards anew: list, cut into units, store, load."""
    from caprl_ray import plan, sources

    recipe, access = _input(checkpoint, shards)
    note(notes, "imported")
    plan.store(access.storage, recipe.output.path, sources.plan_units(access))
    note(notes, "stored")
    plan.load(access.storage, recipe.output.path)
    note(notes, "plan")


def verify(out: Path, shards: Path, checkpoint: Path, notes: str) -> None:
    """`caprl-ray verify --json`, whose lines go to a file."""
    from caprl_ray import cli

    note(notes, "imported")
    with open(f"{notes}.json", "w") as lines, redirect_stdout(lines):
        assert cli.main(["verify", str(out), "--json"]) == 3  # one unit of a hundred is half done
    note(notes, "verified")


def export(out: Path, shards: Path, checkpoint: Path, notes: str) -> None:
    """What an export does before it writes a file: which rows, where they stand, which files, and their hashes."""
    from caprl_ray.export.run import form_of
    from caprl_ray.export.settings import Settings
    from caprl_ray.export.source import Source
    from caprl_ray.output.scan import silent
    from caprl_ray.storage import Storage

    note(notes, "imported")
    settings = Settings(output=str(out), target=str(checkpoint), to="parquet")
    source = Source.open(Storage(), str(out))
    note(notes, "opened")
    units = source.units(None, None, silent)
    note(notes, "units")
    parts = list(form_of(source, settings).parts(units))
    note(notes, "parts")
    assert len({part.rows for part in parts}) == len(parts)
    note(notes, "hashed")


def compact(out: Path, shards: Path, checkpoint: Path, notes: str) -> None:
    """`caprl-ray compact`."""
    from caprl_ray import cli

    note(notes, "imported")
    assert cli.main(["compact", str(out)]) == 0
    note(notes, "compacted")


def _input(out: Path, shards: Path) -> tuple[Any, Any]:
    from caprl_ray.recipe.load import parse
    from caprl_ray.sources.source import Access
    from caprl_ray.storage import Storage

    settings = {"model": {"source": "embedded"}, "replicas": {"gpus": 0}}  # no engine is started
    recipe = parse(settings | {"input": {"paths": [str(shards)]}, "output": {"path": str(out)}})
    return recipe, Access(storage=Storage(), input=recipe.input, max_bytes=recipe.prepare.max_bytes)


WAYS: dict[str, Callable[[Path, Path, Path, str], None]] = {
    "caprl_ray": caprl_ray,
    "plan": plan,
    "verify": verify,
    "export": export,
    "compact": compact,
    "retry": retry,
    "repair": repair,
    "ray_checkpoint": ray_checkpoint,
}

if __name__ == "__main__":
    WAYS[sys.argv[1]](*map(Path, sys.argv[2:5]), sys.argv[5])
