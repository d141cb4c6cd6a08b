"""`caprl-ray score`: score captions by the questions that can be answered from them."""

import argparse

from caprl_ray.cli.arguments import Commands, check_store
from caprl_ray.cli.runs import add_part, add_run, adopted, asked_part, codes, opening


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add(
        "score", _run, "score captions by the questions that can be answered from them, or resume the last run"
    )
    add_run(command, "score", "caption")
    add_part(command)
    command.add_argument("--against", metavar="OUT", help="also compare with another scored output")


def _run(args: argparse.Namespace) -> int:
    from functools import partial

    from caprl_ray.commands.score import score
    from caprl_ray.job import Job
    from caprl_ray.output.ledger import Ledger
    from caprl_ray.pipeline import run
    from caprl_ray.recipe.load import load_as
    from caprl_ray.recipe.score_recipe import ScoreRecipe

    part = asked_part(args)
    recipe = load_as(ScoreRecipe, args.recipe, args.overrides)
    files = [file.path for file in recipe.score.questions]
    check_store(recipe.storage, *recipe.input.paths, *files, recipe.output.path)
    said = opening("score", args.recipe, recipe)
    begin = partial(
        run,
        limit=args.limit,
        adopt=adopted(args),
        extend=args.extend,
        part=part,
        debug=args.debug,
        opening=said,
    )

    def scored(job: Job) -> Ledger:
        return begin(job, retry=codes(args.retry_failed, job.codes))

    for line in score(recipe, scored, args.against, extend=args.extend):
        print(line)
    return 0
