"""Prompts and answers: the text that a reader sees, the order of options, and the letter that counts as its answer."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caprl_ray.score import judge, paper, prism
from caprl_ray.score.judge import Shown, rotations
from caprl_ray.score.question import CAN_NOT_ANSWER, Question


def question(options: int = 4, name: str = "q", image: str = "i") -> Question:
    choices = tuple(f"option {n}" for n in range(options))
    return Question(id=name, image=image, text="Which?", metric="choice", benchmark="b", choices=choices, right=0)


def test_the_way_out_is_the_last_option_and_its_letter_leaves_no_gap() -> None:
    for options in (2, 4, 9):
        shown = Shown(question=question(options), order=tuple(reversed(range(options))))
        assert shown.options[-1] == CAN_NOT_ANSWER and shown.letters == tuple("ABCDEFGHIJ"[: options + 1])
        assert shown.right == "ABCDEFGHI"[options - 1] and shown.refused("ABCDEFGHIJ"[options])
        assert shown.text.splitlines()[1] == f"- A) option {options - 1}"
        assert (shown.correct(shown.right), shown.correct(shown.letters[-1])) == (1, 0)


def test_a_prompt_has_the_caption_as_it_is_and_the_blind_one_has_neither_caption_nor_way_out() -> None:
    shown = Shown(question=question(), order=(0, 1, 2, 3))
    caption = "A {question} <b>{caption}</b> {} \\1"
    turns = shown.turns(caption, one_letter=True)
    assert f"<Caption Start> {caption} <Caption End>\nQuestion: Which?\n- A) option 0" in turns.user
    assert turns.user.endswith(f"- E) {CAN_NOT_ANSWER}") and turns.begin == "The answer is"
    assert (turns.system, turns.choices) == (None, tuple("ABCDE"))
    blind = Shown(question=question(), order=(0, 1, 2, 3), can_refuse=False).turns(None, one_letter=False)
    assert "Caption Start" not in blind.user and CAN_NOT_ANSWER not in blind.user and blind.choices == ()
    assert shown.turns("c", "{question} of {caption}", one_letter=True).user == f"{shown.text} of c"


@given(st.integers(2, 9), st.integers(0, 99), st.text(max_size=8))
def test_every_option_stands_once_in_every_place(options: int, seed: int, name: str) -> None:
    orders = rotations(question(options, name), seed)
    assert all(set(column) == set(range(options)) for column in (*orders, *zip(*orders, strict=True)))
    assert rotations(question(options, name), seed, 1) == orders[:1]


def test_first_orders_depend_on_image_and_question_and_are_spread_evenly() -> None:
    first = Counter(rotations(question(4, f"q{n}", f"i{n % 7}"), 0)[0][0] for n in range(4000))
    assert all(abs(count - 1000) < 130 for count in first.values())  # four standard deviations
    assert [rotations(question(name=n), 0) for n in "abc"] == [rotations(question(name=n), 0) for n in "abc"]
    assert sum(judge.chosen(0, question(name=f"q{n}"), "twice", 0.01) for n in range(20_000)) == pytest.approx(
        200, abs=60
    )
    assert judge.chosen(1, question(), "blind", 1.0) and not judge.chosen(1, question(), "blind", 0.0)


@pytest.mark.parametrize(
    ("text", "constrained", "expected"),
    [
        (" C", True, "C"),
        ("E", True, "E"),
        ("F", True, None),  # no such option
        (" C) option 2", False, "C"),
        (" B.", False, "B"),
        (" Black, so C", False, "C"),  # CapRL's server takes the B of Black
        (" I'd say D", False, "D"),
        (" unclear", False, None),
        ("", False, None),
        (" G", False, None),
    ],
)
def test_only_a_letter_that_is_there_is_an_answer(text: str, constrained: bool, expected: str | None) -> None:
    shown = Shown(question=question(), order=(0, 1, 2, 3))
    assert judge.letter(text, shown, constrained=constrained) == expected


def test_every_letter_that_is_shown_can_be_chosen() -> None:
    for options in (2, 9, 25):
        shown = Shown(question=question(options), order=tuple(range(options)))
        for letter in shown.letters:
            for constrained in (False, True):
                assert judge.letter(f" {letter}", shown, constrained=constrained) == letter


def test_position_bias_is_the_difference_between_places() -> None:
    fair = [(place, n % 2 == 0) for place in range(4) for n in range(10)]
    first = [(place, place == 0) for place in range(4) for _ in range(5)]
    assert (judge.position_bias(fair), judge.position_bias(first), judge.position_bias([(0, True)])) == (0, 1, None)


CHATML = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n{}"


def test_a_prism_prompt_has_the_caption_in_the_place_of_the_image() -> None:
    turns = prism.turns(CHATML.format("\nHow many?", "<think>"))
    assert (turns.system, turns.user, turns.begin) == (None, "\nHow many?", "<think>")
    said = "Here is a detailed caption of an image: Two {dogs}. Please answer the question based on the caption."
    assert prism.user_turn(turns.user, "Two {dogs}") == said + "\nHow many?"
    assert "caption" not in prism.user_turn(turns.user, None)
    for wrong in ("How many?", CHATML[5:], CHATML.replace("user", "tool"), CHATML.replace("<|image_pad|>", "")):
        with pytest.raises(ValueError, match="its prompt"):
            prism.turns(wrong.format("Q", ""))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<think>2</think><answer>\boxed{14}</answer>", "14"),
        (r"<answer>\boxed{1}</answer> no: <answer>first \boxed{2} then \boxed{\frac{1}{2}}</answer>", r"\frac{1}{2}"),
        (r"\boxed{3}", None),
        (r"<answer>3</answer>", None),
        (r"<answer>\boxed{3</answer>", None),
        (r"<answer>\boxed{}</answer>", None),
    ],
)
def test_the_answer_is_the_last_box_of_the_last_answer(text: str, answer: str | None) -> None:
    assert prism.answer(text) == answer


def test_the_papers_results_stand_under_every_spelling_of_a_benchmark() -> None:
    assert paper.results("chart_qa")["CapRL-3B"] == 80.5
    assert paper.results("MMMU-Pro") == paper.results("mmmupro") != paper.results("MMMU") != {}
    assert paper.results("SEED2k")["Qwen2.5-VL-72B"] == 69.3 and paper.results("my set") == {}
    averages = {"Qwen2.5-VL-3B": 39.9, "Qwen2.5-VL-7B": 44.9, "Qwen2.5-VL-72B": 48.3, "CapRL-3B": 48.3}
    of = {model: [paper.results(name)[model] for name in paper.METRICS] for model in averages}
    assert {model: sum(row) / len(row) for model, row in of.items()} == pytest.approx(averages, abs=0.1)
