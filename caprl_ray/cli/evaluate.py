"""`caprl-ray evaluate`: score and compare the captions of outputs, on a sample of their images."""

import argparse

from caprl_ray.cli.arguments import Commands, check_store, positive


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add(
        "evaluate", _run, "score the captions of outputs by questions about a sample of their images, or compare them"
    )
    command.add_argument(
        "words",
        nargs="+",
        metavar="OUT",
        help="output folders of the same images, and overrides such as score.rotations=2",
    )
    command.add_argument(
        "--sample",
        type=positive,
        metavar="N",
        help="number of images (default: 1000, or with --questions all images that have questions)",
    )
    command.add_argument(
        "--questions",
        metavar="PATH",
        help="questions instead of new ones: a file, an output of curate, or an output that was evaluated",
    )
    command.add_argument(
        "--judge", metavar="RECIPE.yaml", help="the models that ask and answer (default: recipes/evaluate.yaml)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sample (default: 0)")
    command.add_argument("--by", metavar="COLUMN", help="the source's column that names the kind of an image")
    command.add_argument(
        "--old-column", metavar="NAME", help="the source's column with the old text (default: found by its name)"
    )
    command.add_argument("--work", metavar="FOLDER", help="folder for intermediate results (default: OUT/evaluations)")
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
