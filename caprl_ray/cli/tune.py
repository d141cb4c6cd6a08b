"""`caprl-ray tune`: measure engine settings with the recipe's own images, and find the fastest."""

import argparse
import json
import math
from pathlib import Path

from caprl_ray.cli.arguments import Commands, add_recipe, check_store, positive
from caprl_ray.errors import RecipeError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add(
        "tune", _run, "find the fastest engine settings on this machine, with the recipe's own images"
    )
    add_recipe(command)
    command.add_argument(
        "--minutes", type=float, default=10.0, metavar="N", help="approximate time for everything (default: 10)"
    )
    command.add_argument(
        "--seconds",
        type=positive,
        default=10,
        metavar="N",
        help="time for the first measurement of a setting (default: 10)",
    )
    command.add_argument(
        "--gpu-hours-price", type=float, metavar="$", help="price of a GPU hour (default: replicas.price)"
    )
    command.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder of the measurements (default: the recipe's name with -tune)"
    )
    command.add_argument(
        "--score",
        metavar="SCORE.yaml",
        help="a recipe for caprl-ray score: also score the captions of settings that may change captions",
    )
    command.add_argument("--json", action="store_true", help="print it as JSON")


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.recipe.load import load, load_as
    from caprl_ray.recipe.score_recipe import ScoreRecipe
    from caprl_ray.tune.run import tune

    price = args.gpu_hours_price
    if not 0 < args.minutes < math.inf:
        raise RecipeError(f"--minutes: {args.minutes:g} is not allowed; give minutes, such as 10.")
    if price is not None and not 0 <= price < math.inf:
        raise RecipeError(f"--gpu-hours-price: {price:g} is no price; give dollars for an hour of a GPU, such as 2.24.")
    recipe = load(args.recipe, args.overrides)
    check_store(recipe.storage, *recipe.input.paths, recipe.output.path)
    folder = args.out or Path(f"{Path(args.recipe).stem}-tune")
    found = tune(
        recipe,
        args.recipe,
        folder,
        minutes=args.minutes,
        seconds=args.seconds,
        price=price,
        score=load_as(ScoreRecipe, args.score) if args.score else None,
        debug=args.debug,
    )
    print(json.dumps(found.report(), indent=1) if args.json else found.summary())
    return 0
