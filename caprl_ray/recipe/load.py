"""Load a recipe from a YAML file and overrides, and check it. Every error is one sentence."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from caprl_ray.errors import RecipeError
from caprl_ray.recipe.engine_arguments import ENGINE, NOT_SHOWN, redacted
from caprl_ray.recipe.sections import Recipe
from caprl_ray.recipe.storage import Storage

R = TypeVar("R", bound=Recipe)
SECTIONS = {*Recipe.model_fields, "curate"}  # curate is a section of CurateRecipe, which imports this module
# Quotes in PyYAML's messages: its own signs and words, such as '<scalar>', are kept; text of the recipe is not shown.
QUOTED = re.compile(r"('[^']{0,2}'|'<[^']*')|'[^']*'")
# Errors that PyYAML raises for a wrong text. ValueError and AttributeError come from a wrong date or number.
FAULTS = (yaml.YAMLError, ValueError, AttributeError, RecursionError)


class UniqueKeys(yaml.SafeLoader):
    """PyYAML's safe loader that refuses duplicate keys, of which PyYAML would silently use the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Check the keys here, before PyYAML merges the mappings of `<<`, because merged keys may be given again."""
        node = super().compose_mapping_node(anchor)
        known: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in known:
                raise yaml.composer.ComposerError(
                    problem=f"the key {key.value} appears twice", problem_mark=key.start_mark
                )
            known.add(key.value)
        return node


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe of a captioning run, as `load_as` does."""
    return load_as(Recipe, path, overrides)


def load_as(kind: type[R], path: str | Path, overrides: Sequence[str] = ()) -> R:
    """Read a recipe file, apply the overrides in order, and check the result.

    Args:
        kind: the class of the recipe.
        path: the recipe's YAML file.
        overrides: each is `section.field=value`, whose value is YAML, or the path of a YAML file of fields.

    Raises RecipeError if a file cannot be read, and for the first fault.
    """
    return parse_as(kind, overridden(_read(path), overrides, kind))


def document(path: str | Path | None, overrides: Sequence[str], kind: type[Recipe]) -> dict[str, Any]:
    """A recipe file with its overrides, as plain data that is not checked. Without a file, only the overrides."""
    return overridden(_read(path) if path is not None else {}, overrides, kind)


def overridden(document: dict[str, Any], overrides: Sequence[str], kind: type[Recipe]) -> dict[str, Any]:
    """A recipe as plain data with overrides: fields, or files of fields."""
    for override in overrides:
        if is_file(override):
            document = merged(document, _read(override))
        else:
            apply_override(document, override, kind)
    return document


def _read(path: str | Path) -> dict[str, Any]:
    """The sections in a YAML file."""
    try:
        document = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeys)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}: the recipe is not UTF-8 in line {line}; save it as UTF-8.") from None
    except OSError as error:
        if is_override(str(path)):
            raise RecipeError(f"{redacted(str(path))}: the recipe's path comes first, then its overrides.") from None
        raise RecipeError(f"{path}: the recipe cannot be read ({error.strerror}).") from None
    except FAULTS as error:
        raise RecipeError(f"{path}: the recipe is not valid YAML ({_yaml_fault(error)}).") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: a recipe must be a mapping of sections such as input, model and output.")
    return document


def merged(document: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain data, in which the fields of `other` replace its own, also in mappings such as model.engine."""
    both = dict(document)
    for name, value in other.items():
        own = both.get(name)
        both[name] = merged(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return both


def parse_storage(overrides: Sequence[str]) -> Storage:
    """Build only the `storage` section, from `storage.field=value` overrides, for commands without a recipe.

    Raises RecipeError for the first fault.
    """
    document: dict[str, Any] = {"input": {"paths": ["-"]}, "output": {"path": "-"}}
    for override in overrides:
        if not override.startswith("storage."):
            raise RecipeError(
                f"{redacted(override)!r}: only storage fields can be set here, such as storage.region=us-east-1"
            )
        apply_override(document, override)
    return parse(document).storage


def parse(document: dict[str, Any]) -> Recipe:
    """Build a recipe from plain data: sections as dicts. Raises RecipeError for the first fault."""
    return parse_as(Recipe, document)


def parse_as(kind: type[R], document: dict[str, Any]) -> R:
    """As `parse`, for a recipe of the class `kind`."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise RecipeError(_sentence(error, kind)) from None


def _yaml_fault(error: Exception) -> str:
    """The fault and its place, without PyYAML's own text, which repeats the line and may hold a secret."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"it has the character U+{error.character:04X}, which is not allowed, after {error.position} others"
    if isinstance(error, ValueError | AttributeError):
        return "a value looks like a date or a number but is neither; write it in quotes"
    mark = getattr(error, "problem_mark", None)
    said = str(getattr(error, "problem", None) or type(error).__name__)
    problem = QUOTED.sub(lambda found: found[1] or NOT_SHOWN, said)
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}" if mark else problem


def is_file(text: str) -> bool:
    """Whether an argument after the recipe is a file of overriding fields."""
    return text.endswith((".yaml", ".yml")) and not is_override(text)


def is_override(text: str) -> bool:
    """Whether an argument is an override, and not a path that contains a dot and an equals sign."""
    return text.partition(".")[0] in SECTIONS and bool(re.match(r"\w+(\.\w+)+=", text))


def apply_override(document: dict[str, Any], override: str, kind: type[Recipe] = Recipe) -> None:
    """Set a field of a recipe of the class `kind`, given as plain data. Raises RecipeError for a malformed override."""
    name, equals, text = override.partition("=")
    names = name.split(".")
    if not equals or len(names) < 2 or not all(names):
        raise RecipeError(
            f"{redacted(override)!r}: an override looks like section.field=value, for instance replicas.gpus=0, or is "
            "a YAML file of such fields."
        )
    section = document
    for part in names[:-1]:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise RecipeError(f"{redacted(override)!r}: {part} is a value in this recipe, not a section.")
    try:
        value = yaml.load(text, UniqueKeys)
    except FAULTS as error:
        if text.lstrip()[:1] in ("[", "{", '"', "'", "") and not _is_text(names, kind):
            raise RecipeError(f"{name}: {redacted(override)!r} has no YAML value ({_yaml_fault(error)}).") from None
        value = text
    if isinstance(value, dict) and (_is_text(names, kind) or not text.lstrip().startswith("{")):
        value = text  # no mapping, but a sentence with a colon, or one that begins with a placeholder such as {column}
    section[names[-1]] = value


def _is_text(names: Sequence[str], kind: type[Recipe]) -> bool:
    """Whether a field of the recipe holds a text, such as a prompt."""
    section = kind.model_fields.get(names[0])
    if names[0] == "prompts":
        return True
    field = getattr(section.annotation, "model_fields", {}).get(names[1]) if section else None
    return field is not None and field.annotation in (str, str | None)


def _sentence(error: ValidationError, kind: type[BaseModel]) -> str:
    """Describe the first fault: field, value, and what is allowed."""
    fault = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    value = NOT_SHOWN if ENGINE.match(field) else repr(redacted(fault["input"]))
    if fault["type"] == "extra_forbidden" and field in SECTIONS:
        return f"{field}: this section is only for caprl-ray {field}; give the recipe to that command."
    if fault["type"] == "extra_forbidden":
        section = _section(fault["loc"][:-1], kind)
        return f"{field}: unknown field; {section.__name__.lower()} has {', '.join(section.model_fields)}."
    if fault["type"] == "missing":
        return f"{field}: missing; it has no default, so the recipe must give it."
    if fault["type"] == "value_error":
        return ": ".join(filter(None, [field, str(fault["ctx"]["error"])])) + "."
    if fault["type"] in ("model_type", "model_attributes_type"):
        return f"{field}: {value} is not allowed; it should be a section, a mapping of fields."
    message = fault["msg"].removeprefix("Input ").removeprefix("List ").removeprefix("String ")
    return f"{field}: {value} is not allowed; it {message}."


def _section(location: Sequence[int | str], section: type[BaseModel]) -> type[BaseModel]:
    """The model class of a part of the recipe, whose own class is `section`."""
    for part in location:
        if isinstance(part, int):
            continue  # an entry of a list, whose class was found already
        annotation = section.model_fields[part].annotation
        (section,) = (kind for kind in get_args(annotation) or (annotation,) if _is_section(kind))
    return section


def _is_section(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
