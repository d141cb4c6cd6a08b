"""`caprl-ray explain`: what a failure code or a flag means, usual causes, and what to do."""

import argparse

from caprl_ray.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add(
        "explain", _run, "print the meaning of a failure code or flag, its usual causes, and what to do"
    )
    command.add_argument("word", metavar="CODE|FLAG", help="a value of the columns code and flags")


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.explain import explain

    print("\n".join(explanation.text() for explanation in explain(args.word)))
    return 0
