# SPDX-License-Identifier: Apache-2.0
"""Stable hashes: no two values for one key, one key for equal values in every process, and a refusal where neither
can be promised."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from fractions import Fraction
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microflow import hashing
from microflow.exceptions import HashError
from microflow.hashing import hash_objects, stable_hash

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Color(Enum):
    RED = 1


class Level(IntEnum):
    ONE = 1


class Access(Flag):
    READ = 1
    WRITE = 2


@dataclass
class Point:
    x: Any


@dataclass
class Place:
    x: Any


class OwnInt(int):
    pass


class OwnText(str):
    __slots__ = ()


class OwnList(list):
    pass


class OwnDict(dict):
    pass


class OwnSet(set):
    pass


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: Any) -> None:
        self.a = a


class Pair(NamedTuple):
    x: Any
    y: Any


def made(number: int) -> Any:
    return lambda: number


def local(content: Any) -> Any:
    class Local:
        def __init__(self) -> None:
            self.content = content

    return Local()


PAIRWISE_DIFFERENT: list[Any] = [
    *(None, True, 1, 1.0, "1", b"1", bytearray(b"1"), 1j, Decimal(1), Fraction(1), OwnInt(1), Level.ONE, Color.RED),
    *(0, False, 0.0, "", b"", [], (), {}, set(), frozenset(), deque(), OwnList(), OwnDict(), OwnSet(), OrderedDict()),
    *([1], (1,), {1}, frozenset({1}), deque([1]), deque([1], 5), OwnList([1]), OwnSet({1})),
    *([True], [1.0], ["1"], [[1]]),
    *({1: "a"}, {"1": "a"}, {1.0: "a"}, {True: "a"}, {None: "a"}, {(1,): "a"}, {"a": 1}, {"a": (1,)}, {"a": [1]}),
    *([1, (2,)], [1, [2]], (1, [2]), (1, (2,)), [{"a": 1}], ({"a": 1},), [[], ()], [(), []], [[], []], [(), ()]),
    *({"a": {1: 2}}, {"a": {"1": 2}}, {1: {"1": 2}}, [{1: 2}, {"1": 2}], [{"1": 2}, {1: 2}]),
    *("\ud83d\ude00", "😀", "\ud83d", "\\ud83d", '"', "\n", "[1]", '{"a":1}'),
    *(2**52, 2**53, 2.0**53, 2**3000, 2**3000 + 1, -(2**3000), 10**6000, 1e300),
    *(float("inf"), -float("inf"), float("nan")),
    *(range(3), range(4), [0, 1, 2]),
    *(datetime(2025, 1, 1), datetime(2025, 1, 1, tzinfo=timezone.utc), date(2025, 1, 1), timedelta(1), "2025-01-01"),
    *(UUID(int=1), Path("a"), PurePosixPath("a"), PureWindowsPath("a"), "a"),
    *(Access.READ, Access.WRITE, Access.READ | Access.WRITE),
    *(Point(1), Point(2), Point([1]), Place(1), Pair(1, 2), (1, 2), Slotted(1), Slotted(2), {"x": 1}),
    *(Counter("a"), defaultdict(list), defaultdict(int), OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)),
    *(ValueError("a"), ValueError("b"), KeyError("a"), partial(made, 1), partial(made, 2)),
    *(made, local, len, print, json, Point, Place, int, made(1), made(2), [].append, lambda: 1, lambda: 2),
    *(memoryview(b"1"), iter([1]), local(1), local(2), Ellipsis, NotImplemented, type(None)),
]


def test_values_that_differ_have_different_hashes():
    hashes = [stable_hash(value) for value in PAIRWISE_DIFFERENT]
    twice = {text: [v for v, h in zip(PAIRWISE_DIFFERENT, hashes, strict=True) if h == text] for text in hashes}
    assert {text: values for text, values in twice.items() if len(values) > 1} == {}


def test_what_differs_alone_differs_in_a_container():
    """Both ways to a hash, and the step from one to the other: beside plain data, and beside an object."""
    for beside in (1, Point(1)):
        hashes = [stable_hash({"a": [beside, value]}) for value in PAIRWISE_DIFFERENT]
        assert len(set(hashes)) == len(hashes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.booleans(), inner, max_size=4)
        | st.frozensets(st.integers() | st.text(max_size=2), max_size=4)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equality that knows types and signs, and does not know the order of dicts."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        keys = {(type(key), key): value for key, value in one.items()}
        others = {(type(key), key): value for key, value in other.items()}
        return keys.keys() == others.keys() and all(same(keys[key], others[key]) for key in keys)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, frozenset):
        return {(type(key), key) for key in one} == {(type(key), key) for key in other}
    return repr(one) == repr(other)


@given(one=JSON, other=JSON)
def test_two_hashes_are_equal_exactly_when_the_values_are(one, other):
    assert (stable_hash(one) == stable_hash(other)) == same(one, other)
    assert stable_hash(copy.deepcopy(one)) == stable_hash(one)


@given(value=JSON)
def test_the_two_ways_agree_on_what_is_equal(value):
    """The long way alone makes the same distinctions: no hash of it is one of the short way."""
    plain, walked = stable_hash(value), stable_hash([value, Point(1)])
    assert plain != walked
    assert walked == stable_hash([copy.deepcopy(value), Point(1)])


# ------------------------------------------------------------------------------------------------ what is equal


def test_the_order_of_dicts_and_sets_does_not_count():
    assert stable_hash({"a": 1, "b": 2}) == stable_hash({"b": 2, "a": 1})
    assert stable_hash({"a": Point(1), 1: 2}) == stable_hash({1: 2, "a": Point(1)})
    assert stable_hash(set("abc")) == stable_hash(set("cba"))
    one, other = Point(1), Point(1)
    other.__dict__.clear()
    other.__dict__.update(y=2, x=1)
    one.y = 2  # type: ignore[attr-defined]
    assert stable_hash(one) == stable_hash(other)


def test_what_is_shared_does_not_count():
    inner: list[Any] = [1]
    thing = Point(1)
    assert stable_hash([inner, inner]) == stable_hash([[1], [1]])
    assert stable_hash([thing, [thing], inner, {"a": inner}]) == stable_hash([Point(1), [Point(1)], [1], {"a": [1]}])


def test_objects_of_local_classes_count_by_class_and_attributes():
    assert stable_hash(local(1)) == stable_hash(local(1)) != stable_hash(local(2))


def test_functions_made_alike_count_by_what_they_hold():
    assert stable_hash(made(1)) == stable_hash(made(1))


def test_an_object_counts_by_what_it_would_pickle_of_itself():
    class Cached:
        def __init__(self, number: int) -> None:
            self.number = number
            self.lock = threading.Lock()

        def __getstate__(self) -> Any:
            return {"number": self.number}

    assert stable_hash(Cached(1)) == stable_hash(Cached(1)) != stable_hash(Cached(2))


def test_so_much_is_shared_that_it_could_never_be_written_out():
    value: Any = [1, Point(1)]
    for _ in range(80):
        value = [value, value]
    assert stable_hash(value) == stable_hash(copy.deepcopy(value))


def test_plain_data_that_is_shared_a_lot_is_not_written_out_either():
    value: Any = [1]
    for _ in range(80):
        value = [value, value]
    assert stable_hash(value) == stable_hash(copy.deepcopy(value))


def test_plain_data_that_is_too_much_for_the_short_way_takes_the_long_one(monkeypatch):
    """How many members there are decides, not how many of them are the same object."""
    row = list(range(20))
    shared, apart = [row, row, row, {"a": (1, "b")}], [*([*row] for _ in range(3)), {"a": (1, "b")}]
    before = stable_hash(shared)
    assert stable_hash(apart) == before
    monkeypatch.setattr(hashing, "_MOST_PLAIN", 50)
    assert stable_hash(shared) == stable_hash(apart) != before


# ------------------------------------------------------------------------------------------------ refusals


def ring() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def own_ring() -> Point:
    point = Point(1)
    point.x = [point]
    return point


def deep() -> Any:
    value: Any = 1
    for _ in range(250):
        value = [value]
    return value


class Hostile:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ZeroDivisionError("no")


class HostileDict(dict):
    def items(self) -> Any:
        raise ZeroDivisionError("no")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (threading.Lock, "_thread:lock"),
        (object, "builtins:object"),
        (lambda: (x for x in ()), "builtins:generator"),
        (lambda: open(os.devnull), "TextIOWrapper"),  # noqa: SIM115
        (Hostile, "Hostile.*ZeroDivisionError"),
        (HostileDict, "ZeroDivisionError"),
        (ring, "contains itself"),
        (own_ring, "contains itself"),
        (deep, "deeper than 100 levels"),
    ],
)
def test_what_shows_nothing_of_itself_is_refused(make, words):
    value = make()
    with pytest.raises(HashError, match=words):
        stable_hash(value)
    getattr(value, "close", int)()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (threading.Lock(), r"config is a"),
        ([1, {"a": threading.Lock()}], r"config\[1\]\['a'\] is a"),
        ({5: Point((1, [threading.Lock()]))}, r"config\[5\]\.x\[1\]\[0\] is a"),
        ({(1,): threading.Lock()}, r"config\[<tuple>\] is a"),
        ({threading.Lock()}, r"config\{\.\.\.\} is a"),
        (ValueError(threading.Lock()), r"config\.args\[0\] is a"),
        (Slotted(threading.Lock()), r"config\.a is a"),
        (OwnList([threading.Lock()]), r"config\[0\] is a"),
        (OwnDict(a=threading.Lock()), r"config\['a'\] is a"),
        (made(threading.Lock()), r"config\.<closure number>\[0\] is a"),  # type: ignore[arg-type]
    ],
)
def test_the_error_names_the_place_and_the_type(value, path):
    with pytest.raises(HashError, match=f"Unable to create hash: {path} _thread:lock"):
        stable_hash(value, "config")


def test_hash_objects_counts_all_arguments_and_gives_none_for_what_cannot_be_hashed():
    assert hash_objects(1, 2, a=3) == hash_objects(1, 2, a=3)
    hashes = {hash_objects(1, 2), hash_objects([1, 2]), hash_objects(2, 1), hash_objects(1, a=2), hash_objects()}
    assert len(hashes) == 5
    assert hash_objects(threading.Lock()) is None
    with pytest.raises(HashError):
        hash_objects(threading.Lock(), raise_on_failure=True)


def test_a_one_shot_iterator_is_hashed_or_refused_but_not_consumed():
    numbers = count()
    try:
        hash_objects(numbers)
    except DeprecationWarning:
        pass
    assert next(numbers) == 0
    items = iter([1, 2])
    hash_objects(items)
    assert list(items) == [1, 2]


# ------------------------------------------------------------------------------------------------ other processes

ELSEWHERE = """
import sys; sys.path.insert(0, sys.argv[1])
from microflow.hashing import stable_hash
import collections, dataclasses, datetime, decimal, enum, pathlib, uuid
@dataclasses.dataclass
class Point: x: object; y: object = 0
@dataclasses.dataclass(frozen=True)
class Frozen: x: object
class Slotted:
    __slots__ = ("a", "b")
    def __init__(self): self.a, self.b = {"p", "q"}, 2
class Thing:
    def __init__(self): self.a = {"p", "q"}
class Color(enum.Enum): RED = 1
class Access(enum.Flag): READ = 1; WRITE = 2
Pair = collections.namedtuple("Pair", "x y")
path = pathlib.PurePosixPath("a/b"); hash(path); str(path)
utc = datetime.timezone.utc
values = [None, True, 1, 1.5, -0.0, float("inf"), 10**700, "text", "\\ud800", b"b", bytearray(b"b"), 1j, range(3),
    [1, [2.5, "x"]], (1, (2,)), {"a": 1, "b": [None]}, {1: "a", 2: "b"}, {1: "a", "b": 2, None: 3}, set("abcdefgh"),
    frozenset("abc"), {frozenset("abc"), frozenset("de"), (1, "x")}, collections.deque("ab", 5),
    collections.OrderedDict(b=1, a=2), collections.defaultdict(list, a=[1]), collections.Counter("aab"),
    datetime.datetime(2020, 1, 1, 12), datetime.datetime(2020, 1, 1, tzinfo=utc), datetime.date(2020, 1, 1),
    datetime.time(1), datetime.timedelta(1, 2, 3), uuid.UUID(int=3), decimal.Decimal("1.10"), path,
    pathlib.Path("x"), Color.RED, Access.READ | Access.WRITE, Pair(1, {2}), Point(1, {"b", "a"}), Frozen((1, 2)),
    Slotted(), Thing(), ValueError("x", {"a", "b"}), len, Point, collections.OrderedDict.fromkeys]
print(*map(stable_hash, values))
"""


def hashes_in(python: str, seed: int) -> list[str] | None:
    """What another interpreter prints; None when it does not run at all, as a version manager's launcher may."""
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    if subprocess.run([python, "-c", ""], env=environment, capture_output=True, timeout=60).returncode != 0:
        return None
    command = [python, "-c", ELSEWHERE, ROOT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_hashes_do_not_depend_on_the_hash_seed():
    hashes = hashes_in(sys.executable, 0)
    assert hashes is not None
    assert len(set(hashes)) == len(hashes) > 40
    assert hashes_in(sys.executable, 12345) == hashes


def test_hashes_are_equal_on_every_python_of_this_machine():
    hashes = hashes_in(sys.executable, 0)
    for minor in range(10, 16):
        python = shutil.which(f"python3.{minor}")
        others = python and hashes_in(python, 1)
        assert others is None or others == hashes, python


def test_a_hash_that_was_made_once_is_made_again():
    """Keys stand in storages for a long time: to change how a hash is made is to lose what is stored."""
    assert stable_hash({"x": [1, 2.5, "y", None, True], "y": {"1": (2,)}}) == "39f7eaa19d32248d6e0dcee87cd630a1"
    assert stable_hash([{1, 2}, Decimal("1.10")]) == "50dd9a97b625e7e736c75f03f9828cff"
