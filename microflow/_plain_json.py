# SPDX-License-Identifier: Apache-2.0
"""A value as plain JSON, for people and for schemas: nothing is rebuilt from it.

:func:`plain` of a tuple or set is a list, of a moment, an id or a path its text, of a dataclass, a model or any other
object a dict of its attributes. ``_tagged_json`` is for what has to come back as it was.
"""

from __future__ import annotations

import math
from binascii import b2a_base64
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import date, time, timedelta
from enum import Enum
from typing import Any
from uuid import UUID

MAX_DEPTH = 100
"""How deep containers may stand in each other. What contains itself is deeper than that."""

MAX_MEMBERS = 500_000
"""How many members are written, what is shared each time: few lists that hold each other twice have a billion."""

MAX_BITS = 2048  # of an int: Python refuses to read more than 4,300 digits, or 640 if told so


def plain(value: Any, *, strict: bool = False) -> Any:
    """The value in plain JSON. What JSON cannot carry is ``"<TypeName>"``, or with `strict` a ValueError."""
    try:
        return _Walk(strict).plain(value)
    except Exception as problem:  # whatever attributes and methods of the user's raise
        if strict:
            raise ValueError(f"a {type(value).__name__} cannot be written as JSON: {problem}") from problem
        return f"<{type(value).__name__}>"


class _Walk:
    """One call of :func:`plain`. ``inside`` are the ids of the objects around the present one."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.inside: set[int] = set()
        self.left = MAX_MEMBERS

    def plain(self, value: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"it has more than {MAX_MEMBERS} members")
        if isinstance(value, Enum):
            value = value.value
        if value is None or isinstance(value, (bool, int, str)):
            if isinstance(value, int) and value.bit_length() > MAX_BITS:
                raise ValueError(f"an int of {value.bit_length()} bits is too long")
            return value
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError(f"JSON has no {value}")
            return value
        text = _text(value)
        if text is not None:
            return text
        if id(value) in self.inside or len(self.inside) == MAX_DEPTH:
            raise ValueError(f"it holds itself, or is nested more than {MAX_DEPTH} deep")
        self.inside.add(id(value))
        try:
            return self._members(value)
        finally:
            self.inside.discard(id(value))

    def _members(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {_name(key): self.plain(member) for key, member in value.items()}
        if isinstance(value, (list, tuple, AbstractSet)):
            return [self.plain(member) for member in value]
        if isinstance(value, (type, BaseException)):
            raise TypeError(f"a {type(value).__name__} is no JSON")
        dump = getattr(value, "model_dump", None)
        if callable(dump):
            return self.plain(dump())
        fields = getattr(value, "__dataclass_fields__", None)
        if fields is not None:
            return {name: self.plain(getattr(value, name)) for name in fields if hasattr(value, name)}
        attributes = getattr(value, "__dict__", None)
        if self.strict or not attributes or callable(value):
            raise TypeError(f"a {type(value).__name__} is no JSON")
        return {name: self._attribute(member) for name, member in attributes.items() if not name.startswith("_")}

    def _attribute(self, value: Any) -> Any:
        """One attribute of an object of the user's; what cannot be written does not hide the others."""
        try:
            return self.plain(value)
        except Exception:  # as in plain()
            return f"<{type(value).__name__}>"


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
            return b2a_base64(value, newline=False).decode("ascii")
    if isinstance(value, UUID) or (hasattr(value, "__fspath__") and not isinstance(value, type)):
        return str(value)
    if type(value).__name__ == "Decimal" and hasattr(value, "as_tuple"):
        return str(value)
    return None
