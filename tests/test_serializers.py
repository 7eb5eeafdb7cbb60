# SPDX-License-Identifier: Apache-2.0
"""Pickle takes what JSON cannot, when it may; serializers by name."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading

import pytest

from microflow.exceptions import SerializationError
from microflow.serializers import (
    CompressedSerializer,
    NotEncodable,
    Serializer,
    UnknownSerializer,
    default_resolver,
    get_serializer,
    pack,
    serializer_from_json,
    serializer_to_json,
    unpack,
)
from tests.values_support import Color, Dict, Own

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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


# ------------------------------------------------------------------------------------------------ by name


@pytest.mark.parametrize("name", ["auto", "json", "pickle", "compressed", "compressed/json", "compressed/pickle"])
def test_a_serializer_is_found_by_its_name_and_carries_values(name):
    serializer = get_serializer(name)
    assert get_serializer(serializer) is serializer
    assert serializer.type == name
    value = {"a": (1, b"x"), 2: Color.RED}
    assert serializer.loads(serializer.dumps(value)) == value
    assert serializer_from_json(json.loads(json.dumps(serializer_to_json(serializer)))) == serializer


def test_only_json_refuses_what_only_pickle_carries():
    for name in ("auto", "pickle", "compressed", "compressed/pickle"):
        assert get_serializer(name).loads(get_serializer(name).dumps(Custom(1))) == Custom(1)
    for name in ("json", "compressed/json"):
        with pytest.raises(SerializationError, match="Custom"):
            get_serializer(name).dumps(Custom(1))


@pytest.mark.parametrize("name", ["auto", "pickle", "compressed", "compressed/pickle"])
def test_data_of_others_is_read_but_no_pickle_in_it_is_opened(name):
    serializer = get_serializer(name)
    with pytest.raises(SerializationError, match="others could have written it"):
        serializer.loads_untrusted(serializer.dumps(Explosive()))
    if "pickle" not in name:
        assert serializer.loads_untrusted(serializer.dumps((1, 2))) == (1, 2)


@pytest.mark.parametrize("library", ["zlib", "bz2", "lzma"])
def test_compressing_makes_large_values_small(library):
    serializer = CompressedSerializer(compressionlib=library)
    data = serializer.dumps(["x"] * 10_000)
    assert len(data) < 1_000
    assert serializer.loads(data) == ["x"] * 10_000
    again = serializer_from_json(serializer_to_json(serializer))
    assert again == serializer
    with pytest.raises(SerializationError, match=library):
        serializer.loads(b"no such data")


def test_what_cannot_be_is_refused_where_it_is_said():
    with pytest.raises(ValueError, match=r"no serializer 'cbor'; known are auto, json"):
        get_serializer("cbor")
    with pytest.raises(ValueError, match="compressionlib is one of zlib, bz2, lzma, not 'os'"):
        CompressedSerializer(compressionlib="os")


@pytest.mark.parametrize(
    "recorded",
    [{"type": "cbor"}, {}, None, 5, [], {"type": 5}, "cbor", {"type": "compressed", "compressionlib": "os"}],
)
def test_what_is_recorded_of_an_unknown_serializer_stands_for_it_and_does_nothing(recorded):
    serializer = serializer_from_json(recorded)
    assert isinstance(serializer, UnknownSerializer)
    for use in (serializer.loads, serializer.loads_untrusted, serializer.dumps):
        with pytest.raises(SerializationError):
            use(b"1")


def test_a_serializer_of_the_users_own_has_a_name_and_is_not_asked_to_read_data_of_others():
    class Upper(Serializer):
        type = "upper"

        def dumps(self, obj):
            return obj.upper().encode()

        def loads(self, blob):
            return blob.decode()

    try:
        assert get_serializer("upper").loads(get_serializer("upper").dumps("a")) == "A"
        with pytest.raises(SerializationError, match="Upper"):
            get_serializer("upper").loads_untrusted(b"A")
    finally:
        del Serializer._by_name["upper"]


def test_importing_serializers_loads_nothing_heavy():
    code = (
        "import sys, microflow.serializers\n"
        "heavy = 'pickle inspect decimal pathlib zoneinfo hashlib traceback dataclasses asyncio'\n"
        "print([name for name in heavy.split() if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
