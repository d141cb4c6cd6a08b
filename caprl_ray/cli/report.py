"""`caprl-ray report`: write a page about an output: ledger, plots, failures, and images beside their captions."""

import argparse
from typing import TYPE_CHECKING

from caprl_ray.cli.arguments import Commands, add_output, check_file, check_store, positive

if TYPE_CHECKING:
    from caprl_ray.storage import Storage


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add(
        "report", _run, "write a page about an output: ledger, plots, failures, and images beside their captions"
    )
    add_output(command)
    add_page(command, "OUT/report/index.html")
    command.add_argument("--images", type=positive, default=480, metavar="N", help="number of images (default: 480)")


def add_page(command: argparse.ArgumentParser, default: str) -> None:
    """Add the arguments of a page with images."""
    command.add_argument("--to", metavar="FILE", help=f"the page, local or s3:// (default: {default})")
    command.add_argument(
        "--images-s", type=positive, default=60, metavar="S", help="most seconds for reading images (default: 60)"
    )
    command.add_argument(
        "--old-column", metavar="NAME", help="the source's column with the old text (default: found by its name)"
    )


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.recipe.load import parse_storage
    from caprl_ray.report.report import PLACE, report
    from caprl_ray.storage import Storage, join
    from caprl_ray.watch.steps import Steps

    storage, to = Storage(parse_storage(args.overrides)), args.to or join(args.output, *PLACE)
    check_store(storage.settings, args.output, to)
    check_file("--to", args.to)
    page = report(
        storage, args.output, images=args.images, seconds=args.images_s, old_column=args.old_column, tell=Steps()
    )
    put(storage, to, page)
    return 0


def put(storage: "Storage", to: str, page: str) -> None:
    """Write a page and say where it is."""
    storage.put(to, page.encode())
    print(f"{to} ({len(page.encode()) / 2**20:.1f} MiB)")
