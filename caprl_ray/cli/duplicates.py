"""`caprl-ray duplicates`: show which images and captions an output repeats."""

import argparse
import json

from caprl_ray.cli.arguments import Commands, add_output, check_file


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("duplicates", _run, "show repeated images and captions of an output")
    add_output(command)
    command.add_argument("--json", metavar="FILE", help="write the result to this file as JSON")
    command.add_argument(
        "--list",
        metavar="FILE",
        help="write the rows with repeated images to this parquet file: id, group, keep",
    )
    command.add_argument("--temp", metavar="DIR", help="folder for temporary files, 50 to 100 bytes per row")


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.commands.duplicates import duplicates
    from caprl_ray.recipe.load import parse_storage
    from caprl_ray.storage import Storage
    from caprl_ray.watch.steps import Steps

    storage = Storage(parse_storage(args.overrides))
    check_file("--json", args.json)
    check_file("--list", args.list)
    found = duplicates(storage, args.output, listing=args.list, temporary=args.temp, tell=Steps())
    if args.json:
        storage.put(args.json, json.dumps(found.report(), indent=1).encode())
    print(found.summary())
    return 0
