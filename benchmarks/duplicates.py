"""Measure time and memory of `caprl-ray duplicates` on synthetic outputs.

    python benchmarks/duplicates.py [--rows 1 10] [--folder DIR] [--keep] [--json FILE]

The job's own plan and sink write outputs of --rows million rows with the default of 2,048 rows per object
(synthetic_output.py). `different`: every row has its own image and caption of 256 characters, but for one row in a
hundred that has the one placeholder, and one in fifty that repeats another row's image. `alike`: 2,048 images and one
caption, again and again, which is the worst for memory that grows with a group. Both write the list of repeated rows.

Memory is the peak of resident memory of the process. `temporary` is the sampled peak of the temporary files, without
the list.

Keys of the JSON, where <case> is <different|alike>_<millions>m:

    <case>_s, <case>_driver_mib, <case>_temporary_mib, <case>_objects, <case>_rows
    load                                                    load average over one minute, at the start
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import threading
from pathlib import Path

import synthetic_output
from resume import MIB, drop_from_cache
from synthetic_output import Synthetic
from watched import watched

CASES = ("different", "alike")
SAMPLED_S = 0.5


class Largest(threading.Thread):
    """Samples the size of the temporary files below a folder until it is stopped."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._folder = folder
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(SAMPLED_S):
            sizes = (os.stat(p).st_size for p in self._folder.rglob("[0-9]" * 5) if p.exists())
            self.bytes = max(self.bytes, sum(sizes))

    def stop(self) -> None:
        """End the sampling."""
        self._ended.set()
        self.join()


def figures_of(output: Synthetic, case: str) -> dict[str, float]:
    """Measure one output."""
    rows = synthetic_output.write(output)
    drop_from_cache(output.out)
    with tempfile.TemporaryDirectory(prefix="duplicates-", dir=output.folder) as temporary:
        command = [sys.executable, "-m", "caprl_ray", "duplicates", str(output.out), "--temp", temporary]
        largest = Largest(Path(temporary))
        largest.start()
        seen = watched([*command, "--list", f"{temporary}/list.parquet"], Path(temporary) / "log.txt")
        largest.stop()
    return {
        f"{case}_s": seen.ended - seen.began,
        f"{case}_driver_mib": seen.driver / MIB,
        f"{case}_temporary_mib": largest.bytes / MIB,
        f"{case}_objects": sum(1 for _ in output.out.glob("data/*.parquet")),
        f"{case}_rows": rows,
    }


def table(figures: dict[str, float], cases: list[str]) -> None:
    """Print the figures, one line a case."""
    print(f"{'':<20}" + "".join(f"{name:>14}" for name in ("objects", "seconds", "memory", "temporary")))
    for case in cases:
        f = {name.removeprefix(f"{case}_"): value for name, value in figures.items()}
        cells = [
            f"{f['objects']:.0f}",
            f"{f['s']:.1f} s",
            f"{f['driver_mib']:.0f} MiB",
            f"{f['temporary_mib']:.0f} MiB",
        ]
        print(f"{case:<20}" + "".join(f"{cell:>14}" for cell in cells))


def main() -> None:
    """Write and measure all cases, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 10], metavar="N", help="millions of planned rows")
    parser.add_argument("--folder", type=Path, help="folder for the outputs (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the outputs in --folder")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    if min(args.rows) < 1 or (args.keep and not args.folder):
        parser.error("--rows is at least 1, and --keep needs --folder")
    figures, cases = {"load": os.getloadavg()[0]}, []
    with tempfile.TemporaryDirectory(prefix="duplicates-", dir=args.folder) as temporary:
        folder = args.folder if args.keep else Path(temporary)
        for millions, case in itertools.product(args.rows, CASES):
            output = Synthetic(folder=folder, rows=millions * 1_000_000, layout="mixed", different=case == "different")
            cases.append(f"{case}_{millions}m")
            figures |= figures_of(output, cases[-1])
            print({k: round(v, 2) for k, v in figures.items() if k.startswith(cases[-1])}, file=sys.stderr)
    table(figures, cases)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
