"""`caprl-ray caption`: caption a dataset, or resume the last run."""

import argparse
from collections.abc import Collection

from caprl_ray.cli.arguments import Commands, add_recipe, check_store, positive
from caprl_ray.errors import RecipeError


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


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.caption.job import caption_job
    from caprl_ray.pipeline import run
    from caprl_ray.recipe.load import load

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
        debug=args.debug,
    )
    for note in ledger.notes:
        print(f"{recipe.output.path}: {note}")
    print(f"{recipe.output.path}: {ledger.summary()}")
    return 0


def codes(text: str | None, known: Collection[str]) -> frozenset[str]:
    """The codes of failed rows to retry: none without the option, all if the option names none."""
    codes = frozenset(known if text == "" else text.split(",") if text else ())
    unknown = sorted(codes.difference(known))
    if unknown:
        raise RecipeError(f"--retry-failed: {unknown[0]!r} is not a failure code; they are {', '.join(known)}.")
    return codes
