"""Measure seconds, memory and requests of planning from S3, compared with a bare boto3 listing of the bucket.

    python benchmarks/plan.py [--thousands 1000] [--latency 0 50] [--cases flat prefixes shards] [--json FILE]

A server on loopback, in its own process, answers listings of one of these layouts:

    flat        a million loose files in one prefix
    prefixes    a million loose files in a thousand sub-prefixes
    shards      a tenth as many tar shards in one prefix

It delays each page by --latency milliseconds. Three ways, each in its own process, one after another:

    boto3       the paginator of list_objects_v2; the answers are not used
    listed      the listing as planning does it
    planned     list, cut into units, store in a local folder, and load again

Seconds count from the start of the process. Memory is its peak of resident memory. The plan's figures are its size in
bytes, and the bytes and requests that a read task needs to load one of its units from a bucket.

Keys of the JSON, where <case> is for example `flat_50ms`, and <way> one of the three:

    <case>_<way>_s, <case>_<way>_mib, <case>_<way>_requests
    <case>_listed_ratio, <case>_planned_ratio      seconds, divided by those of boto3
    <case>_plan_bytes, <case>_plan_load_s          size of the stored plan, and seconds to load its units
    <case>_unit_bytes, <case>_unit_requests        what a read task fetches to load a unit in the middle of the plan
    load                                           the machine's load average over one minute, at the start
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
    """Run the listing server inside the block. Yields its address."""
    script = Path(__file__).with_name("listing_server.py")
    command = [sys.executable, str(script), layout, str(keys), str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def figures_of(case: str, layout: str, keys: int, latency: float) -> dict[str, float]:
    """Measure all figures of one case."""
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
    """The cost of loading the plan, and of loading one of its units."""
    storage = Counted()
    parts = storage.objects(f"{out}/plan", ".parquet")
    began = time.perf_counter()
    units = plan.load(storage, out).units
    seconds = time.perf_counter() - began
    storage.sizes.clear()
    units[len(units) // 2].load(storage)
    return {
        f"{case}_plan_bytes": sum(part.size for part in parts),
        f"{case}_plan_load_s": seconds,
        f"{case}_unit_bytes": sum(storage.sizes),
        f"{case}_unit_requests": len(storage.sizes),
    }


def table(figures: dict[str, float], cases: list[str]) -> None:
    """Print the figures, one line per case and way."""
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
    """Measure all cases and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thousands", type=int, default=1000, metavar="N", help="thousands of loose files")
    parser.add_argument("--latency", type=float, nargs="+", default=[0, 50], metavar="MS", help="delay of each page")
    parser.add_argument("--cases", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="measure only these layouts")
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
