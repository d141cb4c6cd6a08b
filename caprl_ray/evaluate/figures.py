"""The content of `evaluation.json`: scores with their intervals, differences between ways, the worst captions, cost."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from caprl_ray.evaluate.answers import Evaluation
from caprl_ray.evaluate.asked import IMAGE_KIND, QUESTION_KIND, RESOLUTION, Asked, within
from caprl_ray.evaluate.paired import POWER, Pair, told
from caprl_ray.evaluate.worst import worst
from caprl_ray.score.summary import CONFIDENCE, interval
from caprl_ray.score.tally import Means

SCHEMA = 1
# With fewer images, an interval from drawing images is too narrow (Cameron, Gelbach and Miller 2008: 5 to 30).
FEW_IMAGES = 30


def evaluated(evaluation: Evaluation) -> dict[str, Any]:
    """The figures of an evaluation, as plain data.

    All scores are shares of 1, over questions that were judged. Intervals and p-values take an image with its questions
    as one (score/summary.py, paired.py). Outputs are compared with each other in `differences` and with the references
    in `against_references`. A difference is the second minus the first. The p-values of each list are corrected for its
    length.
    """
    asked = Asked.of(evaluation)
    outputs, references = evaluation.outputs, evaluation.references
    return {
        "schema": SCHEMA,
        "outputs": list(outputs),
        "references": list(references),
        "confidence": CONFIDENCE,
        "power": POWER,
        "images": len(evaluation.images),
        "questions": len(asked.groups[QUESTION_KIND]),
        "ways": {way: _way(asked, way, len(evaluation.images)) for way in asked.lines},
        "by": {by: _groups(asked, by) for by in (IMAGE_KIND, QUESTION_KIND, RESOLUTION)},
        "differences": told(_pairs(asked, list(combinations(outputs, 2)))),
        "against_references": told(_pairs(asked, [(other, output) for output in outputs for other in references])),
        "worst": {output: worst(evaluation, output) for output in outputs},
        "cost": dict(evaluation.cost),
    }


def _way(asked: Asked, way: str, images: int) -> dict[str, Any]:
    lines, means = asked.lines[way], asked.means(way)
    judged = ~np.isnan(lines.correct)
    return {
        **_score(means),
        "asked": len(np.unique(lines.questions)),
        "can_not_answer": float(lines.refused[judged].mean()) if judged.any() else None,
        "images_without": images - len(np.unique(means.images)),
    }


def _score(means: Means) -> dict[str, Any]:
    """The score of some questions. `few`: there are too few images for a reliable interval."""
    images = len(np.unique(means.images))
    return {
        "score": interval(means),
        "images": images,
        "questions": len(means.values),
        "few": images < FEW_IMAGES,
    }


def _groups(asked: Asked, by: str) -> list[dict[str, Any]]:
    means = {way: asked.means(way) for way in asked.lines}
    found = []
    for name, chosen in asked.grouped(by):
        ways = {way: _score(within(of, chosen)) for way, of in means.items()}
        most = max(one["images"] for one in ways.values())
        about = {"name": name, "images": most, "questions": int(chosen.sum()), "few": most < FEW_IMAGES}
        found.append(about | {"ways": ways})
    return found


def _pairs(asked: Asked, names: Sequence[tuple[str, str]]) -> list[Pair]:
    return [
        Pair(first=first, second=second, means=asked.means(second).minus(asked.means(first))) for first, second in names
    ]
