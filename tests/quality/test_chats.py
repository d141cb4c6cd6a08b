"""Pictures of chats, forms and diagrams are read out with their speakers, and are no garbage."""

import pytest

from caprl_ray.quality.caption import Caption
from caprl_ray.quality.checks import Checks


@pytest.mark.parametrize(
    "text",
    [
        "The diagram has two boxes.\nUser: id, name, email\nOrder: id, total, date",
        "A chat is open on the phone.\nUser: How are you?\nAssistant: I am well, thank you.",
        "The terminal shows three lines.\nUSER: bob\nHOME: /home/bob\nSHELL: /bin/zsh",
        "Human: opens the fridge. Cat: appears from nowhere.",
        "| 0 | 0 | 0 |\n|---|---|---|\n" + "| 0 | 0 | 0 |\n" * 20,
    ],
)
def test_no_garbage(text: str) -> None:
    assert "garbage" not in Checks.of().flags(Caption(text=text, finish_reason="stop"))
