"""`caprl-ray verify`: check that every planned image is in the output exactly once."""

import argparse

from caprl_ray.cli.arguments import Commands, add_output, opened


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("verify", _run, "check that every planned image is in the output exactly once")
    add_output(command)
    command.add_argument(
        "--repair",
        action="store_true",
        help="remove duplicated rows, failed rows that a retry has replaced, and late and doubtful rows",
    )
    command.add_argument("--json", action="store_true", help="print the whole ledger as JSON")


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.output import again, doubtful, fence, lease, ledger, parts
    from caprl_ray.output.committed import read_committed
    from caprl_ray.output.record import read_run, stored_job
    from caprl_ray.output.repair import repair
    from caprl_ray.rows.schema import row_id
    from caprl_ray.watch.steps import Steps

    (storage, stored), tell = opened(args), Steps()
    if args.repair:
        with lease.held(storage, args.output):
            doubtful.settle(storage, args.output)
            fence.sweep(storage, args.output)
            again.settled(storage, args.output)
            repair(storage, args.output, read_committed(storage, args.output, tell=tell), tell)
    job, committed = stored_job(read_run(storage, args.output) or {}), read_committed(storage, args.output, tell=tell)
    balance = ledger.balance(stored.units, committed, job["done"], job["noun"], stored.left_out)
    balanced = balance.balanced and stored.complete
    holders = lease.holders(storage, args.output)
    written, shares = parts.living(holders), parts.shares(holders, balance)
    late, sick = fence.late_objects(storage, args.output), doubtful.standing(storage, args.output, committed)
    more = {
        "balanced": balanced,
        "plan_complete": stored.complete,
        "late_objects": [written.path for written in late],
        "doubtful_rows": [row_id(unit, index) for unit, rows in sorted(sick.items()) for index in rows],
    }
    if shares:
        more |= {"parts": [share.short() for share in shares], "parts_written": [str(part) for part in written]}
    unplanned = "" if stored.complete else "; the input is not planned to its end: run the same command again"
    for line in balance.lines(more) if args.json else [f"{args.output}: {balance.summary()}{unplanned}"]:
        print(line)
    for share in shares if not args.json else ():
        print(f"{args.output}: {share.summary()}")
    if written and not args.json:
        print(f"{args.output}: {parts.being_written(written)}")
    if late and not args.json:
        print(
            f"{args.output}: late objects of a lost run: {len(late)}, such as {late[0].path}; they do not count, but "
            "tools that read the folder directly see their rows twice. The next run or verify --repair removes them."
        )
    if sick and not args.json:
        print(
            f"{args.output}: {doubtful.named(sick)}, whose captions cannot be trusted; the next run does them again, "
            "and verify --repair removes them."
        )
    return 0 if balanced and not late and not sick else 3
