"""Common parts of the commands that run a job: their arguments, and the first line of the log."""

import argparse
from collections.abc import Collection
from typing import TYPE_CHECKING

from caprl_ray.cli.arguments import add_recipe, positive
from caprl_ray.errors import RecipeError
from caprl_ray.version import __version__

if TYPE_CHECKING:
    from caprl_ray.output.part import Part
    from caprl_ray.recipe.sections import Recipe

ALL = "all"  # what --retry-failed without codes means


def add_run(command: argparse.ArgumentParser, verb: str, noun: str) -> None:
    """Add a recipe and the options of a run. `verb` says in a word how the job treats a `noun`."""
    add_recipe(command)
    command.add_argument("--limit", type=positive, metavar="N", help=f"stop after N {noun}s; run again to continue")
    command.add_argument(
        "--retry-failed",
        nargs="?",
        const=ALL,
        metavar="CODE,…",
        help="retry failed rows: all, or those with these codes",
    )
    command.add_argument("--adopt", metavar="FIELD,…", help="accept that these fields differ from the stored recipe")
    command.add_argument("--extend", action="store_true", help=f"also {verb} what is new in the input")


def add_part(command: argparse.ArgumentParser) -> None:
    """Add the part of the output that a driver writes."""
    command.add_argument(
        "--part",
        metavar="K/N",
        help="process part K of N, while other drivers process the other parts; to resume it, run again from anywhere",
    )


def asked_part(args: argparse.Namespace) -> "Part | None":
    """The part. Raises RecipeError for one that is none, and for options that cannot be given with parts."""
    from caprl_ray.output.part import Part

    if args.part is None:
        return None
    part = Part.parse(args.part)
    asked = {
        "--extend": args.extend,
        "--limit": args.limit is not None,
        "--again": getattr(args, "again", None) is not None,
    }
    for option in filter(asked.get, asked):
        raise RecipeError(f"--part: cannot be given with {option}; run {option} without --part when no part runs.")
    return part


def adopted(args: argparse.Namespace) -> frozenset[str]:
    """The fields of the fingerprint that may differ."""
    return frozenset(filter(None, map(str.strip, (args.adopt or "").split(","))))


def codes(text: str | None, known: Collection[str]) -> frozenset[str]:
    """The codes of failed rows to retry: none without the option, all if the option stands alone."""
    codes = frozenset(() if text is None else known if text == ALL else map(str.strip, text.split(",")))
    unknown = sorted(codes.difference(known))
    if unknown:
        raise RecipeError(f"--retry-failed: {unknown[0]!r} is not a failure code; they are {', '.join(known)}.")
    return codes


def opening(command: str, path: str, recipe: "Recipe") -> str:
    """The first lines of the log: the recipe's file, its output, and a note about the limits of an embedded model."""
    from caprl_ray.models.resolve import only_scenes

    first = f"caprl-ray {__version__}: {command} {path}, output {recipe.output.path}\n"
    return first + "".join(f"caprl-ray: {line}.\n" for line in only_scenes(recipe))
