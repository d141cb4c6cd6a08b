"""Seconds, memory and requests of planning from S3, beside a bare boto3 listing of the same bucket.

    python benchmarks/plan.py [--thousands 1000] [--latency 0 50] [--cases flat prefixes shards] [--json FILE]

A server on loopback, in a process of its own, answers listings of

    flat        a million loose files in one prefix
    prefixes    a million loose files in a thousand sub-prefixes
    shards      a tenth as many tar shards in one prefix

each page so many milliseconds later as --latency says. Three ways, each in a process of its own, one after another:

    boto3       the paginator of list_objects_v2, whose answers nobody uses
    listed      the listing as planning asks for it
    planned     listed, cut into units, stored to a local folder, and loaded again

Seconds count from the start of the process, memory is its highest resident set. Of the stored plan: its bytes, and the
bytes and requests with which a read task loads a unit of it from a bucket.

Keys of the JSON, where <case> is such as `flat_50ms`, and <way> one of the three:

    <case>_<way>_s, <case>_<way>_mib, <case>_<way>_requests
    <case>_listed_ratio, <case>_planned_ratio      seconds, over those of boto3
    <case>_plan_bytes, <case>_plan_load_s          the stored plan, and seconds to load its units
    <case>_unit_bytes, <case>_unit_requests        what a read task fetches to load a unit in the middle of the plan
    load                                           of the machine at the start, a minute's
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from counted import Counted
from listing_server import LAYOUTS
from plan_ways import WAYS
from watched import watched

from caprl_ray import plan

MIB = 2**20
FOLDERS = {"flat": "images/", "prefixes": "images/", "shards": "shards/"}


@contextmanager
def server(layout: str, keys: int, latency: float) -> Iterator[str]:
    """The listing server, until the end; its address."""
    script = Path(__file__).with_name("listing_server.py")
    command = [sys.executable, str(script), layout, str(keys), str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def figures_of(case: str, layout: str, keys: int, latency: float) -> dict[str, float]:
    """Every figure of one case."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="plan-") as temporary, server(layout, keys, latency) as endpoint:
        out, log = Path(temporary) / "out", Path(temporary) / "log.txt"
        for way in WAYS:
            urlopen(f"{endpoint}/requests").read()
            script = Path(__file__).with_name("plan_ways.py")
            seen = watched([sys.executable, str(script), way, endpoint, FOLDERS[layout], str(out)], log)
            if int(log.read_text()) != keys:
                sys.exit(f"{way} found {log.read_text()} objects of {keys}.")
            figures |= {f"{case}_{way}_s": seen.ended - seen.began, f"{case}_{way}_mib": seen.driver / MIB}
            figures[f"{case}_{way}_requests"] = int(urlopen(f"{endpoint}/requests").read())
        for way in ("listed", "planned"):
            figures[f"{case}_{way}_ratio"] = figures[f"{case}_{way}_s"] / figures[f"{case}_boto3_s"]
        return figures | loaded(case, str(out))


def loaded(case: str, out: str) -> dict[str, float]:
    """What it costs to load the plan, and one unit of it."""
    storage = Counted()
    (stored,) = storage.objects(f"{out}/plan", ".parquet")
    began = time.perf_counter()
    units = plan.load(storage, out).units
    seconds = time.perf_counter() - began
    storage.sizes.clear()
    units[len(units) // 2].load(storage)
    return {
        f"{case}_plan_bytes": stored.size,
        f"{case}_plan_load_s": seconds,
        f"{case}_unit_bytes": sum(storage.sizes),
        f"{case}_unit_requests": len(storage.sizes),
    }


def table(figures: dict[str, float], cases: list[str]) -> None:
    """Print the figures, a way of a case a line."""
    print(f"{'':<24}" + "".join(f"{name:>12}" for name in ("seconds", "x boto3", "memory", "requests")))
    for case in cases:
        for way in WAYS:
            ratio = figures.get(f"{case}_{way}_ratio", 1.0)
            cells = [f"{figures[f'{case}_{way}_s']:.1f} s", f"{ratio:.2f}", f"{figures[f'{case}_{way}_mib']:.0f} MiB"]
            print(f"{f'{case} {way}':<24}" + "".join(f"{c:>12}" for c in cells), end="")
            print(f"{figures[f'{case}_{way}_requests']:>12.0f}")
        size, seconds, requests, fetched = (
            figures[f"{case}_{name}"] for name in ("plan_bytes", "plan_load_s", "unit_requests", "unit_bytes")
        )
        print(
            f"  plan of {size / 1e6:.1f} MB, loaded in {seconds:.2f} s; "
            f"a unit in {requests:.0f} requests of {fetched / 1e3:.0f} kB together"
        )


def main() -> None:
    """Measure every case, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thousands", type=int, default=1000, metavar="N", help="thousands of loose files")
    parser.add_argument("--latency", type=float, nargs="+", default=[0, 50], metavar="MS", help="of each page")
    parser.add_argument("--cases", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="fewer than all")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    if args.thousands < 1:
        parser.error("--thousands is at least 1")
    figures, cases = {"load": os.getloadavg()[0]}, []
    for latency in args.latency:
        for layout in args.cases:
            cases.append(f"{layout}_{latency:.0f}ms")
            keys = args.thousands * (100 if layout == "shards" else 1000)
            found = figures_of(cases[-1], layout, keys, latency)
            print(", ".join(f"{name} {value:.1f}" for name, value in found.items()), file=sys.stderr)
            figures |= found
    table(figures, cases)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
