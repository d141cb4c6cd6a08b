"""The user turn of the prompt, as a template over the row's own columns.

Inserted text comes from the dataset and is not trusted. Control characters and the model's control tokens are removed
from it, so that a text on the web cannot end the user's turn.
"""

import json
import re
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any

from caprl_ray.errors import RowFailure
from caprl_ray.text import plain

MAX_VALUE_CHARACTERS = 4096
FALLBACK_COLUMN = "json"
FIELD = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")


class PromptTemplate:
    """The user turn: plain text with `{column}` and, inside a JSON column, `{column[field]}`.

    A name that is no column is looked up in the column `json`, where WebDataset keeps a sample's metadata. Raises
    ValueError for a template that cannot be parsed.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts: list[tuple[str, str | None]] = []
        for literal, field, spec, conversion in Formatter().parse(text):
            if spec or conversion:
                raise ValueError(f"{{{field}}} may not have a format or a conversion; write {{{{ for a brace")
            if field is not None and not FIELD.fullmatch(field):
                raise ValueError(f"{{{field}}} is not a column such as {{txt}} or {{json[alt_text]}}")
            self._parts.append((literal, field))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template may read."""
        names = {_field(field)[0] for _, field in self._parts if field is not None}
        return tuple(sorted(names | {FALLBACK_COLUMN})) if names else ()

    def fill(self, columns: Mapping[str, Any], strip: Callable[[str], str]) -> str:
        """The text for one row. `strip` gets the whole text: two values, or a value and the template's own text, could
        form a control token together. Raises RowFailure `prompt_column`."""
        if not self.columns:
            return "".join(literal for literal, _ in self._parts)
        return strip(
            "".join(
                literal if field is None else literal + plain(_text(field, columns)[:MAX_VALUE_CHARACTERS])
                for literal, field in self._parts
            )
        )


def _field(field: str) -> tuple[str, list[str]]:
    """`column[a][b]` as a column's name and the keys below it."""
    match = FIELD.fullmatch(field)
    assert match
    return match[1], re.findall(r"\[([^\[\]]+)\]", match[2])


def _text(field: str, columns: Mapping[str, Any]) -> str:
    name, keys = _field(field)
    if name not in columns:
        name, keys = FALLBACK_COLUMN, [name, *keys]
    value = columns.get(name)
    for key in keys:
        value = _member(value, key)
    if value is None:
        raise RowFailure("prompt_column", f"{{{field}}} has no value")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _member(value: Any, key: str) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value.get(key) if isinstance(value, Mapping) else None
