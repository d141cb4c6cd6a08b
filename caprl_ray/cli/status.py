"""`caprl-ray status`: show the progress of a run, from any machine that can read its output."""

import argparse
import json
import time

from caprl_ray.cli.arguments import Commands, add_output, check_store, store_hint

WATCH_S = 5.0


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("status", _run, "show the progress of a run, from any machine that can read its output")
    add_output(command)
    command.add_argument(
        "--watch", action="store_true", help="keep showing it until the run ends; Ctrl-C does not stop the run"
    )
    command.add_argument("--json", action="store_true", help="print everything as one JSON object per line")


def _run(args: argparse.Namespace) -> int:
    from contextlib import suppress
    from functools import partial

    from caprl_ray.commands.status import Display, look
    from caprl_ray.recipe.load import parse_storage
    from caprl_ray.storage import Storage

    storage = Storage(parse_storage(args.overrides))
    check_store(storage.settings, args.output)
    see = partial(look, storage, args.output, store_hint(storage.settings, args.output))
    seen = see()
    with Display(live=args.watch and not args.json) as display, suppress(KeyboardInterrupt):
        while True:
            if args.json:
                print(json.dumps(seen.report()), flush=True)
            else:
                display.show(seen)
            if not args.watch or seen.over:
                break
            time.sleep(WATCH_S)
            seen = see()
    return 0
