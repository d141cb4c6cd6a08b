"""The rooms of the package: a module imports only from rooms below its own, so that nothing runs in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkout import ROOT

PACKAGE = ROOT / "caprl_ray"
# From top to bottom. A module at the top of the package is a room of its own.
ROOMS = (
    *("cli", "tune", "commands", "dataset", "pipeline", "divided", "evaluate", "report", "explain", "export"),
    *("curate", "caption", "answer", "replica", "read", "watch", "engines", "embedded", "output", "score"),
    *(
        "quality",
        "models",
        "sources",
        "prepare",
        "plan",
        "cluster",
        "storage",
        "job",
        "recipe",
        "rows",
        "child",
        "errors",
        "text",
        "version",
    ),
)


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def room(module: str) -> str:
    return module.split(".")[1]


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("caprl_ray."))
        elif isinstance(node, ast.ImportFrom) and node.module == "caprl_ray":
            yield from (f"caprl_ray.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("caprl_ray."):
            yield str(node.module)


MODULES = {
    module_name(path): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE or not path.stem.startswith("__")
}


def test_every_module_is_in_a_room() -> None:
    assert {room(module) for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_rooms_below_it(module: str) -> None:
    own = ROOMS.index(room(module))
    up = [name for name in imported(MODULES[module]) if room(name) in ROOMS and ROOMS.index(room(name)) < own]
    assert not up


def test_an_assertion_only_looks() -> None:
    """`python -O` leaves assertions out, and with them whatever they do."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py"))
    asserted = (node.test for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert))
    called = {ast.unparse(node.func) for test in asserted for node in ast.walk(test) if isinstance(node, ast.Call)}
    assert called <= {"isinstance", "len", "all", "any", "callable"}
