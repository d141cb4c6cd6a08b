"""`caprl-ray preflight`: try a recipe on a few images."""

import argparse

from caprl_ray.cli.arguments import Commands, add_recipe


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    add_recipe(commands.add("preflight", _run, "try a recipe on a few images; leaves nothing behind"))


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.commands.preflight import preflight
    from caprl_ray.recipe.load import load

    return preflight(load(args.recipe, args.overrides), debug=args.debug)
