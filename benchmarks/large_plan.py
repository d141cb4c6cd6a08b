"""Measure what a plan of millions of loose files costs: to store it, to load it, to read one unit, to know its paths.

    python benchmarks/large_plan.py [--millions 1 4] [--json FILE]

The plan is synthetic: names like those of a bucket, random ETags, a thousand files a unit. `plan.store` writes it to a
local folder. Each step runs in its own process:

    store       cut into parts and write them; the names are made up meanwhile
    load        what the driver holds of the plan
    known       the set of all planned paths, as `--extend` and a planning that goes on need it

Memory is the process's peak of resident memory. Seconds are of processor time, because listing is what takes the time.
From two sizes follows what each million more costs, and so what a hundred million would.

Keys of the JSON, where <case> is for example `4m`:

    <case>_<step>_cpu_s, <case>_<step>_mib          processor time and peak of memory
    <case>_parts, <case>_largest_bytes              objects of the plan, and the largest of them
    <case>_unit_bytes, <case>_unit_requests         what a read task fetches to load a unit, on average
    <case>_lookup_us                                processor time to see that a path is not known
    known_mib_100m                                  memory of `known` for a hundred million paths, extrapolated
    load                                            load average over one minute, at the start
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from counted import Counted

STEPS = ("store", "load", "known")
LOOKUPS, UNITS_LOADED = 100_000, 20


def main() -> None:
    """Measure all sizes and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 4], metavar="N", help="millions of files")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    parser.add_argument("--step", nargs=3, metavar=("STEP", "FOLDER", "UNITS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(measured(args.step[0], args.step[1], int(args.step[2]))))
        return
    figures = {"load": os.getloadavg()[0]}
    for millions in args.millions:
        figures |= figures_of(millions)
    first, last = min(args.millions), max(args.millions)
    if first < last:
        small, large = figures[f"{first}m_known_mib"], figures[f"{last}m_known_mib"]
        figures["known_mib_100m"] = large + (100 - last) * (large - small) / (last - first)
    table(figures, args.millions)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def figures_of(millions: int) -> dict[str, float]:
    """All figures of one size."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="large-plan-") as folder:
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, folder, str(1000 * millions)]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            figures |= {f"{millions}m_{name}": value for name, value in found.items()}
    print(", ".join(f"{name} {value:.1f}" for name, value in figures.items()), file=sys.stderr)
    return figures


def measured(step: str, folder: str, units: int) -> dict[str, float]:
    """Run one step in this process."""
    from caprl_ray import plan
    from caprl_ray.plan.known import PlannedPaths
    from caprl_ray.storage import Storage

    began, more = time.process_time(), {}
    if step == "store":
        plan.store(Storage(), folder, synthetic(units))
        sizes = [path.stat().st_size for path in Path(folder, plan.FOLDER).iterdir()]
        more = {"parts": len(sizes), "largest_bytes": max(sizes)}
    elif step == "load":
        refs = plan.load(Storage(), folder).units
    else:
        known = PlannedPaths(Storage(), folder)
    figures = {f"{step}_cpu_s": time.process_time() - began} | more
    figures[f"{step}_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if step == "load":
        storage = Counted()
        for ref in refs[:: len(refs) // UNITS_LOADED]:
            ref.load(storage)
        loaded = len(refs[:: len(refs) // UNITS_LOADED])
        figures |= {"unit_bytes": sum(storage.sizes) / loaded, "unit_requests": len(storage.sizes) / loaded}
    elif step == "known":
        began = time.process_time()
        if any(f"s3://bucket/other/{number}.jpg" in known for number in range(LOOKUPS)):
            sys.exit("a path is known that was never planned.")
        figures["lookup_us"] = (time.process_time() - began) / LOOKUPS * 1e6
    return figures


def synthetic(units: int) -> Iterator[object]:
    """Units of a thousand files each."""
    from caprl_ray.plan import Entry, Unit
    from caprl_ray.storage import Stored

    def entry(unit: int, number: int) -> Entry:
        key, content = f"{unit:06d}/{number:04d}.jpg", os.urandom(16).hex()
        stored = Stored(path=f"s3://bucket/images/{key}", size=100_000 + number, version=f'etag:"{content}"')
        return Entry(stored=stored, key=key)

    for unit in range(units):
        yield Unit(kind="files", rows=1000, entries=[entry(unit, number) for number in range(1000)])


def table(figures: dict[str, float], sizes: list[int]) -> None:
    """Print the figures, one line per size."""
    print(f"{'files':<8}" + "".join(f"{step:>22}" for step in STEPS) + f"{'parts':>8}{'largest':>10}{'a unit':>22}")
    for millions in sizes:
        case = f"{millions}m"
        print(f"{millions:>4} M  ", end="")
        for step in STEPS:
            cell = f"{figures[f'{case}_{step}_cpu_s']:.1f} s  {figures[f'{case}_{step}_mib']:.0f} MiB"
            print(f"{cell:>22}", end="")
        print(f"{figures[f'{case}_parts']:>8.0f}{figures[f'{case}_largest_bytes'] / 1e6:>7.1f} MB", end="")
        unit = f"{figures[f'{case}_unit_requests']:.1f} requests, {figures[f'{case}_unit_bytes'] / 1e3:.0f} kB"
        print(f"{unit:>22}")
    print(", ".join(f"{m} M: {figures[f'{m}m_lookup_us']:.1f} us a lookup" for m in sizes))
    if "known_mib_100m" in figures:
        print(f"known paths of 100 M files, extrapolated: {figures['known_mib_100m']:.0f} MiB")


if __name__ == "__main__":
    main()
