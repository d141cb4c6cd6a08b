"""`caprl-ray caption`: caption a dataset, or resume the last run."""

import argparse

from caprl_ray.cli.arguments import Commands, check_store
from caprl_ray.cli.runs import add_part, add_run, adopted, asked_part, codes, opening
from caprl_ray.errors import RecipeError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("caption", _run, "caption a dataset, or resume the last run")
    add_run(command, "caption", "image")
    add_part(command)
    command.add_argument(
        "--accept-touched",
        action="store_true",
        help="also read files whose modification time or ETag changed since the plan, if their size did not",
    )
    command.add_argument(
        "--again",
        metavar="SQL",
        help="caption again the finished rows that meet this condition, such as \"flags has 'loop'\", also with "
        "another recipe; the column previous keeps the old caption",
    )


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.caption.job import caption_job
    from caprl_ray.output import scores
    from caprl_ray.pipeline import run
    from caprl_ray.recipe.load import load

    if args.again is not None and (args.extend or args.retry_failed is not None or args.adopt):
        raise RecipeError("--again: cannot be given with --extend, --retry-failed or --adopt; run them one by one.")
    part = asked_part(args)
    recipe = load(args.recipe, args.overrides)
    asked = [file.path for file in recipe.score.questions] if recipe.score else []
    check_store(recipe.storage, *recipe.input.paths, *asked, recipe.output.path)
    job = caption_job(recipe)
    ledger = run(
        job,
        limit=args.limit,
        retry=codes(args.retry_failed, job.codes),
        adopt=adopted(args),
        extend=args.extend,
        accept_touched=args.accept_touched,
        again=args.again,
        part=part,
        debug=args.debug,
        opening=opening("caption", args.recipe, recipe),
    )
    for note in ledger.notes:
        print(f"{recipe.output.path}: {note}")
    print(f"{recipe.output.path}: {ledger.summary()}")
    for line in scores.sentences(scores.content(ledger.counts.tallies)):
        print(f"{recipe.output.path}: {line}")
    return 0
