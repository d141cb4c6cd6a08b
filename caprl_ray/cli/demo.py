"""`caprl-ray demo`: caption rendered scenes with the embedded model and check the captions."""

import argparse
from pathlib import Path

from caprl_ray.cli.arguments import Commands, positive


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("demo", _run, "caption rendered scenes with the embedded model and check the captions")
    command.add_argument("--images", type=positive, default=500, metavar="N", help="number of scenes (default: 500)")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="folder for the images and the output (default: demo)",
    )


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.commands.demo import run_demo

    return run_demo(args.out, args.images, debug=args.debug)
