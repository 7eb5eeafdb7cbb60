# SPDX-License-Identifier: Apache-2.0
"""Persisted results: what a store writes and reads back, and what it refuses."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from microflow.results import LocalFileSystem, MemoryLockManager, ResultRecord, ResultStore, get_result_store
from tests.support import run

if TYPE_CHECKING:
    from collections.abc import Callable


class Blocking:
    """The methods of a store as blocking code calls them."""

    def __init__(self, store: ResultStore) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return getattr(self.store, name)


class Async(Blocking):
    """The same as coroutines call them."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.store, f"a{name}")
        return lambda *args, **kwargs: run(method(*args, **kwargs))


@pytest.fixture(params=[Blocking, Async])
def form(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("home", ["a folder", ":memory:"])
def test_a_value_is_found_under_its_key_by_another_store(form, home, monkeypatch):
    if home == ":memory:":
        monkeypatch.setenv("MICROFLOW_HOME", home)
    store = form(ResultStore())
    assert not store.exists("k")
    store.write({"a": (1, 2)}, "k")
    again = form(ResultStore())
    assert again.exists("k")
    record = again.read("k")
    assert isinstance(record, ResultRecord)
    assert (record.result, record.is_persisted) == ({"a": (1, 2)}, True)


def test_results_stand_in_the_folder_storage_of_the_home(private_home):
    ResultStore().write(1, "key")
    (file,) = (private_home / "storage").iterdir()
    assert (file.name, file.stat().st_mode & 0o777) == ("key", 0o600)


def test_a_result_whose_time_is_over_does_not_exist(form, tmp_path):
    store = form(ResultStore(LocalFileSystem(tmp_path)))
    now = datetime.now(timezone.utc)
    store.write(1, "old", expiration=now - timedelta(seconds=1))
    store.write(2, "new", expiration=now + timedelta(hours=1))
    assert (store.exists("old"), store.exists("new")) == (False, True)


def test_outside_of_runs_the_store_is_the_default_one():
    store = get_result_store()
    store.write(5, "five")
    assert Path(store.create_result_record(6, "five").metadata.storage_key).is_file()


def test_a_lock_is_held_by_one_holder_until_it_is_given_back(form):
    store = form(ResultStore(lock_manager=MemoryLockManager()))
    assert store.acquire_lock("k", "me")
    assert not store.acquire_lock("k", "you", 0)
    store.store.release_lock("k", "me")
    assert store.acquire_lock("k", "you", 0)
    store.store.release_lock("k", "you")
