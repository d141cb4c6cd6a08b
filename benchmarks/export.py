"""Measure every export beside the usual library's own writer on the same rows.

    python benchmarks/export.py [--images N] [--bytes N] [--rows N] [--rounds N] [--json FILE]

One output has --images rows of --bytes each in shards (random bytes: they are never decoded), another has --rows rows
without images read. Both sides do the same whole way in one process, on the same disk: they read, write the same rows
with the same columns and members, pack parquet columns alike (zstd, and images not at all), and sync the files that
they write to disk. Rounds alternate, and medians count.

Their exports: `webdataset`: reads samples by `webdataset.WebDataset` and writes them by its TarWriter, one tar for each
shard. `sidecars`: its TarWriter, in tars of as many rows. `hf`: reads samples likewise, then
`datasets.Dataset.from_generator(...).to_parquet`. `parquet`, `jsonl`: reads the output's parquet files by
`datasets.Dataset.from_parquet`, then to_parquet and to_json. In the first three it has all rows in memory for nothing.

Our exports do more: they read the plan and the rows of each unit; write each row once, in the source's order, in one
file per source; can be resumed; check the sum of rows; and write a card for `hf`. `writing` is the time of their
to_parquet or to_json alone, from Arrow in memory and without syncing.

Keys of the JSON, for each <form>:

    <form>_ours_s, <form>_theirs_s, <form>_ratio              seconds, and theirs over ours: above 1 ours is faster
    <form>_ours_cpu_s, <form>_theirs_cpu_s, <form>_cpu_ratio  CPU seconds, which other work on the machine moves less
    <form>_rows_per_s, <form>_mb_per_s                        ours: rows, and bytes of the exported files
    <form>_write_s                                            of theirs: to_parquet or to_json alone (not of tars)
    load                                                      load average over one minute, at the start
"""

import argparse
import io
import json
import logging
import os
import random
import shutil
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import datasets.io.parquet
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

os.environ["CAPRL_RAY_ALLOW_STUB"] = "1"

from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.export import work
from caprl_ray.export.aligned import LEFT_OUT
from caprl_ray.export.run import export
from caprl_ray.export.settings import Settings
from caprl_ray.export.source import NOT_TOLD
from caprl_ray.output import lease
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.folder import Output
from caprl_ray.output.where import output_schema
from caprl_ray.recipe.load import parse
from caprl_ray.rows.schema import is_own, row_id
from caprl_ray.storage import Storage

SHARDS = {True: 1000, False: 10_000}  # samples of a shard, with images and without
OBJECT_ROWS, MB = 2048, 1e6
FORMS = ("webdataset", "sidecars", "hf", "parquet", "jsonl")
HEADS = ("ours", "theirs", "writing", "ratio", "CPU ours", "CPU theirs", "CPU ratio", "rows/s", "MB/s")
TEXT = "a red circle left of two small blue squares on grey paper near the lower edge of the picture"
WORDS = TEXT.split()


def write_output(folder: Path, rows: int, size: int, shard: int) -> Path:
    """Write shards, and an output with a caption of each sample."""
    rng = random.Random(rows)
    shards = folder / "shards"
    shards.mkdir(parents=True)
    for first in range(0, rows, shard):
        with tarfile.open(shards / f"{first // shard:05d}.tar", "w") as tar:
            for number in range(first, min(first + shard, rows)):
                for name, content in (("jpg", rng.randbytes(size)), ("json", b'{"n": %d}' % number)):
                    member = tarfile.TarInfo(f"{number:08d}.{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    recipe = demo_recipe([shards], folder / "out") | {"model": {"source": "stub"}}
    job = caption_job(parse(recipe))
    storage = Storage()
    with lease.held(storage, str(folder / "out")) as own:
        output = Output.open(job, lease=own)
        plan = output.plan()
        schema = job.row_schema(plan.columns)
        sink = CommittedRows(storage, str(folder / "out"), OBJECT_ROWS, job.adds, own.number, output.run)
        for start in range(0, rows, OBJECT_ROWS):
            some = [row(number, rows, shard, rng) for number in range(start, min(start + OBJECT_ROWS, rows))]
            sink.write([pa.Table.from_pylist(some, schema=schema)], None)
    return folder / "out"


def row(number: int, rows: int, shard: int, rng: random.Random) -> dict[str, Any]:
    """A finished row with a caption of 200 words."""
    unit, index = divmod(number, shard)
    last = index == min(shard, rows - unit * shard) - 1
    return {
        "id": row_id(unit, index),
        "unit": unit,
        "index": index,
        "unit_rows": index + 1 if last else None,
        "source": f"{unit:05d}.tar",
        "key": f"{number:08d}",
        "sha256": f"{number:064x}",
        "width": 640,
        "height": 480,
        "caption": " ".join(rng.choices(WORDS, k=200)),
        "finish_reason": "stop",
        "flags": [],
        "repaired": [],
        "decodes": 1,
        "decoded_tokens": 260,
        "attempts": 1,
        "prompt_tokens": 400,
        "caption_tokens": 260,
        "model": "internlm/CapRL-3B@0123456789abcdef",
    }


def ours(out: Path, target: Path, form: str) -> None:
    """Our export."""
    kinds: dict[str, dict[str, Any]] = {
        "sidecars": {"to": "webdataset", "sidecars": True},
        "hf": {"to": "hf", "images": True, "license": "other"},
    }
    settings = Settings(output=str(out), target=str(target), **kinds.get(form, {"to": form}))
    summary = export(Storage(), settings)
    assert summary.exported == summary.rows


class Theirs:
    """The same exports with the usual libraries."""

    def __init__(self, out: Path) -> None:
        self._shards = [str(path) for path in sorted((out.parent / "shards").glob("*.tar"))]
        self._rows = [str(path) for path in sorted((out / "data").glob("*.parquet"))]
        schema = output_schema(Storage(), str(out))
        own = [name for name in schema.names if is_own(schema, name)]
        self._aligned = [name for name in own if name not in LEFT_OUT]
        self._told = pa.schema([field for field in schema if field.name not in NOT_TOLD])
        table = pq.read_table(out / "data", columns=self._told.names)
        self._json = [name for name in self._told.names if name in own]
        self._row: dict[str, dict[str, Any]] = {row["key"]: row for row in table.to_pylist()}
        self.write_s: defaultdict[str, list[float]] = defaultdict(list)

    def export(self, target: Path, form: str) -> None:
        """One export."""
        target.mkdir(parents=True)
        getattr(self, f"_{form}")(target)
        for path in [*(path for path in target.iterdir() if path.is_file()), target]:
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

    def _samples(self, shard: str) -> Iterator[dict[str, Any]]:
        for sample in webdataset.WebDataset(shard, shardshuffle=False):
            yield {k: v for k, v in sample.items() if k == "__key__" or not k.startswith("__")}

    def _webdataset(self, target: Path) -> None:
        for shard in self._shards:
            with webdataset.TarWriter(str(target / Path(shard).name), encoder=False) as tar:
                for sample in self._samples(shard):
                    tar.write({**sample, **self._members(sample["__key__"])})

    def _sidecars(self, target: Path) -> None:
        keys = list(self._row)
        for first in range(0, len(keys), SHARDS[False]):
            with webdataset.TarWriter(str(target / f"{first // SHARDS[False]:05d}.tar"), encoder=False) as tar:
                for key in keys[first : first + SHARDS[False]]:
                    tar.write({"__key__": key, **self._members(key)})

    def _members(self, key: str) -> dict[str, bytes]:
        row = self._row[key]
        told = json.dumps({name: row[name] for name in self._json}, ensure_ascii=False).encode()
        return {"caption.txt": row["caption"].encode(), "caption.json": told}

    def _hf(self, target: Path) -> None:
        def rows() -> Iterator[dict[str, Any]]:
            for shard in self._shards:
                for sample in self._samples(shard):
                    image = {"bytes": sample["jpg"], "path": f"{sample['__key__']}.jpg"}
                    yield {"image": image, **self._row[sample["__key__"]]}

        columns = datasets.Features.from_arrow_schema(self._told)
        known = datasets.Features({"image": datasets.Image(), **columns})
        found = datasets.Dataset.from_generator(rows, features=known, cache_dir=str(target / "cache"))
        self._write("hf", lambda: found.to_parquet(str(target / "train.parquet")))

    def _parquet(self, target: Path) -> None:
        found = self._read(target, self._aligned)
        self._write("parquet", lambda: found.to_parquet(str(target / "rows.parquet")))

    def _jsonl(self, target: Path) -> None:
        lines = self._read(target, ["id", "key", "caption"]).rename_column("key", "image")
        self._write("jsonl", lambda: lines.to_json(str(target / "rows.jsonl"), force_ascii=False))

    def _read(self, target: Path, columns: list[str]) -> Any:
        return datasets.Dataset.from_parquet(self._rows, columns=columns, cache_dir=str(target / "cache"))

    def _write(self, form: str, write: Callable[[], Any]) -> None:
        began = time.perf_counter()
        write()
        self.write_s[form].append(time.perf_counter() - began)


def zstd_instead(options: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Replaces the compression of to_parquet, snappy, by zstd; to_parquet has no argument for it."""

    def changed(*arguments: Any) -> dict[str, Any]:
        found = options(*arguments)
        packed = {path: {"snappy": "zstd"}.get(how, how) for path, how in found["compression"].items()}
        return {**found, "compression": packed}

    return changed


def timed(run: Callable[[Path], None], target: Path) -> tuple[float, float, int]:
    """Seconds and CPU seconds of an export, and the bytes that it wrote, which are removed."""
    os.sync()  # flush earlier writes
    began, cpu = time.perf_counter(), sum(os.times()[:4])
    run(target)
    seconds, cpu = time.perf_counter() - began, sum(os.times()[:4]) - cpu
    size = sum(path.stat().st_size for path in target.rglob("*.*") if path.is_file() and "_export" not in path.parts)
    shutil.rmtree(target)
    return seconds, cpu, size


def figures_of(out: Path, theirs: Theirs, form: str, rows: int, rounds: int) -> dict[str, float]:
    """Measure one form."""
    target = out.parent / "target"
    sides = {
        "ours": lambda path: ours(out, path, form),
        "theirs": lambda path: theirs.export(path, form),
    }
    found: dict[str, list[tuple[float, float, int]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 else reversed(sides):
            found[side].append(timed(sides[side], target))
    seconds, cpu = ({side: median(one[n] for one in found[side]) for side in sides} for n in (0, 1))
    return {
        f"{form}_ours_s": seconds["ours"],
        f"{form}_theirs_s": seconds["theirs"],
        f"{form}_ratio": seconds["theirs"] / seconds["ours"],
        f"{form}_ours_cpu_s": cpu["ours"],
        f"{form}_theirs_cpu_s": cpu["theirs"],
        f"{form}_cpu_ratio": cpu["theirs"] / cpu["ours"],
        f"{form}_rows_per_s": rows / seconds["ours"],
        f"{form}_mb_per_s": found["ours"][0][2] / MB / seconds["ours"],
    }


def main() -> None:
    """Measure all forms, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000, metavar="N", help="rows with images")
    parser.add_argument("--bytes", type=int, default=100_000, metavar="N", help="bytes of an image")
    parser.add_argument("--rows", type=int, default=50_000, metavar="N", help="rows without images")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--folder", type=Path, help="folder for everything (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    figures: dict[str, float] = {"load": os.getloadavg()[0]}
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    work.ROWS_HERE = 10**9  # one process, as theirs
    written_by = datasets.io.parquet
    written_by.get_parquet_column_options = zstd_instead(written_by.get_parquet_column_options)
    with tempfile.TemporaryDirectory(prefix="export-", dir=args.folder) as folder:
        pictured = write_output(Path(folder) / "pictured", args.images, args.bytes, SHARDS[True])
        plain = write_output(Path(folder) / "plain", args.rows, 10, SHARDS[False])
        of = {True: (pictured, Theirs(pictured), args.images), False: (plain, Theirs(plain), args.rows)}
        for form in FORMS:
            out, theirs, rows = of[form in ("webdataset", "hf")]
            figures |= figures_of(out, theirs, form, rows, args.rounds)
            figures |= {f"{name}_write_s": median(seconds) for name, seconds in theirs.write_s.items()}
    print(f"{'':<12}" + "".join(f"{name:>11}" for name in HEADS))
    for form in FORMS:
        f = {name.removeprefix(f"{form}_"): value for name, value in figures.items() if name.startswith(form)}
        write = f"{f['write_s']:.2f} s" if "write_s" in f else ""
        cells: tuple[str, ...] = (f"{f['ours_s']:.2f} s", f"{f['theirs_s']:.2f} s", write, f"{f['ratio']:.2f}")
        spent = (f"{f['ours_cpu_s']:.2f} s", f"{f['theirs_cpu_s']:.2f} s", f"{f['cpu_ratio']:.2f}")
        cells += (*spent, f"{f['rows_per_s']:,.0f}", f"{f['mb_per_s']:,.0f}")
        print(f"{form:<12}" + "".join(f"{cell:>11}" for cell in cells))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
