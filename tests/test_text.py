"""Plain text: characters that harm a terminal, a parser or UTF-8 are removed. The rest stays as it was."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caprl_ray.text import plain


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a\0b\x1b[31mc\x7f\x9bd", "ab[31mcd"),
        ("one\r\ntwo\rthree\n\tfour", "one\ntwo\nthree\n\tfour"),
        ("half \ud83d of a smile", "half  of a smile"),
        ("<script>alert(1)</script> =cmd|' /C calc'!A0", "<script>alert(1)</script> =cmd|' /C calc'!A0"),
        ("\u202egnp.exe\u2066 \u200f ü 写真 \U0001f600", "\u202egnp.exe\u2066 \u200f ü 写真 \U0001f600"),
    ],
)
def test_control_characters_go_and_text_stays(text: str, left: str) -> None:
    assert plain(text) == left


@given(st.text(st.characters(codec=None)))
def test_what_is_left_is_utf8_without_control_characters_and_stays_as_it_is(text: str) -> None:
    left = plain(text)
    left.encode()
    assert not [c for c in left if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    assert plain(left) == left
    assert [c for c in text if unicodedata.category(c) not in ("Cc", "Cs")] == [c for c in left if c not in "\n\t"]
