"""`caprl-ray init`: write a recipe for what is found at some paths."""

import argparse

from caprl_ray.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("init", _run, "inspect the files at the given paths and write a recipe for them")
    command.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="input paths, local or s3://, and overrides such as storage.region=us-east-1; without a path, the recipe "
        "has every field",
    )
    command.add_argument(
        "--out", default="recipe.yaml", metavar="FILE", help="file of the recipe (default: recipe.yaml; -: stdout)"
    )
    command.add_argument("--force", action="store_true", help="replace an existing file")
    command.set_defaults(overrides=[])


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.commands.init import init
    from caprl_ray.recipe.load import is_override

    paths = [text for text in args.paths if not is_override(text)]
    overrides = [text for text in args.paths if is_override(text)]
    return init(paths, [*overrides, *args.overrides], args.out, force=args.force)
