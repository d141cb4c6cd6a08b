"""How much of an engine's places stay empty: the engine's idle time, in the run and at its end.

    python benchmarks/flow.py [--images 3000] [--places 64] [--seconds 0.5-4] [--json FILE]

The stub engine has as many places as an engine runs sequences at once, and every caption takes its own time: most are
short, one in twenty takes over 80 % of the longest. Images are held back until the engine is ready (stub_ways.py).
`best` is the shortest time in which so many places can write these captions, taken one after another as they come;
`idle` is the share of the pipeline's time that is over that.

    caprl_ray   batches in flight as the package has them (engines.batches_in_flight)
    twice       no more rows in flight than twice the places

Keys of the JSON: `best_s`, and `<way>_s`, `<way>_idle` (a share of 1) for both ways.
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
    """The end of the last caption when each begins in the place that is free first."""
    ends = [0.0] * places
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def measure(way: str, shards: Path, out: Path, lengths: list[float], places: int) -> Figures:
    """One run."""
    _, finished, _ = run_alone("stub_ways.py", WAYS[way], shards, out)
    ready = moments(out / READY)[0][0]
    seconds, shortest = finished[-1] - ready, best(lengths, places)
    return {"best_s": shortest, f"{way}_s": seconds, f"{way}_idle": 1 - shortest / seconds}


def table(figures: Figures) -> None:
    """Print the figures, a way a line."""
    print(f"{'':<12}{'seconds':>10}{'best':>10}{'idle':>10}")
    for way in WAYS:
        seconds, idle = figures[f"{way}_s"], 100 * figures[f"{way}_idle"]
        print(f"{way:<12}{seconds:>10.1f}{figures['best_s']:>10.1f}{idle:>8.1f} %")


def main() -> None:
    """Measure both ways, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--places", type=int, default=64, help="sequences that the engine runs at once")
    parser.add_argument("--seconds", default="0.5-4", help="of the shortest and of the longest caption")
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
