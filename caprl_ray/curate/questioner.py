"""Let an engine write questions about the images of rows."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from caprl_ray.curate.columns import NO_QUESTION
from caprl_ray.curate.drafts import Draft, Drafts, drafts
from caprl_ray.engines.protocol import Engine, Picture
from caprl_ray.errors import RowFailure
from caprl_ray.models.chat import control_token_stripper
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.curate import COUNT, CurateRecipe
from caprl_ray.recipe.prompts import PromptTemplate
from caprl_ray.replica.cut import Cut
from caprl_ray.rows.schema import META_PREFIX
from caprl_ray.rows.stage import Changes
from caprl_ray.score.metrics import LETTERS
from caprl_ray.text import plain

SHOWN = 80  # characters of a text without questions


class Questioner:
    """Writes questions about images. Use it on the engine's event loop. `cut` cancels requests."""

    def __init__(self, recipe: CurateRecipe, model: ModelRef, engine: Engine, cut: Cut) -> None:
        self._cut, self._engine, self._label = cut, engine, model.label
        self._most, self._prompt_name = recipe.curate.questions, recipe.prompt_name
        self._template = PromptTemplate(recipe.prompt.user)
        self._strip = control_token_stripper(engine.control_tokens)
        self._rows = itertools.count()

    async def write(self, rows: list[dict[str, Any]]) -> Sequence[Changes | RowFailure]:
        """Write questions about all rows concurrently. A row that fails does not affect the others. Raises
        SystemFailure if the engine does."""
        return await asyncio.gather(*(self._cut(self._row(row)) for row in rows))

    def sums(self) -> dict[str, Counter[str]]:
        """No counters beside those in the rows."""
        return {}

    async def _row(self, row: dict[str, Any]) -> Changes | RowFailure:
        try:
            completion = await self._engine.caption(picture(row, next(self._rows)), self._prompt(row))
        except RowFailure as failure:
            return failure
        found = drafts(completion.text, self._most)
        if not found.questions:
            return RowFailure(NO_QUESTION, _without(found, completion.text))
        return {
            "tried": list(map(_struct, found.questions)),
            "unusable": list(found.unusable),
            "questioner": self._label,
            "question_prompt": self._prompt_name,
        }

    def _prompt(self, row: Mapping[str, Any]) -> str:
        columns = {key.removeprefix(META_PREFIX): value for key, value in row.items() if key.startswith(META_PREFIX)}
        return self._template.fill({**columns, COUNT: str(self._most)}, self._strip)


def picture(row: Mapping[str, Any], number: int) -> Picture:
    """The picture of a row, with a name that is unique in this process."""
    return Picture(pixels=row["pixels"], width=row["pixel_width"], height=row["pixel_height"], name=f"row-{number}")


def _struct(draft: Draft) -> dict[str, Any]:
    return {"question": draft.question, "choices": list(draft.choices), "answer": LETTERS[draft.right]}


def _without(found: Drafts, text: str) -> str:
    """The reason why a text has no questions, and its beginning."""
    reasons = ", ".join(f"{reason} {count} times" for reason, count in Counter(found.unusable).most_common())
    return f"{reasons or 'no JSON object'}; it begins {' '.join(plain(text[:SHOWN]).split())!r}"
