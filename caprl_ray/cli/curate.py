"""`caprl-ray curate`: write questions about images, and keep those that need the image."""

import argparse

from caprl_ray.cli.arguments import Commands, check_store
from caprl_ray.cli.runs import add_part, add_run, adopted, asked_part, codes, opening


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("curate", _run, "write questions about images, to score captions, or resume the last run")
    add_run(command, "curate", "image")
    add_part(command)


def _run(args: argparse.Namespace) -> int:
    from functools import partial

    from caprl_ray.commands.curate import curate
    from caprl_ray.job import Job
    from caprl_ray.output.ledger import Ledger
    from caprl_ray.pipeline import run
    from caprl_ray.recipe.curate import CurateRecipe
    from caprl_ray.recipe.load import load_as

    part = asked_part(args)
    recipe = load_as(CurateRecipe, args.recipe, args.overrides)
    check_store(recipe.storage, *recipe.input.paths, recipe.output.path)
    said = opening("curate", args.recipe, recipe)
    begin = partial(
        run,
        limit=args.limit,
        adopt=adopted(args),
        extend=args.extend,
        part=part,
        debug=args.debug,
        opening=said,
    )

    def curated(job: Job) -> Ledger:
        return begin(job, retry=codes(args.retry_failed, job.codes))

    for line in curate(recipe, curated):
        print(line)
    return 0
