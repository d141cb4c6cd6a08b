"""Run seeded chaos by hand and print a table: `python -m tests.chaos --runs 200`, or `make chaos N=200`.

Exits with 1 if an output is wrong after any run, or if a kind of fault never fired.
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos.arena import Outcome, new_arena
from tests.chaos.schedule import KINDS, STORAGE, draw


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="how many runs (default: 20)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="seed of the first run (default: 0)")
    parser.add_argument("--model", default="stub", choices=["stub", "embedded"], help="what captions (default: stub)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster ends with this process
    outcomes = []
    print(f"{'seed':>6} {'seconds':>8} {'drivers':>8} {'S3 faults':>10} {'read again':>11}  faults")
    with tempfile.TemporaryDirectory() as folder, new_arena(Path(folder), args.model) as arena:
        for seed in range(args.first, args.first + args.runs):
            outcomes.append(arena.run(draw(seed)))
            print(line(outcomes[-1]), flush=True)
    struck = {kind: strikes(kind, outcomes) for kind in KINDS}
    print("struck: " + ", ".join(f"{kind} {count}" for kind, count in struck.items()))
    wrong = [outcome.seed for outcome in outcomes if outcome.problem]
    print(f"{len(outcomes) - len(wrong)} of {len(outcomes)} outputs are right" + (f"; not {wrong}" if wrong else ""))
    unproven = args.runs >= len(KINDS) and not all(struck.values())
    return 1 if wrong or unproven else 0


def line(outcome: Outcome) -> str:
    """One run's line."""
    faults = "; ".join([*outcome.fired, *(f"NOT {kill}" for kill in outcome.missed)])
    figures = f"{outcome.seed:>6} {outcome.seconds:>8.1f} {outcome.drivers:>8} {outcome.storage_faults:>10}"
    return f"{figures} {outcome.read_again:>11}  {faults}" + (
        f"\n  WRONG: {outcome.problem}" if outcome.problem else ""
    )


def strikes(kind: str, outcomes: list[Outcome]) -> int:
    """How many times a kind of fault fired."""
    if kind == STORAGE:
        return sum(outcome.storage_faults for outcome in outcomes)
    return sum(fired.startswith(kind) for outcome in outcomes for fired in outcome.fired)


if __name__ == "__main__":
    sys.exit(main())
