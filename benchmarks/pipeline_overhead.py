"""Measure the rows/s of the pipeline itself, from read to commit, and where the CPU time goes.

    python benchmarks/pipeline_overhead.py [--images 20000] [--repeat 1] [--pool 1] [--json FILE]

Images of 101 kB, as WebDataset shards and as loose files, pass through the whole pipeline. The stub engine answers at
once, and prepare does not decode (stub_ways.py). Images are held back until the engine is ready. Rows/s are all rows
over the seconds from then to the last committed object, so they include the start of Ray's workers. `steady` is the
rate from the first committed object to the last one; all objects have the same number of rows.

The time per part is the CPU time of this machine's processes in the same span, sampled from outside and grouped by the
titles that Ray gives to processes. When a process changes its title, its time between two samples may be counted for
either part. Figures are medians over --repeat rounds. What the driver and the counter cost is also given per batch,
because they hardly see rows. --pool gives batches the rows that a pool of so many replicas has.

Keys of the JSON: `<input>` and `<input>_steady` in rows/s, `<input>_<part>_ms` in CPU ms per row, and
`<input>_<part>_batch_ms` for driver and counter. Inputs: `shards` and `files`. Parts: the keys of sampled.PARTS,
`driver` and `other`.
"""

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from alone import medians, moments, run_alone
from captioning import FINISHED, READY
from sampled import DRIVER, OTHER, PARTS, sampled
from stub_ways import write_files, write_shards

WRITERS = {"shards": write_shards, "files": write_files}
SAMPLED_S = 0.2
BY_BATCH = (DRIVER, "counter")

Figures = dict[str, float]


class Spent:
    """CPU seconds by part, counted from the moment when the file `ready` exists."""

    def __init__(self, ready: Path) -> None:
        self._ready = ready
        self._before: dict[int, float] = {}
        self.seconds: Counter[str] = Counter()

    def __call__(self, part: str, process: psutil.Process) -> None:
        so_far = sum(process.cpu_times()[:2])
        if self._ready.exists():
            self.seconds[part] += so_far - self._before.get(process.pid, 0.0)
        self._before[process.pid] = so_far


def measure(kind: str, images: Path, out: Path, count: int) -> Figures:
    """Run once over images of one kind."""
    spent = Spent(out / READY)
    with sampled(spent, SAMPLED_S):
        run_alone("stub_ways.py", "overhead", images, out)
    committed = sorted(file.stat().st_mtime for file in (out / "data").iterdir())
    ready = moments(out / READY)[0][0]
    figures = {kind: count / (committed[-1] - ready)}
    if len(committed) > 2:
        figures[f"{kind}_steady"] = count * (1 - 1 / len(committed)) / (committed[-1] - committed[0])
    batches = sum(rows > 0 for _, rows in moments(out / FINISHED))
    figures |= {f"{kind}_{part}_batch_ms": 1e3 * spent.seconds[part] / batches for part in BY_BATCH}
    return figures | {f"{kind}_{part}_ms": 1e3 * seconds / count for part, seconds in spent.seconds.items()}


def table(figures: Figures) -> None:
    """Print the rates, then the CPU time of each part."""
    print(f"{'':<20}" + "".join(f"{kind:>14}" for kind in WRITERS))
    rates = {"rows/s": "", "rows/s, steady": "_steady"}
    for name, key in rates.items():
        print(f"{name:<20}" + "".join(f"{figures.get(kind + key, 0):>14.0f}" for kind in WRITERS))
    parts = {part: f"{part}_ms" for part in (DRIVER, *PARTS, OTHER)}
    parts |= {f"{part}, a batch": f"{part}_batch_ms" for part in BY_BATCH}
    for name, key in parts.items():
        cells = (figures.get(f"{kind}_{key}", 0) for kind in WRITERS)
        print(f"{name:<20}" + "".join(f"{cell:>11.3f} ms" for cell in cells))


def main() -> None:
    """Measure both kinds of input in turns and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="number of images")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="rounds; the figures are medians over them")
    parser.add_argument("--pool", type=int, default=1, metavar="N", help="batches as those of a pool of N replicas")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    os.environ["POOL"] = str(args.pool)
    rounds: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="overhead-") as temporary:
        folder = Path(temporary)
        for kind, write in WRITERS.items():
            write(folder / kind, args.images)
        for number in range(args.repeat):
            for kind in WRITERS:
                rounds.append(measure(kind, folder / kind, folder / f"{kind}-{number}", args.images))
                time.sleep(2)  # the processes of the last run end
    figures = medians(rounds)
    table(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
