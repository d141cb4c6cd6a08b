"""Measure the cost of hostile files: run every case of tests/hostile through the real reader and the prepare stage.

    python benchmarks/hostile.py [--only TEXT] [--rounds 40] [--json FILE]

Each case runs in its own process, which has read a harmless image, shard and table before. `s` is wall-clock time and
`cpu` is CPU time (other jobs on the machine raise only the first). `MiB` is how far the case raised the peak of memory.

The second table shows the cost of the guards on ordinary photographs: the worker's prepare with and without guards in
turn, as medians of CPU time. The photographs come from scikit-learn or scikit-image if one of them is installed;
otherwise they are rendered pictures.

Exits with 1 if a case does not end as expected.

Keys of the JSON:

    <case>_as_expected, <case>_s, <case>_cpu_s, <case>_mib    1 or 0, seconds, seconds, MiB
    cases, as_expected                                        number of cases, and of those that end as expected
    most_s, most_cpu_s, most_mib                              the largest figure of each kind
    guards_<photograph>_on_ms, guards_<photograph>_off_ms     milliseconds of one prepare with guards and without
    guards_<photograph>_share, guards_share                   what guards add, as a share; the largest share
"""

import argparse
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Also for the fork server, from which the processes of the cases are forked.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

from prepare import picture  # noqa: E402 (found only with the paths above)

from caprl_ray.prepare import decode as preparing  # noqa: E402
from caprl_ray.prepare.sandbox import limited, outcome  # noqa: E402
from tests.hostile import case as hostile  # noqa: E402
from tests.hostile import images, shards, tables  # noqa: E402
from tests.hostile.case import Case  # noqa: E402

MODULES = {"images": images, "shards": shards, "tables": tables}
MAX_SECONDS = 120  # after this time the process of a case is killed
PHOTOGRAPHS = {"rendered_0.3mp": (640, 480), "rendered_1mp": (1152, 864), "rendered_12mp": (4000, 3000)}
LIMITS = preparing.Limits(max_bytes=64 * 2**20, max_source_pixels=178_956_970)


def cases(only: str) -> Iterator[Case]:
    """Every case whose name contains `only`."""
    for module in MODULES.values():
        yield from (case for case in module.cases() if only in case.name)


def harmless(folder: Path) -> list[Path]:
    """Write an ordinary file of each kind, to be read before a case."""
    contents = {
        "image.jpg": images.plain("JPEG"),
        "shard.tar": shards.shard("a.jpg"),
        "shard.tar.gz": shards.gzip.compress(shards.shard("a.jpg")),
        "table.parquet": tables.table({"image": tables.images()}),
    }
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def peak() -> float:
    """This process's peak of resident memory in MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def measure(path: Path, guarded: bool, before: list[Path], answer: Any) -> None:
    """Run one case in this process. Sends its outcome and its cost to `answer`."""
    os.chdir(path.parent)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (hides Pillow's messages about damaged files)
    for ordinary in before:
        assert hostile.outcome(ordinary).startswith(hostile.OK)
    memory, clock, cpu = peak(), time.perf_counter(), sum(os.times()[:4])
    got = hostile.outcome(path, guarded=guarded)
    answer.send((got, time.perf_counter() - clock, sum(os.times()[:4]) - cpu, peak() - memory))


def measured(case: Case, folder: Path, before: list[Path]) -> tuple[str, float, float, float]:
    """Run one case in a new process. Returns outcome, seconds, CPU seconds and MiB."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    path = case.write(folder)
    process = context.Process(target=measure, args=(path, case.guarded, before, theirs))
    process.start()
    theirs.close()
    try:
        found: tuple[str, float, float, float] = ours.recv() if ours.poll(MAX_SECONDS) else ("no end", 0.0, 0.0, 0.0)
    except EOFError:
        process.join()
        found = (f"process ended with {process.exitcode}", 0.0, 0.0, 0.0)
    process.kill()
    process.join()
    path.unlink()
    return found


def table_of_cases(only: str) -> dict[str, float]:
    """Measure and print every case."""
    figures: dict[str, float] = {}
    print(f"{'case':<36}{'s':>7}{'cpu':>7}{'MiB':>7}  got")
    with tempfile.TemporaryDirectory() as folder:
        before = harmless(Path(folder) / "harmless")
        for case in cases(only):
            got, seconds, cpu, memory = measured(case, Path(folder), before)
            good = got == case.expected
            said = "as expected: " + got if good else f"{got}, BUT EXPECTED: {case.expected}"
            print(f"{case.name:<36}{seconds:>7.2f}{cpu:>7.2f}{memory:>7.0f}  {said}", flush=True)
            figures |= {f"{case.name}_as_expected": int(good), f"{case.name}_s": seconds}
            figures |= {f"{case.name}_cpu_s": cpu, f"{case.name}_mib": memory}
    return figures | summary(figures)


def summary(figures: dict[str, float]) -> dict[str, float]:
    """The number of cases that end as expected, and the largest figure of each kind."""
    good = [value for key, value in figures.items() if key.endswith("_as_expected")]
    most = {
        f"most{unit}": max(value for key, value in figures.items() if key.endswith(unit) and clock(key) == clock(unit))
        for unit in ("_s", "_cpu_s", "_mib")
    }
    return {"cases": len(good), "as_expected": sum(good)} | most


def clock(key: str) -> bool:
    """Whether the key of a figure means wall-clock seconds."""
    return key.endswith("_s") and not key.endswith("_cpu_s")


def photographs() -> dict[str, bytes]:
    """Ordinary photographs as JPEG, and one picture as PNG."""
    found = real_photographs()
    if not found:
        found = {name: images.encode(picture(*size), "JPEG", quality=90) for name, size in PHOTOGRAPHS.items()}
    return found | {"rendered_1mp_png": images.encode(picture(1152, 864), "PNG")}


def real_photographs() -> dict[str, bytes]:
    """Photographs that are part of other installed packages."""
    places = [("sklearn", "datasets/images"), ("skimage", "data")]
    folders = [
        Path(spec.origin).parent / folder for name, folder in places if (spec := find_spec(name)) and spec.origin
    ]
    paths = [path for folder in folders for path in sorted(folder.glob("*.jp*g"))]
    contents = {path.stem: path.read_bytes() for path in paths}
    return {name: content for name, content in contents.items() if min(Image.open(io.BytesIO(content)).size) > 300}


@contextmanager
def no_guards() -> Iterator[None]:
    """Remove all checks from `prepare`."""
    nothing: dict[str, Callable[..., Any]] = {
        "_check_bytes": lambda *_: None,
        "_ends_early": lambda *_: False,
        "without_extras": lambda _, image: image,
        "_check_header": lambda *_: None,
        "check_scans": lambda *_: None,
        "_decoding": lambda *_: nullcontext(),
    }
    silence = mock.patch("warnings.catch_warnings", return_value=nullcontext())
    with mock.patch.multiple(preparing, **nothing), silence:
        yield


def table_of_guards(rounds: int) -> dict[str, float]:
    """Measure and print the cost of the guards."""
    figures: dict[str, float] = {}
    print(f"\n{'photograph':<24}{'guards on':>12}{'off':>12}{'share':>8}")
    for name, content in photographs().items():
        decode = partial(preparing.prepare, rule=hostile.RULE, limits=LIMITS)
        times: dict[bool, list[float]] = {True: [], False: []}
        for number in range(2 * rounds):
            on = number % 4 in (0, 3)  # on, off, off, on: neither always comes second
            with nullcontext() if on else no_guards():
                began = time.process_time()
                with limited(30) if on else nullcontext():
                    outcome(decode, content)
                times[on].append(time.process_time() - began)
        with_guards, without = median(times[True]) * 1000, median(times[False]) * 1000
        share = with_guards / without - 1
        print(f"{name:<24}{with_guards:>9.2f} ms{without:>9.2f} ms{share:>8.1%}", flush=True)
        key = f"guards_{name}"
        figures |= {f"{key}_on_ms": with_guards, f"{key}_off_ms": without, f"{key}_share": share}
    return figures | {"guards_share": max(value for key, value in figures.items() if key.endswith("_share"))}


def main() -> None:
    """Measure, print both tables, and exit with 1 if a case does not end as expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only cases whose name contains this text")
    parser.add_argument(
        "--rounds", type=int, default=40, help="measurements of each photograph with guards, and as many without"
    )
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.hostile.case"])
    figures = table_of_cases(args.only)
    print(
        f"{figures['as_expected']:.0f} of {figures['cases']:.0f} as expected; at most {figures['most_s']:.2f} s "
        f"({figures['most_cpu_s']:.2f} s of processor) and {figures['most_mib']:.0f} MiB"
    )
    figures |= table_of_guards(args.rounds)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(figures["as_expected"] < figures["cases"])


if __name__ == "__main__":
    main()
