"""Measure how the rate grows with the number of replicas, with and without losses, and what the driver needs.

    python benchmarks/scale.py [--replicas 64 128 256 512] [--actors 8] [--seconds 6-24] [--window 30] [--json FILE]

Simulated: the engines, decoding, and the number of processes. At most --actors actors stand for the replicas
(simulated.py). Each replica has --places places (sequences that an engine runs at once), and each caption takes its own
time, so that 64 places write 6.7 images/s by default: what an L40S writes. Pictures have 16 x 16 pixels, but batches
and blocks have as many rows as such a pool has with pictures of a megapixel and 300 kB. Real: Ray Data with all its
blocks, tasks in flight and the upkeep of a pool of that size, the object store, every message of every replica, the
driver, parquet.

A perfect pool captions `replicas x places / mean seconds` images/s. `busy` is the share of the places' time in which
they wrote captions, and `images/s` is that share of the perfect rate. The window begins when captions have come for as
long as the longest one takes. Then comes a second window, in which an actor with all its replicas is killed every
LOST_S seconds, as a node is lost: `lost an hour` is the share of all replicas that this would lose in an hour, and
`busy then` the share of the places' time in which captions were written, less the time of captions that were lost. `a
loss` is the work in seconds that a lost replica misses, by the difference: what was in its places, and its start, which
is that of a process without an engine.

`driver` is the number of cores that the driver used in the first window, and `its thread` what its busiest thread used:
1.00 is the most. `limit` is the rate over `its thread`, the images/s of one driver with a core for that thread; what
lies above was not run. `cores` is the number of this machine's cores that were in use: where all are, they are the
limit, not the driver. `lines` is how many lines the driver's log had.

Keys of the JSON: `<replicas>_rate`, `_perfect`, `_busy`, `_lost_busy`, `_lost_an_hour`, `_loss_s`, `_driver_cores`,
`_thread`, `_limit`, `_driver_mib`, `_cores`, `_lines`, `_ms` (the driver's CPU ms a batch), and `_<part>_ms` in CPU ms
per row. Parts: the keys of sampled.PARTS, `driver` and `other`.
"""

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

import psutil
from alone import LOG, moments, run_alone
from captioning import FINISHED, READY, note
from sampled import DRIVER, OTHER, PARTS, sampled
from simulated import taken, tiny_images
from stub_ways import PLACES, STOP, write_shards

from caprl_ray.cluster.resources import batch_rows
from caprl_ray.engines.stub import SECONDS, stub_seconds
from caprl_ray.recipe.prepare import Prepare

LOST_S = 10.0
FILL_S = 20.0  # longest time that replicas need to start one after another and to fill
SHARD_ROWS, DIFFERENT = 2000, 8000
SAMPLED_S = 2.0  # a long interval, because sampling many processes takes CPU time from them
MIB = 2**20

Figures = dict[str, float]


class Used:
    """CPU seconds by part and of the driver's busiest thread, the machine's idle time, and the driver's memory."""

    def __init__(self) -> None:
        self._before: dict[int, float] = {}
        self._spent: Counter[str] = Counter()
        self._samples: list[tuple[float, float, Counter[str], dict[int, float]]] = []
        self.memory = 0

    def __call__(self, part: str, process: psutil.Process) -> None:
        so_far = sum(process.cpu_times()[:2])
        self._spent[part] += so_far - self._before.get(process.pid, 0.0)
        self._before[process.pid] = so_far
        if part == DRIVER:
            threads = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
            self._samples.append((time.time(), psutil.cpu_times().idle, self._spent.copy(), threads))
            self.memory = max(self.memory, process.memory_full_info().uss)

    def between(self, begin: float, end: float) -> tuple[float, Counter[str], float, float]:
        """Of the samples between two times: their seconds, CPU seconds by part, those of the driver's busiest thread,
        and the number of cores in use."""
        seen = [sample for sample in self._samples if begin <= sample[0] <= end]
        (first, idle, spent, threads), (last, idle_then, spent_then, threads_then) = seen[0], seen[-1]
        seconds = last - first
        thread = max(used - threads.get(name, 0.0) for name, used in threads_then.items())
        return seconds, spent_then - spent, thread, psutil.cpu_count() - (idle_then - idle) / seconds


def write(folder: Path, count: int) -> None:
    """Write shards that repeat the same images under other names."""
    write_shards(folder, DIFFERENT, SHARD_ROWS, tiny_images)
    shards = sorted(folder.iterdir())
    for number in range(len(shards), -(-count // SHARD_ROWS)):
        os.link(shards[number % len(shards)], folder / f"{number:05d}.tar")


@contextmanager
def windows(out: Path, actors: int, filled: float, window: float) -> Iterator[tuple[list[float], dict[int, float]]]:
    """Wait until captions come and the places are filled; let a window pass; kill an actor now and then in a second
    one; stop the run. Yields the list of the windows' times, and when each process was killed."""
    over, chance = threading.Event(), random.Random(1)
    times: list[float] = []
    killed: dict[int, float] = {}

    def work() -> None:
        while len(moments(out / READY)) < actors or not any(rows for _, rows in moments(out / FINISHED)):
            if over.wait(0.5):
                return
        for seconds in (filled, window, window):
            until = time.time() + seconds
            while (left := until - time.time()) > 0:
                lossy = len(times) == 2  # the second window has begun
                if over.wait(min(left, LOST_S if lossy else left)):
                    return
                if lossy and until - time.time() > LOST_S / 3:
                    kill_one()
            times.append(time.time())
        note(out / STOP, 0)

    def kill_one() -> None:
        processes = psutil.Process().children(recursive=True)
        running = [process for process in processes if process.name().startswith(PARTS["replica"][:15])]
        if running:
            one = chance.choice(running)
            one.kill()
            killed[one.pid] = time.time()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield times, killed
    finally:
        over.set()
        thread.join()


def measure(replicas: int, most: int, places: int, seconds: str, window: float, folder: Path) -> Figures:
    """Run once with a number of replicas."""
    actors = min(replicas, most)
    shortest, longest = map(float, seconds.split("-"))
    perfect = replicas * places / mean(stub_seconds(image, shortest, longest) for image in tiny_images(DIFFERENT))
    shards, out = folder / f"{replicas}-shards", folder / str(replicas)
    write(shards, int(perfect * (2 * window + 2 * longest + FILL_S)))
    os.environ |= {SECONDS: seconds, "PLACES": str(places), "REPLICAS": str(replicas), "ACTORS": str(actors)}
    used = Used()
    with sampled(used, SAMPLED_S), windows(out, actors, longest, window) as (times, killed):
        run_alone("stub_ways.py", "scale", shards, out)
    begin, end, last = times
    span, spent, thread, cores = used.between(begin, end)
    busy = taken(out / PLACES, begin, end, killed)[0] / (end - begin) / (replicas * places)
    seconds, lost = taken(out / PLACES, end, last, killed)
    lost_busy = (seconds - lost) / (last - end) / (replicas * places)
    rate = busy * perfect
    return {f"{part}_ms": 1e3 * amount / span / rate for part, amount in spent.items()} | {
        "rate": rate,
        "perfect": perfect,
        "busy": busy,
        "lost_busy": lost_busy,
        "loss_s": (busy - lost_busy) * (last - end) * actors / max(1, len(killed)),
        "lost_an_hour": len(killed) / actors * 3600 / (last - end),
        "driver_cores": spent[DRIVER] / span,
        "thread": thread / span,
        "limit": rate * span / thread,
        "ms": 1e3 * spent[DRIVER] / span / rate * batch_rows(Prepare().max_pixels, replicas),
        "driver_mib": used.memory / MIB,
        "cores": cores,
        "lines": len((out / LOG).read_text(errors="replace").splitlines()),
    }


COLUMNS = {
    "images/s": ("rate", "{:.0f}"),
    "perfect": ("perfect", "{:.0f}"),
    "busy": ("busy", "{:.1%}"),
    "lost an hour": ("lost_an_hour", "{:.0%}"),
    "busy then": ("lost_busy", "{:.1%}"),
    "a loss, s": ("loss_s", "{:.1f}"),
    "driver": ("driver_cores", "{:.2f}"),
    "its thread": ("thread", "{:.2f}"),
    "limit": ("limit", "{:.0f}"),
    "driver MiB": ("driver_mib", "{:.0f}"),
    "cores": ("cores", "{:.2f}"),
    "lines": ("lines", "{:.0f}"),
}


def table(figures: Figures, numbers: list[int]) -> None:
    """Print a line for each number of replicas, then the CPU time of each part a row, and the driver's a batch."""
    print(f"{'replicas':<10}" + "".join(f"{name:>13}" for name in COLUMNS))
    for n in numbers:
        print(f"{n:<10}" + "".join(f"{form.format(figures[f'{n}_{key}']):>13}" for key, form in COLUMNS.values()))
    for part in (DRIVER, *PARTS, OTHER):
        print(f"{part:<17}" + "".join(f"{figures.get(f'{n}_{part}_ms', 0):>10.3f} ms" for n in numbers))
    rows = ", ".join(str(batch_rows(Prepare().max_pixels, n)) for n in numbers)
    print(f"{'driver, a batch':<17}" + "".join(f"{figures[f'{n}_ms']:>10.2f} ms" for n in numbers) + f"  ({rows} rows)")


def main() -> None:
    """Measure each number of replicas and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--replicas", type=int, nargs="+", default=[64, 128, 256, 512], metavar="N", help="numbers of replicas"
    )
    parser.add_argument("--actors", type=int, default=8, metavar="N", help="actors that stand for them, at most")
    parser.add_argument("--places", type=int, default=64, help="sequences that an engine runs at once")
    parser.add_argument("--seconds", default="6-24", help="time of the shortest and of the longest caption")
    parser.add_argument("--window", type=float, default=30, help="length of each of the two windows in seconds")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="scale-") as temporary:
        for n in args.replicas:
            seen = measure(n, args.actors, args.places, args.seconds, args.window, Path(temporary))
            figures |= {f"{n}_{key}": value for key, value in seen.items()}
            if args.json:  # each time: a run of all takes minutes
                args.json.write_text(json.dumps(figures, indent=1) + "\n")
            time.sleep(2)  # the processes of the last run end
    table(figures, args.replicas)


if __name__ == "__main__":
    main()
