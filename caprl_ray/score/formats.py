"""The formats of question files: how one row becomes questions. Every fault is a ValueError without the row's place.

CapRL-QA-75K, CapRL's evaluation files, and tables with the columns question, choices, answer and metric.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from caprl_ray.score import metrics, prism
from caprl_ray.score.metrics import METRICS
from caprl_ray.score.question import Question, options

JOINS = ("id", "key", "path", "sha256")
MOST_NESTED = 8


def qa_75k(row: Mapping[str, Any], join: str, benchmark: str, metric: str | None) -> Iterator[Question]:
    """A row of CapRL-QA-75K: all questions of one image, each with labelled options and the letter of the right one.

    A row of `caprl-ray curate` may have none that was kept, and has the SHA-256 of its image.
    """
    image = _text(row.get("image") or {}, "path") if join == "path" else _text(row, join)
    _refuse(metric not in (None, "choice"), f"its metric is choice, and the recipe says {metric}")
    model = row.get("reward_model")
    asked = model.get("ground_truth") if isinstance(model, Mapping) else None
    _refuse(not isinstance(asked, list), "reward_model.ground_truth is no list of questions")
    for number, one in enumerate(asked or ()):
        try:
            _refuse(not isinstance(one, Mapping), "it is no object with question, choices and answer")
            choices, right = options(_texts(one.get("choices"), "choices"), _text(one, "answer"))
            text = _text(one, "question")
        except ValueError as error:
            raise ValueError(f"question {number}: {error}") from None
        name = f"{row.get('id') or image}#{number}"
        yield Question(
            id=name, image=image, text=text, choices=choices, right=right, metric="choice", benchmark=benchmark
        )


def evaluation(row: Mapping[str, Any], join: str, benchmark: str, metric: str | None) -> Iterator[Question]:
    """A row of CapRL's evaluation files: the path of an image, a whole prompt in ChatML, and the right answer.

    Benchmarks ask some questions twice, so a question without an id is named after its row (read.py).
    """
    image = _path(row.get("image"))
    turns = prism.turns(_text(row, "prompt"))
    answers = _answers(row.get("answer"))
    _refuse(metric is None, "this kind of file does not say its metric; give it in score.questions")
    assert metric
    _check(metric, answers)
    yield Question(
        id=str(row.get("id") or ""),
        image=image,
        text=turns.user,
        metric=metric,
        benchmark=benchmark,
        answers=answers,
        own_prompt=True,
        system=turns.system,
        begin=turns.begin,
    )


def table(row: Mapping[str, Any], join: str, benchmark: str, metric: str | None) -> Iterator[Question]:
    """A row of a table of questions: the column of `join`, question, answer, and choices, metric, benchmark, kind or
    question_id where there are some."""
    image, text = _text(row, join), _text(row, "question")
    choices = row.get("choices") or ()
    metric = row.get("metric") or metric or ("choice" if choices else None)
    _refuse(metric is None, "it has no metric, and score.questions names none")
    _refuse(
        not isinstance(metric, str) or metric not in METRICS,
        f"its metric {str(metric)[:80]!r} is unknown; the metrics are {', '.join(METRICS)}",
    )
    assert metric
    answers = _answers(row.get("answer"))
    question = partial(
        Question,
        id=str(row.get("question_id") or f"{image}#{text}"),
        image=image,
        text=text,
        benchmark=str(row.get("benchmark") or benchmark),
        metric=metric,
        kind=str(row.get("kind") or ""),
    )
    if metric == "choice":
        _refuse(len(answers) != 1, "it has several right answers; the metric choice has one")
        texts, right = options(_texts(choices, "choices"), answers[0])
        yield question(choices=texts, right=right)
        return
    _check(metric, answers)
    yield question(answers=answers)


def _check(metric: str, answers: Sequence[str]) -> None:
    for answer in answers:
        fault = metrics.fault(metric, answer)
        _refuse(fault, f"its answer {answer[:80]!r} {fault}, which the metric {metric} needs")


def _refuse(fault: Any, sentence: str) -> None:
    if fault:
        raise ValueError(sentence)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name) if isinstance(row, Mapping) else None
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"it has no text in {name}")
    return value


def _texts(value: Any, name: str) -> list[str]:
    if (
        not isinstance(value, list | tuple)
        or not value
        or not all(isinstance(text, str) and text.strip() for text in value)
    ):
        raise ValueError(f"{name} is no list of texts")
    return list(value)


def _answers(value: Any) -> tuple[str, ...]:
    """All right answers. Some files write a list of them as a text such as "['a', 'b']"."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return (str(value),)
    values = value if isinstance(value, list | tuple) else [value]
    texts = tuple(str(one) for one in values if isinstance(one, str | int | float) and str(one).strip())
    _refuse(not values or len(texts) < len(values), "it has no text in answer")
    return texts


def _path(value: Any) -> str:
    """The path of the one image: a text, or somewhere in turns such as [{content: [{image: path}]}]."""
    found = list(_paths(value, 0))
    _refuse(len(set(found)) != 1, f"image names {len(set(found))} images; it should name one")
    return found[0]


def _paths(value: Any, depth: int) -> Iterator[str]:
    if depth > MOST_NESTED:
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _paths(part, depth + 1)
    elif isinstance(value, dict):
        for name in ("image", "path", "content"):
            if not isinstance(value.get(name), str) or name != "content":
                yield from _paths(value.get(name), depth + 1)
