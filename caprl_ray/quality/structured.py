"""The check for captions that should be JSON of a given schema."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from caprl_ray.errors import RecipeError
from caprl_ray.quality.caption import Caption
from caprl_ray.quality.check import Check


@dataclass(frozen=True, kw_only=True)
class Json(Check):
    """The caption is not JSON, or does not satisfy the schema."""

    name: ClassVar = "json"
    severe: ClassVar = True
    standard: ClassVar = False
    spares: ClassVar = "White space around the JSON, and any order of its fields. A markdown fence is a fault."
    causes: ClassVar = "The model writes a fence or words around the JSON, or is cut off at `sampling.max_tokens`."
    remedy: ClassVar = "Ask for JSON only, or give the schema as `sampling.structured_outputs` too."

    wanted: Mapping[str, Any] = field(hash=False)

    def __post_init__(self) -> None:
        self._validator  # noqa: B018 (refuses a wrong schema at once)

    def found(self, caption: Caption) -> bool:
        from referencing.exceptions import Unresolvable

        try:
            document = json.loads(caption.text, parse_constant=_refuse)
            return not self._validator.is_valid(document)
        except (ValueError, RecursionError, Unresolvable):
            return True

    @cached_property
    def _validator(self) -> Any:
        """The compiled schema, which fetches nothing. Raises RecipeError if it is wrong or refers to another schema."""
        import jsonschema
        from referencing import Registry, Resource
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012

        schema = json.loads(json.dumps(self.wanted))
        root = Registry().with_resource("", Resource(schema, DRAFT202012)).resolver()
        for reference in _references(schema):
            try:
                root.lookup(reference if reference.startswith("#") else "elsewhere:")
            except Unresolvable:
                raise RecipeError(f"json: the schema refers to {reference}, which is not in it.") from None
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise RecipeError(f"json: the schema is not valid: {error.message}.") from None
        return kind(schema, registry=Registry())


def _references(schema: Any) -> Iterator[str]:
    """The references of a schema, at any depth."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which Python accepts although JSON does not have them."""
    raise ValueError(constant)
