"""The command line. Every failure is one sentence on stderr and an exit code.

Exit codes: 0 done, and the ledger balances; 1 the system failed, run again to resume; 2 the recipe or the command is
wrong, or storage refuses it before anything is started; 3 the ledger does not balance, too many rows of the output
failed, late objects of a lost run are there, or an export lacks sources; 130 stopped by Ctrl-C (SIGINT) and 143 by
SIGTERM or by a terminal that was closed (SIGHUP), run again to resume.

Each command has a module: its arguments, and the call of its work. These modules do slow imports only when the command
runs.
"""

import argparse
import errno
import io
import os
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NoReturn

from caprl_ray.cli import (
    caption,
    check,
    compact,
    compare,
    curate,
    demo,
    duplicates,
    evaluate,
    explain,
    export,
    init,
    plan,
    preflight,
    recipe_schema,
    report,
    score,
    status,
    submit,
    tune,
    verify,
)
from caprl_ray.cli.arguments import Commands
from caprl_ray.cluster.begun import begun
from caprl_ray.cluster.signals import Terminated, handled
from caprl_ray.errors import CaprlError, RecipeError, SystemFailure
from caprl_ray.text import plain
from caprl_ray.version import __version__

# In the order of the help: before a run, the run, after it, and reference.
COMMANDS = (
    *(demo, init, plan, preflight, tune),
    *(caption, submit, curate, score, status),
    *(verify, compact, report, compare, evaluate, duplicates, check, export),
    *(explain, recipe_schema),
)
# Beginnings of the names of threads that may wait for storage when the command has ended: the one that lists the
# input, and those of storage/prefetch.py. Their modules import too much to be imported here.
WAITING = ("plan", "reader")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A failure is printed to stderr as one sentence.

    Args:
        arguments: the words of the command line, without the program's name. If left out, those of this process.

    Raises SystemExit with the code 2 for words that are no command; with `--debug`, any exception as it is.
    """
    args = parsed(arguments)
    command: Callable[[argparse.Namespace], int] = args.command
    if args.debug:
        with handled():
            return command(args)
    try:
        _check_process()
        with handled():
            return command(args)
    except KeyboardInterrupt as signal:
        code = 143 if isinstance(signal, Terminated) else 130
        return _fail("interrupted; run the same command again to resume.", code)
    except SystemFailure as error:
        return _fail(str(error), 2 if _refused(error) and not begun.is_set() else error.exit_code)
    except CaprlError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 (catch all: print one sentence and exit with a code; --debug re-raises)
        return _fail(_sentence(error), 1)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Overrides may be anywhere, also after options, where argparse does not recognize them."""
    found, words = parser(), sys.argv[1:] if arguments is None else arguments
    empty = _empty(words)
    if empty:
        found.error(f"{empty} is empty; give a value or leave it out")
    args, over = found.parse_known_args(words)
    if over and (not hasattr(args, "overrides") or not all(map(_overrides, over))):
        found.error(f"unrecognized arguments: {' '.join(over)}")
    if over:
        args.overrides = [*args.overrides, *over]
    return args


def _empty(words: Sequence[str]) -> str | None:
    """The first argument without a value, which usually comes from a shell's variable that is not set. An empty path
    would be the working folder, and an empty condition would hold for every row."""
    for before, word in pairwise(["", *words]):
        option, equals, value = word.partition("=")
        if word and not (option.startswith("--") and equals and not value):
            continue
        return option or (before if before.startswith("--") else "an argument")
    return None


def _overrides(text: str) -> bool:
    return not text.startswith("-") and ("=" in text or text.endswith((".yaml", ".yml")))


def program(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code. Does not wait for unfinished requests of the command."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack the letters of a file's name, or of a caption
        sys.stdout.reconfigure(errors="backslashreplace")
    code = main(arguments)
    if any(thread.name.startswith(WAITING) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # Python would first wait for them
    sys.exit(code)


def _check_process() -> None:
    """Raise RecipeError for a process in which paths do not mean what they mean elsewhere."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise RecipeError(f"names of files are read as {encoding} here, not as UTF-8; set PYTHONUTF8=1.")
    try:
        os.getcwd()
    except FileNotFoundError:
        raise RecipeError("the working folder was removed; go to one that is there, and run this again.") from None


def _refused(error: BaseException | None) -> bool:
    """Whether storage refused access: no such bucket, wrong credentials, an output without permission to write. Then no
    repetition helps."""
    from caprl_ray.storage import NotGranted

    if isinstance(error, NotGranted | PermissionError):
        return True
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return True
    return error is not None and _refused(error.__cause__ or error.__context__)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return str(SystemFailure.of(error))
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()} (--debug shows where)"


def _fail(sentence: str, code: int) -> int:
    # It may hold names of the data, also such that are not UTF-8.
    one_line = plain(sentence.encode(errors="backslashreplace").decode()).replace("\n", " ")
    print(f"caprl-ray: {one_line}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    top = argparse.ArgumentParser(prog="caprl-ray", description="Caption image datasets with CapRL on Ray.")
    top.add_argument("--version", action="version", version=__version__)
    commands = Commands(top)
    for command in COMMANDS:
        command.add(commands)
    return top


if __name__ == "__main__":
    program()
