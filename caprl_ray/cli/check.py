"""`caprl-ray check`: flag captions that exist already, one JSON object a line."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from caprl_ray.cli.arguments import Commands, add_store
from caprl_ray.errors import RecipeError

if TYPE_CHECKING:
    from caprl_ray.quality.checks import Checks


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("check", _run, "check existing captions; prints one JSON object per row")
    command.add_argument(
        "path", metavar="FILE|OUT", help="parquet or JSON lines, or the output folder of a run; local or s3://"
    )
    add_store(command, "s3:// paths")
    command.add_argument(
        "--checks", metavar="NAME,…", help="only these checks; package.module:function is one of your own"
    )
    command.add_argument("--language", metavar="CODE", help="also flag captions in another language than this one")
    command.add_argument(
        "--recipe", metavar="FILE", help="run the checks of this recipe, with its thresholds, language and JSON schema"
    )
    command.add_argument(
        "--column", default="caption", metavar="NAME", help="column of the captions (default: caption)"
    )
    command.add_argument("--alt-column", metavar="NAME", help="column of the alt texts, for the check copies_alt_text")


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.commands.check import Columns, check
    from caprl_ray.recipe.load import parse_storage
    from caprl_ray.storage import Storage

    checks = _of_recipe(args) if args.recipe else _named(args)
    columns = Columns(caption=args.column, alt_text=args.alt_column)
    try:
        tally = check(Storage(parse_storage(args.overrides)), args.path, checks, columns, sys.stdout)
    except BrokenPipeError:  # `| head`; what is still buffered must not be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    print(f"{args.path}: {tally.summary()}.", file=sys.stderr)
    return 0


def _of_recipe(args: argparse.Namespace) -> "Checks":
    """The checks that a run by a recipe would make. Its alt texts are in a column only if --alt-column says so."""
    from caprl_ray.caption.rules import Rules
    from caprl_ray.recipe.load import load

    if args.checks is not None or args.language is not None:
        raise RecipeError("--recipe: it sets the checks and the language; leave out --checks and --language.")
    recipe = load(args.recipe)
    return Rules(recipe.quality, recipe.sampling).checks


def _named(args: argparse.Namespace) -> "Checks":
    """The checks that the command line names."""
    from caprl_ray.quality.checks import Checks, Settings

    names = None if args.checks is None else [*filter(None, args.checks.split(","))]
    if names == []:
        raise RecipeError("--checks: it names no check; leave it out for the standard ones.")
    return Checks.of(Settings(checks=names, language=args.language))
