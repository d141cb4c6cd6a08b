"""Recipes as YAML with comments, which are the fields' descriptions."""

import json
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from caprl_ray.recipe.sections import Recipe

WIDTH = 100
PLACEHOLDERS = {"paths": ["photos"], "path": "captions"}  # the fields without a default
# The comments of a section by field; they stand before the field. Those of the key "" stand at the section's end. A
# comment that begins with # is a field that is commented out.
Comments = Mapping[str, Iterable[str]]


def whole() -> str:
    """A recipe with every section and field. Required fields have a placeholder; all others are commented out, with
    their default."""
    lines = ["# Every field of a recipe. A field with a # directly before its name has its default."]
    for name, facts in Recipe.model_fields.items():
        section = facts.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            required = facts.is_required()
            lines += ["", *comment(str(section.__doc__)), f"{'' if required else '#'}{name}:"]
            for field, described in section.model_fields.items():
                lines += comment(described.description or "", "  ")
                lines.append(f"  {'' if described.is_required() else '#'}{field}: {flow(_default(field, described))}")
        else:
            lines += ["", *comment(facts.description or ""), f"#{name}: {flow(facts.get_default())}"]
    return "\n".join([*lines, ""])


def section(name: str, values: Mapping[str, Any], comments: Comments) -> list[str]:
    """The YAML lines of one section with its comments."""
    lines = [f"{name}:"]
    for field, value in values.items():
        lines += [line for text in comments.get(field, ()) for line in comment(text, "  ")]
        lines.append(f"  {field}: {flow(value)}")
    return [*lines, *(line for text in comments.get("", ()) for line in comment(text, "  "))]


def described(name: str, field: str) -> str:
    """The first sentence of a field's description."""
    kind: Any = Recipe.model_fields[name].annotation
    return str(kind.model_fields[field].description).replace("\n", " ").partition(". ")[0].rstrip(".") + "."


def flow(value: Any) -> str:
    """A value as one line of YAML, in JSON's form. Line breaks and unprintable characters are escaped."""
    return _escaped(json.dumps(value.model_dump() if isinstance(value, BaseModel) else value, ensure_ascii=False))


def _escaped(text: str) -> str:
    """Escape the characters that YAML takes for the end of a line or refuses to read."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" if c <= "\uffff" else f"\\U{ord(c):08x}" for c in text)


def _default(field: str, facts: FieldInfo) -> Any:
    return PLACEHOLDERS[field] if facts.is_required() else facts.get_default()


def comment(text: str, indent: str = "") -> list[str]:
    """A text as lines of comments. A text that begins with # is a commented-out field and stays one line."""
    if text.startswith("#"):
        return [indent + _escaped(text)]
    prefix = f"{indent}# "
    return textwrap.wrap(_escaped(" ".join(text.split())), WIDTH, initial_indent=prefix, subsequent_indent=prefix)
