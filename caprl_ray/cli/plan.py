"""`caprl-ray plan`: show the work units of a recipe, without captioning."""

import argparse
import json
import math
from typing import TYPE_CHECKING

from caprl_ray.cli.arguments import Commands, add_recipe, check_store, positive
from caprl_ray.errors import RecipeError

if TYPE_CHECKING:
    from caprl_ray.commands.forecast import Forecast
    from caprl_ray.commands.frequent import Frequent
    from caprl_ray.commands.plan import Overview
    from caprl_ray.recipe.sections import Recipe


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("plan", _run, "show the work units of a recipe, and with --estimate its time and cost")
    add_recipe(command)
    command.add_argument("--json", action="store_true", help="print it as JSON")
    command.add_argument(
        "--duplicates", action="store_true", help="instead, read a sample of the input and show repeated images"
    )
    command.add_argument(
        "--estimate",
        action="store_true",
        help="caption a sample on this machine: tokens, rate, hours and cost, with intervals",
    )
    command.add_argument(
        "--sample",
        type=positive,
        metavar="N",
        help="number of rows in the sample (default: 10000 for duplicates, 256 to estimate)",
    )
    command.add_argument("--price", type=float, metavar="$", help="price of a GPU hour, for the estimate of the cost")
    command.add_argument(
        "--seconds", type=positive, metavar="N", help="how long the estimate measures the engine (default: 30)"
    )


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.recipe.load import load

    recipe = load(args.recipe, args.overrides)
    _check(args)
    check_store(recipe.storage, *recipe.input.paths, recipe.output.path)
    found, code = _found(args, recipe)
    print(json.dumps(found.report(), indent=1) if args.json else found.summary())
    return code


def _found(args: argparse.Namespace, recipe: "Recipe") -> "tuple[Frequent | Forecast | Overview, int]":
    """What is printed, and the exit code."""
    if args.estimate:
        from caprl_ray.commands.forecast import SAMPLE as ROWS
        from caprl_ray.commands.forecast import forecast

        found = forecast(recipe, args.sample or ROWS, price=args.price, seconds=args.seconds, debug=args.debug)
        return found, found.exit_code
    from caprl_ray.commands.frequent import SAMPLE, frequent
    from caprl_ray.commands.plan import overview

    return frequent(recipe, args.sample or SAMPLE) if args.duplicates else overview(recipe), 0


def _check(args: argparse.Namespace) -> None:
    if args.estimate and args.duplicates:
        raise RecipeError("--estimate: cannot be given with --duplicates; give one of them.")
    if args.sample and not (args.duplicates or args.estimate):
        raise RecipeError("--sample: needs --duplicates or --estimate; add one of them.")
    for name in ("price", "seconds"):
        if getattr(args, name) is not None and not args.estimate:
            raise RecipeError(f"--{name}: needs --estimate; add it.")
    if args.price is not None and not 0 <= args.price < math.inf:
        raise RecipeError(f"--price: {args.price:g} is no price; give dollars for an hour of a GPU, such as 2.24.")
