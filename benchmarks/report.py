"""Measure time, memory and size of `caprl-ray report` and `caprl-ray compare` on outputs whose pictures are there.

    python benchmarks/report.py [--rows 100000] [--kinds webdataset files parquet] [--json FILE]

The job's own plan and sink write outputs of --rows rows with captions of about 1,200 characters; of a hundred rows one
has failed, and three have a flag. Each kind of input holds the same 200 pictures of 1024 x 768 pixels (JPEG, about
190 kB) again and again: shards, folders and tables of a thousand, as links to one file. `compare` joins two outputs of
the shards.

CPU is that of all processes of the command. Memory is the peak of resident memory of the command's process, and of all
of its processes together (PSS).

Keys of the JSON, where <case> is a kind or `compare`:

    <case>_s, <case>_cpu_s, <case>_driver_mib, <case>_together_mib, <case>_page_mib
    load                                                     load average over one minute, at the start
"""

import argparse
import hashlib
import io
import json
import os
import random
import resource
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter
from resume import MIB, drop_from_cache
from synthetic_output import ROWS_PER_OBJECT, Unsynced
from watched import watched

from caprl_ray import plan, sources
from caprl_ray.caption.columns import CAPTION
from caprl_ray.output.commit import CommittedRows
from caprl_ray.recipe.load import parse
from caprl_ray.rows.schema import row_id, row_schema
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage

KINDS = ("webdataset", "files", "parquet")
DIFFERENT, SIZE, IN_UNIT = 200, (1024, 768), 1000
FLAGS = ("loop", "truncated", "opener", "url", "too_short")
CODES = ("image_corrupt", "engine_timeout", "caption_empty")
WORDS = (
    "a",
    "red",
    "cup",
    "on",
    "the",
    "table",
    "beside",
    "window",
    "light",
    "falls",
    "from",
    "left",
    "shadow",
    "wood",
)


def pictures() -> list[bytes]:
    """Pictures with as much detail as photographs have."""
    rng, found = np.random.default_rng(0), []
    for _ in range(DIFFERENT):
        rough = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        fine = rng.integers(-24, 24, (SIZE[1], SIZE[0], 3))
        smooth = Image.fromarray(rough).resize(SIZE, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(smooth) + fine, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
        found.append(buffer.getvalue())
    return found


def write_input(folder: Path, kind: str, units: int, images: list[bytes]) -> None:
    """Write units of IN_UNIT pictures, as links to the first one."""
    folder.mkdir()
    if kind == "files":
        for number, image in enumerate(images):
            (folder / f"{number:05d}-00000.jpg").write_bytes(image)
        for number in range(units * IN_UNIT):
            path = folder / f"{number % DIFFERENT:05d}-{number // DIFFERENT:05d}.jpg"
            if not path.exists():
                os.link(folder / f"{number % DIFFERENT:05d}-00000.jpg", path)
        return
    first = folder / ("00000.tar" if kind == "webdataset" else "00000.parquet")
    if kind == "webdataset":
        with tarfile.open(first, "w") as tar:
            for number in range(IN_UNIT):
                info = tarfile.TarInfo(f"{number:05d}.jpg")
                info.size = len(images[number % DIFFERENT])
                tar.addfile(info, io.BytesIO(images[number % DIFFERENT]))
    else:
        values = pa.array([images[number % DIFFERENT] for number in range(IN_UNIT)])
        pq.write_table(pa.table({"image": values}), first, row_group_size=100, compression="none")
    for number in range(1, units):
        os.link(first, folder / f"{number:05d}{first.suffix}")


def write_output(out: Path, inputs: Path, rows: int, images: list[bytes], seed: int) -> None:
    """Write the plan of an input, and rows that look like those of a run."""
    recipe = {"input": {"paths": [str(inputs)]}, "output": {"path": str(out)}}
    plan.store(Storage(), str(out), sources.plan_units(Access.of(parse(recipe))))
    (out / "run.json").write_text(json.dumps({"fingerprint": {}, "recipe": recipe, "input": recipe["input"]}))
    refs = plan.load(Storage(), str(out)).units
    sink = CommittedRows(Unsynced(), str(out), ROWS_PER_OBJECT, CAPTION, 1, "0123456789ab")
    digests, rng, held = [hashlib.sha256(image).hexdigest() for image in images], random.Random(seed), []
    length = rows // len(refs)
    for ref in refs:
        entries = ref.load(Storage()).entries
        for index in range(length):
            entry = entries[index] if len(entries) > 1 else entries[0]
            place = int(entry.key.partition("-")[0]) if len(entries) > 1 else index % DIFFERENT
            held.append(row(ref.unit, index, length, entry, digests[place], rng))
            if len(held) == ROWS_PER_OBJECT:
                sink.write([pa.Table.from_pylist(held, schema=SCHEMA)], None)
                held = []
    if held:
        sink.write([pa.Table.from_pylist(held, schema=SCHEMA)], None)
    os.sync()


SCHEMA = row_schema(pa.schema([]), CAPTION)


def row(unit: int, index: int, length: int, entry: plan.Entry, digest: str, rng: random.Random) -> dict[str, object]:
    """One row."""
    words = max(8, int(rng.lognormvariate(5.4, 0.4)))
    found: dict[str, object] = {
        "id": row_id(unit, index),
        "unit": unit,
        "index": index,
        "unit_rows": length if index == length - 1 else None,
        "source": entry.stored.path,
        "key": f"{index:05d}",
        "sha256": digest,
        "width": SIZE[0],
        "height": SIZE[1],
        "caption": " ".join(rng.choices(WORDS, k=words)),
        "finish_reason": "stop",
        "flags": [rng.choice(FLAGS)] if rng.random() < 0.03 else [],
        "repaired": [],
        "decodes": 1,
        "caption_tokens": words,
        "decoded_tokens": words,
        "attempts": 1,
        "model": "internlm/CapRL-3B@0123456789abcdef",
    }
    return found | ({"stage": "caption", "code": rng.choice(CODES), "detail": ""} if rng.random() < 0.01 else {})


def measured(case: str, arguments: list[str], folder: Path) -> dict[str, float]:
    """Run a command of caprl-ray that writes a page."""
    page, before = folder / f"{case}.html", cpu_seconds()
    seen = watched([sys.executable, "-m", "caprl_ray", *arguments, "--to", str(page)], folder / "log.txt")
    return {
        f"{case}_s": seen.ended - seen.began,
        f"{case}_cpu_s": cpu_seconds() - before,
        f"{case}_driver_mib": seen.driver / MIB,
        f"{case}_together_mib": seen.together / MIB,
        f"{case}_page_mib": page.stat().st_size / MIB,
    }


def cpu_seconds() -> float:
    """The CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Write and measure all cases, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, metavar="N", help="rows of each output")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of input")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    figures, images, units = {"load": os.getloadavg()[0]}, pictures(), max(1, args.rows // IN_UNIT)
    with tempfile.TemporaryDirectory(prefix="report-", dir=args.folder) as temporary:
        folder = Path(temporary)
        for kind in args.kinds:
            write_input(folder / f"in-{kind}", kind, units, images)
            write_output(folder / kind, folder / f"in-{kind}", args.rows, images, 1)
            drop_from_cache(folder / kind)
            figures |= measured(kind, ["report", str(folder / kind)], folder)
        if "webdataset" in args.kinds:
            write_output(folder / "other", folder / "in-webdataset", args.rows, images, 2)
            figures |= measured("compare", ["compare", str(folder / "webdataset"), str(folder / "other")], folder)
    print(f"{'':<12}" + "".join(f"{name:>12}" for name in ("seconds", "CPU", "page", "process", "all")))
    for case in (*args.kinds, "compare"):
        if f"{case}_s" in figures:
            cells = [f"{figures[f'{case}_{name}']:.1f} s" for name in ("s", "cpu_s")]
            cells += [f"{figures[f'{case}_{name}_mib']:.1f} MiB" for name in ("page", "driver", "together")]
            print(f"{case:<12}" + "".join(f"{cell:>12}" for cell in cells))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
