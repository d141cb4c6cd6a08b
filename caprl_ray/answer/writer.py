"""Score the captions in rows: find their questions, ask them concurrently, and judge the answers."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from caprl_ray.answer.columns import NO_CAPTION
from caprl_ray.answer.scorer import Scorer
from caprl_ray.errors import RowFailure
from caprl_ray.replica.cut import Cut
from caprl_ray.rows.codes import NO_KEY, NO_QUESTIONS
from caprl_ray.rows.schema import META_PREFIX
from caprl_ray.rows.stage import Changes


class ScoreWriter:
    """Scores rows. `caption` is the column of captions, `column` joins rows and questions, `cut` ends answers."""

    def __init__(self, scorer: Scorer, caption: str, column: str, cut: Cut) -> None:
        self._scorer, self._cut = scorer, cut
        self._caption, self._column = META_PREFIX + caption, META_PREFIX + column

    async def write(self, rows: list[dict[str, Any]]) -> Sequence[Changes | RowFailure]:
        """Score rows concurrently. A row that fails does not affect the others. Raises SystemFailure if the engine
        does."""
        return await asyncio.gather(*(self._cut(self._row(row)) for row in rows))

    def sums(self) -> dict[str, Counter[str]]:
        """No counters beside those in the rows."""
        return {}

    async def _row(self, row: dict[str, Any]) -> Changes | RowFailure:
        caption, key = row[self._caption], row[self._column]
        if key is None or str(key) == "":
            return RowFailure(NO_KEY)
        questions = self._scorer.about(image := self._scorer.image(key))
        if not questions:
            return RowFailure(NO_QUESTIONS)
        if caption is None:
            return RowFailure(NO_CAPTION)
        seen, blind = self._scorer.answers(str(caption), questions), self._scorer.blind(questions)
        answers, guessed = await asyncio.gather(seen, blind)
        worth = self._scorer.worth(answers)
        if isinstance(worth, RowFailure):
            return worth
        return {"score": worth, **self._scorer.columns(image, answers, guessed)}
