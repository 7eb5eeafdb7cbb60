# SPDX-License-Identifier: Apache-2.0
"""Hashes: equal for equal inputs in every process, and keys for caches that never take one value for another."""

from __future__ import annotations

import array
import datetime as dt
import functools
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from decimal import Decimal
from typing import Any
from unittest.mock import MagicMock, Mock
from uuid import UUID

import pytest

from microflow.hashing import fingerprint
from tests.values_support import Access, Color, Level, Point, nested, self_containing

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# ------------------------------------------------------------------------------------------------ fingerprints


class Thing:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slots:
    __slots__ = ("__private", "a")

    def __init__(self, a, private):
        self.a = a
        self.__private = private


class OwnPath(type(pathlib.Path())):  # type: ignore[misc]
    pass


def ring():
    thing = Thing(a=1)
    thing.me = [thing]
    return thing


def samples():
    """Values in pairs that are all different, in a form that each process makes anew."""
    return [
        {"x": 1, "y": "text"},
        {"x": 1, "y": "texts"},
        [1, 2],
        [2, 1],
        {1, "a", (2, 3), frozenset([4])},
        {1, "a", (2, 4), frozenset([4])},
        {1: "a", "b": 2, (3, 4): 5},
        {1: "a", "b": 2, (3, 5): 5},
        b"ab",
        bytearray(b"ab"),
        memoryview(b"abc"),
        array.array("i", [1, 2]),
        array.array("i", [1, 3]),
        dt.datetime(2020, 1, 1),
        dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc),
        dt.date(2020, 1, 1),
        dt.timedelta(1),
        UUID(int=7),
        Decimal("1.0"),
        Decimal("1.00"),
        pathlib.Path("/a"),
        OwnPath("/b"),
        1.5,
        math.nan,
        10**6000,
        10**6000 + 1,
        "\ud800",
        1j,
        range(3),
        deque([1, 2]),
        OrderedDict(a=1),
        Color.RED,
        Color.BLUE,
        Access.READ | Access.WRITE,
        Thing(a=1),
        Thing(a=2),
        Thing(),
        Thing(a={1, 2}, b=Thing(c=(1, {2: 3}))),
        Slots(1, 2),
        Slots(1, 3),
        Point(1, 2),
        ValueError("a"),
        ValueError("b"),
        len,
        nested,
        Thing,
        Thing.__init__,
        Thing(a=1).__eq__,
        functools.partial(nested, 5),
        functools.partial(nested, 6),
        json,
        ring(),
        self_containing(),
        nested(100),
        nested(101),
    ]


def test_different_inputs_have_different_fingerprints_of_16_bytes():
    prints = list(map(fingerprint, samples()))
    assert {len(each) for each in prints} == {16}
    assert len(set(prints)) == len(prints)


def test_equal_inputs_made_anew_have_equal_fingerprints_alone_and_inside_of_others():
    assert list(map(fingerprint, samples())) == list(map(fingerprint, samples()))
    for one, other in zip(samples(), samples(), strict=True):
        assert fingerprint({"x": [one]}) == fingerprint({"x": [other]})
        assert fingerprint({1: one, "a": 2}) == fingerprint({"a": 2, 1: other})
        assert fingerprint({1: one, "a": 2}) != fingerprint({"x": [one]})


ELSEWHERE = """
import sys; sys.path.insert(0, sys.argv[1])
from microflow.hashing import fingerprint
import array, collections, datetime, decimal, enum, pathlib, uuid
class Thing:
    def __init__(self, **attributes): self.__dict__.update(attributes)
class Color(enum.Enum): RED = 1
class Access(enum.Flag): READ = 1; WRITE = 2
class OwnPath(type(pathlib.PurePath())): pass
def nested(levels):
    value = 0
    for _ in range(levels): value = [value]
    return value
def samples():
    ring = Thing(a=1); ring.me = {"x": ring}
    path = OwnPath("a/b"); hash(path); str(path)
    return [{"x": 1, "y": "text", "z": 1.1e300}, set("abcdefgh"), {frozenset("abc"), frozenset("de")},
        {1: {"b", "a"}, "x": None}, Thing(a={"p", "q"}, b=Color.RED), Access.READ | Access.WRITE, ring, path,
        datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc), decimal.Decimal("1.10"), uuid.UUID(int=3),
        b"abc", bytearray(b"abc"), array.array("d", [1.5]), collections.deque("ab"), pathlib.PurePosixPath("/x"),
        nested(50), nested(100), nested(5000), [nested(99), {1: nested(98), "a": 0}], Thing, Thing.__init__, len,
        10**5000, "\\ud800", ValueError("x", {"a", "b"}), -0.0, float("inf"), [True, None, (1, 2)]]
sys.setrecursionlimit(int(sys.argv[2]))
print(*(fingerprint(value).hex() for value in samples()))
"""


def fingerprints_in(python, seed, environment=None, limit=1000):
    """What another interpreter prints; None when it does not run at all, as a version manager's launcher may."""
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), **(environment or {})}
    probe = subprocess.run([python, "-c", ""], env=environment, capture_output=True, timeout=60)
    if probe.returncode != 0:
        return None
    command = [python, "-c", ELSEWHERE, ROOT, str(limit)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_fingerprints_do_not_depend_on_the_hash_seed_or_the_recursion_limit():
    first = fingerprints_in(sys.executable, 0)
    assert len(set(first)) == len(first) > 20
    assert fingerprints_in(sys.executable, 12345) == first
    assert fingerprints_in(sys.executable, 1, limit=5000) == first


def test_fingerprints_are_equal_on_every_python_of_this_machine():
    mine = fingerprints_in(sys.executable, 1)
    for minor in (10, 11, 12, 13, 14):
        python = shutil.which(f"python3.{minor}")
        if python is not None:
            # a version manager's launcher runs the version that its own variable names
            theirs = fingerprints_in(python, 2, {"PYENV_VERSION": f"3.{minor}"})
            assert theirs in (None, mine), f"python3.{minor} differs"


def test_tuples_count_as_lists_and_keys_by_their_text():
    assert fingerprint((1, 2)) == fingerprint([1, 2])
    assert fingerprint({1: 2}) == fingerprint({"1": 2})
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(Level.LOW) == fingerprint(1)
    assert fingerprint(1) != fingerprint(True)
    assert fingerprint(1) != fingerprint(1.0)
    assert fingerprint(1) != fingerprint("1")


def test_what_replace_returns_stands_for_the_object_wherever_it_is():
    class Future:
        def __init__(self, call):
            self.call = call

    def stand_in(value):
        return {"$": "call", "v": value.call} if isinstance(value, Future) else None

    def both(wrap):
        one, same, other = (fingerprint(wrap(Future(call)), stand_in) for call in ("a", "a", "b"))
        assert one == same != other

    for wrap in (
        lambda x: x,
        lambda x: {"x": x},
        lambda x: [(x,)],
        lambda x: {x},
        Point,
        lambda x: Thing(a=[x]),
        lambda x: {1: x, "a": 2},
        lambda x: deque([x]),
        lambda x: [x, self_containing()],
    ):
        both(wrap)
    assert fingerprint(Thing(a=1), stand_in) == fingerprint(Thing(a=1))


class Hostile:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name):
        raise RuntimeError("go away")


class HostileDict(dict):
    def items(self):
        raise RuntimeError("go away")

    keys = __iter__ = items


@pytest.mark.parametrize(
    "make",
    [
        Hostile,
        lambda: [Hostile()],
        lambda: HostileDict(a=1),
        threading.Lock,
        object,
        lambda: (x for x in ()),
        lambda: Mock(spec=set),
        MagicMock,
    ],
)
def test_whatever_a_value_does_it_has_a_fingerprint(make):
    value = make()
    assert fingerprint(value) == fingerprint(value)
    assert len(fingerprint({"x": value, 1: 2})) == 16


def test_a_replace_that_fails_does_not_fail_the_fingerprint():
    def broken(value):
        raise ZeroDivisionError

    assert len(fingerprint(Thing(a=1), broken)) == 16


class Node:
    def __init__(self, name):
        self.name = name
        self.neighbours = []


def graph(size, container):
    nodes = [Node(f"n{number}") for number in range(size)]
    for node in nodes:
        node.neighbours = container(nodes)
    return nodes[0]


@pytest.mark.parametrize("container", [list, set, frozenset, lambda nodes: {node.name: node for node in nodes}])
def test_objects_that_all_refer_to_each_other_take_no_endless_walk(container):
    """There are more paths through this graph than atoms in the world: each object is walked once."""
    assert fingerprint(graph(40, container)) == fingerprint(graph(40, container))
    assert fingerprint(graph(40, container)) != fingerprint(graph(41, container))


def test_layers_of_shared_objects_take_no_endless_walk():
    def layers(depth):
        value = Thing(bottom=1)
        for _ in range(depth):
            value = Thing(left=value, right=[value])
        return value

    assert fingerprint(layers(15)) == fingerprint(layers(15)) != fingerprint(layers(16))


def in_layers(number: int, step: Any) -> Any:
    value: Any = step(1, 2)
    for _ in range(number):
        value = step(value, value)
    return value


@pytest.mark.parametrize(
    "step",
    [
        lambda one, other: [one, other],
        lambda one, other: {"a": one, "b": (other,)},
        lambda one, other: frozenset({one, (other,)}),
        lambda one, other: [{"a": one}, frozenset({2}), other],
    ],
    ids=["lists", "dicts", "sets", "mixed"],
)
def test_layers_of_shared_containers_are_not_written_out(step):
    """Thirty layers have a billion members when what is shared is written each time it stands there."""
    assert fingerprint(in_layers(30, step)) == fingerprint(in_layers(30, step)) != fingerprint(in_layers(31, step))


def test_sets_in_sets_are_not_quoted_once_more_at_each_level():
    def nested(levels: int) -> Any:
        value: Any = "a"
        for _ in range(levels):
            value = frozenset({value})
        return value

    assert fingerprint(nested(60)) == fingerprint(nested(60)) != fingerprint(nested(61))


def test_what_is_shared_does_not_count_also_where_it_decides_which_way_is_taken():
    shared = [0] * 1_001
    once = [[shared] * 1_000, [shared] * 1_000]
    anew = [[[0] * 1_001 for _ in range(1_000)] for _ in range(2)]
    assert fingerprint(once) == fingerprint(anew)
    assert fingerprint(once[:1]) == fingerprint(anew[:1])


def test_one_object_twice_counts_as_two_equal_objects():
    """A result that comes back from the log has lost that it was one."""
    one = Thing(a=[1])
    assert fingerprint([one, one]) == fingerprint([Thing(a=[1]), Thing(a=[1])])
    assert fingerprint({1: one, "a": one}) == fingerprint({1: Thing(a=[1]), "a": Thing(a=[1])})


def test_addresses_and_order_of_creation_leave_no_trace():
    assert fingerprint([object(), threading.Lock(), lambda: 0]) == fingerprint([object(), threading.Lock(), lambda: 0])


def test_a_script_counts_by_its_own_name_while_it_is_the_main_program(tmp_path):
    """The same function must be the same input when a re-execution imports the script."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from microflow.hashing import fingerprint\n"
        "class A:\n    def __init__(self): self.x = 1\n"
        "def f(): pass\n"
        "def show(): return [fingerprint(v).hex() for v in (A(), A, f, A().__init__)]\n"
        "if __name__ == '__main__':\n    print(show())\n"
    )
    as_main = [sys.executable, str(script), ROOT]
    imported = [sys.executable, "-c", "import script; print(script.show())", ROOT]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path).stdout
        for command in (as_main, imported)
    ]
    assert outputs[0] == outputs[1] != ""


def test_every_thread_gets_its_own_answer():
    """The encoder that is kept belongs to the `replace` of the latest call."""
    wrong = []

    def work(tag):
        def stand_in(value):
            return tag

        expected = fingerprint(tag)
        wrong.extend(tag for _ in range(500) if fingerprint(object(), stand_in) != expected)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
