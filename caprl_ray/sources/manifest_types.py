"""The types of a manifest's columns. CSV has only text; JSON has numbers, truth values and text."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

_EXACT = 2**63


def type_of(value: Any) -> pa.DataType:
    """The type of one value, which is not an object or list. Integers beyond 64 bits are text, as JSON writes them."""
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int) and -_EXACT <= value < _EXACT:
        return pa.int64()
    return pa.float64() if isinstance(value, float) else pa.string()


def common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type of a column with values of both types: the wider of two numbers, or else text."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def arrays(values: Mapping[str, Any]) -> dict[str, pa.Array]:
    """The values as arrays of one row."""
    return {name: _array(value) for name, value in values.items()}


def _array(value: Any) -> pa.Array:
    kind = type_of(value)
    text = kind == pa.string() and not isinstance(value, str)
    return pa.array([json.dumps(value, ensure_ascii=False) if text else value], kind)
