"""Left-out objects are counted by reason, with one example."""

from caprl_ray.plan.left_out import MAX_EXAMPLE, LeftOut


def test_counts_survive_storing_and_merging() -> None:
    first, second = LeftOut(), LeftOut()
    first.add("hidden", "a/.b.jpg")
    second.add("hidden", "c/.d.jpg", 2)
    second.add("link", "x" * 1000)
    second.add("special", "caf\udce9\x1b\n.jpg", 0)
    first.merge(LeftOut.load(second.dump()))
    assert LeftOut.load(first.dump()).report() == first.report()
    assert first.report() == {
        "hidden": {"count": 3, "example": "a/.b.jpg"},
        "link": {"count": 1, "example": "x" * MAX_EXAMPLE},
        "special": {"count": 0, "example": r"caf\xe9 .jpg"},
    }
    assert first.summary().startswith("3 hidden files or folders (such as a/.b.jpg), 1 link that is not followed (xxx")


def test_nothing_left_out_is_false() -> None:
    assert not LeftOut()
    assert not LeftOut.load("{}")
    assert not LeftOut.load('{"of_a_newer_version": {"count": 1, "example": "a"}}')
