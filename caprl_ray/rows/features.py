"""Facts of Hugging Face's `datasets` about a column beyond its type: class names, and which structs are images.

`datasets` keeps it as JSON in a parquet file's metadata (`datasets.Features.arrow_schema`), and reads it back from the
output. It comes from the source, so only known parts are taken over: a feature that `datasets` cannot build would close
the whole output to it.
"""

import json
import re
from typing import Any

import pyarrow as pa

KEY = b"huggingface"  # of a schema: all features; of a column between stages: its feature
SOURCE_TYPE = b"source_type"  # of a column: the name of its extension type in the source
MOST_BYTES = 2**20  # of a file's features; the names of 20,000 classes take half of it
MOST_DEPTH = 16
MOST_TYPE = 100  # characters of a type's name

_DTYPE = re.compile(
    r"null|bool|u?int(8|16|32|64)|float(16|32|64)|string|large_string|binary|large_binary|date32|date64"
    r"|time32\[m?s\]|time64\[[un]s\]|duration\[[mun]?s\]|timestamp\[[mun]?s(, tz=[\w+:/-]{1,64})?\]"
    r"|decimal128\(([1-9]|[12]\d|3[0-8]), [0-9]\)"
)
_LISTS = ("List", "LargeList", "Sequence")


def features(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    """The features in the metadata of a file's schema, as JSON by column. Only columns with classes or images."""
    stored = (metadata or {}).get(KEY, b"")
    if not 0 < len(stored) <= MOST_BYTES:
        return {}
    try:
        found = json.loads(stored)["info"]["features"]
        known = {str(name): _known(feature, 0) for name, feature in found.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    return {name: json.dumps(feature) for name, feature in known.items() if feature is not None and _says(feature)}


def meaning(field: pa.Field) -> dict[bytes, bytes]:
    """The meaning of a column beyond its type, from its metadata."""
    return {key: value for key, value in (field.metadata or {}).items() if key in (KEY, SOURCE_TYPE)}


def with_features(schema: pa.Schema) -> pa.Schema:
    """The schema as it is stored: the features of the columns are in the schema's metadata, where `datasets` looks."""
    found = {field.name: json.loads(field.metadata[KEY]) for field in schema if KEY in (field.metadata or {})}
    if not found:
        return schema
    fields = [field.with_metadata({k: v for k, v in (field.metadata or {}).items() if k != KEY}) for field in schema]
    return pa.schema(fields, {**(schema.metadata or {}), KEY: json.dumps({"info": {"features": found}}).encode()})


def readable(kind: pa.DataType) -> pa.DataType:
    """The type in which `datasets` can read a column: it knows no maps, which become lists of their pairs."""
    if pa.types.is_map(kind):
        return pa.list_(pa.struct([("key", readable(kind.key_type)), ("value", readable(kind.item_type))]))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(readable(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(readable(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(readable(kind.value_type))
    return pa.list_(readable(kind.value_type)) if pa.types.is_list(kind) else kind


def _known(feature: Any, depth: int) -> Any:
    """The known parts of a feature, or None if a part is not known."""
    if depth > MOST_DEPTH:
        return None
    if isinstance(feature, list):  # an older form of lists
        inner = _known(feature[0], depth + 1) if len(feature) == 1 else None
        return None if inner is None else [inner]
    kind = feature.get("_type")
    if kind in _LISTS:
        return _known_list(kind, feature, depth)
    if isinstance(kind, str):
        return _known_leaf(kind, feature)
    parts = {str(name): _known(part, depth + 1) for name, part in feature.items()}
    return None if None in parts.values() or not parts else parts


def _known_list(kind: str, feature: dict[str, Any], depth: int) -> Any:
    inner, length = _known(feature["feature"], depth + 1), feature.get("length", -1)
    if inner is None or type(length) is not int:
        return None
    return {"feature": inner, **({} if length < 0 else {"length": length}), "_type": kind}


def _known_leaf(kind: str, feature: dict[str, Any]) -> Any:
    if kind == "Image":
        return {"_type": kind}
    names, dtype = feature.get("names"), feature.get("dtype")
    if kind == "ClassLabel" and isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return {"names": names, "_type": kind} if len(set(names)) == len(names) else None
    if kind == "Value" and isinstance(dtype, str) and _DTYPE.fullmatch(dtype):
        return {"dtype": dtype, "_type": kind}
    return None


def _says(feature: Any) -> bool:
    """Whether a feature says more than a type: classes or images somewhere in it."""
    if isinstance(feature, list):
        return any(map(_says, feature))
    if feature.get("_type") in _LISTS:
        return _says(feature["feature"])
    if isinstance(feature.get("_type"), str):
        return feature["_type"] in ("ClassLabel", "Image")
    return any(map(_says, feature.values()))


def classes(feature: Any) -> list[str]:
    """The names of all classes in a feature, in order."""
    if isinstance(feature, list):
        return [name for part in feature for name in classes(part)]
    if isinstance(feature.get("_type"), str):
        inner = feature.get("feature")
        return list(feature.get("names", ())) if inner is None else classes(inner)
    return [name for part in feature.values() for name in classes(part)]
