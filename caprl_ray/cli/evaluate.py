"""`caprl-ray evaluate`: how much the captions of outputs tell, on a sample of their own images."""

import argparse

from caprl_ray.cli.arguments import Commands, check_store, positive


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add(
        "evaluate", _run, "score the captions of outputs by questions about a sample of their images, or compare them"
    )
    command.add_argument("words", nargs="+", metavar="OUT", help="output folders of the same images, one or several")
    command.add_argument(
        "--sample",
        type=positive,
        metavar="N",
        help="images that are drawn (default: 1000, or with --questions all that these are about)",
    )
    command.add_argument(
        "--questions",
        metavar="PATH",
        help="questions instead of new ones: a file, an output of curate, or an output that was evaluated",
    )
    command.add_argument(
        "--judge", metavar="RECIPE.yaml", help="who asks and who answers (default: CapRL's models); see evaluate.yaml"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="decides which images are drawn (default: 0)")
    command.add_argument("--by", metavar="COLUMN", help="the source's column that names the kind of an image")
    command.add_argument(
        "--old-column", metavar="NAME", help="the source's column with the text of before (default: found by its name)"
    )
    command.add_argument("--work", metavar="FOLDER", help="where evaluations are kept (default: OUT/evaluations)")
    command.set_defaults(overrides=[])


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.commands.evaluate import evaluation
    from caprl_ray.evaluate.told import Request
    from caprl_ray.recipe.fields import absolute
    from caprl_ray.recipe.judge import judge
    from caprl_ray.recipe.load import is_override

    outputs = [absolute(word) for word in args.words if not is_override(word)]
    found = judge(args.judge, [*filter(is_override, args.words), *args.overrides])
    questions, work = (absolute(path) if path else None for path in (args.questions, args.work))
    check_store(found.storage, *outputs, *filter(None, (questions, work)))
    request = Request(
        outputs=outputs,
        judge=found,
        images=args.sample,
        seed=args.seed,
        questions=questions,
        work=work,
        by=args.by,
        old_column=args.old_column,
    )
    for line in evaluation(request, debug=args.debug):
        print(line)
    return 0
