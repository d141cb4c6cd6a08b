import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caprl_ray.curate import drafts as module
from caprl_ray.curate.alike import alike
from caprl_ray.curate.drafts import Draft, drafts

CAT = {"question": "What color is the cat?", "options": ["A) Black", "B) White", "C) Gray"], "answer": "B"}
SIGN = {"question": "What does the sign say?", "options": ["Open", "Closed", "Sale"], "answer": "Closed"}


def text(*values):
    return json.dumps(list(values))


def one(**changes):
    return drafts(text({**CAT, **changes}), 5)


def test_questions_are_read_from_a_list_a_fence_and_lines():
    wanted = (
        Draft(question="What color is the cat?", choices=("Black", "White", "Gray"), right=1),
        Draft(question="What does the sign say?", choices=("Open", "Closed", "Sale"), right=1),
    )
    for written in (
        text(CAT, SIGN),
        f"Here are the questions:\n```json\n{json.dumps([CAT, SIGN], indent=2)}\n```\nI hope they help.",
        json.dumps({"questions": [CAT, SIGN]}),
        json.dumps({"image": "a cat", "questions": [CAT, SIGN], "count": 2}, indent=1),
        json.dumps({"questions": [CAT, SIGN]}).removesuffix("]}"),
        f"1. {json.dumps(CAT)}\n2. {json.dumps(SIGN)}",
    ):
        assert drafts(written, 5) == module.Drafts(questions=wanted)


def test_options_by_letter_are_read():
    options = {"A": "Black", "B": "White", "C": "Gray"}
    assert one(options=options).questions[0] == Draft(
        question="What color is the cat?", choices=("Black", "White", "Gray"), right=1
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"options": ["Black", "White"], "answer": "White"}, module.FEW_OPTIONS),
        ({"options": [f"color {n}" for n in range(26)], "answer": "color 3"}, module.FEW_OPTIONS),
        ({"options": ["Black", "White", " black "], "answer": "White"}, module.SAME_OPTIONS),
        ({"options": ["A) Black", "A) White", "C) Gray"]}, module.SAME_OPTIONS),
        ({"answer": "Red"}, module.ANSWER_OUTSIDE),
        ({"answer": "E"}, module.ANSWER_OUTSIDE),
        ({"answer": ""}, module.NO_FIELDS),
        ({"answer": None}, module.NO_FIELDS),
        ({"answer": 2}, module.NO_FIELDS),
        ({"question": ["What?"]}, module.NO_FIELDS),
        ({"options": "Black, White, Gray"}, module.NO_FIELDS),
        ({"options": ["Black", None, "Gray"]}, module.NO_FIELDS),
        ({"options": [{"text": "Black"}, {"text": "White"}, {"text": "Gray"}]}, module.NO_FIELDS),
        ({"options": ["Black", "White", "All of the above"]}, module.COMBINED_OPTION),
        ({"options": ["Black", "White", "None of these"]}, module.COMBINED_OPTION),
        ({"options": ["Black", "White", "Both A and B"]}, module.COMBINED_OPTION),
        ({"options": ["Black", "White", "Neither (A) nor (B)"]}, module.COMBINED_OPTION),
        ({"question": "What?" * 250}, module.TOO_LONG),
        ({"question": "What color is the white cat?"}, module.TELLS_ANSWER),
    ],
)
def test_an_unusable_question_has_its_reason(changes, reason):
    assert one(**changes) == module.Drafts(unusable=(reason,))


@pytest.mark.parametrize(
    "changes",
    [
        {"options": ["Black", "White", "Some of it is in the shade"]},
        {"options": ["Both cats", "White", "Neither"]},
        {"question": "Is the cat black or white?"},  # it names two options, so it tells nothing
        {"question": "What is the color of the whiteboard?"},
    ],
)
def test_a_question_that_looks_like_an_unusable_one_is_read(changes):
    assert one(**changes).unusable == ()


def test_an_answer_that_begins_with_an_article_is_no_letter():
    assert one(options=["A dog", "A cat", "A cow"], answer="A cat").questions[0].right == 1


def test_a_text_that_ends_early_costs_only_its_last_question():
    written = text(CAT, SIGN)
    assert drafts(written[: written.index("Closed")], 5) == module.Drafts(
        questions=drafts(text(CAT), 5).questions, unusable=(module.CUT_SHORT,)
    )


def test_a_broken_question_costs_no_other():
    broken = '{"question": "What?", "options": ["a", "b" "c"], "answer": "a"}'
    found = drafts(f"[{json.dumps(CAT)}, {broken}, {json.dumps(SIGN)}]", 5)
    assert [draft.question for draft in found.questions] == [CAT["question"], SIGN["question"]]
    assert found.unusable == (module.NO_FIELDS,)


def test_no_more_than_asked_for_are_read():
    assert len(drafts(text(CAT, SIGN), 1).questions) == 1


def test_a_text_without_questions_has_none():
    assert drafts("I cannot see any image.", 5) == module.Drafts()


def test_a_near_duplicate_is_dropped_and_a_question_about_another_thing_is_not():
    again = {**CAT, "question": "Which colour has the cat in the picture?", "options": ["Gray", "White", "Red"]}
    again["answer"] = "White"
    dog = {**CAT, "question": "What color is the dog?"}
    found = drafts(text(CAT, again, dog), 5)
    assert [draft.question for draft in found.questions] == [CAT["question"], dog["question"]]
    assert found.unusable == (module.NEAR_DUPLICATE,)


@pytest.mark.parametrize(
    ("question", "answer", "other", "other_answer", "same"),
    [
        ("How many people are there?", "Three", "What is the number of people?", "Three", False),
        ("How many people are visible?", "Three", "How many people are in the image?", "Three", True),
        ("What is on the table?", "A cup", "What is under the table?", "A dog", False),
        ("图中的猫是什么颜色？", "黑色", "图中的猫是什么颜色呢？", "黑色", True),
        ("图中的猫是什么颜色？", "黑色", "图中的狗在做什么？", "睡觉", False),
        ("What is it?", "This", "Which one?", "That", False),  # no word that carries meaning
    ],
)
def test_alike(question, answer, other, other_answer, same):
    assert alike(question, answer, other, other_answer) is same
    assert alike(other, other_answer, question, answer) is same


@given(st.text())
def test_any_text_is_read(written):
    found = drafts(written, 5)
    assert len(found.questions) + len(found.unusable) <= 5


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["question", "options", "answer", "A"]), x),
    )
)
def test_any_json_is_read(value):
    drafts(json.dumps(value), 5)
