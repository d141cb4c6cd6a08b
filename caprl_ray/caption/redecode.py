"""Check each caption, and decode it again with other sampling if it fails a check (promise P6)."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from caprl_ray.caption.rules import Rules
from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, Engine, Picture
from caprl_ray.errors import RowFailure
from caprl_ray.quality.caption import Caption
from caprl_ray.quality.trim import trimmed
from caprl_ray.recipe.quality import Quality
from caprl_ray.text import plain

# Of all captions of a row together. About thirty times what CapRL writes, and small enough for
# resources.TARGET_BLOCK_BYTES.
MOST_CAPTION_CHARACTERS = 2**16
TRUNCATED, TRIMMED = "truncated", "trimmed"


@dataclass(frozen=True, kw_only=True)
class Decode:
    """One decoding of a row: the engine's answer, the text to keep, the checks that it fails, whether the text was cut
    here, and the remaining tokens if the engine stopped a loop."""

    completion: Completion
    text: str
    flags: Sequence[str]
    cut: bool = False
    saved: int = 0


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The kept decoding, the number of all decodings, their tokens and saved tokens, and the repaired flags."""

    decode: Decode
    decodes: int
    tokens: int
    saved: int
    repaired: Sequence[str]


class Redecoder:
    """Captions rows with an engine, and decodes a caption again if it fails a check that the recipe marks `retry`."""

    def __init__(
        self,
        engine: Engine,
        rules: Rules,
        settings: Quality,
        seen: Callable[[Decode], None] = lambda first: None,
        most_characters: int = MOST_CAPTION_CHARACTERS,
        most_tokens: int = 0,
    ) -> None:
        """`seen` is called with the first decoding of each row. Longer captions than `most_characters` are cut.
        `most_tokens` is the recipe's `sampling.max_tokens`."""
        self._engine = engine
        self._rules = rules
        self._settings = settings
        self._seen = seen
        self._most, self._most_tokens = most_characters, most_tokens

    async def caption(
        self,
        picture: Picture,
        prompt: str,
        *,
        instruction: str = "",
        alt_text: str = "",
        also: Mapping[str, Any] = AS_THE_RECIPE,
    ) -> Kept:
        """Caption one picture. Raises RowFailure for a fault of this row, SystemFailure for a fault of the engine.

        Args:
            instruction: the prompt without inserted values. Checks compare the caption with it, and with `alt_text`.
            also: changes of the recipe's sampling for each of its decodings.
        """
        asked = Caption(text="", prompt=instruction, alt_text=alt_text)
        first = await self._decode(picture, prompt, asked, also)
        self._seen(first)
        decodes = [first]
        if self._settings.retries and self._retried(first):
            decodes += await self._again(picture, prompt, asked, also)
        best = min(decodes, key=self._badness)
        return Kept(
            decode=self._ended(best),
            decodes=len(decodes),
            tokens=sum(decode.completion.caption_tokens or 0 for decode in decodes),
            saved=sum(decode.saved for decode in decodes),
            repaired=[flag for flag in first.flags if flag not in best.flags],
        )

    async def _decode(self, picture: Picture, prompt: str, asked: Caption, sampling: Mapping[str, Any]) -> Decode:
        completion = await self._engine.caption(picture, prompt, sampling)
        text = plain(completion.text)
        seen = replace(
            asked,
            text=text[: self._most],
            finish_reason=completion.finish_reason,
            caption_tokens=completion.caption_tokens,
        )
        flags = self._rules.checks.flags(seen)
        cut = len(text) > self._most and TRUNCATED not in flags
        flags = (*flags, TRUNCATED) if cut else flags
        return Decode(
            completion=completion, text=seen.text, flags=flags, cut=cut, saved=self._saved(completion, sampling)
        )

    def _saved(self, completion: Completion, sampling: Mapping[str, Any]) -> int:
        if completion.finish_reason != "repetition":
            return 0
        return max(0, int(sampling.get("max_tokens") or self._most_tokens) - (completion.caption_tokens or 0))

    async def _again(self, picture: Picture, prompt: str, asked: Caption, also: Mapping[str, Any]) -> list[Decode]:
        """Decode with all changes at once, until one passes, so that the batch waits for one more caption, not for one
        per change. Then cancel the other decodings. A change that fails is left out."""
        tasks = [
            asyncio.ensure_future(self._decode(picture, prompt, asked, {**also, **sampling}))
            for sampling in self._settings.retries
        ]
        try:
            waiting = set(tasks)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if any(not self._retried(decode) for decode in _decoded(done)):
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return _decoded(tasks)

    def _retried(self, decode: Decode) -> bool:
        """Whether another decoding may help. It does not if a finished caption is longer than the limit."""
        flags = [flag for flag in decode.flags if not (decode.cut and flag == TRUNCATED)]
        return any(self._rules.action(flag) == "retry" for flag in flags)

    def _badness(self, decode: Decode) -> tuple[bool, tuple[int, ...]]:
        """The sort key of a decoding; the lowest one is the best. Among equal ones, the first is kept."""
        failing = any(self._rules.action(flag) == "fail" for flag in decode.flags)
        return failing, self._rules.checks.severity(decode.flags)

    def _ended(self, decode: Decode) -> Decode:
        """The decoding after the last try, kept or trimmed as the recipe says. Raises RowFailure if the recipe says
        `fail`."""
        if not decode.text.strip():
            raise RowFailure("caption_empty")
        failing = [flag for flag in decode.flags if self._fails(flag)]
        if failing:
            raise RowFailure("quality", ", ".join(failing))
        if self._settings.at_end == "trim" and self._retried(decode):
            text = trimmed(decode.text)
            if text != decode.text:
                return replace(decode, text=text, flags=(*decode.flags, TRIMMED))
        return decode

    def _fails(self, flag: str) -> bool:
        action = self._rules.action(flag)
        return action == "fail" or (action == "retry" and self._settings.at_end == "fail")


def _decoded(tasks: Sequence["asyncio.Task[Decode]"] | set["asyncio.Task[Decode]"]) -> list[Decode]:
    """The results of the successful tasks. Raises exceptions other than failures of the row, such as SystemFailure."""
    decodes = []
    for task in tasks:
        error = None if task.cancelled() or not task.done() else task.exception()
        if error and not isinstance(error, RowFailure):
            raise error
        if task.done() and not task.cancelled() and not error:
            decodes.append(task.result())
    return decodes
