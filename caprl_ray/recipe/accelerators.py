"""Ray's names for GPU types. They are parsed from Ray's source, because importing Ray takes a second."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path


def check(name: str) -> str:
    """Return the name. Raises ValueError if it is a known name in another spelling; the message has Ray's spelling.

    Unknown names are accepted, because Ray also detects GPU types that its source does not list.
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
        return ()  # this version of Ray has moved the file: then no spelling is checked
    assigned = (node.value for node in tree.body if isinstance(node, ast.Assign))
    return tuple(str(value.value) for value in assigned if isinstance(value, ast.Constant))
