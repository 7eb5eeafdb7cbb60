# SPDX-License-Identifier: Apache-2.0
"""Values come back from tagged JSON equal and of the same type, or are refused with the path to the culprit."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import math
import pathlib
import sys
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microflow.exceptions import SerializationError
from microflow.serializers import (
    NotEncodable,
    default_resolver,
    from_json,
    import_resolver,
    pack,
    to_json,
    unpack,
)


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796  # an alias
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    left: Any
    right: Any = None


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0
    made: bool = dataclasses.field(init=False, default=True)

    def __post_init__(self):
        if self.x == "refused":
            raise AssertionError("__post_init__ ran")


@dataclasses.dataclass(frozen=True)
class Slotted:
    __slots__ = ("a",)
    a: Any


def through_json(value, resolve=None):
    return from_json(json.loads(json.dumps(to_json(value), allow_nan=False)), resolve)


# ------------------------------------------------------------------------------------------------ tagged JSON

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.text(st.characters(), max_size=3)  # surrogates too
    | st.binary(max_size=10)
    | st.complex_numbers(allow_nan=False)
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.datetimes(timezones=st.timezones())
    | st.times(timezones=st.just(dt.timezone.utc))
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.sampled_from([*Color, *Access, Access.READ | Access.WRITE, Level.LOW])
    | st.builds(range, st.integers(), st.integers(), st.integers(min_value=1))
    | st.builds(pathlib.PurePosixPath, st.sampled_from(["a/b", "/", "."]))
)
hashable = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
values = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.just("$"), inner, max_size=3)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.sets(hashable, max_size=3)
        | st.builds(deque, st.lists(inner, max_size=3), st.none() | st.integers(3, 5))
        | st.builds(OrderedDict, st.dictionaries(hashable, inner, max_size=3))
        | st.builds(Pair, inner, inner)
        | st.builds(Point, inner, inner)
        | st.builds(Slotted, inner)
        | st.builds(bytearray, st.binary(max_size=5))
    ),
    max_leaves=10,
)


def same(one, other):
    """Equal, and of one type all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return (
            list(map(type, one)) == list(map(type, other)) and one == other and all(same(one[k], other[k]) for k in one)
        )
    if isinstance(one, float):
        return repr(one) == repr(other)
    return one == other


@given(values)
def test_what_is_encoded_comes_back_equal_and_of_the_same_type(value):
    assert same(through_json(value), value)


@given(values)
def test_packed_values_are_ascii_json_and_come_back(value):
    form, data = pack(value)
    assert form == "json"
    assert data.isascii()
    assert same(unpack(form, data, allow_pickle=False), value)


def test_plain_json_stays_plain():
    value = {"a": [1, 2.5, "text é", None, True, {"b": []}]}
    assert to_json(value) == value


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ((1, (2,)), {"$": "tuple", "v": [1, {"$": "tuple", "v": [2]}]}),
        ({3, 1}, {"$": "set", "v": [1, 3]}),
        ({"$": 1}, {"$": "dict", "v": [["$", 1]]}),
        ({1: "a"}, {"$": "dict", "v": [[1, "a"]]}),
        (b"ab", {"$": "bytes", "v": "YWI="}),
        (math.inf, {"$": "float", "v": "inf"}),
        (dt.date(2020, 1, 2), {"$": "date", "v": "2020-01-02"}),
        (dt.timedelta(1, 2, 3), {"$": "timedelta", "v": [1, 2, 3]}),
        (UUID(int=1), {"$": "uuid", "v": "00000000-0000-0000-0000-000000000001"}),
        (Decimal("1.20"), {"$": "decimal", "v": "1.20"}),
        (pathlib.Path("a"), {"$": "path", "v": "a"}),
        (Color.CRIMSON, {"$": "enum", "v": [f"{__name__}:Color", "RED"]}),
        (Point(1), {"$": "dataclass", "v": [f"{__name__}:Point", {"x": 1, "y": 0, "made": True}]}),
        (range(1, 9, 2), {"$": "range", "v": [1, 9, 2]}),
        (deque([1], 3), {"$": "deque", "v": [[1], 3]}),
    ],
)
def test_the_tags_are_short_and_as_documented(value, written):
    """They stand in logs that other versions and languages read: changing one is a change of the format."""
    assert to_json(value) == written
    assert same(from_json(written), value)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        10**5000,
        -(2**2049),
        "\ud83d\ude00",
        {"\ud800": 1},
        -0.0,
        Decimal("sNaN"),
        Decimal("-0E+5"),
        complex(-0.0, math.inf),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_and_texts_at_the_edges_come_back(value):
    again = through_json(value)
    assert type(again) is type(value)
    assert again == value if isinstance(value, (int, str)) else repr(again) == repr(value)


def test_a_defaultdict_keeps_a_builtin_factory_and_refuses_any_other():
    again = through_json(defaultdict(list, {1: [2]}))
    assert (again, again.default_factory) == ({1: [2]}, list)
    assert through_json(defaultdict(None, a=1)).default_factory is None
    with pytest.raises(NotEncodable, match="factory"):
        to_json(defaultdict(lambda: 0))


def test_a_time_zone_keeps_its_name_its_offset_and_the_fold():
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    for fold in (0, 1):
        twice = dt.datetime(2023, 10, 29, 2, 30, fold=fold, tzinfo=zone)
        again = through_json(twice)
        assert (again.tzinfo, again.fold, again.utcoffset()) == (zone, fold, twice.utcoffset())
    assert through_json(dt.datetime(2020, 1, 1, fold=1)).fold == 1
    assert through_json(dt.time(1, tzinfo=zone)).tzinfo is zone
    fixed = dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30)))
    assert through_json(fixed).utcoffset() == dt.timedelta(hours=5, minutes=30)


def test_a_time_zone_that_is_unknown_here_or_has_changed_leaves_the_offset():
    for zone in ("No/Where", "America/New_York"):
        stored = {"$": "datetime", "v": ["2020-06-01T12:00:00+02:00", zone, 0]}
        assert from_json(stored).isoformat() == "2020-06-01T12:00:00+02:00"
        assert from_json(stored).utcoffset() == dt.timedelta(hours=2)


def test_a_dataclass_comes_back_without_running_its_code_and_with_defaults_for_new_fields():
    point = Point(1)
    point.x = "refused"
    assert through_json(point).x == "refused"
    assert from_json({"$": "dataclass", "v": [f"{__name__}:Point", {"x": 1}]}) == Point(1)
    with pytest.raises(SerializationError, match="has the field 'x' now"):
        from_json({"$": "dataclass", "v": [f"{__name__}:Point", {"y": 1}]})


# ------------------------------------------------------------------------------------------------ refusals


class Dict(dict):
    pass


class Text(str):
    __slots__ = ()


class Plain:
    pass


def self_containing():
    ring: list[Any] = []
    ring.append(ring)
    return ring


def doubling():
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    return value


def nested(levels):
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (Plain(), "result", "no JSON form"),
        ({"a": [0, 1, 2, Plain()]}, "result['a'][3]", "Plain"),
        ([Dict()], "result[0]", f"{__name__}:Dict"),
        ((Text("x"),), "result[0]", "Text"),
        ({1: {2: lambda: 0}}, "result[1][2]", "function"),
        ({(1, 2): Plain()}, "result[<tuple>]", "Plain"),
        ({frozenset([Plain])}, "result{...}{...}", "type"),
        (Point([Plain()]), "result.x[0]", "Plain"),
        (Pair(1, Plain()), "result[1]", "Plain"),
        (ValueError("x", Plain()), "result.args[1]", "Plain"),
        (Counter(a=1), "result", "Counter"),
        ([True, type], "result[1]", "type"),
        (
            dt.datetime(2020, 1, 1, tzinfo=type("Zone", (dt.tzinfo,), {"utcoffset": lambda *_: None})()),
            "result",
            "zone",
        ),
        (doubling(), None, "members when it is written out"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_carry_is_refused_with_the_path_and_the_type(value, path, reason):
    with pytest.raises(NotEncodable) as caught:
        to_json(value)
    if path is not None:
        assert caught.value.path == path
        assert f"{path} cannot be written as JSON" in str(caught.value)
    assert reason in str(caught.value)
    assert isinstance(caught.value, SerializationError)


def test_the_root_of_the_path_can_be_named():
    with pytest.raises(NotEncodable, match=r"^parameters\['x'\] cannot be written"):
        to_json({"x": Plain()}, root="parameters")


def test_depth_is_limited_to_100_levels_which_also_ends_cycles():
    assert through_json(nested(100)) == nested(100)
    for value in (nested(101), self_containing(), nested(100_000)):
        with pytest.raises(NotEncodable, match="deeper than 100 levels, or contains itself"):
            to_json(value)


def test_classes_that_would_not_be_found_again_are_refused():
    @dataclasses.dataclass
    class Inside:
        a: int

    with pytest.raises(NotEncodable, match="inside a function"):
        to_json([Inside(1)])
    hidden = dataclasses.make_dataclass("Point", ["x"])
    hidden.__module__ = __name__
    with pytest.raises(NotEncodable, match="names something else"):
        to_json(hidden(1))
    lost = dataclasses.make_dataclass("Lost", ["x"])
    lost.__module__ = "nowhere"
    with pytest.raises(NotEncodable, match="nowhere is not imported"):
        to_json(lost(1))


def test_attributes_beside_the_fields_are_not_lost_in_silence():
    point = Point(1)
    point.note = "extra"  # type: ignore[attr-defined]
    with pytest.raises(NotEncodable, match="beside its fields: note"):
        to_json(point)
    del point.x
    with pytest.raises(NotEncodable):
        to_json(point)


class Own(Exception):
    pass


class Restless(ValueError):
    """Adds a key to the dict that holds it when its text is read."""

    def __init__(self, owner):
        super().__init__()
        owner["me"] = self
        self.owner = owner

    def __str__(self):
        self.__dict__.pop("owner")["more"] = 1
        return "restless"


def test_a_dict_that_changes_while_it_is_read_is_refused():
    changing: dict[str, Any] = {}
    Restless(changing)
    with pytest.raises(NotEncodable, match="changed while it was read"):
        to_json(changing)


@pytest.mark.parametrize(
    "data",
    [
        {"$": "unheard-of", "v": 1},
        {"$": "tuple"},
        {"$": ["tuple"], "v": []},
        {"$": "tuple", "v": 5},
        {"$": "date", "v": "yesterday"},
        {"$": "datetime", "v": ["2020-01-01T00:00:00"]},
        {"$": "set", "v": [[1]]},
        {"$": "uuid", "v": 1},
        {"$": "defaultdict", "v": ["open", []]},
        {"$": "enum", "v": ["builtins:int", "x"]},
        {"$": "enum", "v": [f"{__name__}:Color", "GREEN"]},
        {"$": "enum", "v": [f"{__name__}:Color", None, 99]},
        {"$": "enum", "v": ["no.such.module:Color", "RED"]},
        {"$": "namedtuple", "v": [f"{__name__}:Pair", [1]]},
        {"$": "namedtuple", "v": ["builtins:tuple", [1]]},
        {"$": "dataclass", "v": ["os:system", {"command": "true"}]},
        {"$": "dataclass", "v": ["builtins:int", {}]},
        {"$": "exception", "v": {"args": []}},
        {"$": "exception", "v": 5},
        {"$": "exception", "v": {"type": 5, "message": ""}},
        nested(100_000),
    ],
    ids=lambda data: f"{data}"[:60] if type(data) is dict else "deep",
)
def test_data_that_is_damaged_or_foreign_is_a_serialization_error(data):
    with pytest.raises(SerializationError):
        from_json(data)


# ------------------------------------------------------------------------------------------------ resolvers


def test_the_default_resolver_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "never_imported_by_data.py").write_text("class A: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SerializationError, match="module never_imported_by_data is not imported"):
        default_resolver("never_imported_by_data", "A")
    assert "never_imported_by_data" not in sys.modules
    assert import_resolver("never_imported_by_data", "A").__name__ == "A"
    assert default_resolver("never_imported_by_data", "A").__name__ == "A"
    del sys.modules["never_imported_by_data"]


def test_what_does_not_resolve_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_by_design.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert default_resolver("builtins", "dict.fromkeys") == dict.fromkeys
    for resolve in (default_resolver, import_resolver):
        with pytest.raises(SerializationError, match=r"json:JSONEncoder\.nothing"):
            resolve("json", "JSONEncoder.nothing")
        with pytest.raises(SerializationError, match="<locals>"):
            resolve(__name__, "f.<locals>.A")
    with pytest.raises(SerializationError, match="ZeroDivisionError"):
        import_resolver("broken_by_design", "A")


def test_the_callers_resolver_is_asked_for_every_class():
    asked = []

    def resolve(module, qualname):
        asked.append((module, qualname))
        return default_resolver(__name__, qualname)  # as for a script that was __main__ when it wrote

    values = [Color.RED, Point(1), Pair(1), Own("x")]
    written = json.loads(json.dumps(to_json(values)).replace(__name__, "__main__"))
    red, point, pair, error = from_json(written, resolve)
    assert (red, point, pair, type(error)) == (Color.RED, Point(1), Pair(1), Own)
    assert asked == [("__main__", name) for name in ("Color", "Point", "Pair", "Own")]
