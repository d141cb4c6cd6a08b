"""`caprl-ray caption`: caption a dataset, or resume the last run."""

import argparse
from collections.abc import Collection
from typing import TYPE_CHECKING

from caprl_ray.cli.arguments import Commands, add_recipe, check_store, positive
from caprl_ray.errors import RecipeError
from caprl_ray.version import __version__

if TYPE_CHECKING:
    from caprl_ray.recipe.sections import Recipe


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("caption", _run, "caption a dataset, or resume the last run")
    add_recipe(command)
    command.add_argument("--limit", type=positive, metavar="N", help="stop after N images; run again to continue")
    command.add_argument(
        "--retry-failed",
        nargs="?",
        const="",
        metavar="CODE,…",
        help="retry failed rows: all, or those with these codes",
    )
    command.add_argument(
        "--adopt", default="", metavar="FIELD,…", help="accept that these fields differ from the stored recipe"
    )
    command.add_argument("--extend", action="store_true", help="also caption what is new in the input")
    command.add_argument(
        "--accept-touched",
        action="store_true",
        help="read files whose time or ETag changed since the plan, if their size did not",
    )
    command.add_argument(
        "--again",
        metavar="SQL",
        help="caption only those finished rows again that meet this condition, such as \"flags has 'loop'\", also by "
        "another recipe; column previous keeps the old caption",
    )


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.caption.job import caption_job
    from caprl_ray.pipeline import run
    from caprl_ray.recipe.load import load

    if args.again is not None and (args.extend or args.retry_failed is not None or args.adopt):
        raise RecipeError("--again: it does not go with --extend, --retry-failed or --adopt; run them one by one.")
    recipe = load(args.recipe, args.overrides)
    check_store(recipe.storage, *recipe.input.paths, recipe.output.path)
    job = caption_job(recipe)
    ledger = run(
        job,
        limit=args.limit,
        retry=codes(args.retry_failed, job.codes),
        adopt=frozenset(filter(None, args.adopt.split(","))),
        extend=args.extend,
        accept_touched=args.accept_touched,
        again=args.again,
        debug=args.debug,
        opening=_opening(args.recipe, recipe),
    )
    for note in ledger.notes:
        print(f"{recipe.output.path}: {note}")
    print(f"{recipe.output.path}: {ledger.summary()}")
    return 0


def _opening(path: str, recipe: "Recipe") -> str:
    """The first lines of the log."""
    from caprl_ray.models.resolve import SCENES_ONLY, only_scenes

    line = f"caprl-ray {__version__}: caption {path}, output {recipe.output.path}\n"
    return line + (f"caprl-ray: {SCENES_ONLY}.\n" if only_scenes(recipe) else "")


def codes(text: str | None, known: Collection[str]) -> frozenset[str]:
    """The codes of failed rows to retry: none without the option, all if the option names none."""
    codes = frozenset(known if text == "" else text.split(",") if text else ())
    unknown = sorted(codes.difference(known))
    if unknown:
        raise RecipeError(f"--retry-failed: {unknown[0]!r} is not a failure code; they are {', '.join(known)}.")
    return codes
