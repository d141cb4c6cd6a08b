"""The worst captions of an output, with the questions that they do not answer."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from caprl_ray.evaluate.answers import EMPTY, SWAPPED, Answer, Evaluation

WORST = 24  # captions of each output
Asked = Mapping[str, Answer]  # one question: its answers by way


def worst(evaluation: Evaluation, output: str, most: int = WORST) -> list[dict[str, Any]]:
    """The images whose captions leave the most questions unanswered; among equal ones, those where another caption
    answers the most. Images without unanswered questions are left out."""
    by_image: defaultdict[str, defaultdict[str, dict[str, Answer]]] = defaultdict(lambda: defaultdict(dict))
    for answer in evaluation.answers:
        by_image[answer.image][answer.question_id][answer.way] = answer
    judged = {key: [asked for asked in of.values() if _judged(asked, output)] for key, of in by_image.items()}
    against = {
        key: (-sum(_missed(asked, output) for asked in of), -sum(_lost(asked, output) for asked in of), key)
        for key, of in judged.items()
    }
    order = sorted((key for key in judged if against[key][0]), key=against.__getitem__)
    return [_shown(evaluation, output, key, judged[key]) for key in order[:most]]


def _judged(asked: Asked, output: str) -> bool:
    return output in asked and asked[output].correct is not None


def _missed(asked: Asked, output: str) -> float:
    """The share of a question that the caption does not answer, over all orders of its options."""
    return 1 - _value(asked[output])


def _lost(asked: Asked, output: str) -> float:
    """The share of that which another caption of the image answers. Guesses do not count."""
    others = [_value(answer) for way, answer in asked.items() if way not in (output, EMPTY, SWAPPED)]
    return max(0.0, max(others, default=0.0) - _value(asked[output]))


def _value(answer: Answer) -> float:
    return answer.correct or 0.0


def _shown(evaluation: Evaluation, output: str, key: str, judged: Sequence[Asked]) -> dict[str, Any]:
    image, left = evaluation.images[key], [asked for asked in judged if _missed(asked, output)]
    left.sort(key=lambda asked: (-_missed(asked, output), -_lost(asked, output)))
    return {
        "image": key,
        "source": image.source,
        "kind": image.kind,
        "width": image.width,
        "height": image.height,
        "caption": evaluation.captions.get((output, key)),
        "score": sum(_value(asked[output]) for asked in judged) / len(judged),
        "questions": len(judged),
        "lost": sum(_lost(asked, output) for asked in judged),
        "missed": [_question(asked, output, evaluation) for asked in left],
    }


def _question(asked: Asked, output: str, evaluation: Evaluation) -> dict[str, Any]:
    own = asked[output]
    others = [way for way in (*evaluation.outputs, *evaluation.references) if way in asked and way != output]
    return {
        "id": own.question_id,
        "question": own.question,
        "choices": list(own.choices),
        "kind": own.kind,
        "right": own.right,
        **_given(own),
        "others": {way: _given(asked[way]) for way in others},
    }


def _given(answer: Answer) -> Mapping[str, Any]:
    return {"given": answer.given, "correct": answer.correct, "cannot": answer.cannot}
