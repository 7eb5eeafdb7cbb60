# SPDX-License-Identifier: Apache-2.0
"""Whether a document fits a schema: word by word, and with schemas that are none."""

from __future__ import annotations

import time
from typing import Any

import pytest

from microflow._json_schema import BrokenSchema, problems_of

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": ["number", "null"]}},
    "required": ["x"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/Tree",
    "$defs": {"Tree": {"type": "object", "properties": {"v": {}, "c": {"items": {"$ref": "#/$defs/Tree"}}},
                       "required": ["v"]}},
}  # fmt: skip

FITTING: list[tuple[Any, Any]] = [
    ({"type": "integer"}, 2.0), ({"type": "integer"}, 10**5000), ({"type": "number"}, 1), ({"type": "boolean"}, True),
    ({"type": "null"}, None), ({"type": ["string", "null"]}, None), (POINT, {"x": 1, "y": None}), (True, object()),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, None), ({"oneOf": [{"type": "integer"}, {"minimum": 9}]}, 1),
    ({"allOf": [{"minimum": 1}, {"maximum": 3}]}, 2), ({"enum": [1, "a"]}, 1.0),
    ({"const": [1, {"a": True}]}, [1, {"a": True}]),
    ({"prefixItems": [{"type": "integer"}], "items": {"type": "string"}}, [1, "a", "b"]),
    (TREE, {"v": 1, "c": [{"v": 2}]}),
    ({"type": "string", "pattern": "^a", "minLength": 1, "maxLength": 2}, "ab"), ({"format": "date"}, "no date"),
    ({"minItems": 1, "maxItems": 1, "uniqueItems": True}, [1]), ({"uniqueItems": True}, [1, True, "1", [1], [True]]),
    ({"additionalProperties": {"type": "integer"}}, {"a": 1}),
    ({"$ref": "#/definitions/A~1b", "definitions": {"A/b": {}}}, 1),
    ({"multipleOf": 2, "exclusiveMinimum": 1, "exclusiveMaximum": 5}, 4), ({"minimum": 5}, "no number"),
]  # fmt: skip

REFUSED: list[tuple[Any, Any, tuple[Any, ...], str]] = [
    ({"type": "integer"}, "42", (), "'42' is not of type 'integer'"), ({"type": "integer"}, True, (), "integer"),
    ({"type": "integer"}, 1.5, (), "1.5"), ({"type": "number"}, True, (), "number"),
    ({"type": "string"}, None, (), "None"),
    (POINT, {}, ("x",), "'x' is a required property"), (POINT, {"x": 1, "z": 2}, ("z",), "'z' was unexpected"),
    (POINT, {"x": "a"}, ("x",), "is not of type 'integer'"), (POINT, [], (), "'object'"), (False, 1, (), "not allowed"),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "a", (), "under any of the given schemas"),
    ({"oneOf": [{"minimum": 1}, {"minimum": 2}]}, 3, (), "under 2 of"),
    ({"allOf": [{"minimum": 1}]}, 0, (), "minimum of 1"),
    ({"enum": [1]}, True, (), "one of"), ({"const": 1}, 2, (), "expected"), ({"const": [1]}, [True], (), "expected"),
    ({"prefixItems": [{"type": "integer"}], "items": False}, [1, 2], (1,), "not allowed"),
    (TREE, {"v": 1, "c": [{"v": 2, "c": [{}]}]}, ("c", 0, "c", 0, "v"), "required"),
    ({"pattern": "^a"}, "b", (), "does not match"), ({"minLength": 2}, "a", (), "shorter"),
    ({"maxLength": 1}, "ab", (), "longer"),
    ({"minItems": 1}, [], (), "fewer"), ({"maxItems": 0}, [1], (), "more"),
    ({"uniqueItems": True}, [1, 1.0], (), "non-unique"),
    ({"uniqueItems": True}, [{"a": [1]}, {"a": [1.0]}], (), "non-unique"), ({"multipleOf": 2}, 3, (), "multiple"),
    ({"exclusiveMinimum": 1}, 1, (), "not greater"), ({"exclusiveMaximum": 1}, 1, (), "not less"),
    ({"maximum": 1}, 2, (), "greater"),
    ({"minProperties": 1}, {}, (), "fewer"), ({"maxProperties": 0}, {"a": 1}, (), "more"),
    ({"additionalProperties": {"type": "integer"}}, {"a": "b"}, ("a",), "integer"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "value"), FITTING, ids=lambda value: type(value).__name__)
def test_what_fits(schema, value):
    assert problems_of(schema, value) == []


@pytest.mark.parametrize(("schema", "value", "place", "reason"), REFUSED, ids=lambda value: type(value).__name__)
def test_what_does_not_fit_is_told_with_its_place(schema, value, place, reason):
    ((found, text),) = problems_of(schema, value)
    assert found == place
    assert reason in text


def test_all_problems_are_told():
    places = [place for place, _ in problems_of(POINT, {"y": "a", "z": 1})]
    assert places == [("x",), ("y",), ("z",)]


@pytest.mark.parametrize(
    "schema",
    [
        None, 5, [], "object", {"type": "nothing"}, {"type": 5}, {"properties": 5}, {"required": 5}, {"$ref": 5},
        {"$ref": "#/$defs/absent"}, {"$ref": "http://elsewhere"}, {"$ref": "#"}, {"anyOf": 5}, {"pattern": "("},
        {"minLength": "a"}, {"allOf": [{"$ref": "#"}]}, {"items": {"type": {}}}, {"enum": 5},
    ],
    ids=str,
)  # fmt: skip
def test_a_schema_that_is_none_is_named_as_broken(schema):
    for value in ({"a": 1}, [1], "a"):
        try:
            assert problems_of(schema, value) == []  # a word that does not concern such a value is not looked at
        except BrokenSchema:
            break
    else:
        pytest.fail("the schema was taken for one")


def test_a_hostile_document_is_judged_quickly():
    begun = time.monotonic()
    deep: Any = 1
    for _ in range(50_000):
        deep = [deep]
    with pytest.raises(BrokenSchema):
        problems_of({"$ref": "#/$defs/L", "$defs": {"L": {"items": {"$ref": "#/$defs/L"}}}}, deep)
    assert len(problems_of({"items": {"type": "string"}}, list(range(100_000)))) <= 20
    assert problems_of({"additionalProperties": False}, {str(n): 1 for n in range(100_000)})
    assert time.monotonic() - begun < 20
