# SPDX-License-Identifier: Apache-2.0
"""An exception that was stored comes back as its own class with its own text, or as one that names both."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import threading

import pytest

from microflow.exceptions import ConfigurationError, MicroflowException, ScriptError
from microflow.serializers import (
    OriginalTraceback,
    RestoredError,
    describe_exception,
    from_json,
    restore_exception,
    to_json,
)


def through_json(value):
    return from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))


class Own(Exception):
    pass


class NotFound(Exception):
    """Its __init__ takes something else than it hands on: pickle makes another message of it, or fails."""

    def __init__(self, key, *, where):
        super().__init__(f"no {key} in {where}")
        self.key = key
        self.where = where


class Doubling(Exception):
    def __init__(self, code):
        super().__init__(f"code {code}")


class OwnText(Exception):
    def __str__(self):
        return f"text of {self.secret}"  # type: ignore[attr-defined]


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class ReadOnly(Exception):
    @property
    def code(self):
        return self.__dict__.get("code")


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


def raised(error):
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x", 1, (2, 3)),
        Own(),
        KeyError("key"),
        NotFound("a", where="b"),
        Doubling(5),
        FrozenError(3),
        FileNotFoundError(2, "No such file", "name.txt"),
        OSError("only text"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad byte"),
        SyntaxError("bad", ("file.py", 1, 2, "text")),
        ImportError("gone", name="module", path="/p"),
        StopIteration(5),
        SystemExit(3),
        KeyboardInterrupt(),
        ConfigurationError("x"),
        ScriptError(ValueError("inner"), "path.py"),
        RestoredError("Other", "text"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_comes_back_with_its_class_args_text_and_attributes(error):
    error.extra = [1, (2,)]  # type: ignore[attr-defined]  # any exception takes attributes
    for again in (through_json(error), restore_exception(json.loads(json.dumps(describe_exception(error))))):
        assert type(again) is type(error)
        assert (again.args, str(again)) == (error.args, str(error))
        assert again.__dict__.keys() == error.__dict__.keys()
        assert again.extra == [1, (2,)]  # type: ignore[attr-defined]
        for name in ("errno", "filename", "name", "path", "code", "value", "object", "lineno", "key", "where"):
            assert getattr(again, name, None) == getattr(error, name, None)
        assert again.__cause__ is None


FrozenError.__setattr__ = Exception.__setattr__  # type: ignore[method-assign]  # lets the test above add one


def test_the_original_traceback_and_the_causes_are_kept_as_text():
    try:
        try:
            1 / 0
        except ZeroDivisionError as inner:
            raise Own("outer") from inner
    except Own as error:
        described = describe_exception(error)
    assert described["causes"] == ["ZeroDivisionError: division by zero"]
    assert "test_the_original_traceback_and_the_causes" in described["traceback"]
    assert "1 / 0" in described["traceback"]
    again = restore_exception(described)
    assert type(again) is Own
    assert isinstance(again.__cause__, OriginalTraceback)
    assert "1 / 0" in str(again.__cause__)
    assert describe_exception(again)["traceback"] == described["traceback"]  # and a second time


def test_notes_are_kept():
    error = Own("x")
    error.__notes__ = ["first", "second"]  # type: ignore[attr-defined,unused-ignore]
    assert through_json(error).__notes__ == ["first", "second"]
    assert describe_exception(error)["notes"] == ["first", "second"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are younger")
def test_a_group_comes_back_with_its_members():
    group = ExceptionGroup("several", [ValueError(1), Own("x")])  # noqa: F821
    again = through_json(group)
    assert [type(member) for member in again.exceptions] == [ValueError, Own]
    assert str(again) == str(group)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.update(type="nowhere:Gone"), "Gone: text"),
        (lambda d: d.update(type="builtins:int"), "int: text"),
        (lambda d: d.update(message="another text"), "Own: another text"),
        (lambda d: d.pop("args"), "Own: text"),
        (lambda d: d.update(args=[{"$": "tuple"}]), "Own: text"),
        (lambda d: d.update(attributes=5), "Own: text"),
    ],
)
def test_an_exception_that_cannot_be_made_again_is_stood_for_by_one_that_names_it(change, text):
    described = describe_exception(raised(Own("text")))
    change(described)
    again = restore_exception(described)
    assert type(again) is RestoredError
    assert isinstance(again, MicroflowException)
    assert str(again) == text
    assert isinstance(again.__cause__, OriginalTraceback)
    assert pickle.loads(pickle.dumps(again)).type_name == again.type_name


def test_a_stand_in_is_also_what_from_json_gives_for_an_unknown_class_inside_a_value():
    written = json.loads(json.dumps(to_json({"a": [Own("text")]})).replace(":Own", ":Gone"))
    assert str(from_json(written)["a"][0]) == "Gone: text"


def test_describing_never_fails_and_leaves_out_what_json_cannot_carry():
    error = Own("x")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    error.code = 5  # type: ignore[attr-defined]
    assert describe_exception(error)["attributes"] == {"code": 5}
    assert restore_exception(describe_exception(error)).code == 5  # type: ignore[attr-defined]
    assert "args" not in describe_exception(Own(threading.Lock()))
    silent = describe_exception(raised(Silent()))
    assert silent["message"] == "<the text of this Silent cannot be read>"
    local = describe_exception(raised(type("Local", (Exception,), {"__qualname__": "f.<locals>.Local"})("x")))
    assert str(restore_exception(local)) == "f.<locals>.Local: x"
    secret = OwnText("x")
    secret.secret = threading.Lock()  # type: ignore[attr-defined]
    assert type(restore_exception(describe_exception(secret))) is RestoredError  # its text needs what was left out
    ring = Own("a")
    ring.__cause__ = Own("b")
    ring.__cause__.__cause__ = ring
    assert describe_exception(ring)["causes"] == ["Own: b"]
    json.dumps([silent, local, describe_exception(ring)], allow_nan=False)


def test_a_long_traceback_is_cut_in_the_middle():
    described = describe_exception(raised(Own("x" * 100_000)))
    assert len(described["traceback"]) < 33 * 1024
    assert described["message"] == "x" * 100_000
