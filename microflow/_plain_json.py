# SPDX-License-Identifier: Apache-2.0
"""A value as plain JSON, for people and for schemas: nothing is rebuilt from it.

:func:`plain` of a tuple or set is a list, of a moment, an id or a path its text, of a dataclass, a model or any other
object a dict of its attributes. ``_tagged_json`` is for what has to come back as it was.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import date, time, timedelta
from enum import Enum
from typing import Any
from uuid import UUID

MAX_DEPTH = 100
"""How deep containers may stand in each other. What contains itself is deeper than that."""


def plain(value: Any, *, strict: bool = False) -> Any:
    """The value in plain JSON. What JSON cannot carry is ``"<TypeName>"``, or with `strict` a TypeError or a
    ValueError."""
    try:
        return _plain(value, strict, MAX_DEPTH)
    except (TypeError, ValueError, RecursionError) as problem:
        if strict:
            raise ValueError(f"cannot be written as JSON: {problem}") from problem
        return f"<{type(value).__name__}>"


def _plain(value: Any, strict: bool, depth: int) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"JSON has no {value}")
        return value
    if depth == 0:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        return {_name(key): _plain(member, strict, depth - 1) for key, member in value.items()}
    if isinstance(value, (list, tuple, AbstractSet)):
        return [_plain(member, strict, depth - 1) for member in value]
    text = _text(value)
    return text if text is not None else _object(value, strict, depth)


def _name(key: Any) -> str:
    if isinstance(key, Enum):
        key = key.value
    if isinstance(key, str):
        return key
    text = _text(key)
    if text is None and key is not None and not isinstance(key, (bool, int, float)):
        raise TypeError(f"a {type(key).__name__} cannot be a name")
    return str(key) if text is None else str(text)


def _text(value: Any) -> Any:
    """What is one value, not an object with parts; None for the latter."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (bytes, bytearray)):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    if isinstance(value, UUID) or hasattr(value, "__fspath__"):
        return str(value)
    if type(value).__name__ == "Decimal" and hasattr(value, "as_tuple"):
        return str(value)
    return None


def _object(value: Any, strict: bool, depth: int) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return _plain(dump(), strict, depth - 1)
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None and not isinstance(value, type):
        return {name: _plain(getattr(value, name), strict, depth - 1) for name in fields if hasattr(value, name)}
    attributes = getattr(value, "__dict__", None)
    if strict or not attributes or isinstance(value, type) or callable(value) or isinstance(value, BaseException):
        raise TypeError(f"a {type(value).__name__} is no JSON")
    return {name: plain(member) for name, member in attributes.items() if not name.startswith("_")}
