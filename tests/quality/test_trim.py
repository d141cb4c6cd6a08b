"""A stopped caption is cut after its last whole sentence, and before a loop that ends it."""

import pytest

from caprl_ray.quality.trim import trimmed

WHOLE = 'A cat sits on a wall. Its sign says "Keep out!"'


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (WHOLE + " Behind it the sk", WHOLE),
        (WHOLE, WHOLE),
        ("No end here", "No end here"),
        ("", ""),
        ("猫が壁の上に座っています。空は青", "猫が壁の上に座っています。"),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n| 3", "| a | b |\n|---|---|\n| 1 | 2 |"),
        ("It costs 3.50 dollars. And 4.", "It costs 3.50 dollars. And 4."),
        (WHOLE + " A tree stands on the left side." * 30 + " A tree sta", WHOLE + " A tree stands on the left side."),
        (WHOLE + " na" * 100, WHOLE),
        (WHOLE + "\n" + "- a chair\n" * 50, WHOLE + "\n- a chair"),
    ],
)
def test_cut(text: str, kept: str) -> None:
    assert trimmed(text) == kept
