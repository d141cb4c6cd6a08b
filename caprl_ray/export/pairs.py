"""JSON lines of preferences: of each prompt of an image the best caption by its score, and the worst.

The fields are those of a conversational preference dataset with images of TRL (its docs: Dataset formats, Vision
datasets): `prompt`, `chosen` and `rejected` are messages, `images` has the image's path, which stands before the user's
text.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from caprl_ray.errors import RecipeError
from caprl_ray.export.line_files import ROWS, LineFiles
from caprl_ray.export.lines import DPO, STRIP
from caprl_ray.export.source import SEVERAL, Source
from caprl_ray.quality.registry import CHECKS
from caprl_ray.recipe.prompts import PromptTemplate

NEEDED = ("id", "unit", "index", "attempts", "key", "run", SEVERAL)
SEVERE = frozenset(name for name, check in CHECKS.items() if check.severe)
ENCODER = json.JSONEncoder(ensure_ascii=False)
ONLY = "prompt"  # the name of the only prompt of most recipes (recipe/sections.py)
PREVIOUS = "caption"  # in a prompt: the caption of the prompt before it

Caption = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The prompts of one recipe: the system turn, and the user's turns by their names."""

    system: str | None
    users: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Pairs(LineFiles):
    """The form `jsonl` with `--form dpo`. `asked` are the prompts of each recipe that wrote rows, by its name in the
    column `run`; "" is the newest. Scores of a pair differ by more than `margin`."""

    margin: float
    asked: Mapping[str, Asked]

    @classmethod
    def of(cls, source: Source, target: str, rows: int | None, margin: float | None) -> "Pairs":
        """Raises RecipeError for an output without scores of several captions."""
        _refuse_unscored(source)
        runs = {name: told.get("recipe") or {} for name, told in (source.run.get("runs") or {}).items()}
        recipes = {**runs, "": source.recipe}
        if not any((recipe.get("sampling") or {}).get("n", 1) > 1 for recipe in recipes.values()):
            raise RecipeError(
                f"--form {DPO}: the captions of an image in {source.path} answer one prompt each, and a pair needs two "
                "of the same; caption with sampling.n=2 or more into a new output."
            )
        asked = {name: _asked(source.path, recipe) for name, recipe in recipes.items()}
        return cls(source=source, target=target, rows=rows or ROWS, margin=margin or 0.0, asked=asked)

    def put(self, table: pa.Table, file: BinaryIO) -> int:
        """A row has as many lines as it has prompts whose captions differ in their scores."""
        exported = 0
        for row in table.to_pylist():
            lines = [ENCODER.encode(line).encode() + b"\n" for line in self.lines(row)]
            file.writelines(lines)
            exported += bool(lines)
        return exported

    def lines(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The pairs of a row."""
        asked = self.asked.get(row.get("run") or "", self.asked[""])
        for name, user in asked.users.items():
            found = pair([one for one in row[SEVERAL] or () if one["prompt"] == name], self.margin)
            if found:
                chosen, rejected = found
                turns = [("system", asked.system), ("user", PromptTemplate(user).fill(row, STRIP))]
                yield {
                    "id": row["id"],
                    "prompt": [_message(role, text) for role, text in turns if text is not None],
                    "chosen": [_message("assistant", STRIP(chosen["text"]))],
                    "rejected": [_message("assistant", STRIP(rejected["text"]))],
                    "images": [row["key"]],
                    "score_chosen": chosen["score"],
                    "score_rejected": rejected["score"],
                }

    @property
    def schema(self) -> pa.Schema:
        templates = (PromptTemplate(text) for asked in self.asked.values() for text in asked.users.values())
        own = {*self.source.own.names} - {"key"}
        wanted = {*NEEDED, *({name for template in templates for name in template.columns} - own)}
        return pa.schema([field for field in self.source.schema if field.name in wanted])


def pair(captions: Sequence[Caption], margin: float) -> tuple[Caption, Caption] | None:
    """The best and the worst of the captions of one prompt by their scores; None if these differ by no more than
    `margin`. Of equal ones the first. A caption with a severe flag is never the best. The worst has another text than
    the best: a reader that samples can give one text two scores."""
    scored = [one for one in captions if one["text"] and one["score"] is not None]
    good = [one for one in scored if not SEVERE & {*(one["flags"] or ())}]
    if not good:
        return None
    best = max(good, key=lambda one: one["score"])
    others = [one for one in scored if one["text"] != best["text"]]
    worst = min(others, key=lambda one: one["score"], default=best)
    return (best, worst) if best["score"] - worst["score"] > margin else None


def _message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _asked(path: str, recipe: Mapping[str, Any]) -> Asked:
    prompt, several = recipe.get("prompt") or {}, recipe.get("prompts") or {}
    users = several or {ONLY: prompt.get("user") or ""}
    for name, text in users.items():
        if len(users) > 1 and {PREVIOUS, *users} & {*PromptTemplate(text).columns}:
            raise RecipeError(
                f"--form {DPO}: prompts.{name} of {path} is filled with another prompt's caption, and rows do not hold "
                "it as it was then; use the column captions of --to parquet."
            )
    return Asked(system=prompt.get("system"), users=users)


def _refuse_unscored(source: Source) -> None:
    """Raise RecipeError for an output that has no chosen and no rejected captions."""
    if SEVERAL not in source.schema.names:
        raise RecipeError(
            f"--form {DPO}: the rows of {source.path} have one caption each, and a pair needs two and their scores; "
            "caption with sampling.n=2 or more and the section score into a new output."
        )
    kind = source.schema.field(SEVERAL).type.value_type
    if kind.get_field_index("score") < 0:
        raise RecipeError(
            f"--form {DPO}: the column {SEVERAL} of {source.path} has several captions of each image, but no scores "
            "that say which one is better; caption with the section score into a new output."
        )
