# SPDX-License-Identifier: Apache-2.0
"""Kept results: which form a value takes in its record, what is not kept, and how it comes back."""

from __future__ import annotations

import base64
import json
import math
import os
import pickle
import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microflow import _kept, flow, get_client, task
from microflow._kept import INLINE_LIMIT, KEEP_LIMIT, KeptResult, keep
from microflow.exceptions import MissingResult, NoSpace, SerializationError, StorageError
from microflow.states import Value
from microflow.stores import FileStore, MemoryStore, Store

RUN = "01234567-89ab-7def-8123-456789abcdef"


@dataclass
class Point:
    """A value of the user's own that JSON carries."""

    x: int


class Odd:
    """A value that only pickle carries."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd) and self.content == other.content

    __hash__ = None  # type: ignore[assignment]


class Hostile:
    """A value that refuses to be written."""

    def __reduce__(self) -> Any:
        raise RuntimeError("no")


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, private_home: Path) -> Store:
    return FileStore(private_home) if request.param == "file" else MemoryStore()


@pytest.fixture(autouse=True)
def nobody_was_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kept, "_warned", set())


def kept(value: Any, store: Store) -> dict[str, Any]:
    """The record member of a value that can be kept, as it comes back out of a log."""
    entry = keep(value, RUN, store, "task")
    assert entry is not None
    return json.loads(json.dumps(entry, allow_nan=False))


def loaded(value: Any, store: Store) -> Any:
    return KeptResult(kept(value, store), RUN, store).load()


# ------------------------------------------------------------------------------------------------ forms


@pytest.mark.parametrize("value", [None, True, 0, -(1 << 53) + 1, "text", "\ud800", "x" * 1023])
def test_a_plain_value_stands_in_the_record_as_it_is(value, store):
    assert kept(value, store) == {"json": value}
    assert loaded(value, store) == value


@pytest.mark.parametrize(
    "value",
    [
        1 << 53,
        1 << 200,
        math.inf,
        0.1,
        (1, (2, "3")),
        {"a", "b"},
        {1: "x", (2, 3): None},
        b"\x00\xff",
        datetime(2025, 11, 21, tzinfo=timezone.utc),
        UUID(int=7),
        Path("a/b"),
        Decimal("1.10"),
        Point(3),
        {"$": "a key that looks like a tag"},
        "x" * 5000,
    ],
)
def test_a_common_value_comes_back_with_its_type(value, store):
    assert "json" in kept(value, store)
    again = loaded(value, store)
    assert again == value
    assert type(again) is type(value)


def test_not_a_number_comes_back(store):
    assert math.isnan(loaded(math.nan, store))


def test_an_exception_comes_back_as_one(store):
    error = loaded(ValueError("x", 5), store)
    assert type(error) is ValueError
    assert error.args == ("x", 5)


def test_what_json_cannot_carry_is_pickled_inline_or_into_a_file(store):
    assert list(kept(Odd([1, 2]), store)) == ["pickle"]
    assert loaded(Odd([1, 2]), store) == Odd([1, 2])
    large = Odd("x" * INLINE_LIMIT)
    assert kept(large, store)["format"] == "pickle"
    assert loaded(large, store) == large


def test_a_value_over_16_kib_goes_into_a_file_named_by_its_content(store):
    edge = "x" * (INLINE_LIMIT - 2)  # the quotes count
    assert list(kept(edge, store)) == ["json"]
    entry = kept(edge + "x", store)
    assert (sorted(entry), entry["format"], entry["size"]) == (["file", "format", "size"], "json", INLINE_LIMIT + 1)
    assert loaded(edge + "x", store) == edge + "x"
    assert entry == kept(edge + "x", store)


def test_the_file_is_there_before_the_record_can_name_it(store):
    """``keep`` returns after the file was written; a record is appended only later."""
    entry = kept(["y" * INLINE_LIMIT], store)
    assert store.get_result(RUN, entry["file"], entry["size"])


@given(value=st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
                          lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner)))
def test_what_is_kept_comes_back_equal(value):
    store = MemoryStore()
    assert loaded(value, store) == value


# ------------------------------------------------------------------------------------------------ not kept


def test_a_value_over_1_mib_is_not_kept_with_one_warning_for_each_task(store):
    value = "x" * KEEP_LIMIT
    with pytest.warns(RuntimeWarning, match=r"the result of 'big' has 1,048,578 bytes, more than the 1,048,576"):
        assert keep(value, RUN, store, "big") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keep(value, RUN, store, "big") is None
    with pytest.warns(RuntimeWarning, match="'other'"):
        assert keep(value, RUN, store, "other") is None


def test_what_is_to_be_kept_whole_is_kept_however_large_it_is(store):
    value = "x" * KEEP_LIMIT
    entry = keep(value, RUN, store, "big", whole=True)
    assert entry is not None
    result = KeptResult(entry, RUN, store)
    assert (result.load(), result.kept_whole, Value(1).kept_whole) == (value, True, False)


@pytest.mark.parametrize("make", [Hostile, lambda: lambda: 1, lambda: open(os.devnull), lambda: (x for x in ())])  # noqa: SIM115
def test_a_value_that_cannot_be_written_is_not_kept_and_raises_nothing(make, store):
    value = make()
    with pytest.warns(RuntimeWarning, match="cannot be kept for re-execution"):
        assert keep(value, RUN, store, "task") is None
    getattr(value, "close", int)()


def test_a_value_that_contains_itself_raises_nothing(store):
    value: list[Any] = []
    value.append(value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entry = keep(value, RUN, store, "task")
    if entry is not None:
        again = KeptResult(entry, RUN, store).load()
        assert again[0] is again


def test_a_very_deep_value_raises_nothing(store):
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keep(value, RUN, store, "task")
    while value:  # unwound by hand: dropping it at once would recurse
        value = value.pop()


def test_where_warnings_are_errors_the_run_completes_and_it_is_logged(store, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keep(Hostile(), RUN, store, "task") is None
    assert "the result of 'task' cannot be kept" in caplog.text


def test_storage_that_refuses_a_result_means_not_kept_and_raises_nothing(store, monkeypatch):
    def refuse(run_id: str, data: bytes) -> str:
        raise StorageError("the folder is gone")

    monkeypatch.setattr(store, "put_result", refuse)
    with pytest.warns(RuntimeWarning, match="the folder is gone"):
        assert keep("x" * INLINE_LIMIT, RUN, store, "task") is None


def test_a_full_disk_is_no_reason_to_leave_a_result_out(store, monkeypatch):
    def full(run_id: str, data: bytes) -> str:
        raise NoSpace("the disk is full")

    monkeypatch.setattr(store, "put_result", full)
    with pytest.raises(NoSpace, match="the disk is full"):
        keep("x" * INLINE_LIMIT, RUN, store, "task")


# ------------------------------------------------------------------------------------------------ loading


def test_a_kept_result_is_a_value_and_shows_its_form_only(store):
    result = KeptResult({"json": 5}, RUN, store)
    assert isinstance(result, Value)
    assert (result.load(), result.result, result.entry) == (5, 5, {"json": 5})
    assert result == Value(5)
    assert repr(result) == "KeptResult(json)"


def test_the_document_is_the_tagged_json_and_builds_nothing(store):
    assert KeptResult(kept((1, 2), store), RUN, store).document() == kept((1, 2), store)["json"]
    large = kept(["z" * INLINE_LIMIT], store)
    assert KeptResult(large, RUN, store).document() == ["z" * INLINE_LIMIT]


def test_a_file_that_is_gone_is_a_missing_result(store):
    entry = {"file": "0" * 64, "size": 5, "format": "json"}
    with pytest.raises(MissingResult, match="0" * 64):
        KeptResult(entry, RUN, store).load()


def test_a_file_that_was_changed_is_a_missing_result(private_home):
    store = FileStore(private_home)
    entry = kept("x" * INLINE_LIMIT, store)
    path = private_home / "runs" / f"{RUN}.results" / entry["file"]
    path.write_bytes(b'"' + b"y" * INLINE_LIMIT + b'"')
    with pytest.raises(MissingResult):
        KeptResult(entry, RUN, store).load()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"junk")], ids=["gone", "damaged"])
def test_the_error_for_a_file_that_cannot_be_read_names_it_and_its_task_run(private_home, damage):
    made = task(lambda: "x" * 2 * INLINE_LIMIT, name="large")
    states: list[Any] = []
    flow(lambda: states.append(made(return_state=True)))()
    (path,) = (private_home / "runs").glob("*.results/*")
    damage(path)
    read = get_client(sync_client=True).read_task_run(states[0].state_details.task_run_id)
    with pytest.raises(MissingResult, match=f"task run '{read.name}' .* {path.name} with a result of run"):
        read.state.result()


def test_a_form_of_a_later_version_is_a_missing_result(store):
    with pytest.raises(MissingResult, match="unknown form"):
        KeptResult({"cbor": "…"}, RUN, store).load()


class Public:
    """A store that others may have written to."""

    private = False

    def put_result(self, run_id: str, data: bytes) -> str:
        raise AssertionError

    def get_result(self, run_id: str, name: str, size: int) -> bytes:
        raise AssertionError


def test_a_pickle_that_others_may_have_written_is_never_opened(tmp_path):
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (witness,))

    entry = {"pickle": base64.b64encode(pickle.dumps(Evil())).decode()}
    with pytest.raises(SerializationError):
        KeptResult(entry, RUN, Public()).load()
    assert not witness.exists()


def test_a_module_that_others_may_have_named_is_never_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = kept(Point(1), MemoryStore())
    entry = json.loads(json.dumps(entry).replace(Point.__module__, "evil_module"))
    try:
        KeptResult(entry, RUN, Public()).load()
    except SerializationError:
        pass
    assert "evil_module" not in __import__("sys").modules


def test_a_value_whose_class_is_gone_is_a_serialization_error(store):
    entry = kept(Point(1), store)
    gone = json.loads(json.dumps(entry).replace("Point", "Vanished"))
    with pytest.raises(SerializationError):
        KeptResult(gone, RUN, store).load()


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "text"])
def test_a_number_or_text_is_handed_back_without_a_look_at_the_store(value):
    """It names no module and holds no pickle, so nobody asks who could have written it."""

    class Unasked(MemoryStore):
        @property
        def private(self) -> bool:
            raise AssertionError("the store was asked")

    result = KeptResult({"json": value}, RUN, Unasked())
    assert (result.load(), type(result.load())) == (value, type(value))
