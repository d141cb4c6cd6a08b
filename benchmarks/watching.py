"""Measure what it costs to be watched: the pipeline with its counts, view, status.json and metrics, and without them.

    python benchmarks/watching.py [--images 12000] [--rounds 6] [--json FILE]

Images of 101 kB in shards pass through the whole pipeline, as in pipeline_overhead.py. The stub engine answers at once
and prepare does not decode, so every message weighs a hundred times as much as beside an engine. `unwatched` counts
only the rows and failures that the circuit breaker needs, and tells nobody.

A round runs both ways, one right after the other, and the next round in the other order. What counts is the difference
within a round: other work on the machine moves both. Of the differences the median is told, and the range that holds
their true median with `sure` percent: from the lowest to the highest but so many that chance alone explains them (sign
test). On a busy machine rows/s tell nothing about one percent; CPU time does.

CPU time is counted from the moment when the engine is ready, sampled from outside by the titles of processes: `direct`
is that of the driver, the replica and the counter, where all of watching's own code runs (but one message of each
prepare task and write task), `all` that of all processes of the run, with Ray's own. With an engine an image takes at
least ENGINE_MS of it (results.md, *Cores, places, the start and the collector*), so shares are of that.

`apart` measures watching's own code by itself. It needs no second way to compare with, so it tells something also on a
machine that is never quiet; messages to the counter are not in it.

Keys of the JSON: `<way>_rate` in rows/s, `<way>_direct_ms` and `<way>_all_ms` in CPU ms a row, medians; `ratio` of the
rows/s; `direct_more_ms` and `all_more_ms`, each also with `_low` and `_high`, likewise `ratio`; `sure`, in percent;
`sums_ms` and `add_ms` a batch, and `second_ms` a second, of watching's own code by itself; `load`, the load average
over one minute at the start, and `load_end`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
from alone import medians, moments, run_alone
from captioning import READY
from pipeline_overhead import SAMPLED_S, Figures, Spent
from sampled import DRIVER, sampled
from stub_ways import write_shards

from caprl_ray.rows.schema import FAILED_BEFORE
from caprl_ray.watch.counted import batch_of
from caprl_ray.watch.counter import Counter
from caprl_ray.watch.rates import Rates
from caprl_ray.watch.status import Run, Status
from caprl_ray.watch.status_file import content
from caprl_ray.watch.words import line

WAYS = ("unwatched", "watched")
DIRECT = (DRIVER, "replica", "counter")
DIFFER = ("direct", "all")
ENGINE_MS = 9.0
ROWS = 32  # of a batch
SURE = 0.95


def measure(way: str, images: Path, out: Path, count: int) -> Figures:
    """Run once."""
    spent = Spent(out / READY)
    with sampled(spent, SAMPLED_S):
        run_alone("stub_ways.py", way, images, out)
    last = max(file.stat().st_mtime for file in (out / "data").iterdir())
    ready = moments(out / READY)[0][0]
    return {
        f"{way}_rate": count / (last - ready),
        f"{way}_direct_ms": 1e3 * sum(spent.seconds[part] for part in DIRECT) / count,
        f"{way}_all_ms": 1e3 * spent.seconds.total() / count,
    }


def middle(values: list[float]) -> tuple[float, float, float, float]:
    """The median of some values, a range that holds the median of what they are drawn from, and how sure that is."""
    ordered, count = sorted(values), len(values)
    cut, outside = 0, 0.5**count * 2
    while (more := outside + 2 * comb(count, cut + 1) * 0.5**count) <= 1 - SURE:
        cut, outside = cut + 1, more
    return median(ordered), ordered[cut], ordered[count - 1 - cut], 1 - outside


def apart() -> Figures:
    """CPU ms of watching's own code by itself, without Ray: the sums of a batch and its addition, and what the driver
    does every second."""
    texts = {"key": "a/b.jpg", "caption": "a red circle left of two small blue squares on grey paper " * 20}
    columns: dict[str, Any] = {name: [text] * ROWS for name, text in texts.items()}
    columns |= {name: [260] * ROWS for name in ("prompt_tokens", "caption_tokens", "decoded_tokens", "decodes")}
    columns |= {name: pa.array([["loop"], *[[]] * (ROWS - 1)], pa.list_(pa.string())) for name in ("flags", "repaired")}
    columns |= {name: pa.nulls(ROWS, pa.string()) for name in ("code", FAILED_BEFORE.name)}
    rows, counter = pa.table(columns), Counter()
    batch = batch_of(rows)
    counter.add(batch)
    run = Run(output="out", run="r", lease=1)
    status = Status(run=run, at="", phase="running", before=0, failed_before=0, rates=Rates(), record=counter.record())
    return {
        "sums_ms": _cpu_ms(lambda: batch_of(rows)),
        "add_ms": _cpu_ms(lambda: counter.add(batch)),
        "second_ms": _cpu_ms(lambda: (counter.record(), line(status), content(status, ()))),
    }


def _cpu_ms(call: Callable[[], Any], times: int = 300) -> float:
    """The median CPU time of a call."""
    spent = []
    for _ in range(times):
        began = time.thread_time()
        call()
        spent.append(1e3 * (time.thread_time() - began))
    return median(spent)


def compared(rounds: list[Figures]) -> Figures:
    """What differs between the two ways, over all rounds."""
    differences = {
        "direct_more_ms": [one["watched_direct_ms"] - one["unwatched_direct_ms"] for one in rounds],
        "all_more_ms": [one["watched_all_ms"] - one["unwatched_all_ms"] for one in rounds],
        "ratio": [one["watched_rate"] / one["unwatched_rate"] for one in rounds],
    }
    figures: Figures = {}
    for name, values in differences.items():
        figures[name], figures[f"{name}_low"], figures[f"{name}_high"], sure = middle(values)
        figures["sure"] = 100 * sure
    return figures


def table(figures: Figures) -> None:
    """Print the ways, then what differs."""
    print(f"{'':<22}{'rows/s':>10}{'direct':>12}{'all':>12}   CPU ms a row")
    for way in WAYS:
        print(f"{way:<22}{figures[f'{way}_rate']:>10.0f}" + _ms(figures, f"{way}_direct_ms", f"{way}_all_ms"))
    print(f"{'watched - unwatched':<22}{figures['ratio']:>10.3f}" + _ms(figures, "direct_more_ms", "all_more_ms"))
    for end in ("low", "high"):
        named = f"  {end} ({figures['sure']:.0f} %)"
        print(f"{named:<22}{figures[f'ratio_{end}']:>10.3f}" + _ms(figures, *(f"{d}_more_ms_{end}" for d in DIFFER)))
    for name in DIFFER:
        more, most = (100 * figures[f"{name}_more_ms{end}"] / ENGINE_MS for end in ("", "_high"))
        print(f"{name}, beside an engine of {ENGINE_MS:g} ms an image: {more:+.2f} %, at most {most:.2f} %")
    sums, add = figures["sums_ms"], figures["add_ms"]
    a_row = (sums + add) / ROWS
    print(
        f"by itself: {sums:.3f} ms to sum a batch of {ROWS} rows up and {add:.3f} ms to add that to the counts, which"
    )
    print(f"is {a_row:.4f} ms a row, {100 * a_row / ENGINE_MS:.2f} %; and {figures['second_ms']:.3f} ms a second")
    print(f"load {figures['load']:.1f} at the start, {figures['load_end']:.1f} at the end")


def _ms(figures: Figures, *names: str) -> str:
    return "".join(f"{figures[name]:>12.4f}" for name in names)


def main() -> None:
    """Measure both ways in turns and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12_000, help="number of images")
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="rounds of both ways, 6 for 95 %%")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    load, rounds = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(prefix="watching-") as temporary:
        folder = Path(temporary)
        write_shards(folder / "shards", args.images)
        for number in range(args.rounds):
            found: Figures = {}
            try:
                for way in WAYS if number % 2 else WAYS[::-1]:
                    found |= measure(way, folder / "shards", folder / f"{way}-{number}", args.images)
                    time.sleep(2)  # the processes of the last run end
            except SystemExit as error:  # under load Ray may not start in its time
                sys.stderr.write(f"round {number} does not count: {str(error).strip().splitlines()[-1]}\n")
                continue
            rounds.append(found)
    figures = medians(rounds) | compared(rounds) | apart() | {"load": load, "load_end": os.getloadavg()[0]}
    table(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
