"""Measure every export beside the usual library's own writer on the same rows.

    python benchmarks/export.py [--images N] [--bytes N] [--rows N] [--rounds N] [--json FILE]

One output has --images rows of --bytes each in shards (random bytes: they are never decoded), another has --rows rows
without images read. All is one process; rounds of ours and theirs alternate, and the fastest of each counts. What
theirs gets: `webdataset`: samples read by `webdataset.WebDataset`, captions from a dictionary in memory, written by its
TarWriter. `sidecars`: captions in memory, written by its TarWriter. `hf`: samples read likewise, then
`datasets.Dataset.from_generator(...).to_parquet`. `parquet`, `jsonl`: the output's parquet files by
`datasets.Dataset.from_parquet`, written by to_parquet and to_json. Except there, theirs gets the captions for nothing.
What of theirs is writing alone, from Arrow in memory, is a column of its own: it reads neither plan, nor output, nor
images, and syncs nothing to disk.

Keys of the JSON, for each <form>:

    <form>_ours_s, <form>_theirs_s, <form>_ratio        seconds, and theirs over ours: above 1 ours is faster
    <form>_rows_per_s, <form>_mb_per_s                  ours: rows, and bytes of the exported files
    <form>_write_s                                      of theirs: to_parquet or to_json alone, from Arrow (not of tars)
    load                                                load average over one minute, at the start
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
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

os.environ["CAPRL_RAY_ALLOW_STUB"] = "1"

from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.export import work
from caprl_ray.export.run import export
from caprl_ray.export.settings import Settings
from caprl_ray.output import lease
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.folder import Output
from caprl_ray.recipe.load import parse
from caprl_ray.rows.schema import row_id
from caprl_ray.storage import Storage

SHARDS = {True: 1000, False: 10_000}  # samples of a shard, with images and without
OBJECT_ROWS, MB = 2048, 1e6
FORMS = ("webdataset", "sidecars", "hf", "parquet", "jsonl")
HEADS = ("ours", "theirs", "of it writing", "ratio", "rows/s", "MB/s")
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
    """The same exports by the libraries that people use."""

    def __init__(self, out: Path) -> None:
        self._shards = [str(path) for path in sorted((out.parent / "shards").glob("*.tar"))]
        self._rows = [str(path) for path in sorted((out / "data").glob("*.parquet"))]
        table = pq.read_table(out / "data", columns=["key", "caption"])
        self._captions: dict[str, str] = dict(zip(*(table[n].to_pylist() for n in ("key", "caption")), strict=True))
        self.write_s: defaultdict[str, float] = defaultdict(lambda: float("inf"))

    def export(self, target: Path, form: str) -> None:
        """One export."""
        target.mkdir(parents=True)
        getattr(self, f"_{form}")(target)

    def _samples(self, shard: str) -> Iterator[dict[str, Any]]:
        for sample in webdataset.WebDataset(shard, shardshuffle=False):
            yield {k: v for k, v in sample.items() if k == "__key__" or not k.startswith("__")}

    def _webdataset(self, target: Path) -> None:
        for shard in self._shards:
            with webdataset.TarWriter(str(target / Path(shard).name), encoder=False) as tar:
                for sample in self._samples(shard):
                    caption = self._captions[sample["__key__"]]
                    told = json.dumps({"caption": caption}).encode()
                    tar.write({**sample, "caption.txt": caption.encode(), "caption.json": told})

    def _sidecars(self, target: Path) -> None:
        keys = list(self._captions)
        for first in range(0, len(keys), SHARDS[False]):
            with webdataset.TarWriter(str(target / f"{first // SHARDS[False]:05d}.tar"), encoder=False) as tar:
                for key in keys[first : first + SHARDS[False]]:
                    caption = self._captions[key]
                    told = json.dumps({"caption": caption}).encode()
                    tar.write({"__key__": key, "caption.txt": caption.encode(), "caption.json": told})

    def _hf(self, target: Path) -> None:
        def rows() -> Iterator[dict[str, Any]]:
            for shard in self._shards:
                for sample in self._samples(shard):
                    image = {"bytes": sample["jpg"], "path": f"{sample['__key__']}.jpg"}
                    yield {"image": image, "caption": self._captions[sample["__key__"]]}

        known = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        found = datasets.Dataset.from_generator(rows, features=known, cache_dir=str(target / "cache"))
        self._write("hf", lambda: found.to_parquet(str(target / "train.parquet")))

    def _parquet(self, target: Path) -> None:
        found = datasets.Dataset.from_parquet(self._rows, cache_dir=str(target / "cache"))
        self._write("parquet", lambda: found.to_parquet(str(target / "rows.parquet")))

    def _jsonl(self, target: Path) -> None:
        found = datasets.Dataset.from_parquet(self._rows, cache_dir=str(target / "cache"))
        lines = found.select_columns(["id", "key", "caption"])
        self._write("jsonl", lambda: lines.to_json(str(target / "rows.jsonl")))

    def _write(self, form: str, write: Callable[[], Any]) -> None:
        began = time.perf_counter()
        write()
        self.write_s[form] = min(self.write_s[form], time.perf_counter() - began)


def timed(run: Callable[[Path], None], target: Path) -> tuple[float, int]:
    """Seconds of an export, and the bytes that it wrote, which are removed."""
    began = time.perf_counter()
    run(target)
    seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in target.rglob("*.*") if path.is_file() and "_export" not in path.parts)
    shutil.rmtree(target)
    return seconds, size


def figures_of(out: Path, theirs: Theirs, form: str, rows: int, rounds: int) -> dict[str, float]:
    """Measure one form."""
    target, best, size = out.parent / "target", [float("inf")] * 2, 0
    for _ in range(rounds):
        seconds, size = timed(lambda path: ours(out, path, form), target)
        best[0] = min(best[0], seconds)
        best[1] = min(best[1], timed(lambda path: theirs.export(path, form), target)[0])
    return {
        f"{form}_ours_s": best[0],
        f"{form}_theirs_s": best[1],
        f"{form}_ratio": best[1] / best[0],
        f"{form}_rows_per_s": rows / best[0],
        f"{form}_mb_per_s": size / MB / best[0],
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
    with tempfile.TemporaryDirectory(prefix="export-", dir=args.folder) as folder:
        pictured = write_output(Path(folder) / "pictured", args.images, args.bytes, SHARDS[True])
        plain = write_output(Path(folder) / "plain", args.rows, 10, SHARDS[False])
        of = {True: (pictured, Theirs(pictured), args.images), False: (plain, Theirs(plain), args.rows)}
        for form in FORMS:
            out, theirs, rows = of[form in ("webdataset", "hf")]
            figures |= figures_of(out, theirs, form, rows, args.rounds)
            figures |= {f"{name}_write_s": seconds for name, seconds in theirs.write_s.items()}
    print(f"{'':<12}" + "".join(f"{name:>14}" for name in HEADS))
    for form in FORMS:
        f = {name.removeprefix(f"{form}_"): value for name, value in figures.items() if name.startswith(form)}
        write = f"{f['write_s']:.2f} s" if "write_s" in f else ""
        cells = (f"{f['ours_s']:.2f} s", f"{f['theirs_s']:.2f} s", write, f"{f['ratio']:.2f}")
        cells = (*cells, f"{f['rows_per_s']:,.0f}", f"{f['mb_per_s']:,.0f}")
        print(f"{form:<12}" + "".join(f"{cell:>14}" for cell in cells))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
