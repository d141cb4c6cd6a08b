"""`caprl-ray schema`: print the recipe's JSON schema."""

import argparse
import json

from caprl_ray.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    commands.add("schema", _run, "print the recipe's JSON schema")


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.recipe.sections import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))
    return 0
