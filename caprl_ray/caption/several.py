"""All captions of one row: each prompt of the recipe, `sampling.n` times.

The image is read, prepared and encoded once for all of them. A prompt that uses an earlier prompt's caption waits for
it; the others run at the same time.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from caprl_ray.caption.best import Candidate, best
from caprl_ray.caption.redecode import Kept, Redecoder
from caprl_ray.engines.protocol import Picture
from caprl_ray.errors import RowFailure
from caprl_ray.quality.checks import Checks
from caprl_ray.recipe.prompts import PromptTemplate
from caprl_ray.recipe.sections import Recipe

PREVIOUS = "caption"  # in a prompt: the caption of the prompt before it


def prompt_columns(recipe: Recipe) -> list[str]:
    """The source's columns that captioning by this recipe may read."""
    named = recipe.named_prompts
    names = {name for text in named.values() for name in PromptTemplate(text).columns}
    own = {PREVIOUS, *named} if len(named) > 1 else set()
    return sorted((names - own) | {name for name in [recipe.quality.alt_column] if name})


@dataclass(frozen=True, kw_only=True)
class Written:
    """One caption of a row, by the prompt of this name; or the failure of this caption alone."""

    prompt: str
    kept: Kept | RowFailure


class Several:
    """Writes the captions of rows by a recipe's prompts."""

    def __init__(self, recipe: Recipe, redecoder: Redecoder, checks: Checks, strip: Callable[[str], str]) -> None:
        self._templates = {name: PromptTemplate(text) for name, text in recipe.named_prompts.items()}
        self._seed, self._n = getattr(recipe.sampling, "seed", None), recipe.sampling.n
        self._redecoder, self._checks, self._strip = redecoder, checks, strip
        self._alt_column = recipe.quality.alt_column

    async def write(self, picture: Picture, columns: Mapping[str, Any]) -> list[Written]:
        """All captions, in the order of the prompts. `columns` are the source's own columns of the row.

        Raises RowFailure if all captions fail, with the first one's failure.
        """
        alt = columns.get(self._alt_column) if self._alt_column else None
        caption = partial(self._redecoder.caption, picture, alt_text=alt if isinstance(alt, str) else "")
        tasks: dict[str, asyncio.Task[list[Written]]] = {}
        for name, template in self._templates.items():
            earlier = {other: task for other, task in tasks.items() if other in template.columns}
            if tasks and PREVIOUS in template.columns:
                earlier[PREVIOUS] = list(tasks.values())[-1]
            tasks[name] = asyncio.ensure_future(self._by_prompt(name, template, columns, earlier, caption))
        written = [one for some in await asyncio.gather(*tasks.values()) for one in some]
        failures = [one.kept for one in written if isinstance(one.kept, RowFailure)]
        if len(failures) == len(written):
            raise failures[0]
        return written

    def best(self, written: list[Written]) -> Kept:
        """The first of the captions with the least severe flags. Raises RowFailure if there is none."""
        kept = [one.kept for one in written if isinstance(one.kept, Kept)]
        if not kept:
            raise RowFailure("prompt_column", "the earlier prompt has no caption")
        return kept[best([Candidate(flags=one.decode.flags) for one in kept], self._checks)]

    async def _by_prompt(
        self,
        name: str,
        template: PromptTemplate,
        columns: Mapping[str, Any],
        earlier: Mapping[str, "asyncio.Task[list[Written]]"],
        caption: Callable[..., Any],
    ) -> list[Written]:
        try:
            texts = {other: self.best(await task).decode.text for other, task in earlier.items()}
            prompt = template.fill({**columns, **texts}, self._strip)
        except RowFailure as failure:
            return [Written(prompt=name, kept=RowFailure(failure.code, failure.detail))] * self._n
        write = partial(caption, prompt, instruction=template.literal)
        results = await asyncio.gather(*(_or_failure(write(also=self._also(k))) for k in range(self._n)))
        return [Written(prompt=name, kept=result) for result in results]

    def _also(self, number: int) -> dict[str, Any]:
        """Changes of sampling for the caption of this number: the same seed would give the same caption."""
        return {"seed": self._seed + number} if number and self._seed is not None else {}


async def _or_failure(caption: Any) -> Kept | RowFailure:
    try:
        kept: Kept = await caption
        return kept
    except RowFailure as failure:
        return failure
