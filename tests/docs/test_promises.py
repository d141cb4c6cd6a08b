"""docs/promises.md names a test of every promise, and the page says by which target each is run."""

import re

import pytest

from tests.checkout import ROOT

PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
ROWS = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`[^|]*\| `(make [\w-]+)` \|$", PAGE, re.MULTILINE)


def marked_slow(text: str, test: str) -> bool:
    before = text.partition(f"\ndef {test}(")[0]
    decorators = before[before.rindex("\n\n\n") :] if "\n\n\n" in before else before
    return "@pytest.mark.slow" in decorators


def test_every_line_that_names_a_test_says_what_runs_it() -> None:
    lines = [line for line in PAGE.splitlines() if "`tests/" in line]
    assert len(lines) == len(ROWS) + 1  # tests/compat, which make compat runs
    assert {target for _, _, target in ROWS} == {"make test", "make test-all"}


def test_every_promise_is_on_the_page() -> None:
    assert [int(number) for number in re.findall(r"^\| P(\d+) \|", PAGE, re.MULTILINE)] == list(range(1, 13))


@pytest.mark.parametrize(("path", "test", "target"), ROWS)
def test_a_named_test_is_there_and_runs_when_the_page_says(path: str, test: str, target: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    if test:
        assert f"\ndef {test}(" in text
        assert marked_slow(text, test) == (target == "make test-all")
    else:
        assert target == "make test"
        assert any(not marked_slow(text, name) for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE))
