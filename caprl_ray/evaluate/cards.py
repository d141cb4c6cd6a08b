"""The worst captions of an evaluation as cards of a gallery."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caprl_ray.evaluate.words import Figures, percent
from caprl_ray.report import gallery
from caprl_ray.report.pictures import Picture

MOST_QUESTIONS = 12  # on a card
MOST_TEXT, MOST_KIND = 400, 40  # characters of a question or an answer, and of a kind of images
SORTS: tuple[gallery.Option, ...] = (
    ("place up", "worst of each output in turn"),
    ("missed down", "most unanswered first"),
    ("score up", "lowest score first"),
    ("lost down", "most that another caption answers first"),
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question that a caption could not answer. An answer is: which caption, the text, and right or wrong."""

    text: str
    answers: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A caption beside its image, as shown on the page."""

    key: str
    picture: Picture
    kinds: str
    output: str
    said: str
    caption: str
    questions: Sequence[Question]
    facts: Sequence[tuple[str, str]]
    size: str
    missed: float
    score: float
    lost: float


def in_turn(figures: Figures) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The worst caption of each output, then the next of each."""
    worst = figures["worst"]
    for place in range(max(map(len, worst.values()), default=0)):
        yield from ((output, worst[output][place]) for output in figures["outputs"] if place < len(worst[output]))


def card(output: str, one: Mapping[str, Any], called: Mapping[str, str], picture: Picture) -> Card:
    """The card of a caption of an output."""
    right = one["questions"] - len(one["missed"])
    return Card(
        key=gallery.short(one["source"].rpartition("/")[2] or one["source"], 200),
        picture=picture,
        kinds=" ".join((_number(output, called), gallery.word(f"kind:{one['kind']}"))),
        output=called[output],
        said=f"{right} of {one['questions']} answered right",
        caption=gallery.short(one["caption"] or "No caption.", gallery.MOST_CHARACTERS),
        questions=[_question(asked, output, called) for asked in one["missed"][:MOST_QUESTIONS]],
        facts=[
            ("source", gallery.short(one["source"], 1000)),
            ("SHA-256", gallery.short(one["image"], 100)),
            ("kind", gallery.short(one["kind"], 80)),
        ],
        size=f"{one['width']} {gallery.TIMES} {one['height']}",
        missed=round(one["questions"] * (1 - one["score"]), 4),
        score=round(one["score"], 4),
        lost=round(one["lost"], 4),
    )


def options(
    shown: Sequence[tuple[str, Mapping[str, Any]]], figures: Figures, called: Mapping[str, str]
) -> list[tuple[str, list[gallery.Option]]]:
    """The filters for cards."""
    outputs = [output for output, _ in shown]
    kinds = sorted({one["kind"] for _, one in shown})
    by_kind = [
        (
            gallery.word(f"kind:{kind}"),
            f"{gallery.short(kind, MOST_KIND)} ({sum(one['kind'] == kind for _, one in shown)})",
        )
        for kind in kinds
    ]
    by_output = [(_number(of, called), f"{called[of]} ({outputs.count(of)})") for of in figures["outputs"]]
    return [("output", by_output if len(by_output) > 1 else []), ("kind of image", by_kind if len(kinds) > 1 else [])]


def _number(output: str, called: Mapping[str, str]) -> str:
    """An output as one word of a list of words."""
    return f"output:{list(called).index(output)}"


def _question(asked: Mapping[str, Any], output: str, called: Mapping[str, str]) -> Question:
    return Question(
        text=gallery.short(asked["question"], MOST_TEXT),
        answers=[
            ("right", gallery.short(asked["right"], MOST_TEXT), ""),
            (called[output], *_given(asked)),
            *((called[way], *_given(of)) for way, of in asked["others"].items()),
        ],
    )


def _given(of: Mapping[str, Any]) -> tuple[str, str]:
    """The answer from a caption, and whether it is right."""
    text = gallery.short(of["given"], MOST_TEXT) if of["given"] is not None else "can not answer"
    if of["correct"] is None:
        return "not judged", "soft"
    share = "" if of["correct"] in (0, 1) else f" ({percent(of['correct'])} of the answers are right)"
    return f"{text}{share}", "good" if of["correct"] == 1 else "bad" if not of["correct"] else "warn"
