"""`caprl-ray plan`: show the work units of a recipe, without captioning."""

import argparse
import json

from caprl_ray.cli.arguments import Commands, add_recipe, check_store, positive
from caprl_ray.errors import RecipeError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("plan", _run, "show the work units of a recipe, without captioning")
    add_recipe(command)
    command.add_argument("--json", action="store_true", help="print it as JSON")
    command.add_argument(
        "--duplicates", action="store_true", help="instead, read a sample and show images that are in it several times"
    )
    command.add_argument("--sample", type=positive, metavar="N", help="rows of that sample (default: 10000)")


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.commands.frequent import SAMPLE, frequent
    from caprl_ray.commands.plan import overview
    from caprl_ray.recipe.load import load

    recipe = load(args.recipe, args.overrides)
    check_store(recipe.storage, *recipe.input.paths, recipe.output.path)
    if args.sample and not args.duplicates:
        raise RecipeError("--sample: it is for --duplicates only; give both.")
    found = frequent(recipe, args.sample or SAMPLE) if args.duplicates else overview(recipe)
    print(json.dumps(found.report(), indent=1) if args.json else found.summary())
    return 0
