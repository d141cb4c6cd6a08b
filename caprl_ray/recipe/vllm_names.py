"""vLLM's names of engine arguments and sampling parameters, parsed from its source.

vLLM is not imported for them: this takes seconds and needs the engine's whole environment, but a wrong recipe must be
refused in milliseconds. If vLLM is not installed, or has these classes elsewhere, the names are checked when the engine
starts.
"""

import ast
import difflib
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path


def engine_arguments() -> frozenset[str]:
    """The fields of vllm.AsyncEngineArgs; empty if they are not known here."""
    return _class_fields("engine/arg_utils.py", ("EngineArgs", "AsyncEngineArgs"), "max_model_len")


def sampling_parameters() -> frozenset[str]:
    """The fields of vllm.SamplingParams; empty if they are not known here."""
    return _class_fields("sampling_params.py", ("SamplingParams",), "temperature")


def check(section: str, given: Iterable[str], known: frozenset[str]) -> None:
    """Raise ValueError with the first of `given` that is not `known`, and the nearest known names."""
    for name in given:
        if known and name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; similar names are {', '.join(near)}" if near else ""
            raise ValueError(f"{name} is not a name that vLLM knows for {section}{hint}")


@cache
def _class_fields(module: str, classes: tuple[str, ...], one: str) -> frozenset[str]:
    """The annotated fields of these classes. Empty without the field `one`: then this vLLM has the others elsewhere."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return frozenset()
    try:
        tree = ast.parse((Path(spec.origin).parent / module).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):  # SyntaxError: vLLM's source is for a later Python
        return frozenset()
    fields = frozenset(
        statement.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if not statement.target.id.startswith("_")
    )
    return fields if one in fields else frozenset()
