"""The command line. Every failure is one sentence on stderr and an exit code.

Exit codes: 0 done, and the ledger balances; 1 the system failed, run again to resume; 2 the recipe or the command is
wrong; 3 the ledger does not balance, too many rows of the output failed, or late objects of a lost run are there; 130
interrupted, run again to resume.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from caprl_ray.cluster.reachable import check_address
from caprl_ray.errors import CaprlError, RecipeError, SystemFailure
from caprl_ray.version import __version__

if TYPE_CHECKING:
    from caprl_ray.recipe.sections import Storage as StorageSettings

STORE_HINT = (
    "name the store as the recipe does, for instance storage.endpoint=http://host:9000 storage.region=us-east-1"
)
PLANNING = "plan"  # the name of the thread that lists the input; its module imports too much to be imported here


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `arguments` defaults to those of the process."""
    args = _parsed(arguments)
    command: Callable[[argparse.Namespace], int] = args.command
    if args.debug:
        return command(args)
    try:
        return command(args)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to resume.", 130)
    except CaprlError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 (catch all: print one sentence and exit with a code; --debug re-raises)
        return _fail(_sentence(error), 1)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Overrides may stand anywhere, also after options, where argparse leaves them over."""
    found = parser()
    args, over = found.parse_known_args(arguments)
    if over and (not hasattr(args, "overrides") or not all("=" in text and not text.startswith("-") for text in over)):
        found.error(f"unrecognized arguments: {' '.join(over)}")
    if over:
        args.overrides = [*args.overrides, *over]
    return args


def program(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit. Does not wait for requests of a listing that the command has left."""
    code = main(arguments)
    if any(thread.name == PLANNING for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # Python would first wait for the threads of the listing's pools
    sys.exit(code)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return str(SystemFailure.of(error))
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()} (--debug shows where)"


def _fail(sentence: str, code: int) -> int:
    print(f"caprl-ray: {sentence}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    top = argparse.ArgumentParser(prog="caprl-ray", description="Caption image datasets with CapRL on Ray.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.add_argument("--debug", action="store_true", help="show Ray's output and whole tracebacks")
        sub.set_defaults(command=command)
        return sub

    caption = add("caption", _caption, "caption a dataset, or resume the last run")
    _add_recipe(caption)
    caption.add_argument("--limit", type=_positive, metavar="N", help="stop after N images; run again to continue")
    caption.add_argument(
        "--retry-failed",
        nargs="?",
        const="",
        metavar="CODE,…",
        help="retry failed rows: all, or those with these codes",
    )
    caption.add_argument(
        "--adopt", default="", metavar="FIELD,…", help="accept that these fields differ from the stored recipe"
    )
    caption.add_argument("--extend", action="store_true", help="also caption what is new in the input")
    caption.add_argument(
        "--accept-touched",
        action="store_true",
        help="read files whose time or ETag changed since the plan, if their size did not",
    )
    plan = add("plan", _plan, "show the work units of a recipe, without captioning")
    _add_recipe(plan)
    plan.add_argument("--json", action="store_true", help="print it as JSON")
    plan.add_argument(
        "--duplicates", action="store_true", help="instead, read a sample and show images that are in it several times"
    )
    plan.add_argument("--sample", type=_positive, metavar="N", help="rows of that sample (default: 10000)")
    demo = add("demo", _demo, "caption rendered scenes with the embedded model and check the captions")
    demo.add_argument("--images", type=_positive, default=500, metavar="N", help="number of scenes (default: 500)")
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="folder for the images and the output (default: demo)",
    )
    verify = add("verify", _verify, "check that every planned image is in the output exactly once")
    verify.add_argument("output", metavar="OUT", help="output folder")
    verify.add_argument("overrides", nargs="*", metavar="storage.field=value", help="how to access an s3:// output")
    verify.add_argument(
        "--repair", action="store_true", help="remove duplicated rows, and failed rows that a retry has replaced"
    )
    verify.add_argument("--json", action="store_true", help="print the whole ledger as JSON")
    duplicates = add("duplicates", _duplicates, "show which images and captions an output repeats")
    duplicates.add_argument("output", metavar="OUT", help="output folder")
    duplicates.add_argument("overrides", nargs="*", metavar="storage.field=value", help="how to access s3://")
    duplicates.add_argument("--json", metavar="FILE", help="write what was found to this file as JSON")
    duplicates.add_argument(
        "--list",
        metavar="FILE",
        help="write the rows whose images are there several times to this parquet file: id, group, keep",
    )
    duplicates.add_argument("--temp", metavar="DIR", help="folder for temporary files, of 50 to 100 bytes a row")
    check = add("check", _check, "flag captions that exist already, one JSON object a line")
    check.add_argument(
        "path", metavar="FILE|OUT", help="parquet or JSON lines, or the output folder of a run; local or s3://"
    )
    check.add_argument("overrides", nargs="*", metavar="storage.field=value", help="how to access s3:// paths")
    check.add_argument(
        "--checks", metavar="NAME,…", help="only these checks; package.module:function is one of your own"
    )
    check.add_argument("--language", metavar="CODE", help="also flag captions in another language than this one")
    check.add_argument("--column", default="caption", metavar="NAME", help="column of the captions (default: caption)")
    check.add_argument("--alt-column", metavar="NAME", help="column of the alt texts, for the check copies_alt_text")
    add("schema", _schema, "print the recipe's JSON schema")
    preflight = add("preflight", _preflight, "try a recipe on a few images; leaves nothing behind")
    _add_recipe(preflight)
    return top


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="override fields of the recipe")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _caption(args: argparse.Namespace) -> int:
    from caprl_ray.caption.job import caption_job
    from caprl_ray.pipeline import run
    from caprl_ray.recipe.load import load

    recipe = load(args.recipe, args.overrides)
    _check_store(recipe.storage, *recipe.input.paths, recipe.output.path)
    job = caption_job(recipe)
    ledger = run(
        job,
        limit=args.limit,
        retry=_codes(args.retry_failed, job.codes),
        adopt=frozenset(filter(None, args.adopt.split(","))),
        extend=args.extend,
        accept_touched=args.accept_touched,
        debug=args.debug,
    )
    for note in ledger.notes:
        print(f"{recipe.output.path}: {note}")
    print(f"{recipe.output.path}: {ledger.summary()}")
    return 0


def _plan(args: argparse.Namespace) -> int:
    from caprl_ray.commands.frequent import SAMPLE, frequent
    from caprl_ray.commands.plan import overview
    from caprl_ray.recipe.load import load

    recipe = load(args.recipe, args.overrides)
    _check_store(recipe.storage, *recipe.input.paths, recipe.output.path)
    if args.sample and not args.duplicates:
        raise RecipeError("--sample: it is for --duplicates only; give both.")
    found = frequent(recipe, args.sample or SAMPLE) if args.duplicates else overview(recipe)
    print(json.dumps(found.report(), indent=1) if args.json else found.summary())
    return 0


def _codes(text: str | None, known: Collection[str]) -> frozenset[str]:
    """The codes of failed rows to retry: none without the option, all if the option names none."""
    codes = frozenset(known if text == "" else text.split(",") if text else ())
    unknown = sorted(codes.difference(known))
    if unknown:
        raise RecipeError(f"--retry-failed: {unknown[0]!r} is not a failure code; they are {', '.join(known)}.")
    return codes


def _demo(args: argparse.Namespace) -> int:
    from caprl_ray.commands.demo import run_demo

    return run_demo(args.out, args.images, debug=args.debug)


def _verify(args: argparse.Namespace) -> int:
    from caprl_ray import plan
    from caprl_ray.output import fence, lease, ledger
    from caprl_ray.output.committed import read_committed
    from caprl_ray.output.record import read_run, stored_job
    from caprl_ray.output.repair import repair
    from caprl_ray.recipe.load import parse_storage
    from caprl_ray.storage import Storage
    from caprl_ray.watch.steps import Steps

    storage, tell = Storage(parse_storage(args.overrides)), Steps()
    _check_store(storage.settings, args.output)
    # Without a recipe, the store is known from the command line alone.
    hint = "" if storage.settings.endpoint or not args.output.startswith("s3://") else f"; {STORE_HINT}"
    try:
        stored = plan.load(storage, args.output)
    except OSError as error:
        raise SystemFailure(f"{args.output}: cannot be read ({error.strerror}){hint}.") from error
    if not stored.units:
        raise RecipeError(f"{args.output}: there is no plan in this folder, so it is not the output of a run{hint}.")
    if args.repair:
        with lease.held(storage, args.output):
            fence.sweep(storage, args.output)
            repair(storage, args.output, read_committed(storage, args.output, tell=tell), tell)
    job, committed = stored_job(read_run(storage, args.output) or {}), read_committed(storage, args.output, tell=tell)
    balance = ledger.balance(stored.units, committed, job["done"], job["noun"], stored.left_out)
    balanced = balance.balanced and stored.complete
    late = fence.late_objects(storage, args.output)
    report = balance.report() | {
        "balanced": balanced,
        "plan_complete": stored.complete,
        "late_objects": [written.path for written in late],
    }
    unplanned = "" if stored.complete else "; the input is not planned to its end: run the same command again"
    print(json.dumps(report, indent=1) if args.json else f"{args.output}: {balance.summary()}{unplanned}")
    if late and not args.json:
        print(
            f"{args.output}: late objects of a lost run: {len(late)}, such as {late[0].path}; they do not count, but "
            "tools that read the folder directly see their rows twice. The next run or verify --repair removes them."
        )
    return 0 if balanced and not late else 3


def _duplicates(args: argparse.Namespace) -> int:
    from caprl_ray.commands.duplicates import duplicates
    from caprl_ray.recipe.load import parse_storage
    from caprl_ray.storage import Storage
    from caprl_ray.watch.steps import Steps

    storage = Storage(parse_storage(args.overrides))
    found = duplicates(storage, args.output, listing=args.list, temporary=args.temp, tell=Steps())
    if args.json:
        storage.put(args.json, json.dumps(found.report(), indent=1).encode())
    print(found.summary())
    return 0


def _check(args: argparse.Namespace) -> int:
    from caprl_ray.commands.check import Columns, check
    from caprl_ray.quality.checks import Checks, Settings
    from caprl_ray.recipe.load import parse_storage
    from caprl_ray.storage import Storage

    names = None if args.checks is None else [*filter(None, args.checks.split(","))]
    checks = Checks.of(Settings(checks=names, language=args.language))
    columns = Columns(caption=args.column, alt_text=args.alt_column)
    try:
        tally = check(Storage(parse_storage(args.overrides)), args.path, checks, columns, sys.stdout)
    except BrokenPipeError:  # `| head`; what is still buffered must not be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    print(f"{args.path}: {tally.summary()}.", file=sys.stderr)
    return 0


def _check_store(settings: "StorageSettings", *paths: str) -> None:
    """Raise SystemFailure if a path is on S3 and nothing answers at `storage.endpoint`."""
    if settings.endpoint and any(path.startswith("s3://") for path in paths):
        check_address("storage.endpoint", settings.endpoint)


def _schema(args: argparse.Namespace) -> int:
    from caprl_ray.recipe.sections import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))
    return 0


def _preflight(args: argparse.Namespace) -> int:
    from caprl_ray.commands.preflight import preflight
    from caprl_ray.recipe.load import load

    return preflight(load(args.recipe, args.overrides), debug=args.debug)


if __name__ == "__main__":
    program()
