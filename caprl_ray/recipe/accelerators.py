"""Ray's names of GPU types, read from its source without importing it, which takes a second."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path


def check(name: str) -> str:
    """The name itself. Ray may detect types without a constant, but no type that it spells in another way.

    Raises ValueError with Ray's spelling.
    """
    for known in _known():
        if name != known and _plain(name) == _plain(known):
            raise ValueError(f"{name} is not how Ray spells this type of GPU; give {known}")
    return name


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]|nvidia|amd|intel", "", name.lower())


@cache
def _known() -> tuple[str, ...]:
    """The values of the constants in ray.util.accelerators."""
    spec = importlib.util.find_spec("ray")
    if spec is None or spec.origin is None:
        return ()
    source = Path(spec.origin).parent / "util" / "accelerators" / "accelerators.py"
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except OSError:
        return ()  # this Ray has it elsewhere: no spelling is checked
    assigned = (node.value for node in tree.body if isinstance(node, ast.Assign))
    return tuple(str(value.value) for value in assigned if isinstance(value, ast.Constant))
