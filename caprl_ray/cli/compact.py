"""`caprl-ray compact`: merge the objects of finished units of an output."""

import argparse

from caprl_ray.cli.arguments import Commands, add_output, opened


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("compact", _run, "merge the parquet files of an output into one per work unit")
    add_output(command)
    command.add_argument("--dry-run", action="store_true", help="only print the number of files before and after")


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.cluster import session
    from caprl_ray.output import lease
    from caprl_ray.output.compact import compact, planned
    from caprl_ray.output.grouping import said
    from caprl_ray.watch.steps import Steps

    (storage, stored), tell = opened(args), Steps()
    if args.dry_run:
        with session.lasting(args.debug):
            found = planned(storage, args.output, stored, tell)
    else:
        # Disconnect from Ray before releasing the lease: tasks of a stopped run may still be writing.
        with lease.held(storage, args.output) as own, session.lasting(args.debug):
            found = compact(storage, args.output, stored, own, tell)
    print(f"{args.output}: {said(found, 'would be about' if args.dry_run else 'are')}")
    return 0
