"""Measure how the rate grows with the number of replicas, with and without losses, and what the driver needs.

    python benchmarks/scale.py [--replicas 1 4 16 32] [--places 64] [--seconds 2-8] [--window 60] [--json FILE]

Replicas are stub engines with --places places (sequences that an engine runs at once). Each caption takes its own time
(flow.py). A perfect pool captions `replicas x places / mean seconds` images/s. Everything else is as in any run on one
machine: Ray Data, the object store, the driver, and parquet. Only prepare does not decode (stub_ways.py).

`efficiency` is the measured rate over the perfect rate, in a window. The window begins when the last replica has had
time for its first captions. It ends after --window seconds, or when rows run out. `busy` is the number of the machine's
cores that were in use in the window. `with losses` is the efficiency while a replica's process is killed every LOST_S
seconds, the first after half of that time. `lost` is the number of kills in the window. `driver` is the number of cores
that the driver used from the first ready replica to the last caption, sampled from outside. `driver MiB` is the peak of
the driver's own memory.

Keys of the JSON: `<replicas>_rate`, `_perfect`, `_efficiency`, `_busy`, `_lost_efficiency`, `_lost_busy`, `_lost`,
`_driver_cores`, `_driver_mib`, and `_<part>_ms` in CPU ms per row. Parts: the keys of sampled.PARTS, `driver` and
`other`.
"""

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import mean

import psutil
from alone import moments, run_alone
from captioning import READY
from pipeline_overhead import Spent
from sampled import DRIVER, PARTS, sampled
from stub_ways import SHARD_ROWS, images, write_shards

from caprl_ray.engines.stub import SECONDS, stub_seconds

LOST_S = 30.0
FILL_S = 20.0  # longest time that replicas need to start one after another and to fill
DIFFERENT = 4 * SHARD_ROWS
SAMPLED_S = 2.0  # a long interval, because sampling many processes takes CPU time from them
MIB = 2**20

Figures = dict[str, float]


class Used(Spent):
    """CPU seconds by part, samples of the machine's idle CPU time, and the peak of the driver's own memory."""

    def __init__(self, ready: Path) -> None:
        super().__init__(ready)
        self.driver = 0
        self._idle: list[tuple[float, float]] = []

    def __call__(self, part: str, process: psutil.Process) -> None:
        super().__call__(part, process)
        if part == DRIVER:
            self._idle.append((time.time(), psutil.cpu_times().idle))
            self.driver = max(self.driver, process.memory_full_info().uss)

    def busy(self, begin: float, end: float) -> float:
        """The number of cores in use between two times."""
        seen = [sample for sample in self._idle if begin <= sample[0] <= end]
        (first, idle), (last, idle_then) = seen[0], seen[-1]
        return float(psutil.cpu_count()) - (idle_then - idle) / (last - first)


def write(folder: Path, count: int) -> None:
    """Write shards that repeat the same images under other names."""
    write_shards(folder, DIFFERENT)
    shards = sorted(folder.iterdir())
    for number in range(len(shards), -(-count // SHARD_ROWS)):
        os.link(shards[number % len(shards)], folder / f"{number:05d}.tar")


@contextmanager
def losses(ready: Path, replicas: int) -> Iterator[list[float]]:
    """Kill random replicas, with the same random seed each time. Yields the list of the times of the kills."""
    over, chance = threading.Event(), random.Random(1)
    killed: list[float] = []

    def work() -> None:
        while not (ready.exists() and len(moments(ready)) >= replicas):
            if over.wait(0.5):
                return
        pause = LOST_S / 2
        while not over.wait(pause):
            pause = LOST_S
            processes = psutil.Process().children(recursive=True)
            running = [process for process in processes if process.name().startswith(PARTS["replica"][:15])]
            if running:
                chance.choice(running).kill()
                killed.append(time.time())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def measure(replicas: int, places: int, seconds: str, window: float, folder: Path, lost: bool) -> Figures:
    """Run once with a number of replicas, with or without losses."""
    shortest, longest = map(float, seconds.split("-"))
    perfect = replicas * places / mean(stub_seconds(image, shortest, longest) for image in images(DIFFERENT))
    name = f"{replicas}{'-lost' if lost else ''}"
    shards, out = folder / f"{name}-shards", folder / name
    write(shards, int(perfect * (window + longest + FILL_S)))
    os.environ |= {SECONDS: seconds, "PLACES": str(places), "REPLICAS": str(replicas)}
    used = Used(out / READY)
    with sampled(used, SAMPLED_S), losses(out / READY, replicas) if lost else nullcontext([]) as killed:
        _, finished, _ = run_alone("stub_ways.py", "scale", shards, out)
    ready = [moment for moment, _ in moments(out / READY)]
    begin = ready[replicas - 1] + longest
    end = min(begin + window, finished[-1] - longest)
    rate = sum(begin < moment <= end for moment in finished) / (end - begin)
    span = finished[-1] - ready[0]
    cores = {f"{part}_ms": 1e3 * spent / len(finished) for part, spent in used.seconds.items()}
    return cores | {
        "rate": rate,
        "perfect": perfect,
        "efficiency": rate / perfect,
        "busy": used.busy(begin, end),
        "lost": sum(begin < moment <= end for moment in killed),
        "driver_cores": used.seconds[DRIVER] / span,
        "driver_mib": used.driver / MIB,
    }


def table(figures: Figures, numbers: list[int]) -> None:
    """Print a line for each number of replicas, then the CPU time of each part."""
    columns = {
        "images/s": ("rate", "{:.1f}"),
        "perfect": ("perfect", "{:.1f}"),
        "efficiency": ("efficiency", "{:.1%}"),
        "busy": ("busy", "{:.2f}"),
        "with losses": ("lost_efficiency", "{:.1%}"),
        "busy then": ("lost_busy", "{:.2f}"),
        "lost": ("lost", "{:.0f}"),
        "driver": ("driver_cores", "{:.2f}"),
        "driver MiB": ("driver_mib", "{:.0f}"),
    }
    print(f"{'replicas':<10}" + "".join(f"{name:>13}" for name in columns))
    for n in numbers:
        print(f"{n:<10}" + "".join(f"{form.format(figures[f'{n}_{key}']):>13}" for key, form in columns.values()))
    for part in (DRIVER, *PARTS):
        cells = [f"{figures.get(f'{n}_{part}_ms', 0):>10.3f} ms" for n in numbers]
        print(f"{part:<17}" + "".join(cells))


def main() -> None:
    """Measure each number of replicas with and without losses, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--replicas", type=int, nargs="+", default=[1, 4, 16, 32], metavar="N", help="numbers of replicas"
    )
    parser.add_argument("--places", type=int, default=64, help="sequences that an engine runs at once")
    parser.add_argument("--seconds", default="2-8", help="time of the shortest and of the longest caption")
    parser.add_argument("--window", type=float, default=60, help="length of the window in seconds")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="scale-") as temporary:
        for n in args.replicas:
            for lost in (False, True):
                seen = measure(n, args.places, args.seconds, args.window, Path(temporary), lost)
                if lost:
                    seen = {"lost_efficiency": seen["efficiency"], "lost_busy": seen["busy"], "lost": seen["lost"]}
                figures |= {f"{n}_{key}": value for key, value in seen.items()}
                time.sleep(2)  # the processes of the last run end
    table(figures, args.replicas)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
