"""Measure what it costs to be watched: the pipeline with its counts, view, status.json and metrics, and without them.

    python benchmarks/watching.py [--images 20000] [--repeat 3] [--json FILE]

Images of 101 kB in shards pass through the whole pipeline, as in pipeline_overhead.py. The stub engine answers at once
and prepare does not decode, so every message weighs a hundred times as much as beside an engine. The two ways take
turns. `unwatched` counts only the rows and failures that the circuit breaker needs, and tells nobody.

CPU time is that of all processes of a run from the moment when its engine is ready. With an engine an image takes at
least ENGINE_MS of it (results.md, *Cores, places, the start and the collector*), so `share` is what watching adds to
that. Keys of the JSON: `<way>` in rows/s, `<way>_ms` in CPU ms a row, `ratio` of the rows/s, `more_ms`, `share`.
Figures are medians over the rounds.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from alone import medians, moments, run_alone
from captioning import READY
from pipeline_overhead import SAMPLED_S, Figures, Spent
from sampled import sampled
from stub_ways import write_shards

WAYS = ("unwatched", "watched")
ENGINE_MS = 9.0


def measure(way: str, images: Path, out: Path, count: int) -> Figures:
    """Run once."""
    spent = Spent(out / READY)
    with sampled(spent, SAMPLED_S):
        run_alone("stub_ways.py", way, images, out)
    last = max(file.stat().st_mtime for file in (out / "data").iterdir())
    ready = moments(out / READY)[0][0]
    return {way: count / (last - ready), f"{way}_ms": 1e3 * spent.seconds.total() / count}


def main() -> None:
    """Measure both ways in turns and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="number of images")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds; the figures are medians over them")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    rounds: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="watching-") as temporary:
        folder = Path(temporary)
        write_shards(folder / "shards", args.images)
        for number in range(args.repeat):
            for way in WAYS if number % 2 else WAYS[::-1]:
                rounds.append(measure(way, folder / "shards", folder / f"{way}-{number}", args.images))
                time.sleep(2)  # the processes of the last run end
    figures = medians(rounds)
    more = figures["watched_ms"] - figures["unwatched_ms"]
    figures |= {"ratio": figures["watched"] / figures["unwatched"], "more_ms": more, "share": more / ENGINE_MS}
    for way in WAYS:
        print(f"{way:<12}{figures[way]:>10.0f} rows/s{figures[f'{way}_ms']:>10.3f} CPU ms a row")
    print(f"watched / unwatched {figures['ratio']:.3f} of the rows/s; {more:+.3f} CPU ms a row,")
    print(f"which is {100 * figures['share']:+.2f} % beside an engine that takes {ENGINE_MS:g} ms")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
