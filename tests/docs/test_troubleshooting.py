"""Every message that a page explains is one of the program's."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.checkout import ROOT

PAGES = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("troubleshooting.md", "nodes.md")]
MESSAGES = [message for page in PAGES for message in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)]


def texts(path: Path) -> Iterator[str]:
    """The texts in a module. An ellipsis stands for each value that is filled in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@cache
def all_texts() -> list[str]:
    return [text for path in (ROOT / "caprl_ray").rglob("*.py") for text in texts(path)]


@pytest.mark.parametrize("message", MESSAGES)
def test_the_program_says_it(message: str) -> None:
    assert any(message in text for text in all_texts())


def test_the_page_has_messages() -> None:
    assert len(MESSAGES) > 20
