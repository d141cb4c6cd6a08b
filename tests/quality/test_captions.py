"""The labelled captions (benchmarks/captions): what is built is what is stored, and the checks reach their goals."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.checkout import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    def module(folder: Path, name: str) -> ModuleType:
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    yield module
    for name in ("build", "spoilt", "read_out", "quality"):
        sys.modules.pop(name, None)


def test_the_stored_captions_are_those_that_are_built(load: object) -> None:
    built = list(load(BENCHMARKS / "captions", "build").lines())  # type: ignore[operator]
    assert (BENCHMARKS / "captions" / "captions.jsonl").read_text(encoding="utf-8").splitlines() == built


def test_the_checks_reach_their_goals_on_captions_that_they_were_not_made_on(load: object) -> None:
    quality = load(BENCHMARKS, "quality")  # type: ignore[operator]
    items = quality.items("held_out")
    assert (
        len(items) >= 300 and len({item["text"] for item in quality.items("tuning")} & {i["text"] for i in items}) < 10
    )
    figures = quality.figures_of([(item, quality.flags(item)) for item in items])
    for check in ("loop", "refusal", "garbage", "language"):
        assert figures[f"{check}_precision"] >= 0.98 and figures[f"{check}_recall"] >= 0.95, check
    assert [i["kind"] for i in items if not i["labels"] and quality.flags(i)] == []
    near = [i for half in ("tuning", "held_out") for i in quality.items(half) if i["kind"] == "near_language"]
    missed = [(i["language"], i["text"][:40]) for i in near if "language" not in quality.flags(i)]
    assert len(near) >= 20 and not missed, "captions in a language that is near the wanted one"
