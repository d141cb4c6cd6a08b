"""Measure time and memory from the start of a resumed run to its first new row, compared with Ray Data's checkpoint.

    python benchmarks/resume.py [--rows 1 10] [--layout mixed sorted] [--folder DIR] [--keep] [--json FILE]
    python benchmarks/resume.py --shards 1000 10000 100000 [--ways plan caprl_ray verify export compact] [--folder DIR]

The job's own plan and sink write outputs of --rows million rows in 10,000 units, of which 100 are half done, with the
default of 2,048 rows per object. Each way then resumes them from local disk, in its own process, up to the first row
that leaves the reader:

    caprl_ray        load the plan, read the identity columns of all objects, find the remaining units, read
    ray_checkpoint   ray.data's CheckpointConfig on the same rows, with `id` as the id column. Its own writer makes the
                     checkpoint files from the same objects. It reads the same units; up to ten million rows

Layouts: in `mixed`, as runs write it, an object holds batches of 32 rows from 64 units that were read at the same time.
In `sorted`, it holds consecutive rows of one unit. Files are dropped from the page cache first.

With --retry, an output with one failed row in a hundred is written instead, in the layout `mixed`. Two ways are
measured on it: `retry`, from the start of `--retry-failed` to the first failed row that is read again, and, after every
failed row was retried and every second one captioned, `repair`: reading the output, removing the superseded rows,
reading it again.

With --shards, outputs of so many shards of 10,000 rows are written instead, in the layout `mixed`, with 2,000 rows per
object: copies of one window of a hundred shards (copied_output.py). 100,000 shards are a billion rows, and take 12 GB
of disk. Measured are `plan` (list, store and load the shards anew), `caprl_ray` (resume up to the first new row),
`verify` (`verify --json`), `export` (which rows, where they stand, which files, up to the first file that is written),
and `compact`, which changes the output and so comes last.

Seconds count from the start of the way's process, including imports and the start of Ray. Memory is the peak of
resident memory of the driver and of the largest Ray worker (shared pages count in full), and the highest sum of the
proportional shares of all processes, including Ray's own. Requests are counted as if for a bucket, over the first
thousand objects: each read of an object's stream is one request.

A hundred million rows (--rows 100) need 4 GB of disk and some minutes to write. --keep leaves them in the folder for
the next time.

Keys of the JSON, where <case> is <layout>_<millions>m, for example `mixed_10m`:

    <case>_s, <case>_driver_mib, <case>_worker_mib, <case>_together_mib      caprl_ray
    <case>_plan_s, <case>_committed_s, <case>_session_s, <case>_read_s       the parts of <case>_s, after the imports
    <case>_requests, <case>_request_bytes                                    per object, without the listing
    <case>_objects, <case>_done                                              objects in the output, and rows in them
    <case>_ray_s, <case>_ray_driver_mib, <case>_ray_worker_mib, <case>_ray_together_mib    ray_checkpoint
    <case>_ratio, <case>_together_ratio                                      caprl_ray / Ray's: seconds, and memory
    retry_<m>m_s, retry_<m>m_committed_s, retry_<m>m_objects, retry_<m>m_driver_mib …                   retry
    repair_<m>m_s, repair_<m>m_committed_s, repair_<m>m_repaired_s, repair_<m>m_again_s, repair_<m>m_removed, … repair
    shards_<n>_<way>_s, _cpu_s, _driver_mib, _worker_mib, _together_mib      --shards: cpu_s is of all processes
    shards_<n>_objects, shards_<n>_<way>_<part>_s                            objects in the output; the parts of <way>_s
    load                                                                     load average over one minute, at the start
"""

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import copied_output
import pyarrow.parquet as pq
import synthetic_output
from counted import Counted
from resume_ways import FIRST_ROW, NOTES
from synthetic_output import LAYOUTS, Synthetic
from watched import Watched, watched

from caprl_ray.output import committed
from caprl_ray.storage import Storage

MAX_MILLIONS_OF_RAY = 10
COUNTED = 1000  # number of objects whose requests are counted
MIB = 2**20
SHARD_ROWS, SHARD_OBJECT = 10_000, 2_000  # rows of a shard and of an object, with --shards
SHARDS_WAYS = ("plan", "caprl_ray", "verify", "export", "compact")


def requests(output: Synthetic) -> tuple[float, float, int]:
    """Mean requests and bytes to read one object's identity columns, and the number of objects."""
    storage = Counted()
    objects = [
        stored for folder in ("data", "failed") for stored in storage.objects(str(output.out / folder), ".parquet")
    ]
    for stored in objects[:COUNTED]:
        committed.content(storage, stored, committed.COLUMNS)
    counted = len(objects[:COUNTED])
    return len(storage.sizes) / counted, sum(storage.sizes) / counted, len(objects)


def write_checkpoint(output: Synthetic, checkpoint: Path) -> None:
    """Write, with Ray Data's own writer, the checkpoint that it would have written for the same objects."""
    if checkpoint.exists():
        return
    from ray.data.block import BlockAccessor
    from ray.data.checkpoint import CheckpointConfig
    from ray.data.checkpoint.checkpoint_writer import CheckpointWriter

    writer = CheckpointWriter.create(CheckpointConfig(id_column="id", checkpoint_path=str(checkpoint)))
    for folder in ("data", "failed"):
        for stored in Storage().objects(str(output.out / folder), ".parquet"):
            writer.write_block_checkpoint(BlockAccessor.for_block(pq.read_table(stored.path, columns=["id"])))
    os.sync()


def drop_from_cache(folder: Path) -> None:
    """Drop the files of a folder from the page cache, so that they are read from disk again."""
    for file in folder.rglob("*.parquet"):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measure(way: str, output: Synthetic, checkpoint: Path) -> tuple[Watched, dict[str, float]]:
    """Run one way alone. Returns what it used, and the times that it noted."""
    drop_from_cache(checkpoint if way == "ray_checkpoint" else output.out)
    with tempfile.TemporaryDirectory(prefix="resume-") as temporary:
        notes = Path(temporary) / NOTES
        script = Path(__file__).with_name("resume_ways.py")
        command = [sys.executable, str(script), way, *map(str, (output.out, output.shards, checkpoint, notes))]
        seen = watched(command, Path(temporary) / "log.txt")
        moments = dict(reversed([line.split() for line in notes.read_text().splitlines()]))
    return seen, {name: float(moment) for name, moment in moments.items()}


def figures_of(output: Synthetic, case: str, with_ray: bool) -> dict[str, float]:
    """Measure all figures of one case."""
    done = synthetic_output.write(output)
    checkpoint = output.out.with_name(f"{output.out.name}-checkpoint")
    seen, moments = measure("caprl_ray", output, checkpoint)
    figures = {f"{case}_s": moments[FIRST_ROW] - seen.began, f"{case}_done": done, **memory(case, seen)}
    parts = ("imported", "plan", "committed", "session", FIRST_ROW)
    for before, part in itertools.pairwise(parts):
        figures[f"{case}_{'read' if part == FIRST_ROW else part}_s"] = moments[part] - moments[before]
    asked, size, objects = requests(output)
    figures |= {f"{case}_requests": asked, f"{case}_request_bytes": size, f"{case}_objects": objects}
    if with_ray:
        write_checkpoint(output, checkpoint)
        seen, moments = measure("ray_checkpoint", output, checkpoint)
        figures |= {f"{case}_ray_s": moments[FIRST_ROW] - seen.began, **memory(f"{case}_ray", seen)}
        figures[f"{case}_ratio"] = figures[f"{case}_s"] / figures[f"{case}_ray_s"]
        figures[f"{case}_together_ratio"] = figures[f"{case}_together_mib"] / figures[f"{case}_ray_together_mib"]
    return figures


def retry_figures(output: Synthetic, millions: int) -> dict[str, float]:
    """Measure retry and repair of an output with many failed rows. The output is removed, because repair changes it."""
    synthetic_output.write(output)
    figures: dict[str, float] = {}
    for way, last in (("retry", FIRST_ROW), ("repair", "again")):
        case = f"{way}_{millions}m"
        if way == "repair":
            figures[f"{case}_removed"] = synthetic_output.retried(output)
        figures[f"{case}_objects"] = sum(1 for _ in output.out.glob("[df]*/*.parquet"))
        seen, moments = measure(way, output, output.out)
        figures |= {f"{case}_s": moments[last] - seen.began, **memory(case, seen)}
        for before, part in itertools.pairwise(sorted(moments, key=lambda name: moments[name])):
            figures[f"{case}_{part}_s"] = moments[part] - moments[before]
    shutil.rmtree(output.out)
    return figures


def retry_table(figures: dict[str, float], millions: list[int]) -> None:
    """Print the figures of retry and repair."""
    columns = ("objects", "seconds", "reading", "repair", "driver", "worker", "together")
    print(f"{'':<28}" + "".join(f"{name:>11}" for name in columns))
    for way, number in itertools.product(("retry", "repair"), millions):
        f = {n.removeprefix(f"{way}_{number}m_"): v for n, v in figures.items() if n.startswith(f"{way}_{number}m_")}
        cells = [f"{f['objects']:.0f}", f"{f['s']:.1f} s", f"{f['committed_s'] + f.get('again_s', 0):.1f} s"]
        cells += [f"{f['repaired_s']:.1f} s" if "repaired_s" in f else ""]
        cells += [f"{f[name]:.0f} MiB" for name in ("driver_mib", "worker_mib", "together_mib")]
        print(f"{f'{way} of {number} M':<28}" + "".join(f"{cell:>11}" for cell in cells))


def shards_figures(output: Synthetic, ways: list[str]) -> dict[str, float]:
    """Measure some ways on an output of many shards."""
    copied_output.write(output)
    case = f"shards_{output.units}"
    figures: dict[str, float] = {f"{case}_objects": sum(1 for _ in output.out.glob("[df]*/*.parquet"))}
    for way in ways:
        with tempfile.TemporaryDirectory(prefix="resume-", dir=output.folder) as target:
            seen, moments = measure(way, output, Path(target) / "out")
        began = seen.began
        for part, moment in sorted(moments.items(), key=lambda item: item[1]):
            figures[f"{case}_{way}_{part}_s"], began = moment - began, moment
        figures |= {f"{case}_{way}_s": began - seen.began, f"{case}_{way}_cpu_s": seen.cpu}
        figures |= memory(f"{case}_{way}", seen)
    return figures


def shards_table(figures: dict[str, float], shards: list[int], ways: list[str]) -> None:
    """Print the figures of --shards, one line per size and way."""
    columns = ("objects", "seconds", "cpu", "driver", "worker", "together")
    print(f"{'':<28}" + "".join(f"{name:>11}" for name in columns))
    for number, way in itertools.product(shards, ways):
        case = f"shards_{number}"
        cells = [
            f"{figures[f'{case}_objects']:.0f}",
            *(f"{figures[f'{case}_{way}_{s}']:.1f} s" for s in ("s", "cpu_s")),
        ]
        cells += [f"{figures[f'{case}_{way}_{name}']:.0f} MiB" for name in ("driver_mib", "worker_mib", "together_mib")]
        print(f"{f'{number} shards, {way}':<28}" + "".join(f"{cell:>11}" for cell in cells))


def memory(case: str, seen: Watched) -> dict[str, float]:
    """The memory figures of a way, in MiB."""
    return {
        f"{case}_driver_mib": seen.driver / MIB,
        f"{case}_worker_mib": seen.worker / MIB,
        f"{case}_together_mib": seen.together / MIB,
    }


def table(figures: dict[str, float], cases: list[str]) -> None:
    """Print the figures, one line per case and way."""
    columns = ("objects", "first row", "committed", "driver", "worker", "together", "requests", "ratio")
    print(f"{'':<28}" + "".join(f"{name:>11}" for name in columns))
    for case in cases:
        f = {name.removeprefix(f"{case}_"): value for name, value in figures.items()}
        cells = [f"{f['objects']:.0f}", f"{f['s']:.1f} s", f"{f['committed_s']:.1f} s"]
        cells += [f"{f[name]:.0f} MiB" for name in ("driver_mib", "worker_mib", "together_mib")]
        print(f"{case:<28}" + "".join(f"{cell:>11}" for cell in [*cells, f"{f['requests']:.1f}"]))
        if "ray_s" in f:
            cells = ["", f"{f['ray_s']:.1f} s", ""]
            cells += [f"{f[name]:.0f} MiB" for name in ("ray_driver_mib", "ray_worker_mib", "ray_together_mib")]
            print(f"{case + ' ray_checkpoint':<28}" + "".join(f"{c:>11}" for c in [*cells, "", f"{f['ratio']:.2f}"]))


def main() -> None:
    """Write and resume all cases, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 10], metavar="N", help="millions of planned rows")
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=LAYOUTS, help="measure only these layouts")
    parser.add_argument("--folder", type=Path, help="folder for the outputs (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the outputs in --folder")
    parser.add_argument("--retry", action="store_true", help="measure retry and repair instead")
    parser.add_argument("--shards", type=int, nargs="+", default=[], metavar="N", help="measure so many shards instead")
    parser.add_argument("--ways", nargs="+", choices=SHARDS_WAYS, default=SHARDS_WAYS, help="only these of --shards")
    parser.add_argument("--without-ray", action="store_true", help="measure caprl_ray alone")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    if any(number % copied_output.WINDOW for number in args.shards):
        parser.error(f"--shards are multiples of {copied_output.WINDOW}")
    if min(args.rows) < 1 or (args.keep and not args.folder):
        parser.error("--rows is at least 1, and --keep needs --folder")
    figures, cases = {"load": os.getloadavg()[0]}, []
    with tempfile.TemporaryDirectory(prefix="resume-", dir=args.folder) as temporary:
        folder = args.folder if args.keep else Path(temporary)
        for number in args.shards:
            output = Synthetic(
                folder=folder, rows=number * SHARD_ROWS, layout="mixed", units=number, rows_per_object=SHARD_OBJECT
            )
            figures |= shards_figures(output, args.ways)
        for millions in args.rows if args.retry else ():
            output = Synthetic(folder=folder, rows=millions * 1_000_000, layout="mixed", failures=True)
            figures |= retry_figures(output, millions)
        for millions in () if args.retry or args.shards else args.rows:
            for layout in args.layout:
                output = Synthetic(folder=folder, rows=millions * 1_000_000, layout=layout)
                cases.append(f"{layout}_{millions}m")
                with_ray = millions <= MAX_MILLIONS_OF_RAY and not args.without_ray
                figures |= figures_of(output, cases[-1], with_ray)
                print({k: round(v, 2) for k, v in figures.items() if k.startswith(cases[-1])}, file=sys.stderr)
    if args.shards:
        shards_table(figures, args.shards, args.ways)
    elif args.retry:
        retry_table(figures, args.rows)
    else:
        table(figures, cases)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
