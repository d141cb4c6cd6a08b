"""`caprl-ray score`: what a reader who never saw the images can answer from their captions."""

import argparse

from caprl_ray.cli.arguments import Commands, add_recipe, check_store, positive
from caprl_ray.cli.caption import codes


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("score", _run, "score captions by what can be answered from them, or resume the last run")
    add_recipe(command)
    command.add_argument("--limit", type=positive, metavar="N", help="stop after N captions; run again to continue")
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
    command.add_argument("--against", metavar="OUT", help="also say how the scores differ from another scored output's")
    command.add_argument("--extend", action="store_true", help="also score what is new in the input")


def _run(args: argparse.Namespace) -> int:
    from functools import partial

    from caprl_ray.commands.score import score
    from caprl_ray.job import Job
    from caprl_ray.output.ledger import Ledger
    from caprl_ray.pipeline import run
    from caprl_ray.recipe.load import load_as
    from caprl_ray.recipe.score import ScoreRecipe

    recipe = load_as(ScoreRecipe, args.recipe, args.overrides)
    files = [file.path for file in recipe.score.questions]
    check_store(recipe.storage, *recipe.input.paths, *files, recipe.output.path)
    adopted = frozenset(filter(None, args.adopt.split(",")))
    begin = partial(run, limit=args.limit, adopt=adopted, extend=args.extend, debug=args.debug)

    def scored(job: Job) -> Ledger:
        return begin(job, retry=codes(args.retry_failed, job.codes))

    for line in score(recipe, scored, args.against):
        print(line)
    return 0
