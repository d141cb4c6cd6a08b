"""The settings of an export, as the user gives them."""

from dataclasses import dataclass
from typing import Any

from caprl_ray.errors import RecipeError

KINDS = ("webdataset", "hf", "jsonl", "parquet")
LINES = ("caprl", "llava", "dpo")
# The formats of each option. With another format, the option would have no effect, so it is refused.
ONLY = {
    "form": ("jsonl",),
    "margin": ("jsonl",),
    "sidecars": ("webdataset",),
    "member": ("webdataset",),
    "images": ("hf",),
    "license": ("hf",),
    "shard_rows": ("webdataset", "hf", "jsonl"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One export.

    Attributes:
        output: the output folder.
        target: the folder that it is exported to.
        to: the form, one of KINDS.
        where: the condition on rows; None for all finished rows.
        without: a list of rows, as `caprl-ray duplicates --list` writes it; those with `keep` false are left out.
        form: how a line of jsonl looks, one of LINES; None for the first.
        margin: by more than this the scores of a pair differ, in the form dpo; None for 0.
        sidecars: write the captions' tars alone.
        member: the name of the caption's members in a tar, before .txt and .json; None for "caption".
        images: put the images into the dataset folder.
        license: the licence that the dataset card names.
        shard_rows: rows of a file that is cut by rows.
        allow_missing: leave out rows whose source is gone or changed.
    """

    output: str
    target: str
    to: str
    where: str | None = None
    without: str | None = None
    form: str | None = None
    margin: float | None = None
    sidecars: bool = False
    member: str | None = None
    images: bool = False
    license: str | None = None
    shard_rows: int | None = None
    allow_missing: bool = False

    def __post_init__(self) -> None:
        for option, kinds in ONLY.items():
            if getattr(self, option) and self.to not in kinds:
                flag = f"--{option.replace('_', '-')}"
                raise RecipeError(
                    f"{flag}: it is for --to {' and --to '.join(kinds)}; leave it out with --to {self.to}."
                )
        if self.margin is not None and self.form != "dpo":
            raise RecipeError("--margin: it is for --form dpo; leave it out with other lines.")
        if self.margin is not None and not 0 <= self.margin < 1:
            raise RecipeError(f"--margin: {self.margin:g} is not allowed; it should be at least 0 and below 1.")
        if self.to == "hf" and not self.license:
            raise RecipeError(
                "--license: name the licence that the dataset card states, such as cc-by-4.0 or other; it depends on "
                "your images and is never guessed."
            )

    def recorded(self) -> dict[str, Any]:
        """The settings that must not change between the runs of one export."""
        return {"to": self.to, "where": self.where} | {
            name: getattr(self, name) for name in ONLY if getattr(self, name)
        }
