"""Score captions as they come from the captioners, and keep the best of several (docs/score.md).

A caption is never lost because of its score: if it cannot be scored, its row is finished and has the reason.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from caprl_ray.answer.scorer import Answers, Scorer
from caprl_ray.caption.best import Candidate, best
from caprl_ray.caption.join import Readers
from caprl_ray.caption.rules import Rules
from caprl_ray.engines.protocol import Engine
from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.models.resolve import ModelRef
from caprl_ray.quality.checks import Checks
from caprl_ray.recipe.sections import Recipe
from caprl_ray.replica.actor import ReplicaActor
from caprl_ray.replica.cut import Cut
from caprl_ray.rows.codes import NO_KEY, NO_QUESTIONS, UNFINISHED
from caprl_ray.rows.schema import SOURCE_FLAGS
from caprl_ray.rows.stage import Changes
from caprl_ray.watch.replicas import of_pool

POOL = "score"  # the section of the recipe that describes it
# The columns of a row that come from its best caption, by their names in `captions`.
OF_BEST = {
    "caption": "text",
    "finish_reason": "finish_reason",
    "repaired": "repaired",
    "prompt_tokens": "prompt_tokens",
    "caption_tokens": "tokens",
}


class CaptionScorer:
    """Scores the captions of rows. Use it on the engine's event loop."""

    def __init__(self, scorer: Scorer, column: str, checks: Checks, cut: Cut) -> None:
        """`column` of the rows joins them with questions. `cut` ends answers."""
        self._scorer, self._column, self._checks, self._cut = scorer, column, checks, cut

    async def write(self, rows: list[dict[str, Any]]) -> Sequence[Changes | RowFailure]:
        """Score rows at the same time. Raises SystemFailure as the engine does."""
        return await asyncio.gather(*(self._cut(self._row(row)) for row in rows))

    def sums(self) -> dict[str, Counter[str]]:
        """No counters beside those in the rows."""
        return {}

    async def _row(self, row: dict[str, Any]) -> Changes:
        key = row.get(self._column)
        if key is None or str(key) == "":
            return unscored(NO_KEY)
        questions = self._scorer.about(image := self._scorer.image(key))
        if not questions:
            return unscored(NO_QUESTIONS)
        captions = row.get("captions") or [{"text": row["caption"]}]
        asked = [self._scorer.answers(one["text"], questions) for one in captions if one["text"] is not None]
        blind, *answers = await asyncio.gather(self._scorer.blind(questions), *asked)
        scored = iter([(found, self._scorer.worth(found)) for found in answers])
        found = [next(scored) if one["text"] is not None else None for one in captions]
        kept = self._best(captions, found) if row.get("captions") else 0
        return {
            **(self._several(row, captions, found, kept) if row.get("captions") else {}),
            **_told(found[kept]),
            **self._scorer.columns(image, told[0] if (told := found[kept]) else [], blind),
        }

    def _best(self, captions: list[dict[str, Any]], found: "Found", *, scores: bool = True) -> int:
        """The number of the caption that is kept."""
        there = [number for number, one in enumerate(captions) if one["text"] is not None]
        candidates = [
            Candidate(flags=captions[n]["flags"] or (), score=_score(found[n]) if scores else None) for n in there
        ]
        return there[best(candidates, self._checks)]

    def _several(self, row: dict[str, Any], captions: list[dict[str, Any]], found: "Found", kept: int) -> Changes:
        """The columns of all captions, and of the best one."""
        chosen = captions[kept]
        scored = [{**one, **_told(told)} for one, told in zip(captions, found, strict=True)]
        first = self._best(captions, found, scores=False)
        flags = [*(row.get(SOURCE_FLAGS.name) or ()), *(chosen["flags"] or ())]
        ours = {name: chosen[field] for name, field in OF_BEST.items()}
        return {**ours, "flags": flags, "captions": scored, "first_score": _score(found[first])}


# For each caption with a text: its answers, and its score or the reason why it has none.
Told = tuple[Answers, float | RowFailure]
Found = Sequence[Told | None]


def _score(told: Told | None) -> float | None:
    return told[1] if told and not isinstance(told[1], RowFailure) else None


def _told(told: Told | None) -> dict[str, Any]:
    """A caption's score, or the code of why it has none."""
    worth = told[1] if told else None
    return unscored(worth.code) if isinstance(worth, RowFailure) else {"score": worth, "score_code": None}


def unscored(code: str) -> Changes:
    """The columns of a row whose caption could not be scored."""
    return {"score": None, "score_code": code}


class CaptionReader(ReplicaActor):
    """One replica: rows with captions in, the same rows with scores out."""

    name = POOL

    def __init__(
        self, recipe: Recipe, readers: Readers, counter: ActorHandle, questions: ray.ObjectRef, **options: Any
    ) -> None:
        """`recipe` is the captioners'. `questions`: the reference of all questions, which the nodes' object stores
        share."""
        self._captioning, self._readers, self._questions = recipe, readers, ray.get(questions)
        self.needs = ("unit", "index", "caption", "captions", SOURCE_FLAGS.name, readers.column)
        super().__init__(readers.recipe, readers.model, counter, rows=readers.rows, pool=POOL, **options)

    def __call__(self, table: Any) -> Any:
        """Score one batch. Raises SystemFailure if the readers no longer answer."""
        try:
            return super().__call__(table)
        except SystemFailure as failure:
            raise of_pool(POOL, failure) from None

    def apply(self, rows: list[dict[str, Any]]) -> Sequence[Changes | RowFailure]:
        """Score rows. Even a row that kills readers keeps its caption."""
        return [
            unscored(result.code) if isinstance(result, RowFailure) and result.code != UNFINISHED else result
            for result in super().apply(rows)
        ]

    def _writing(self, recipe: Recipe, model: ModelRef) -> Callable[[Engine], CaptionScorer]:
        checks, readers = Rules(self._captioning.quality, self._captioning.sampling).checks, self._readers
        return lambda engine: CaptionScorer(
            Scorer(readers.recipe.score, self._questions, model, engine), readers.column, checks, self._cut
        )
