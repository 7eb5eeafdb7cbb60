# SPDX-License-Identifier: Apache-2.0
"""Whether a JSON document has the shape that a JSON schema describes.

What a schema says that :mod:`coercion` or a model wrote is understood: ``type``, ``properties``, ``required``,
``additionalProperties``, ``items``, ``prefixItems``, ``anyOf``, ``oneOf``, ``allOf``, ``enum``, ``const``, bounds of
numbers, lengths and counts, ``uniqueItems``, ``pattern`` and ``$ref`` into the document itself. Other words, ``format``
among them, say nothing. Types are strict: ``"42"`` and ``true`` are no integers, 2.0 is one.

Schema and document may both come from outside. A schema that is none, or that refers in a circle, raises
:class:`BrokenSchema`; neither can make the check run long, but for the pattern of a schema, which is code of the user's
in other words.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Problem = tuple[tuple[str | int, ...], str]

MOST_PROBLEMS = 20
MAX_DEPTH = 200
"""How deep schemas may stand in each other, with what they refer to."""


class BrokenSchema(ValueError):
    """A schema cannot be understood."""


def problems_of(schema: Any, value: Any) -> list[Problem]:
    """What is wrong with `value`: each place, from the outside in, with the reason. BrokenSchema if it cannot be
    told."""
    check = _Check(schema)
    try:
        check.look(schema, value, (), 0)
    except (TypeError, KeyError, AttributeError, RecursionError, re.error, OverflowError) as problem:
        raise BrokenSchema(f"the schema is broken: {problem!r}") from problem
    return check.problems[:MOST_PROBLEMS]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    "integer": lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer()),
}

#: word -> whether it is about such a value, whether the value passes, and how to say that it does not
_BOUNDS: dict[str, tuple[Callable[[Any], bool], Callable[[Any, Any], bool], str]] = {
    "minimum": (_is_number, lambda value, bound: value >= bound, "is less than the minimum of"),
    "maximum": (_is_number, lambda value, bound: value <= bound, "is greater than the maximum of"),
    "exclusiveMinimum": (_is_number, lambda value, bound: value > bound, "is not greater than"),
    "exclusiveMaximum": (_is_number, lambda value, bound: value < bound, "is not less than"),
    "multipleOf": (_is_number, lambda value, bound: value % bound == 0, "is not a multiple of"),
    "minLength": (_TYPES["string"], lambda value, bound: len(value) >= bound, "is shorter than"),
    "maxLength": (_TYPES["string"], lambda value, bound: len(value) <= bound, "is longer than"),
    "pattern": (_TYPES["string"], lambda value, bound: re.search(bound, value) is not None, "does not match"),
    "minItems": (_TYPES["array"], lambda value, bound: len(value) >= bound, "has fewer members than"),
    "maxItems": (_TYPES["array"], lambda value, bound: len(value) <= bound, "has more members than"),
    "minProperties": (_TYPES["object"], lambda value, bound: len(value) >= bound, "has fewer properties than"),
    "maxProperties": (_TYPES["object"], lambda value, bound: len(value) <= bound, "has more properties than"),
}


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1, but 1.0 is."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python shows
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Check:
    """One call of :func:`problems_of`."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.problems: list[Problem] = []

    def look(self, schema: Any, value: Any, place: tuple[str | int, ...], depth: int) -> None:
        """Note what is wrong with a value at its place."""
        if schema is True or len(self.problems) >= MOST_PROBLEMS:
            return
        if schema is False:
            self._note(place, "is not allowed")
            return
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            raise BrokenSchema(f"the schema is broken: {_shown(schema)} is no schema, or it refers in a circle")
        if "$ref" in schema:
            self.look(self._target(schema["$ref"]), value, place, depth + 1)
        if not self._has_type(schema, value, place):
            return
        if "enum" in schema and not any(_same(member, value) for member in schema["enum"]):
            self._note(place, f"{_shown(value)} is not one of {_shown(schema['enum'])}")
        if "const" in schema and not _same(schema["const"], value):
            self._note(place, f"{_shown(schema['const'])} was expected, got {_shown(value)}")
        for word in _BOUNDS.keys() & schema.keys():
            concerns, passes, words = _BOUNDS[word]
            if concerns(value) and not passes(value, schema[word]):
                self._note(place, f"{_shown(value)} {words} {schema[word]!r}")
        self._combined(schema, value, place, depth)
        if isinstance(value, dict):
            self._members(schema, value, place, depth)
        elif isinstance(value, list):
            self._items(schema, value, place, depth)

    def _note(self, place: tuple[str | int, ...], reason: str) -> None:
        self.problems.append((place, reason))

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise BrokenSchema(f"the schema refers to {_shown(reference)}, which is outside of it")
        found = self.root
        for step in reference.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            found = found[int(step)] if isinstance(found, list) else found[step]
        return found

    def _has_type(self, schema: dict[str, Any], value: Any, place: tuple[str | int, ...]) -> bool:
        wanted = schema.get("type")
        if wanted is None:
            return True
        names = [wanted] if isinstance(wanted, str) else wanted
        if not isinstance(names, list) or not names:
            raise BrokenSchema(f"the schema is broken: {_shown(wanted)} is no type")
        if any(_TYPES[name](value) for name in names):
            return True
        self._note(place, f"{_shown(value)} is not of type {', '.join(map(repr, names))}")
        return False

    def _fits(self, schema: Any, value: Any, depth: int) -> list[Problem]:
        inner = _Check(self.root)
        inner.look(schema, value, (), depth + 1)
        return inner.problems

    def _combined(self, schema: dict[str, Any], value: Any, place: tuple[str | int, ...], depth: int) -> None:
        for each in schema.get("allOf", ()):
            self.look(each, value, place, depth + 1)
        for word in ("anyOf", "oneOf"):
            if word not in schema:
                continue
            found = [self._fits(each, value, depth) for each in schema[word]]
            fitting = sum(not problems for problems in found)
            if not fitting:
                reasons = "; ".join(reason for problems in found for _, reason in problems[:1])
                self._note(place, f"{_shown(value)} is not valid under any of the given schemas ({reasons})")
            elif word == "oneOf" and fitting > 1:
                self._note(place, f"{_shown(value)} is valid under {fitting} of the given schemas, not one")

    def _members(self, schema: dict[str, Any], value: Any, place: tuple[str | int, ...], depth: int) -> None:
        properties = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                self._note((*place, name), f"{name!r} is a required property")
        others = schema.get("additionalProperties", True)
        for name, member in value.items():
            if name in properties:
                self.look(properties[name], member, (*place, name), depth + 1)
            elif others is False:
                self._note((*place, name), f"additional properties are not allowed ({name!r} was unexpected)")
            else:
                self.look(others, member, (*place, name), depth + 1)

    def _items(self, schema: dict[str, Any], value: Any, place: tuple[str | int, ...], depth: int) -> None:
        prefix = schema.get("prefixItems", [])
        others = schema.get("items", True)
        for number, member in enumerate(value):
            self.look(prefix[number] if number < len(prefix) else others, member, (*place, number), depth + 1)
        if schema.get("uniqueItems") is True:
            seen = {_key(member) for member in value}
            if len(seen) < len(value):
                self._note(place, f"{_shown(value)} has non-unique elements")


def _key(value: Any) -> Any:
    """What two members have in common exactly when they are equal as JSON."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list):
        return ("array", *map(_key, value))
    if isinstance(value, dict):
        return ("object", frozenset((name, _key(member)) for name, member in value.items()))
    return value
