"""Common parts of the commands: adding one, and the arguments that several of them take."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from caprl_ray.cluster.reachable import check_service
from caprl_ray.errors import RecipeError, SystemFailure

if TYPE_CHECKING:
    from caprl_ray.plan import Plan
    from caprl_ray.recipe.storage import Storage as StorageSettings
    from caprl_ray.storage import Storage


class Commands:
    """The commands of one parser."""

    def __init__(self, top: argparse.ArgumentParser) -> None:
        self._parsers = top.add_subparsers(metavar="COMMAND", required=True)

    def add(self, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        """Add a command; `run` gets its arguments and returns the exit code. `text` says what it does."""
        command = self._parsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("--debug", action="store_true", help="show Ray's output and whole tracebacks")
        command.set_defaults(command=run)
        return command


STORE_HINT = (
    "name the store as the recipe does, for instance storage.endpoint=http://host:9000 storage.region=us-east-1"
)


def add_recipe(command: argparse.ArgumentParser) -> None:
    """Add a recipe and its overrides."""
    command.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe")
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="section.field=value",
        help="override fields of the recipe; also files of fields, such as tuned.yaml",
    )


def add_output(command: argparse.ArgumentParser) -> None:
    """Add an output folder and how to access it."""
    command.add_argument("output", metavar="OUT", help="output folder")
    add_store(command, "an s3:// output")


def add_store(command: argparse.ArgumentParser, what: str) -> None:
    """Add overrides of the recipe's section `storage`, for a command without a recipe."""
    command.add_argument("overrides", nargs="*", metavar="storage.field=value", help=f"how to access {what}")


def store_hint(settings: "StorageSettings", path: str) -> str:
    """A hint for messages about a missing s3:// path: without a recipe, only the command line can name the store."""
    return "" if settings.endpoint or not path.startswith("s3://") else f"; {STORE_HINT}"


def check_file(option: str, path: str | None) -> None:
    """Raise RecipeError for a path that cannot be written as a file: before the work that fills it."""
    from caprl_ray.storage.local import in_the_way

    if path and (place := in_the_way(path, of_folder=False)):
        raise RecipeError(f"{option}: {place} is in the way of the file {path}; name another one.")


def positive(text: str) -> int:
    """The type of an argument that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def check_store(settings: "StorageSettings", *paths: str) -> None:
    """Raise SystemFailure if a path is on S3 and nothing answers at `storage.endpoint` in time."""
    if settings.endpoint and any(path.startswith("s3://") for path in paths):
        given = settings.timeout_s if "timeout_s" in settings.model_fields_set else None
        check_service("storage.endpoint", settings.endpoint, given)


def opened(args: argparse.Namespace) -> "tuple[Storage, Plan]":
    """The store of the output that the command names, and its plan.

    Raises RecipeError if it is not the output of a run, and SystemFailure if it cannot be read.
    """
    from caprl_ray import plan
    from caprl_ray.recipe.load import parse_storage
    from caprl_ray.storage import Storage

    storage = Storage(parse_storage(args.overrides))
    check_store(storage.settings, args.output)
    hint = store_hint(storage.settings, args.output)
    try:
        stored = plan.load(storage, args.output)
    except OSError as error:
        raise SystemFailure(f"{args.output}: cannot be read ({error.strerror}){hint}.") from error
    if not stored.units:
        raise RecipeError(f"{args.output}: there is no plan in this folder, so it is not the output of a run{hint}.")
    return storage, stored
