import pytest

from caprl_ray.curate import asking
from caprl_ray.curate.drafts import Draft
from caprl_ray.curate.keep import GUESSED, NOT_SEEN, UNCLEAR, Tried

QUESTION = asking.as_question(Draft(question="What color?", choices=("red", "green", "blue"), right=2), "a.png", 0)


def test_each_option_stands_in_each_place_and_orders_depend_on_seed_and_image():
    orders = asking.orders(QUESTION, 4, seed=0)
    assert [sorted(order) for order in orders] == [[0, 1, 2]] * 4
    assert {order[0] for order in orders[:3]} == {0, 1, 2} and orders[3] == orders[0]
    draft = Draft(question="?", choices=tuple("abcdefgh"), right=0)
    firsts = [
        [asking.orders(asking.as_question(draft, f"{n}.png", 0), 1, seed)[0] for n in range(20)] for seed in (0, 1)
    ]
    assert len(set(firsts[0])) > 4 and firsts[0] != firsts[1]


def test_the_prompts_show_the_options_in_their_order():
    order = (1, 2, 0)
    seen, blind = asking.with_image(QUESTION, order), asking.without_image(QUESTION, order)
    assert seen.user.endswith("What color?\n- A) green\n- B) blue\n- C) red\n- D) None of the above")
    assert blind.user.endswith("What color?\n- A) green\n- B) blue\n- C) red")
    assert (seen.choices, blind.choices) == (("A", "B", "C", "D"), ("A", "B", "C"))
    assert seen.begin == blind.begin == "The answer is"
    assert [asking.chosen(letter, order) for letter in "ABCD"] == [1, 2, 0, 3]


@pytest.mark.parametrize(
    ("seen", "unseen", "dropped"),
    [
        ([2, 2, 2, 2], [0, 1, 1, 0], None),
        ([2, 2, 2, 1], [0, 1, 1, 0], NOT_SEEN),  # 0.75 is not more than 0.75
        ([2, 2, 2, 2], [0, 1, 2, 0], GUESSED),  # 0.25 is not fewer than 0.25
        ([0, 0, 0, 0], [2, 2, 2, 2], NOT_SEEN),
        ([3, 3, 3, 3], [0, 0, 0, 0], NOT_SEEN),  # none of the options
        ([2, 2, 2, None], [0, 1, 1, 0], UNCLEAR),
        ([None] * 4, [None] * 4, UNCLEAR),
    ],
)
def test_a_question_is_kept_that_needs_the_image(seen, unseen, dropped):
    tried = Tried(right=2, seen=seen, unseen=unseen)
    assert tried.dropped() == dropped
    assert Tried(right=2, seen=[2, 2, 2, 1], unseen=[0, 1, 2, 0]).dropped(0.5, 0.5) is None


def test_accuracies_leave_out_what_was_not_answered():
    tried = Tried(right=2, seen=[2, None, 1, 2], unseen=[None, None])
    assert (tried.accuracy_seen, tried.accuracy_unseen) == (pytest.approx(2 / 3), None)
