"""The answers of an evaluation as arrays, and the groups of images and questions that have scores."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caprl_ray.evaluate.answers import Answer, Evaluation
from caprl_ray.evaluate.kinds import REST, frequent
from caprl_ray.report.strata import PIXELS
from caprl_ray.score.tally import NO_PLACE, Lines, Means

IMAGE_KIND, QUESTION_KIND, RESOLUTION = "image_kind", "question_kind", "resolution"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Answers by number of the image and the question, the same for all ways. `groups` has the group of each question,
    for each kind of grouping."""

    lines: Mapping[str, Lines]
    groups: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Asked":
        images = {key: number for number, key in enumerate(evaluation.images)}
        questions: dict[tuple[str, str], int] = {}
        first: list[Answer] = []
        for answer in evaluation.answers:
            if questions.setdefault((answer.image, answer.question_id), len(first)) == len(first):
                first.append(answer)
        by_way: dict[str, list[Answer]] = {way: [] for way in (*evaluation.outputs, *evaluation.references)}
        for answer in evaluation.answers:
            by_way[answer.way].append(answer)
        shown = [evaluation.images[answer.image] for answer in first]
        return cls(
            lines={way: _lines(answers, images, questions) for way, answers in by_way.items()},
            groups={
                IMAGE_KIND: _kinds([image.kind for image in shown]),
                QUESTION_KIND: _kinds([answer.kind for answer in first]),
                RESOLUTION: np.array([_resolution(image.width * image.height) for image in shown], str),
            },
        )

    def means(self, way: str) -> Means:
        """The value of each judged question in one way."""
        return self.lines[way].means(blind=False)

    def grouped(self, by: str) -> Iterator[tuple[str, np.ndarray]]:
        """The groups, each with a mask of its questions: resolutions in order, kinds by number of questions."""
        of = self.groups[by]
        counts = Counter(of.tolist())
        order = sorted(counts, key=lambda name: (name == REST, -counts[name], name))
        if by == RESOLUTION:
            order.sort(key=RESOLUTIONS.index)
        yield from ((name, of == name) for name in order)


def within(means: Means, chosen: np.ndarray) -> Means:
    """Only the chosen questions."""
    kept = chosen[means.questions.astype(np.int64)]
    return Means(questions=means.questions[kept], images=means.images[kept], values=means.values[kept])


def _lines(answers: Sequence[Answer], images: Mapping[str, int], questions: Mapping[tuple[str, str], int]) -> Lines:
    correct = [np.nan if answer.correct is None else answer.correct for answer in answers]
    return Lines(
        images=np.array([images[answer.image] for answer in answers], np.uint64),
        questions=np.array([questions[answer.image, answer.question_id] for answer in answers], np.uint64),
        blind=np.zeros(len(answers), bool),
        correct=np.array(correct, float),
        refused=np.array([answer.cannot for answer in answers], float),
        places=np.full(len(answers), NO_PLACE, np.int8),
    )


def _kinds(kinds: Sequence[str]) -> np.ndarray:
    return np.array(list(map(frequent(kinds), kinds)), str)


def _named(low: int, high: int | None) -> str:
    if not low:
        return f"under {(high or 0) / 1e6:g} megapixels"
    return f"{low / 1e6:g} megapixels and more" if high is None else f"{low / 1e6:g} to {high / 1e6:g} megapixels"


RESOLUTIONS = tuple(_named(low, high) for low, high in zip(PIXELS, (*PIXELS[1:], None), strict=True))


def _resolution(pixels: int) -> str:
    return RESOLUTIONS[max(0, int(np.searchsorted(PIXELS, pixels, side="right")) - 1)]
