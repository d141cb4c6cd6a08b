"""`caprl-ray score`: what a reader who never saw the images can answer from their captions."""

import argparse

from caprl_ray.cli.arguments import Commands, add_recipe, check_store, positive
from caprl_ray.cli.caption import codes


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add("score", _run, "score captions by what can be answered from them, or resume the last run")
    add_recipe(command)
    command.add_argument("--limit", type=positive, metavar="N", help="stop after N captions; run again to continue")
    command.add_argument(
        "--retry-failed",
        nargs="?",
        const="",
        metavar="CODE,…",
        help="retry failed rows: all, or those with these codes",
    )
    command.add_argument(
        "--adopt", default="", metavar="FIELD,…", help="accept that these fields differ from the stored recipe"
    )
    command.add_argument("--extend", action="store_true", help="also score what is new in the input")


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.answer import results
    from caprl_ray.answer.job import score_job
    from caprl_ray.pipeline import run
    from caprl_ray.recipe.load import load_as
    from caprl_ray.recipe.score import ScoreRecipe
    from caprl_ray.score.summary import sentences
    from caprl_ray.storage import Storage

    recipe = load_as(ScoreRecipe, args.recipe, args.overrides)
    files = [file.path for file in recipe.score.questions]
    check_store(recipe.storage, *recipe.input.paths, *files, recipe.output.path)
    job, questions = score_job(recipe)
    ledger = run(
        job,
        limit=args.limit,
        retry=codes(args.retry_failed, job.codes),
        adopt=frozenset(filter(None, args.adopt.split(","))),
        extend=args.extend,
        debug=args.debug,
    )
    out, storage = recipe.output.path, Storage(recipe.storage)
    found = results.summed(storage, out, recipe, questions)
    results.write(storage, out, found)
    for note in ledger.notes:
        print(f"{out}: {note}")
    print(f"{out}: {ledger.summary()}")
    without, absent = found["captions_without_questions"], found["images_without_scores"]["count"]
    print(f"{out}: {without:,} captions without questions, {absent:,} images with questions and no score")
    for line in sentences(found):
        print(line)
    return 0
