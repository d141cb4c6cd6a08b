"""`caprl-ray export`: write the captions of an output as WebDataset, Hugging Face folder, JSON lines or parquet."""

import argparse

from caprl_ray.cli.arguments import Commands, add_output, check_store, positive
from caprl_ray.export.settings import KINDS, LINES


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = commands.add(
        "export", _run, "write the captions of an output as WebDataset, Hugging Face folder, JSON lines or parquet"
    )
    add_output(command)
    command.add_argument("--to", required=True, choices=KINDS, help="the format")
    command.add_argument(
        "--out", required=True, metavar="PATH", help="the target folder, new or of the same export; local or s3://"
    )
    command.add_argument("--where", metavar="SQL", help="only rows that meet this condition, such as 'flags = []'")
    command.add_argument(
        "--without", metavar="FILE", help="leave out the repeated rows in a file of caprl-ray duplicates --list"
    )
    command.add_argument("--form", choices=LINES, help=f"jsonl: the fields of a line (default: {LINES[0]})")
    command.add_argument(
        "--margin",
        type=float,
        metavar="SCORE",
        help="dpo: only pairs whose scores differ by more than this (default: 0)",
    )
    command.add_argument("--sidecars", action="store_true", help="webdataset: write tars with the captions only")
    command.add_argument(
        "--member",
        metavar="NAME",
        help="webdataset: the captions' members are NAME.txt and NAME.json (default: caption)",
    )
    command.add_argument("--images", action="store_true", help="hf: with the images")
    command.add_argument("--license", metavar="ID", help="hf: the licence that the dataset card states; required")
    command.add_argument(
        "--shard-rows",
        type=positive,
        metavar="N",
        help="rows per file, if the export does not write one file per source file",
    )
    command.add_argument(
        "--allow-missing", action="store_true", help="leave out rows whose source is gone or changed, and exit 0"
    )


def _run(args: argparse.Namespace) -> int:
    from caprl_ray.export.run import export
    from caprl_ray.export.settings import Settings
    from caprl_ray.recipe.load import parse_storage
    from caprl_ray.storage import Storage
    from caprl_ray.watch.steps import Steps

    settings = Settings(
        output=args.output,
        target=args.out,
        to=args.to,
        where=args.where,
        without=args.without,
        form=args.form,
        margin=args.margin,
        sidecars=args.sidecars,
        member=args.member,
        images=args.images,
        license=args.license,
        shard_rows=args.shard_rows,
        allow_missing=args.allow_missing,
    )
    storage = Storage(parse_storage(args.overrides))
    check_store(storage.settings, args.output, args.out)
    summary = export(storage, settings, Steps())
    if summary.unfinished:
        print(f"{args.output}: some planned images are not captioned yet; run the same command again later.")
    print(f"{args.out}: {summary.line()}")
    return 0
