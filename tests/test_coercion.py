# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: UP006, UP007, UP045 - annotations are read in every spelling
"""From annotations to values: the table of what is accepted as what, row by row, and how problems are told."""

from __future__ import annotations

import collections
import dataclasses
import enum
import pathlib
import sys
import time as clock
import types
import typing
import uuid
from collections import OrderedDict, abc, defaultdict, deque
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict, Union

import pytest
from typing_extensions import NotRequired, Required

from microflow.coercion import coerce, json_schema
from microflow.exceptions import ValidationError

UTC = timezone.utc
ID = uuid.uuid4()


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Word(str, enum.Enum):
    YES = "y"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5
    tags: list[str] = dataclasses.field(default_factory=list)
    kind: typing.ClassVar[str] = "point"


@dataclasses.dataclass
class Tree:
    value: int
    children: list[Tree] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Strict:
    x: int
    scale: dataclasses.InitVar[int] = 1

    def __post_init__(self, scale):
        if self.x < 0:
            raise ValueError("x is negative")
        self.x *= scale


class Movie(TypedDict, total=False):
    title: Required[str]
    year: int


class Book(TypedDict):
    title: str
    pages: NotRequired[int]


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Plain:
    pass


class Typed(typing.Protocol):
    def run(self) -> None: ...


ACCEPTED: list[tuple[Any, Any, Any]] = [
    # int
    (int, 5, 5), (int, True, 1), (int, 5.0, 5), (int, Decimal("5.00"), 5), (int, " 5 ", 5), (int, "1_000", 1000),
    (int, "5.0", 5), (int, b"-7", -7), (int, Number.ONE, 1),
    # float
    (float, 5, 5.0), (float, True, 1.0), (float, Decimal("0.5"), 0.5), (float, "1e3", 1000.0),
    (float, "inf", float("inf")),
    # str
    (str, "a", "a"), (str, "ä".encode(), "ä"), (str, Word.YES, "y"), (str, Colour.RED, "red"),
    # bool
    (bool, 0, False), (bool, 1.0, True), *[(bool, text, True) for text in ("true", "YES", "on", "t", "Y", "1")],
    *[(bool, text, False) for text in ("False", "no", "OFF", "f", "n", "0")],
    # bytes
    (bytes, bytearray(b"a"), b"a"), (bytes, "ä", "ä".encode()), (bytearray, b"a", bytearray(b"a")),
    # rows
    (list, (1, 2), [1, 2]), (list[int], {"1"}, [1]), (list[int], deque(["1"]), [1]), (list[int], range(2), [0, 1]),
    (list[int], {1: 2}.keys(), [1]), (list[int], {1: "2"}.values(), [2]), (list[int], iter("12"), [1, 2]),
    (typing.List[int], ["1"], [1]), (set[int], ["1", 1], {1}), (frozenset, [1], frozenset({1})),
    (tuple[int, ...], ["1", 2], (1, 2)), (tuple, [1], (1,)), (tuple[()], [], ()),
    (tuple[int, str], ["1", "a"], (1, "a")),
    (deque[int], ["1"], deque([1])),
    # mappings
    (dict, OrderedDict(a=1), {"a": 1}), (dict[str, int], {"a": "1"}, {"a": 1}),
    (dict[int, Any], {"1": None}, {1: None}),
    (abc.Mapping[str, int], {"a": "1"}, {"a": 1}), (typing.OrderedDict[str, int], {"a": "1"}, OrderedDict(a=1)),
    (collections.Counter[str], {"a": "2"}, collections.Counter(a=2)),
    (defaultdict[str, int], {"a": "1"}, defaultdict(None, {"a": 1})),
    # the abstract ones
    (abc.Sequence[int], ["1"], [1]), (abc.Sequence[int], ("1",), (1,)), (abc.Iterable[int], ["1"], [1]),
    (abc.Set[int], ["1"], {1}), (abc.Collection[int], {"1"}, {1}),
    # unions
    (Optional[int], None, None), (Optional[int], "5", 5), (Union[int, str], "5", "5"), (Union[int, str], 5.0, 5),
    (Union[int, str], True, 1), (int | None, "5", 5), (Union[list[int], list[str]], ["a"], ["a"]),
    (Union[Point, int], {"x": 1}, Point(1)),
    # literals and enums
    (Literal[1, "a"], "a", "a"), (Literal[1, 2], 2, 2), (Literal[Colour.RED], Colour.RED, Colour.RED),
    (Colour, "red", Colour.RED), (Colour, Colour.RED, Colour.RED), (Number, "1", Number.ONE), (Number, 1, Number.ONE),
    # moments
    (datetime, date(2026, 1, 31), datetime(2026, 1, 31)), (datetime, "2026-01-31", datetime(2026, 1, 31)),
    (datetime, "2026-01-31T12:30:00Z", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
    (datetime, "2026-01-31 12:30:01.5+02:00",
     datetime(2026, 1, 31, 12, 30, 1, 500000, tzinfo=timezone(timedelta(hours=2)))),
    (datetime, 0, datetime(1970, 1, 1, tzinfo=UTC)), (datetime, "86400", datetime(1970, 1, 2, tzinfo=UTC)),
    (datetime, 86_400_000_000, datetime(1972, 9, 27, tzinfo=UTC)),
    (date, "2026-01-31", date(2026, 1, 31)), (date, datetime(2026, 1, 31), date(2026, 1, 31)),
    (date, "2026-01-31T00:00:00", date(2026, 1, 31)), (date, 86400, date(1970, 1, 2)),
    (time, "12:30", time(12, 30)), (time, "12:30:01", time(12, 30, 1)), (time, 3600.5, time(1, 0, 0, 500000)),
    (timedelta, 1.5, timedelta(seconds=1.5)), (timedelta, "P1DT2H3.5S", timedelta(days=1, hours=2, seconds=3.5)),
    (timedelta, "-PT1M", timedelta(minutes=-1)), (timedelta, "2 days, 01:02:03", timedelta(days=2, seconds=3723)),
    (timedelta, "01:02:03", timedelta(seconds=3723)),
    # other single values
    (uuid.UUID, str(ID), ID), (uuid.UUID, ID.hex, ID), (uuid.UUID, ID.bytes, ID), (Path, "a/b", Path("a/b")),
    (pathlib.PurePosixPath, "a", pathlib.PurePosixPath("a")),
    (Decimal, 1, Decimal(1)), (Decimal, "0.10", Decimal("0.10")), (Decimal, 0.1, Decimal("0.1")),
    (complex, 1j, 1j), (None, None, None),
    # classes with fields
    (Point, {"x": "1"}, Point(1)), (Point, {"x": 1, "tags": ("a",)}, Point(1, 0.5, ["a"])),
    (Tree, {"value": 1, "children": [{"value": "2"}]}, Tree(1, [Tree(2)])),
    (Strict, {"x": 2, "scale": "3"}, Strict(2, 3)),
    (Movie, {"title": "t", "year": "1999"}, {"title": "t", "year": 1999}), (Movie, {"title": "t"}, {"title": "t"}),
    (Book, {"title": "t"}, {"title": "t"}), (Book, {"title": "t", "pages": "3"}, {"title": "t", "pages": 3}),
    (Pair, ["1"], Pair(1)), (Pair, {"left": "1", "right": "x"}, Pair(1, "x")), (Pair, Pair(1, "x"), Pair(1, "x")),
    # what says little or nothing
    (abc.Callable[[int], int], len, len), (typing.Callable, len, len), (type[int], bool, bool), (type, str, str),
    (Annotated[int, "a word"], "5", 5), (typing.TypeVar("T"), Plain, Plain), (typing.NewType("N", int), "5", 5),
    (typing.Final[int], "5", 5), (Typed, 3, 3), ("not an expression at all", 3, 3), ("int", "3", 3),
]  # fmt: skip

REFUSED: list[tuple[Any, Any]] = [
    *[(int, value) for value in (5.5, "5.5", "", "0x10", None, "1__0", float("nan"), float("inf"), "٣", b"\xff", [1])],
    *[(float, value) for value in (None, "x", "", 10**400, [])],
    *[(str, value) for value in (1, True, Path("a"), None, b"\xff", Number.ONE)],
    *[(bool, value) for value in (2, "2", "maybe", None, 0.5, "")],
    *[(bytes, value) for value in (1, None, "\ud800")],
    *[(kind, value) for kind in (list, set, tuple, list[int]) for value in ("ab", b"ab", {"a": 1}, None, 5)],
    (set, [[]]), (tuple[int, str], [1]), (tuple[int, str], [1, "a", 2]), (tuple[()], [1]),
    (dict, [("a", 1)]), (dict[str, int], {1: 1}), (dict[list, int], {"a": 1}), (dict[str, int], {"a": "x"}),
    (abc.Sequence[int], "12"), (abc.Iterable[int], ["x"]), (abc.Iterable, 5),
    (Optional[int], "x"), (Literal[1], "1"), (Literal[1], True), (Literal["a"], "b"), (Literal[1], 1.0),
    (Colour, "RED"), (Colour, None), (Number, "ONE"), (Number, 2), (Colour, ["red"]),
    *[(datetime, value) for value in (True, None, "yesterday", "2026-13-01", "2026-02-30T00:00:00Z", 1e300, "")],
    *[(date, value) for value in ("2026-01-31T00:00:01", datetime(2026, 1, 1, 1), 1, True, "31.1.2026")],
    *[(time, value) for value in ("25:00", 86400, -1, None, "noon")],
    *[(timedelta, value) for value in (None, "soon", True, "P", "PT", 1e300, float("nan"))],
    *[(uuid.UUID, value) for value in (1, "x", b"short", None)],
    *[(Path, value) for value in (1, b"a", None)],
    *[(Decimal, value) for value in (None, "x", "nan", "inf", True, [])],
    (Point, (1, 2)), (Point, [1]), (Point, {}), (Point, {"x": 1, "z": 2}), (Point, {"x": 1, "kind": "p"}),
    (Point, None),
    (Strict, {"x": -1}), (Movie, {}), (Movie, {"title": "t", "z": 1}), (Movie, [("title", "t")]), (Pair, [1, "a", 2]),
    (Pair, []), (Pair, {"left": 1, "z": 1}), (Pair, 5), (Plain, 5), (Plain, Plain), (abc.Callable, 5), (type[int], str),
    (type[int], 5), (type, 5), (None, 0),
]  # fmt: skip


def named(case: tuple[Any, ...]) -> str:
    annotation, value, *_ = case
    return f"{annotation}-{type(value).__name__}"


@pytest.mark.parametrize("case", ACCEPTED, ids=named)
def test_the_table_of_what_is_accepted(case):
    annotation, value, wanted = case
    taken = coerce(annotation, value)
    assert taken == wanted
    assert type(taken) is type(wanted)


@pytest.mark.parametrize("case", REFUSED, ids=named)
def test_the_table_of_what_is_refused(case):
    annotation, value = case
    with pytest.raises(ValidationError):
        coerce(annotation, value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Any, []), (object, []), (int, 12345678), (str, "abc"), (datetime, datetime(2026, 1, 1)), (Path, Path("a")),
        (Decimal, Decimal(1)), (uuid.UUID, ID), (Plain, Plain()), (Point, Point("not checked again")),  # type: ignore[arg-type]
        (abc.Iterable[int], iter([1])), (abc.Callable, len), (abc.Iterator[int], iter("a")),
    ],
)  # fmt: skip
def test_what_fits_is_the_very_object(annotation, value):
    assert coerce(annotation, value) is value


@pytest.mark.parametrize("value", [[1], {1: 2}, {1}, deque([1])])
def test_a_container_is_always_a_new_one(value):
    for annotation in (type(value), abc.Collection if not isinstance(value, dict) else abc.Mapping):
        taken = coerce(annotation, value)
        assert taken == value
        assert taken is not value


@pytest.mark.parametrize("annotation", [typing.IO, typing.IO[str], typing.IO[bytes], typing.TextIO, typing.BinaryIO])
def test_an_open_file_is_passed_on_as_it_is(annotation):
    with open(__file__) as file:
        assert coerce(annotation, file) is file
    with pytest.raises(ValidationError, match="must be an open file, got 5"):
        coerce(annotation, 5)


def test_a_nan_is_a_float():
    assert coerce(float, "nan") != coerce(float, "nan")


# ------------------------------------------------------------------------------------------------ problems


def problems(annotation: Any, value: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        coerce(annotation, value)
    return {".".join(map(str, place)): reason for place, reason in caught.value.problems}


def test_every_problem_is_told_with_its_place():
    found = problems(dict[str, Tree], {"a": {"value": "x", "children": [{}, {"value": 1, "z": 2}]}, "b": 5})
    assert set(found) == {"a.value", "a.children.0.value", "a.children.1.z", "b"}
    assert found["a.value"] == "must be an integer, got 'x' (str)"
    assert "required property" in found["a.children.0.value"]
    assert "value, children" in found["a.children.1.z"]


def test_a_union_tells_one_problem_for_each_member_and_an_optional_only_its_own():
    assert set(problems(Union[int, list[int]], ["x"])) == {"int", "list.0"}
    assert set(problems(Optional[int], "x")) == {""}


def test_a_key_that_does_not_fit_is_told_apart_from_its_value():
    assert set(problems(dict[int, int], {"a": "b"})) == {"a.[key]", "a"}


def test_what_a_constructor_raises_is_a_problem():
    assert "ValueError: x is negative" in problems(Strict, {"x": -1})[""]


def test_an_error_lists_its_problems_as_models_do():
    with pytest.raises(ValidationError) as caught:
        coerce(list[int], ["x"])
    assert caught.value.errors() == [{"loc": (0,), "msg": "must be an integer, got 'x' (str)"}]
    assert str(caught.value) == "the value does not fit:\n - 0: must be an integer, got 'x' (str)"


def test_a_broken_repr_costs_nothing():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    assert problems(int, Broken()) == {"": "must be an integer, got a Broken"}


# ------------------------------------------------------------------------------------------------ hostile values


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "9" * 1_000_000), (int, Decimal("1e999999999")), (int, b"9" * 1_000_000), (float, "9" * 1_000_000),
        (Decimal, "9" * 1_000_000), (int, "x" * 1_000_000), (str, 10**100_000), (datetime, "9" * 1_000_000),
        (timedelta, "P" + "1" * 1_000_000 + "D"), (time, "1" * 1_000_000), (Number, "1" * 1_000_000),
        (datetime, 10**400), (timedelta, 10**400), (bool, "t" * 1_000_000), (uuid.UUID, "f" * 1_000_000),
        (list[int], ["x"] * 200_000),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)  # fmt: skip
def test_no_value_takes_long_and_no_error_is_long(annotation, value):
    begun = clock.monotonic()
    with pytest.raises(ValidationError) as caught:
        coerce(annotation, value)
    assert clock.monotonic() - begun < 20  # minutes or for ever, if it were converted
    assert len(str(caught.value)) < 10_000


def test_a_value_that_is_endlessly_deep_is_a_problem():
    tree: dict[str, Any] = {"value": 1}
    tree["children"] = [tree]
    assert "nested too deeply" in problems(Tree, tree)[""]


# ------------------------------------------------------------------------------------------------ annotations


def test_metadata_bound_a_value_where_they_are_understood():
    bound = types.SimpleNamespace
    positive = Annotated[int, bound(gt=0), bound(le="a bound of another type"), "a word", bound(description="how many")]
    assert coerce(positive, "5") == 5
    assert problems(positive, "0") == {"": "must be greater than 0, got 0"}
    assert json_schema(positive)["exclusiveMinimum"] == 0
    assert json_schema(positive)["description"] == "how many"
    short = Annotated[list[int], bound(min_length=1, max_length=2)]
    assert problems(short, []) == {"": "must have a length of at least 1, got []"}
    assert json_schema(short)["maxItems"] == 2
    grouped = Annotated[float, bound(metadata=[bound(ge=1), bound(multiple_of=2)])]
    assert problems(grouped, 3) == {"": "must be a multiple of 2, got 3.0"}
    assert "got Decimal('NaN')" in problems(Annotated[Decimal, bound(gt=1)], Decimal("NaN"))[""]
    assert problems(Annotated[int, bound(multiple_of=0)], 1) == {"": "must be a multiple of 0, got 1"}


def test_a_class_whose_field_cannot_be_resolved_takes_anything_there():
    namespace: dict[str, Any] = {"__annotations__": {"x": "Absent", "y": "int"}, "__module__": __name__}
    made = dataclasses.dataclass(type("Made", (), namespace))
    taken = coerce(made, {"x": object, "y": "5"})
    assert (taken.x, taken.y) == (object, 5)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="`type` statements are of 3.12")
def test_a_type_alias_may_hold_itself():
    names: dict[str, Any] = {}
    exec("type Nested = int | list[Nested]", names)
    assert coerce(names["Nested"], ["1", ["2"]]) == [1, [2]]
    assert json_schema(names["Nested"])["$ref"] == "#/$defs/Nested"


# ------------------------------------------------------------------------------------------------ models


class Model:
    """A class that validates by itself, as pydantic's of version 2 do."""

    model_fields: dict[str, Any] = {"x": int}

    def __init__(self, x):
        self.x = x

    @classmethod
    def model_validate(cls, data):
        if set(data) != {"x"}:
            raise Invalid()
        return cls(int(data["x"]))

    @classmethod
    def model_json_schema(cls):
        return {"type": "object", "properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"type": "integer"}}}


class Invalid(ValueError):
    def errors(self):
        return [{"loc": ("x",), "msg": "Field required", "type": "missing"}]


class OldModel:
    __fields__: dict[str, Any] = {}

    @classmethod
    def parse_obj(cls, data):
        return cls()


def test_a_model_is_taken_as_it_is_or_made_by_its_own_rules():
    made = Model("not checked again")
    assert coerce(Model, made) is made
    assert coerce(list[Model], [{"x": "5"}])[0].x == 5
    assert isinstance(coerce(OldModel, {}), OldModel)
    assert problems(list[Model], [{}]) == {"0.x": "Field required"}
    assert "ValueError" in problems(Model, {"x": "a"})[""]
    for value in (None, '{"x": 1}', 5):
        assert "must be a Model" in problems(Model, value)[""]


# ------------------------------------------------------------------------------------------------ schemas


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (int, {"type": "integer"}), (str, {"type": "string"}), (bool, {"type": "boolean"}), (None, {"type": "null"}),
        (datetime, {"type": "string", "format": "date-time"}), (Any, {}), (Plain, {}), (Literal["a"], {"const": "a"}),
        (Literal["a", 1], {"enum": ["a", 1]}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (dict, {"type": "object", "additionalProperties": True}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (set, {"type": "array", "items": {}, "uniqueItems": True}),
        (abc.Iterable[str], {"type": "array", "items": {"type": "string"}}),
        (tuple[int, str], {
            "type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2}),
        (tuple[()], {"type": "array", "minItems": 0, "maxItems": 0}),
        (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Colour, {"$ref": "#/$defs/Colour", "$defs": {
            "Colour": {"title": "Colour", "enum": ["red"], "type": "string"}}}),
        (Model, {"$ref": "#/$defs/Model", "$defs": {
            "Model": {"type": "object", "properties": {"x": {"$ref": "#/$defs/X"}}}, "X": {"type": "integer"}}}),
    ],
    ids=str,
)  # fmt: skip
def test_the_schema_of(annotation, schema):
    assert json_schema(annotation) == schema


def test_the_schema_of_a_class_that_holds_itself_refers_to_itself():
    schema = json_schema(Tree)
    tree = schema["$defs"]["Tree"]
    assert tree["properties"]["children"] == {"title": "Children", "type": "array", "items": {"$ref": "#/$defs/Tree"}}
    assert (tree["required"], tree["additionalProperties"]) == (["value"], False)
    assert json_schema(Point)["$defs"]["Point"]["properties"]["y"]["default"] == 0.5


def test_two_classes_of_one_name_are_defined_apart():
    other = dataclasses.make_dataclass("Point", [("z", int)])
    schema = json_schema(tuple[Point, other])  # type: ignore[valid-type]
    assert [each["$ref"] for each in schema["prefixItems"]] == ["#/$defs/Point", "#/$defs/Point-2"]
    assert set(schema["$defs"]["Point-2"]["properties"]) == {"z"}


