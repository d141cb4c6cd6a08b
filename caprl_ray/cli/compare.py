"""`caprl-ray compare`: write a page about the same images under two recipes."""

import argparse

from caprl_ray.cli.arguments import Commands, add_store, check_file, check_store, positive
from caprl_ray.cli.report import add_page, put


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("compare", _run, "write a page about the same images under two recipes, side by side")
    command.add_argument("first", metavar="OUT_A", help="output folder")
    command.add_argument("second", metavar="OUT_B", help="output folder of another recipe and the same input")
    add_store(command, "s3:// outputs")
    add_page(command, "OUT_B/report/compare.html")
    command.add_argument("--images", type=positive, default=160, metavar="N", help="number of images (default: 160)")


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.recipe.load import parse_storage
    from caprl_ray.report.compare import compare
    from caprl_ray.storage import Storage, join
    from caprl_ray.watch.steps import Steps

    storage, to = Storage(parse_storage(args.overrides)), args.to or join(args.second, "report", "compare.html")
    check_store(storage.settings, args.first, args.second, to)
    check_file("--to", args.to)
    found = compare(
        storage,
        args.first,
        args.second,
        images=args.images,
        seconds=args.images_s,
        old_column=args.old_column,
        tell=Steps(),
    )
    print(found.summary)
    put(storage, to, found.page)
    return 0
