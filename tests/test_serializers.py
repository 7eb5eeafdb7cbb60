# SPDX-License-Identifier: Apache-2.0
"""Pickle takes what JSON cannot, when it may; serializers by name."""

from __future__ import annotations

import dataclasses
import enum
import os
import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest

from microflow.exceptions import SerializationError
from microflow.serializers import NotEncodable, default_resolver, pack, unpack

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


class Dict(dict):
    pass


class Own(Exception):
    pass


def self_containing():
    ring: list[Any] = []
    ring.append(ring)
    return ring


def nested(levels):
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


# ------------------------------------------------------------------------------------------------ pack, unpack


class Custom:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is Custom and self.x == other.x

    __hash__ = None  # type: ignore[assignment]


class Explosive:
    def __reduce__(self):
        return (explode, ())


def explode():
    raise ZeroDivisionError("on opening")


def test_pickle_takes_what_json_cannot_and_only_when_it_may():
    form, data = pack([Custom(1), Dict(a=1)])
    assert form == "pickle"
    assert unpack(form, data, allow_pickle=True) == [Custom(1), {"a": 1}]
    with pytest.raises(NotEncodable, match="Custom"):
        pack(Custom(1), allow_pickle=False)
    with pytest.raises(SerializationError, match="not opened because others could have written it"):
        unpack(form, data, allow_pickle=False)


@pytest.mark.parametrize("value", [threading.Lock(), lambda: 0, (x for x in ()), [Custom(threading.Lock())]])
def test_what_neither_can_carry_is_refused_with_both_reasons(value):
    with pytest.raises(NotEncodable, match=r"no JSON form.*and pickle refused"):
        pack(value)


class Picky(Exception):
    """Pickle cannot open it again, and JSON cannot carry it."""

    def __init__(self, a, b):
        super().__init__(a)
        self.value = Custom(b)


class Lying(Exception):
    """Pickle opens it with another text."""

    def __init__(self, code):
        super().__init__(f"code {code}")
        self.value = Custom(code)


@pytest.mark.parametrize("value", [Picky(1, 2), [{"deep": Picky(1, 2)}], Custom(Picky(1, 2)), Lying(5)])
def test_an_exception_that_pickle_would_not_give_back_is_not_pickled(value):
    with pytest.raises(NotEncodable, match="pickle refused"):
        pack(value)
    form, data = pack(Own(Custom(1)))
    assert form == "pickle"
    assert unpack(form, data, allow_pickle=True).args == (Custom(1),)


def test_every_failure_to_unpack_is_a_serialization_error_with_the_reason():
    exploding = pickle.dumps(Explosive())
    for form, data, reason in [
        ("json", b"{", "no JSON"),
        ("json", b"\xff", "no JSON"),
        ("json", b"[" * 100_000, "no JSON"),
        ("json", b'{"$": "new", "v": 1}', "unknown tag"),
        ("pickle", b"garbage", "cannot be opened"),
        ("pickle", exploding, "ZeroDivisionError: on opening"),
        ("yaml", b"", "unknown format 'yaml'"),
    ]:
        with pytest.raises(SerializationError, match=reason):
            unpack(form, data, allow_pickle=True)


def test_the_resolver_finds_the_classes_of_a_pickle_too():
    data = pickle.dumps(Custom(1)).replace(__name__.encode(), b"x" * len(__name__))
    again = unpack("pickle", data, allow_pickle=True, resolve=lambda _, name: default_resolver(__name__, name))
    assert again == Custom(1)
    with pytest.raises(SerializationError, match="is not imported"):
        unpack("pickle", data, allow_pickle=True, resolve=default_resolver)


def test_importing_serializers_loads_nothing_heavy():
    code = (
        "import sys, microflow.serializers\n"
        "heavy = 'pickle inspect decimal pathlib zoneinfo hashlib traceback dataclasses asyncio'\n"
        "print([name for name in heavy.split() if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
