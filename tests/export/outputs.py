"""Outputs to export, made without Ray: a real plan of real files, shards and tables, and rows with captions of our
own, in objects that mix units as those of a run do."""

import io
import json
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.output import lease
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.folder import Output
from caprl_ray.read.unit import SIZE, unit_rows
from caprl_ray.recipe.load import parse
from caprl_ray.sources import parquet

FILES, SHARDS, SAMPLES, TABLE_ROWS = 30, 2, 25, 60
OBJECT_ROWS = 17
FAILED, LOOPS = 11, 7  # every so many rows
PROMPT = "Describe this image in detail."


def picture(number: int, kind: str = "PNG") -> bytes:
    """A picture that no other number has."""
    buffer = io.BytesIO()
    Image.new("RGB", (8 + number % 3, 8), (number % 256, number // 256, 77)).save(buffer, kind)
    return buffer.getvalue()


def sample(number: int) -> dict[str, bytes]:
    """The members of a sample, by their extensions."""
    return {
        "jpg": picture(500 + number, "JPEG"),
        "json": json.dumps({"number": number}).encode(),
        "depth.npy": bytes([number]) * 3000,
    }


def write_shard(path: Path, numbers: range) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number in numbers:
            for extension, content in sample(number).items():
                name = f"{'long/' * 25 if number % 10 == 3 else ''}{number:04d}.{extension}"
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.uid = len(content), 1_700_000_000, 1000
                tar.addfile(member, io.BytesIO(content))


def write_sources(folder: Path) -> list[str]:
    """Loose files of two splits, two shards, and a table in row groups; returns the input's paths."""
    for number in range(FILES):
        split = "test" if number % 5 == 0 else "train"
        path = folder / "files" / split / f"{number:03d} ü.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    (folder / "shards").mkdir()
    for number in range(SHARDS):
        write_shard(folder / "shards" / f"{number:05d}.tar", range(SAMPLES * number, SAMPLES * (number + 1)))
    rows = [
        {"image": {"bytes": picture(1000 + n), "path": f"{n}.png"}, "label": f"label {n}"} for n in range(TABLE_ROWS)
    ]
    (folder / "table").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "table" / "train-00000-of-00001.parquet", row_group_size=20)
    return [str(folder / name) for name in ("files", "shards", "table")]


@dataclass(frozen=True, kw_only=True)
class Made:
    """An output, its sources, the schema of its rows, and its rows by their ids: the finished ones, and all of them."""

    path: Path | str
    folder: Path
    schema: pa.Schema
    rows: dict[str, dict[str, Any]]
    finished: dict[str, dict[str, Any]]


def make(
    folder: Path, several: int = 1, paths: list[str] | None = None, out: str | None = None, **sections: Any
) -> Made:
    """Make an output below a folder, or at `out`."""
    document = demo_recipe([Path("-")], folder / "out") | {"model": {"source": "stub"}} | sections
    document["input"] = {"paths": paths or write_sources(folder)}
    document["output"] = {"path": out or str(folder / "out")}
    document["prompt"] = {"user": PROMPT}
    document["sampling"] = {"n": several}
    job = caption_job(parse(document))
    with (
        pytest.MonkeyPatch.context() as patch,
        lease.held(Output.open(job).storage, str(document["output"]["path"])) as own,
    ):
        patch.setattr(parquet, "UNIT_ROWS", 20)  # so that a table has several units
        output = Output.open(job, lease=own)
        plan = output.plan()
        schema, rows = job.row_schema(plan.columns), []
        for ref in plan.units:
            unit = ref.load(output.storage)
            rows += [*unit_rows(ref.unit, unit, schema=schema, access=output.access)]
        rows = [{k: v[0].as_py() if isinstance(v, pa.Array) else v for k, v in row.items()} for row in rows]
        for number, row in enumerate(rows):
            del row[SIZE]
            row["image"] = None
            row.update(captioned(number, several))
        # As a run does: batches of neighbours, in any order, several in an object.
        batches = [rows[start : start + 5] for start in range(0, len(rows), 5)]
        rng = random.Random(1)
        near = sorted(range(len(batches)), key=lambda n: n + rng.uniform(0, 6))
        mixed = [row for n in near for row in batches[n]]
        sink = CommittedRows(output.storage, output.path, 1, job.adds, own.number, output.run)
        for start in range(0, len(mixed), OBJECT_ROWS):
            sink.write([pa.Table.from_pylist(mixed[start : start + OBJECT_ROWS], schema=schema)], None)
    everything = {row["id"]: row for row in rows}
    finished = {name: row for name, row in everything.items() if not row["code"]}
    return Made(path=out or folder / "out", folder=folder, schema=schema, rows=everything, finished=finished)


def score_of(number: int, n: int) -> float | None:
    """The score of the n-th caption of a row, if captions are scored: equal ones in every fifth row, none in some."""
    return 0.5 if number % 5 == 0 else None if n == number % 4 else (number * (n + 1)) % 7 / 7


def captioned(number: int, several: int) -> dict[str, Any]:
    """What captioning adds to a row."""
    if number % FAILED == FAILED - 1:
        return {"code": "image_corrupt", "stage": "prepare", "detail": ""}
    caption = f'Caption {number} with "quotes",\na new line and 写真.'
    answers = [
        {"prompt": "prompt", "text": f"{caption} {n}", "finish_reason": "stop", "flags": ["loop"] if n == 2 else [],
         "decodes": 1, "tokens": 5, "score": score_of(number, n)}
        for n in range(several)
    ]  # fmt: skip
    return {
        "caption": caption,
        "flags": ["loop"] if number % LOOPS == 0 else [],
        "finish_reason": "stop",
        "caption_tokens": number * 37 % 140,
        "model": "stub",
        **({"captions": answers} if several > 1 else {}),
    }
