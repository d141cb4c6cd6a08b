"""`caprl-ray submit`: send a recipe's parts to Ray clusters as jobs, and watch them."""

import argparse

from caprl_ray.cli.arguments import Commands, add_recipe, positive
from caprl_ray.cluster.signals import Terminated


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("submit", _run, "caption as Ray jobs on a cluster: submit, watch and restart lost jobs")
    add_recipe(command)
    command.add_argument(
        "--parts", type=positive, default=1, metavar="N", help="number of jobs that share the work (default: 1)"
    )
    command.add_argument(
        "--address",
        action="append",
        default=[],
        metavar="URL",
        help="dashboard of a cluster; if given several times, the clusters share the parts (default: "
        "RAY_API_SERVER_ADDRESS)",
    )
    command.add_argument(
        "--working-dir",
        default=".",
        metavar="DIR",
        help="folder that is uploaded: a checkout with the recipe (default: .)",
    )
    command.add_argument("--no-wait", action="store_true", help="only submit; the same command without it watches")
    command.add_argument("--stop", action="store_true", help="stop the jobs of the recipe's output, and submit none")


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.cluster.jobs import connect
    from caprl_ray.commands.submit import Order, Submission, check_folder
    from caprl_ray.errors import Stopped, StoppedByTerm
    from caprl_ray.recipe.load import load

    recipe = load(args.recipe, args.overrides)
    command = [args.recipe, *args.overrides]
    order = Order(output=recipe.output.path, command=command, parts=args.parts, folder=args.working_dir)
    check_folder(order.folder)
    submission = Submission(order, connect(args.address))
    if args.stop:
        print(f"{order.output}: {submission.stop()} jobs are stopped; finished rows are kept")
        return 0
    submission.begin()
    if args.no_wait:
        return 0
    try:
        submission.watch()
    except KeyboardInterrupt as signal:
        kind = StoppedByTerm if isinstance(signal, Terminated) else Stopped
        raise kind("the jobs go on; the same command watches them again, and with --stop it ends them.") from None
    if failure := submission.failure():
        raise failure
    print(f"{order.output}: {order.parts} of {order.parts} parts are done; caprl-ray verify proves it")
    return 0
