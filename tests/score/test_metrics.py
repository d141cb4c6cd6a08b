"""Metrics: tables of cases beside what lmms-eval and VLMEvalKit give, and properties of all answers."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caprl_ray.score import formula, metrics
from caprl_ray.score.metrics import anls, choice, exact, judge, math, relaxed

# Relaxed accuracy. Both peers define (lmms_eval/tasks/chartqa/utils.py, vlmeval/dataset/utils/vqa_eval.py): float() of
# the text, a final % divides by 100, within 5 % of the right number; text, or a right 0, compares in lower case.
AS_PEERS = [
    ("105", "100", 1),
    ("95", "100", 1),
    ("105.1", "100", 0),
    ("94.9", "100", 0),
    ("100", "105", 1),
    ("100", "106", 0),
    ("-3", "-3.1", 1),
    ("3", "-3", 0),
    ("12%", "12%", 1),
    ("12.5%", "12%", 1),
    ("13%", "12%", 0),
    ("0.12", "12%", 1),
    ("12%", "0.12", 1),
    ("1e3", "1000", 1),
    ("0", "0", 1),
    ("0.01", "0", 0),
    ("Germany", "germany", 1),
    ("Germany", "France", 0),
    ("", "5", 0),
    ("2010-2015", "2010-2015", 1),
    ("2010", "2010-2015", 0),
    ("1990s", "2000s", 0),
]
# Our differences, and why.
NOT_AS_PEERS = [
    ("1,234", "1234", 1, "a comma between thousands is no other number; the peers compare these as texts"),
    ("$5", "5", 1, "a unit on one side only"),
    ("40 km", "40", 1, "the same"),
    ("40 km", "40 miles", 0, "a unit on both sides must be the same"),
    ("12", "12%", 1, "a chart's axis says %, so the answer may leave it out; the peers read 12 % as 0.12 only"),
    ("12%", "12", 1, "the same"),
    ("1200%", "12%", 0, "both have the unit, so the numbers decide; CapRL's script also tries 100 and 0.01 times"),
    ("1200", "12", 0, "that script scales every number freely"),
    ("5 million", "5,000,000", 1, "a word for a scale"),
    ("5 million", "5 billion", 0, "the same"),
    ("5 million", "5.1 million", 1, "the same"),
    ("$5M", "5000000", 1, "the same, as axes have it"),
    ("0.0", "0", 1, "numbers that are equal; the peers compare texts where the right number is 0"),
    (" Germany ", "germany", 1, "white space says nothing"),
    ("nan", "nan", 1, "a text; the peers read a number that equals nothing"),
    ("1_000", "1000", 0, "float() of Python reads underscores"),
    ("100", "95", 0, "5 % is of the right number; CapRL's script measures it by either side's"),
    ("95", "100", 1, "the same"),
]


def test_relaxed_accuracy_gives_what_the_peers_give_but_where_it_says_why() -> None:
    assert [relaxed(answer, [gold]) for answer, gold, _ in AS_PEERS] == [worth for *_, worth in AS_PEERS]
    assert [relaxed(answer, [gold]) for answer, gold, *_ in NOT_AS_PEERS] == [row[2] for row in NOT_AS_PEERS]
    assert relaxed("7", ["3", "7"]) == 1


# ANLS, as VLMEvalKit's anls_compute and hit_calculate define it. lmms-eval divides by the length before white space is
# removed, so its similarity of the last pair is higher.
ANLS = [
    ("hello", ["hello"], 1.0),
    ("Hello", ["hello"], 1.0),
    ("helo", ["hello"], 0.8),
    ("abcd", ["abxy"], 0.5),
    ("abc", ["xyz"], 0.0),
    ("abcde", ["abxyz"], 0.0),  # 0.4 is below the threshold
    ("", ["word"], 0.0),
    ("b", ["aaaa", "b"], 1.0),
    ("a  b", ["a b"], 1.0),
    ("ab   cd", ["ab ce"], 0.8),
]


def test_anls_is_the_best_similarity_and_nothing_below_a_half() -> None:
    assert [anls(answer, golds) for answer, golds, _ in ANLS] == pytest.approx([worth for *_, worth in ANLS])


# VLMEvalKit's can_infer_option: one letter that stands alone among the last four words; the article A is none in more
# than three words. None: not judged. What it does not know, and ours does, is said.
LETTER = [
    ("B", "B"),
    ("(B)", "B"),
    ("B.", "B"),
    ("B) a black dog", "B"),
    ("The answer is C", "C"),
    ("The answer is C.", "C"),
    ("A", "A"),
    ("A or B", None),
    ("It is a dog", None),
    ("A dog runs here", None),
    ("I think that it is D", None),  # I and D
    ("black", None),
    ("", None),
    ("E is the most likely one of all these here", None),  # too far from the end
    ("**C**", "C"),
    ("Answer: A because a dog and a cat run", "A"),  # ours: the answer is said, so A is no article
    ("B. The dog, as A says, is black and it runs", "B"),  # ours: the label comes first
]


def test_a_letter_is_found_only_where_an_answer_names_one() -> None:
    assert [metrics.option_letter(answer) for answer, _ in LETTER] == [letter for _, letter in LETTER]
    assert (choice("B", ["B"]), choice("B", ["C"]), choice("blue", ["B"])) == (1.0, 0.0, None)


FORMULAS = [
    ("0.5", r"\frac{1}{2}", 1),
    ("1+x^2", "x^2+1", 1),
    (r"2\sqrt{2}", r"\sqrt{8}", 1),
    ("B", "B", 1),
    ("C", "B", 0),
    ("4", "3", 0),
    ("1234", "1,234", 1),
    (r"\{2,1\}", r"\{1,2\}", 1),
    ("$3$", "3", 1),
    ("nothing of this", "3", 0),
]


def test_formulas_are_compared_in_any_thread_and_an_endless_comparison_is_not_judged() -> None:
    found: list[float | None] = []

    def compare() -> None:
        found.extend(math(answer, [gold]) for answer, gold, _ in FORMULAS)

    thread = threading.Thread(target=compare)
    thread.start()
    thread.join(120)
    assert found == [worth for *_, worth in FORMULAS]
    formula.COMPARE_S, before = 1.0, formula.COMPARE_S
    try:
        assert math("2^{1000000000}+1", ["2^{1000000000}"]) is None
    finally:
        formula.COMPARE_S = before
    assert math("0.5", ["1/2"]) == 1  # by another child


def test_a_right_answer_that_no_metric_can_use_is_named() -> None:
    assert metrics.fault("choice", "AB") == metrics.fault("choice", "yes") == "is no letter from A to Z"
    assert metrics.fault("math", "???") == "is no formula that can be read"
    assert metrics.fault("exact", " ") == "is empty"
    assert not any(metrics.fault(*good) for good in (("choice", "C"), ("math", r"\frac12"), ("relaxed", "12 %")))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.text(min_size=1, max_size=60))
def test_every_answer_has_a_worth_between_0_and_1_and_the_right_one_has_1(answer: str, gold: str) -> None:
    for metric in ("exact", "relaxed", "anls", "choice"):
        worth = judge(metric, answer, [gold])
        assert worth is None or 0 <= worth <= 1
    assert exact(gold, [gold]) == relaxed(gold, [gold]) == anls(gold, [gold]) == 1
    assert anls(answer, [gold]) <= anls(answer, [gold, "another"])
    assert judge("relaxed", "1" * 3000, ["1"]) is None


@given(st.floats(-1e12, 1e12).filter(lambda number: abs(number) > 1e-6), st.floats(-0.2, 0.2))
def test_relaxed_is_five_per_cent_of_the_right_number_however_it_is_written(gold: float, off: float) -> None:
    near = abs(off) <= 0.05
    if abs(abs(off) - 0.05) > 1e-6:
        assert relaxed(repr(gold * (1 + off)), [repr(gold)]) == near
        assert relaxed(f"{gold * (1 + off):,.9f}", [f"{gold:.9f}"]) == near or abs(gold) < 1
        assert relaxed(f"{gold * (1 + off)!r} %", [f"{gold!r}%"]) == near


@given(st.sampled_from("ABCDE"), st.sampled_from(["{}", "({})", "{}.", " {} ", "The answer is {}.", "**{}**"]))
def test_a_letter_is_read_in_every_usual_form(letter: str, form: str) -> None:
    assert choice(form.format(letter), [letter]) == 1
