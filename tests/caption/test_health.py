"""A replica whose captions fail a check far too often is found and replaced."""

from caprl_ray.caption.health import LEAST, Health
from caprl_ray.watch.sick import REPLACED_ON_NODE, Sick


def test_a_replica_is_sick_when_its_latest_captions_fail_a_check_too_often() -> None:
    health = Health({"garbage": 0.1}, window=200)
    for _ in range(1000):
        health.add([], "A cat.")
    for number in range(20):
        health.add(["garbage", "url"], f"!!!! {number}")
    assert health.sick() is None
    health.add(["garbage"], "!!!! 20")
    sentence = health.sick()
    assert sentence
    assert "21 of the latest 200 captions of a replica are flagged garbage, more than 0.1" in sentence
    assert "'!!!! 18', '!!!! 19', '!!!! 20'" in sentence
    for _ in range(200):
        health.add(["loop"], "A dog.")
    assert health.sick() is None


def test_few_captions_say_nothing() -> None:
    health = Health({"garbage": 0.1}, window=200)
    for number in range(LEAST):
        assert health.sick() is None
        health.add(["garbage"], str(number))
    assert health.sick()


def test_one_sick_replica_among_healthy_ones_is_replaced() -> None:
    sick = Sick()
    sick.healthy()
    assert [sick.report("a", "garbage", 4) for _ in range(REPLACED_ON_NODE + 1)] == [True] * REPLACED_ON_NODE + [False]
    assert sick.report("b", "garbage", 4)
    assert sick.fault == "garbage"


def test_a_run_whose_replicas_are_all_sick_ends() -> None:
    """Each is replaced once: a single start may be at fault."""
    sick = Sick()
    assert sick.report("a", "first", 2)
    assert sick.report("b", "second", 2)
    assert sick.fault is None
    assert not sick.report("a", "third", 2)
    assert sick.fault == "third"
