"""Which checks run, with what thresholds, and what a recipe may say about them."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caprl_ray.errors import RecipeError, RowFailure
from caprl_ray.quality.caption import Caption
from caprl_ray.quality.checks import Checks, Settings
from caprl_ray.quality.registry import CHECKS
from tests.checkout import ROOT

DOG = Caption(text="A black dog runs through deep snow in a park, and two people watch it from a bench.")
OWN = """
def mentions_dog(caption):
    return "dog" in caption.text

def fails(caption):
    raise KeyError("the caption's own words")

def returns_text(caption):
    return "yes"

async def waits(caption):
    return True

def loop(caption):
    return True
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_checks.py").write_text(OWN)
    (tmp_path / "broken_checks.py").write_text("raise ValueError('no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_checks", raising=False)


def test_the_room_imports_no_engine() -> None:
    heavy = "{'ray', 'vllm', 'torch', 'pyarrow', 'numpy', 'boto3', 'pydantic', 'jsonschema', 'py3langid'}"
    code = (
        "import sys, caprl_ray.quality.checks as c; c.Checks.of(); "
        f"print(sorted({heavy} & {{name.partition('.')[0] for name in sys.modules}}))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_flags_come_the_worst_first_and_severity_sorts_captions_by_them() -> None:
    checks = Checks.of()
    cut = Caption(text="The cat sits. " * 100, finish_reason="length")
    assert checks.flags(DOG) == ()
    assert checks.flags(cut) == ("loop", "truncated")
    flags: list[tuple[str, ...]] = [
        ("garbage",),
        ("truncated", "too_long"),
        ("truncated",),
        ("loop",),
        ("too_short",),
        (),
    ]
    ordered = [(), ("too_short",), ("truncated",), ("truncated", "too_long"), ("loop",), ("garbage",)]
    assert sorted(flags, key=checks.severity) == ordered


def test_a_recipe_names_checks_and_moves_thresholds_and_both_are_in_the_versions() -> None:
    settings = Settings(checks=["loop", "too_short"], thresholds={"too_short.words": 30})
    checks = Checks.of(pickle.loads(pickle.dumps(settings)))
    assert checks.names == ("loop", "too_short") and checks.flags(DOG) == ("too_short",)
    versions = checks.versions()
    assert versions["too_short"] == {"version": CHECKS["too_short"].version, "words": 30}
    assert versions["loop"].keys() == {"version", *CHECKS["loop"].thresholds()}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(checks=["loops"]), "'loops' is not a check; they are empty, garbage"),
        (Settings(thresholds={"loop.speed": 1}), "'loop.speed' is not a threshold; they are"),
        (
            Settings(thresholds={"loop.copies": 1.5}),
            "loop.copies: 1.5 is not allowed; it should be a whole number from 2",
        ),
        (Settings(thresholds={"loop.ratio": 1}), "loop.ratio: 1 is not allowed; it should be a number from 3 to 100."),
        (Settings(thresholds={"loop.ratio": True}), "loop.ratio: True is not allowed"),
        (
            Settings(checks=["empty"], thresholds={"loop.ratio": 9}),
            "loop.ratio is given, but the check loop does not run",
        ),
        (Settings(own=["own_checks:no_such"]), "own_checks has no function no_such"),
        (Settings(own=["no_such_module:check"]), "ModuleNotFoundError: No module named 'no_such_module'"),
        (Settings(own=["broken_checks:check"]), "ValueError: no such file"),
        (Settings(own=["own_checks"]), "looks like package.module:function"),
        (Settings(own=["own_checks:waits"]), "must be a plain function"),
        (Settings(own=["own_checks:loop"]), "loop is also a check of caprl_ray"),
    ],
)
def test_a_wrong_section_is_refused_in_one_sentence(own: None, settings: Settings, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Checks.of(settings)
    assert words in str(caught.value)
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith((".", "?"))


def test_a_check_of_the_users_own_runs_beside_the_others(own: None) -> None:
    checks = Checks.of(Settings(own=["own_checks:mentions_dog"]))
    assert checks.flags(DOG) == ("mentions_dog",) and "mentions_dog" in checks.severe
    assert checks.severity(("truncated",)) > checks.severity(("mentions_dog",)) > checks.severity(("too_short",))
    assert len(checks.versions()["mentions_dog"]["source"]) == 16
    assert Checks.of(Settings(checks=["own_checks:mentions_dog"])).names == ("mentions_dog",)


@pytest.mark.parametrize(
    ("name", "detail"),
    [("fails", "the check fails raised KeyError"), ("returns_text", "the check returns_text returned str")],
)
def test_one_that_fails_is_a_failure_of_the_row_that_repeats_nothing_of_it(own: None, name: str, detail: str) -> None:
    checks = Checks.of(Settings(own=[f"own_checks:{name}"]))
    with pytest.raises(RowFailure) as caught:
        checks.flags(DOG)
    failure: Any = pickle.loads(pickle.dumps(caught.value))
    assert failure.code == "check_error" and failure.detail.startswith(detail) and failure.check == name
