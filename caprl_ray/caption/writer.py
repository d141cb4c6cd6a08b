"""Write the captions of rows with one engine: fill prompts, check and repair captions, and watch the engine."""

import asyncio
import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from caprl_ray.caption.health import Health
from caprl_ray.caption.planted import Planted
from caprl_ray.caption.redecode import MOST_CAPTION_CHARACTERS, Decode, Kept, Redecoder
from caprl_ray.caption.rules import Rules
from caprl_ray.caption.several import Several, Written, prompt_columns
from caprl_ray.engines.protocol import Engine, Picture
from caprl_ray.errors import RowFailure
from caprl_ray.models.chat import control_token_stripper
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.sections import Recipe
from caprl_ray.replica.cut import Cut
from caprl_ray.replica.suspects import Sick
from caprl_ray.rows.schema import META_PREFIX, SOURCE_FLAGS
from caprl_ray.rows.stage import Changes

IDENTITY = ("unit", "index")
PIXELS = ("pixels", "pixel_width", "pixel_height")


def needed_columns(recipe: Recipe) -> tuple[str, ...]:
    """The columns of a row that captioning reads, those of the source where it has them."""
    return (*IDENTITY, *PIXELS, SOURCE_FLAGS.name, *(META_PREFIX + name for name in prompt_columns(recipe)))


class Writer:
    """Captions rows. Use it on the engine's event loop."""

    def __init__(
        self,
        recipe: Recipe,
        model: ModelRef,
        engine: Engine,
        rules: Rules,
        healthy: Callable[[], None],
        passed: Callable[[], None] = lambda: None,
        cut: Cut | None = None,
    ) -> None:
        """`healthy` is called once, when a whole window of captions is within its limits, and `passed` after each
        successful self check. `cut` cancels captions."""
        self._cut = cut or Cut()
        self._engine = engine
        self._label, self._recipe = model.label, recipe
        most = MOST_CAPTION_CHARACTERS // recipe.captions
        redecoder = Redecoder(engine, rules, recipe.quality, self._seen, most, recipe.sampling.max_tokens)
        self._several = Several(recipe, redecoder, rules.checks, control_token_stripper(engine.control_tokens))
        self._health = Health(recipe.quality.limits, recipe.quality.window)
        self._healthy: Callable[[], None] | None = healthy
        self._passed = passed
        self._planted = Planted(model.size_rule, recipe.sampling)
        self._batches, self._rows = itertools.count(), itertools.count()
        self._sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._adding = threading.Lock()

    async def write(self, rows: list[dict[str, Any]]) -> Sequence[Changes | RowFailure]:
        """Caption rows concurrently, and at times the test pictures between them. A row that fails does not affect the
        others. Raises Sick if the captions cannot be trusted, and SystemFailure if the engine does.
        """
        first = asyncio.Event()

        async def one(row: dict[str, Any]) -> Changes | RowFailure:
            try:
                return await self._cut(self._row(row))
            finally:
                first.set()

        if not rows:
            return []
        written, _ = await asyncio.gather(asyncio.gather(*map(one, rows)), self._cut(self._check_self(first)))
        return written

    async def _check_self(self, first: asyncio.Event) -> None:
        """Caption the test pictures when it is time, in the middle of a batch: after its first row."""
        every = self._recipe.quality.self_check
        if not every or next(self._batches) % every:
            return
        await first.wait()
        # Twice, because a service may sample although it is asked to decode greedily.
        if await self._planted_fault() and (fault := await self._planted_fault()):
            raise Sick(fault)
        self._passed()

    async def _planted_fault(self) -> str | None:
        fault = await self._planted.fault(self._engine)
        self._add("self_checks", "failed" if fault else "passed", 1)
        return fault

    def sums(self) -> dict[str, Counter[str]]:
        """Counters since the last call, beside those in the rows: self-checks, and loops that the engine stopped."""
        with self._adding:
            sums, self._sums = dict(self._sums), defaultdict(Counter)
        return sums

    def _add(self, kind: str, name: str, amount: int) -> None:
        with self._adding:
            self._sums[kind][name] += amount

    async def _row(self, row: dict[str, Any]) -> Changes | RowFailure:
        name = f"row-{next(self._rows)}"
        picture = Picture(pixels=row["pixels"], width=row["pixel_width"], height=row["pixel_height"], name=name)
        columns = {key.removeprefix(META_PREFIX): value for key, value in row.items() if key.startswith(META_PREFIX)}
        try:
            written = await self._several.write(picture, columns)
        except RowFailure as failure:
            return failure
        return self._changes(written, row.get(SOURCE_FLAGS.name) or ())

    def _seen(self, first: Decode) -> None:
        self._health.add(first.flags, first.text)
        if first.completion.finish_reason == "repetition":
            self._add("stopped_loops", "loops", 1)
            self._add("stopped_loops", "tokens", first.saved)
        fault = self._health.sick()
        if fault:
            raise Sick(fault)
        if self._health.whole and self._healthy:
            self._healthy()
            self._healthy = None

    def _changes(self, written: list[Written], marks: Sequence[str]) -> Changes:
        best = self._several.best(written)
        every = [one.kept for one in written if isinstance(one.kept, Kept)]
        changes = {
            "caption": best.decode.text,
            "finish_reason": best.decode.completion.finish_reason,
            "flags": [*marks, *best.decode.flags],
            "repaired": list(best.repaired),
            "decodes": sum(kept.decodes for kept in every),
            "decoded_tokens": sum(kept.tokens for kept in every),
            "saved_tokens": sum(kept.saved for kept in every),
            "prompt_tokens": best.decode.completion.prompt_tokens,
            "caption_tokens": best.decode.completion.caption_tokens,
            "model": self._label,
        }
        return changes | ({"captions": list(map(_struct, written))} if self._recipe.several else {})


def _struct(written: Written) -> dict[str, Any]:
    """A caption of several. Arrow leaves out what the column does not have (columns.py)."""
    kept = written.kept
    if isinstance(kept, RowFailure):
        return {"prompt": written.prompt, "flags": [kept.code]}
    return {
        "prompt": written.prompt,
        "text": kept.decode.text,
        "finish_reason": kept.decode.completion.finish_reason,
        "flags": list(kept.decode.flags),
        "decodes": kept.decodes,
        "tokens": kept.decode.completion.caption_tokens,
        "repaired": list(kept.repaired),
        "prompt_tokens": kept.decode.completion.prompt_tokens,
    }
