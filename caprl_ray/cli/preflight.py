"""`caprl-ray preflight`: try a recipe on a sample of its input."""

import argparse
import json
import sys

from caprl_ray.cli.arguments import Commands, add_recipe, check_store, positive


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add(
        "preflight", _run, "caption a sample of the input and print rates, time and cost; write nothing"
    )
    add_recipe(command)
    command.add_argument(
        "--seconds", type=positive, default=30, metavar="N", help="how long the engine is measured (default: 30)"
    )
    command.add_argument("--price", type=float, metavar="$", help="price of a GPU hour (default: replicas.price)")
    command.add_argument("--json", action="store_true", help="print it as JSON")


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.commands.preflight import preflight
    from caprl_ray.recipe.load import load

    recipe = load(args.recipe, args.overrides)
    check_store(recipe.storage, *recipe.input.paths, recipe.output.path)
    found = preflight(recipe, seconds=args.seconds, price=args.price, debug=args.debug, tell=_passed)
    print(json.dumps(found.report(), indent=1) if args.json else found.summary())
    return found.exit_code


def _passed(step: str) -> None:
    sys.stderr.write(f"caprl-ray: {step}.\n")
    sys.stderr.flush()
