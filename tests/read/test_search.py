"""The search gives up the right samples after each death of a child."""

import pytest

from caprl_ray.errors import RowFailure
from caprl_ray.read.search import MOST_DEATHS, Search

CRASH = RowFailure("read_crash", "SIGSEGV")


def died(search: Search, place: int, suspects: list[range] | None = None) -> set[int]:
    """The samples that the next child skips."""
    if search.needs_suspects(place):
        assert suspects is not None
        search.suspects = list(suspects)
    search.next(place, CRASH)
    return set(search.lost)


def test_one_death_gives_nothing_up() -> None:
    search = Search()
    assert [died(search, place) for place in (3, 9, 40)] == [set()] * 3


def test_suspects_are_tried_one_by_one_and_those_stay_that_a_child_gets_beyond() -> None:
    search = Search()
    assert died(search, 3) == set()
    assert died(search, 3, [range(4, 5), range(3, 4)]) == {4}
    assert died(search, 3) == {3}
    assert died(search, 9) == {3}
    assert died(search, 9, [range(9, 20)]) == {3, *range(9, 20)}
    assert died(search, 20) == {3, *range(9, 20)}


def test_a_place_that_nothing_gets_beyond_ends_the_unit() -> None:
    search = Search()
    died(search, 3)
    died(search, 3, [range(3, 4)])
    with pytest.raises(RowFailure) as ended:
        died(search, 3)
    assert ended.value is CRASH


def test_a_place_without_suspects_ends_the_unit() -> None:
    search = Search()
    died(search, 0)
    with pytest.raises(RowFailure):
        died(search, 0, [])


def test_deaths_are_bounded_even_if_each_is_at_another_place() -> None:
    search = Search()
    for place in range(MOST_DEATHS):
        died(search, place)
    with pytest.raises(RowFailure):
        died(search, MOST_DEATHS)
