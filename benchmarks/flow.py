"""Measure how long an engine's places (the sequences that it runs at once) stay empty, during a run and at its end.

    python benchmarks/flow.py [--images 3000] [--places 64] [--seconds 0.5-4] [--json FILE]

The stub engine has --places places. Each caption takes its own time: most are short, one in twenty takes over 80 % of
the longest. Images are held back until the engine is ready (stub_ways.py). `best` is the shortest time in which this
number of places can write the captions in the given order. `idle` is the share of the pipeline's time beyond that.

    caprl_ray   the package's own number of batches in flight (concurrency.batches_in_flight)
    twice       at most twice as many rows in flight as places

Keys of the JSON: `best_s`, and for both ways `<way>_s` and `<way>_idle` (a share between 0 and 1).
"""

import argparse
import heapq
import json
import os
import tempfile
from pathlib import Path

from alone import moments, run_alone
from captioning import READY
from stub_ways import images, write_shards

from caprl_ray.engines.stub import SECONDS, stub_seconds

WAYS = {"caprl_ray": "flow", "twice": "flow_twice"}

Figures = dict[str, float]


def best(lengths: list[float], places: int) -> float:
    """Seconds to the end of the last caption, if each caption begins in the place that is free first."""
    ends = [0.0] * places
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def measure(way: str, shards: Path, out: Path, lengths: list[float], places: int) -> Figures:
    """Run one way once."""
    _, finished, _ = run_alone("stub_ways.py", WAYS[way], shards, out)
    ready = moments(out / READY)[0][0]
    seconds, shortest = finished[-1] - ready, best(lengths, places)
    return {"best_s": shortest, f"{way}_s": seconds, f"{way}_idle": 1 - shortest / seconds}


def table(figures: Figures) -> None:
    """Print the figures, one line per way."""
    print(f"{'':<12}{'seconds':>10}{'best':>10}{'idle':>10}")
    for way in WAYS:
        seconds, idle = figures[f"{way}_s"], 100 * figures[f"{way}_idle"]
        print(f"{way:<12}{seconds:>10.1f}{figures['best_s']:>10.1f}{idle:>8.1f} %")


def main() -> None:
    """Measure both ways and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000, help="number of images")
    parser.add_argument("--places", type=int, default=64, help="sequences that the engine runs at once")
    parser.add_argument("--seconds", default="0.5-4", help="time of the shortest and of the longest caption")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    shortest, longest = map(float, args.seconds.split("-"))
    lengths = [stub_seconds(image, shortest, longest) for image in images(args.images)]
    os.environ |= {SECONDS: args.seconds, "PLACES": str(args.places)}
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="flow-") as temporary:
        folder = Path(temporary)
        write_shards(folder / "shards", args.images)
        for way in WAYS:
            figures |= measure(way, folder / "shards", folder / way, lengths, args.places)
    table(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
