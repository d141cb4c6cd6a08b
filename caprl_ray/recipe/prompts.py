"""The section `prompt`, and its template: the text of the user turn, with placeholders for the row's own columns.

Substituted values come from the dataset and are not trusted. Control characters and the model's control tokens are
removed from them; otherwise a text in the dataset could end the user turn.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from string import Formatter
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from caprl_ray.errors import RowFailure
from caprl_ray.recipe.fields import Section
from caprl_ray.text import plain

MAX_VALUE_CHARACTERS = 4096
FALLBACK_COLUMN = "json"
FIELD = re.compile(r"([^\[\]|]+)((?:\[[^\[\]|]+\])*)(?:\|(.*))?", re.DOTALL)


class PromptTemplate:
    """The text of the user turn, with placeholders `{column}` and, for fields of a JSON column, `{column[field]}`.

    `{column|text}` is replaced by `text` if the row has no value. If the row has no column of that name, the name is
    looked up in the column `json`, where WebDataset keeps a sample's metadata. Raises ValueError if the template cannot
    be parsed.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts: list[tuple[str, str | None]] = []
        for literal, field, spec, conversion in _parsed(text):
            if spec or conversion:
                raise ValueError(f"{{{field}}} may not have a format or a conversion; write {{{{ for a literal brace")
            if field is not None and not FIELD.fullmatch(field):
                raise ValueError(f"{{{field}}} is not a column such as {{txt}} or {{json[alt_text]}}")
            self._parts.append((literal, field))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template may read."""
        names = {_field(field)[0] for _, field in self._parts if field is not None}
        return tuple(sorted(names | {FALLBACK_COLUMN})) if names else ()

    @property
    def literal(self) -> str:
        """The template's own text, without inserted values."""
        return " ".join(literal for literal, _ in self._parts).strip()

    def missing(self, columns: Collection[str]) -> list[str]:
        """The placeholders that no row can fill if the rows have only these columns."""
        fields = [field for _, field in self._parts if field is not None]
        if FALLBACK_COLUMN in columns:
            return []
        return [field for field in fields if _field(field)[0] not in columns and _field(field)[2] is None]

    def fill(self, columns: Mapping[str, Any], strip: Callable[[str], str]) -> str:
        """Fill in the values of one row and pass the result through `strip`, which removes control tokens.

        The whole text is stripped, because two values, or a value and the template's text, can form a control token
        together. Values are cut to MAX_VALUE_CHARACTERS. Raises RowFailure `prompt_column` if a value is missing.
        """
        if not self.columns:
            return "".join(literal for literal, _ in self._parts)
        return strip(
            "".join(
                literal if field is None else literal + plain(_text(field, columns)[:MAX_VALUE_CHARACTERS])
                for literal, field in self._parts
            )
        )


def _parsed(text: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{error}; write {{{{ and }}}} for literal braces") from None


def _field(field: str) -> tuple[str, list[str], str | None]:
    """Split `column[a][b]|default` into the column's name, the list of keys and the default, if there is one."""
    match = FIELD.fullmatch(field)
    assert match
    return match[1], re.findall(r"\[([^\[\]]+)\]", match[2]), match[3]


def _text(field: str, columns: Mapping[str, Any]) -> str:
    name, keys, default = _field(field)
    if name not in columns:
        name, keys = FALLBACK_COLUMN, [name, *keys]
    value = columns.get(name)
    for key in keys:
        value = _member(value, key)
    if value is None and default is not None:
        return default
    if value is None:
        raise RowFailure("prompt_column", f"{{{field}}} has no value")
    try:
        value = _decoded(value)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_decoded)
    except UnicodeDecodeError:
        raise RowFailure("prompt_column", f"{{{field}}} holds bytes that are not text") from None


def _decoded(value: Any) -> Any:
    """A value that JSON can hold: bytes are decoded, and other types that JSON lacks, such as dates, become text."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode()
    return value if isinstance(value, str | int | float | bool | list | tuple | dict) else str(value)


def _member(value: Any, key: str) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value.get(key) if isinstance(value, Mapping) else None


PromptText = Annotated[str, Field(min_length=1), AfterValidator(lambda text: PromptTemplate(text).text)]
PromptName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,39}$")]


class Prompt(Section):
    """The prompt that goes with each image."""

    system: str | None = "You are a helpful assistant."
    """The text of the system turn. null means no system turn at all, even if the model's chat template would add
    one."""
    user: PromptText = "Please describe this image in detail."
    """The text of the user turn, which follows the image. {column} and {json[field]} are replaced by the row's own
    values. {column|text} is replaced by the given text if the row has no value."""
