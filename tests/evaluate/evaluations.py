"""Evaluations whose answers, and so whose figures, are known."""

from collections.abc import Callable, Mapping

from caprl_ray.evaluate.answers import EMPTY, EVERY, Answer, Evaluation, Image

A, B = "s3://bucket/a", "s3://bucket/b"
OPTIONS = ("red", "blue", "green")


def answer(way: str, image: str, question: str, correct: float | None, kind: str = "colour", text: str = "") -> Answer:
    """An answer, whose text follows from how right it is."""
    given = None if not correct else "red"
    return Answer(
        image=image,
        way=way,
        question_id=question,
        question=text or f"What colour is the thing of {question}?",
        choices=OPTIONS,
        right="red",
        given=given,
        kind=kind,
        correct=correct,
        cannot=1.0 if correct == 0 else 0.0,
    )


def evaluation(
    values: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    *,
    references: tuple[str, ...] = (EMPTY,),
    kinds: Callable[[str], str] = lambda image: EVERY,
    sizes: Callable[[str], tuple[int, int]] = lambda image: (640, 480),
    captions: Callable[[str, str], str] = lambda way, image: f"What {way} says of {image}.",
    pictures: Callable[[str], bytes] = lambda image: b"",
    text: str = "",
) -> Evaluation:
    """An evaluation with such values by way, image and question. Questions are of the kind that their names begin
    with, up to a colon."""
    names = dict.fromkeys(image for of in values.values() for image in of)
    images = {
        name: Image(key=name, source=f"/in/{name}.jpg", kind=kinds(name), width=sizes(name)[0], height=sizes(name)[1])
        for name in names
    }
    return Evaluation(
        outputs=tuple(way for way in values if way not in references),
        references=tuple(way for way in references if way in values),
        images=images,
        captions={(way, image): captions(way, image) for way, of in values.items() for image in of},
        answers=tuple(
            answer(way, image, question, correct, question.partition(":")[0], text)
            for way, of in values.items()
            for image, questions in of.items()
            for question, correct in questions.items()
        ),
        pictures=pictures,
        cost={"seconds": 90.0, "dollars": 1.5, "answers": 1234.0},
    )
