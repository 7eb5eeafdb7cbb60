# SPDX-License-Identifier: Apache-2.0
"""Persisted results: what a store writes and reads back, what it refuses, and what a task makes of it."""

from __future__ import annotations

import json
import pickle
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from microflow._storage import MemoryStorage
from microflow.cache_policies import INPUTS
from microflow.context import FlowRunContext, TaskRunContext
from microflow.exceptions import ConfigurationError, DamagedResult, MissingResult, SerializationError, StorageError
from microflow.flows import flow
from microflow.results import (
    FileSystemLockManager,
    IsolationLevel,
    LocalFileSystem,
    MemoryLockManager,
    ResultRecord,
    ResultRecordMetadata,
    ResultStore,
    get_result_store,
    should_persist_result,
    storage_key_from,
)
from microflow.serializers import JSONSerializer, Serializer, get_serializer
from microflow.settings import temporary_settings
from microflow.tasks import Task
from tests.behaviour_support import pins
from tests.support import PATIENCE, run

if TYPE_CHECKING:
    from collections.abc import Callable


class Blocking:
    """The methods of a store as blocking code calls them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.store = ResultStore(*args, **kwargs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return getattr(self.store, name)


class Async(Blocking):
    """The same as coroutines call them."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.store, {"wait_for_lock": "await_for_lock"}.get(name, f"a{name}"))
        return lambda *args, **kwargs: run(method(*args, **kwargs))


@pytest.fixture(params=[Blocking, Async])
def form(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def all_locks_are_free() -> Any:
    yield
    MemoryLockManager()._reset()


def a_task(**options: Any) -> Any:
    return Task(len, **options)


class Odd:
    """A value that only pickle carries."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd) and self.content == other.content

    __hash__ = None  # type: ignore[assignment]


# ------------------------------------------------------------------------------------------------ write, read


@pytest.mark.parametrize("home", ["a folder", ":memory:"])
def test_a_value_is_found_under_its_key_by_another_store(form, home, monkeypatch):
    if home == ":memory:":
        monkeypatch.setenv("MICROFLOW_HOME", home)
    store = form()
    assert not store.exists("k")
    store.write({"a": (1, 2)}, "k")
    again = form()
    assert again.exists("k")
    record = again.read("k")
    assert isinstance(record, ResultRecord)
    assert (record.result, record.is_persisted) == ({"a": (1, 2)}, True)


def test_results_stand_in_the_folder_storage_of_the_home(private_home):
    ResultStore().write(1, "key")
    (file,) = (private_home / "storage").iterdir()
    assert (file.name, file.stat().st_mode & 0o777) == ("key", 0o600)


def test_a_result_whose_time_is_over_does_not_exist_but_can_be_read(form, folder):
    store = form(folder)
    now = datetime.now(timezone.utc)
    store.write(1, "old", expiration=now - timedelta(seconds=1))
    store.write(2, "new", expiration=now + timedelta(hours=1))
    assert (store.exists("old"), store.exists("new")) == (False, True)
    assert store.read("old").result == 1


def test_what_is_written_anew_is_seen_by_stores_that_read_it_before(form, folder):
    one, other = form(folder), form(folder)
    one.write([1], "k")
    assert other.read("k").result == [1]
    one.write([2], "k")
    assert (one.read("k").result, other.read("k").result) == ([2], [2])
    (folder / "k").unlink()
    assert not other.exists("k")


def test_who_changes_a_value_changes_nobody_elses(form, folder):
    store, value = form(folder), [1]
    store.write(value, "k")
    value.append(2)
    first = store.read("k").result
    first.append(3)
    assert store.read("k").result == [1]


@pins("task_engine", 143)
def test_without_caching_in_memory_nothing_is_kept_there_and_results_are_readable(form, folder):
    cached, plain = form(folder), form(folder, cache_result_in_memory=False)
    for store in (cached, plain):
        store.write(5, "k")
        assert store.read("k").result == 5
    assert (len(cached.store.cache), len(plain.store.cache)) == (1, 0)


def test_a_result_in_memory_is_not_read_from_the_disk_again(folder, monkeypatch):
    store = ResultStore(folder)
    store.write(5, "k")
    store.read("k")
    monkeypatch.setattr(LocalFileSystem, "read_path", None)
    assert store.read("k").result == 5


def test_stores_that_share_their_memory_do_not_take_one_storage_for_another():
    first = ResultStore(MemoryStorage())
    other = ResultStore(MemoryStorage(), cache=first.cache)
    first.write(1, "k")
    other.write(2, "k")
    assert [store.read("k").result for store in (first, other, first)] == [1, 2, 1]


def test_json_carries_a_million_members(folder):
    store = ResultStore(folder, serializer="json")
    store.write([1] * 1_000_000, "k")
    assert len(store.read("k").result) == 1_000_000


@pins("task_engine", 144)
def test_a_dict_that_looks_like_metadata_comes_back_unchanged(form, folder):
    store = form(folder)
    for value in ({"type": "persisted"}, {"type": "unpersisted"}, {"microflow_result": 1, "metadata": {}}, {"$": 1}):
        store.write(value, "k")
        assert store.read("k").result == value


@pins("task_engine", 146)
def test_metadata_can_be_kept_apart_from_the_value(form, folder):
    """Only the metadata decides what exists."""
    store = form(folder / "values", folder / "keys")
    store.write({"a": 1}, "k", datetime(2100, 1, 1, tzinfo=timezone.utc))
    stored = json.loads((folder / "keys" / "k").read_text())["metadata"]
    assert stored["storage_key"] == str(folder / "values" / "k")
    assert stored["microflow_version"]
    assert (folder / "values" / "k").read_text() == '{"a":1}'
    again = form(folder / "values", folder / "keys")
    assert again.exists("k")
    assert again.read("k").result == {"a": 1}
    (folder / "values" / "k").unlink()
    other = form(folder / "values", folder / "keys")
    assert other.exists("k")
    with pytest.raises(MissingResult, match=r"values/k does not exist"):
        other.read("k")
    (folder / "keys" / "k").unlink()
    assert not other.exists("k")


def test_the_value_is_written_before_its_metadata():
    written: list[str] = []

    class Noting(MemoryStorage):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def write_path(self, path: str, content: bytes) -> str:
            written.append(self.name)
            return super().write_path(path, content)

    ResultStore(Noting("value"), Noting("metadata")).write(1, "k")
    assert written == ["value", "metadata"]


def test_a_record_is_made_now_and_persisted_later(form, folder):
    store = form(folder)
    record = store.store.create_result_record(5, "k")
    assert (record.result, record.is_persisted, record.metadata.storage_key) == (5, False, str(folder / "k"))
    assert not store.exists("k")
    store.persist_result_record(record)
    assert record.is_persisted
    assert store.read("k") == record


def test_without_a_key_one_is_made(form, folder):
    keys = {ResultStore(folder).create_result_record(1).metadata.storage_key for _ in range(5)}
    assert len(keys) == 5
    store = form(folder, storage_key_fn=lambda: "made")
    store.write(1)
    assert store.exists("made")


def test_a_storage_of_the_users_own_may_have_coroutine_methods(form):
    class Own:
        def __init__(self) -> None:
            self.content: dict[str, bytes] = {}

        async def read_path(self, path: str) -> bytes:
            return self.content[path]

        async def write_path(self, path: str, content: bytes) -> None:
            self.content[path] = content

    store = form(Own())
    assert not store.exists("k")
    store.write((1, 2), "k")
    assert store.exists("k")
    assert store.read("k").result == (1, 2)


# ------------------------------------------------------------------------------------------------ what goes wrong


def names_key_file_and_task(error: BaseException, folder: Path) -> bool:
    return all(part in str(error) for part in ("'k'", str(folder / "k"), "of task 'half-done'"))


@pytest.fixture
def stored(form, folder):
    """A store of a task with a stored value, that has nothing in memory."""

    def make(value: Any = "value") -> Any:
        fresh = form()
        fresh.store = ResultStore(folder, cache_result_in_memory=False).update_for_task(a_task(name="half-done"))
        fresh.store.cache_result_in_memory = False
        fresh.write(value, "k")
        return fresh

    return make


def test_a_file_that_is_gone_is_a_missing_result(stored, folder):
    store = stored()
    (folder / "k").unlink()
    assert not store.exists("k")
    with pytest.raises(MissingResult) as caught:
        store.read("k")
    assert names_key_file_and_task(caught.value, folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data.replace(b"value", b"eulav"),
        lambda data: b"",
        lambda data: b"\x00" * len(data),
        lambda data: data.replace(b'"microflow_result": 1', b'"microflow_result": 2'),
        lambda data: data.replace(b'"metadata"', b'"atadatem"'),
        lambda data: data.replace(b'"expiration": null', b'"expiration": 5'),
        lambda data: b"[" * 100_000,
        lambda data: pickle.dumps("value"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_a_damaged_result(stored, folder, damage):
    store = stored()
    (folder / "k").write_bytes(damage((folder / "k").read_bytes()))
    assert not store.exists("k")
    with pytest.raises(DamagedResult) as caught:
        store.read("k")
    assert isinstance(caught.value, MissingResult)
    assert names_key_file_and_task(caught.value, folder)


def test_a_file_that_cannot_be_read_is_a_storage_error(stored, folder):
    store = stored()
    (folder / "k").unlink()
    (folder / "k").mkdir()
    assert not store.exists("k")
    with pytest.raises(StorageError) as caught:
        store.read("k")
    assert names_key_file_and_task(caught.value, folder)


def test_a_value_whose_class_is_gone_is_a_serialization_error(stored, folder, monkeypatch):
    store = stored(Odd(1))
    assert store.read("k").result == Odd(1)
    monkeypatch.delattr(f"{__name__}.Odd")
    assert not store.exists("k")
    with pytest.raises(SerializationError) as caught:
        store.read("k")
    assert names_key_file_and_task(caught.value, folder)


def test_a_pickle_is_not_opened_from_a_folder_that_others_can_write_to(stored, folder, tmp_path):
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "witness",))

    store = stored(Odd(1))
    folder.chmod(0o777)
    payload = pickle.dumps(Evil())
    record = ResultRecord("x", ResultRecordMetadata(serializer="pickle"))
    record.metadata._seal(payload)
    (folder / "k").write_bytes(record.serialize_metadata() + b"\n" + payload)
    assert not store.exists("k")
    with pytest.raises(SerializationError, match="others could have written it"):
        store.read("k")
    assert not (tmp_path / "witness").exists()
    store.write((1, 2), "k")  # JSON is read from there
    assert store.read("k").result == (1, 2)


@pytest.mark.parametrize("key", ["../k", "/etc/k", "a/../../k"])
def test_a_key_does_not_lead_out_of_the_folder(form, folder, key):
    store = form(folder)
    with pytest.raises(ValueError, match="is not inside of the result folder"):
        store.write(1, key)
    assert not store.exists(key)


@pins("task_engine", 141)
def test_a_value_that_the_serializer_refuses_is_an_error_that_names_both_and_nothing_is_stored(form, folder):
    store = form(folder, serializer="json")
    with pytest.raises(SerializationError, match=r"a value of type 'Odd' cannot be written by the serializer 'json'"):
        store.write(Odd(1), "k")
    assert not folder.exists()


def test_a_serializer_of_the_users_own_may_fail_in_any_way(form, folder):
    class Failing(Serializer):
        type = "failing"

        def dumps(self, obj: Any) -> bytes:
            if obj:
                raise ZeroDivisionError("no")
            return b""

        def loads(self, blob: bytes) -> Any:
            raise ZeroDivisionError("no")

    try:
        store = form(folder, serializer="failing")
        with pytest.raises(SerializationError, match="no"):
            store.write(1, "k")
        store.write(0, "k")
        assert not store.exists("k")
        with pytest.raises(SerializationError, match="'failing' cannot read it: ZeroDivisionError"):
            store.read("k")
    finally:
        del Serializer._by_name["failing"]
    with pytest.raises(SerializationError, match="the serializer 'failing' is not known"):
        store.read("k")


# ------------------------------------------------------------------------------------------------ locks


def test_a_lock_is_held_by_one_holder_until_it_is_given_back(form):
    store = form(lock_manager=MemoryLockManager())
    assert store.acquire_lock("k", "me")
    assert store.store.is_locked("k")
    assert not store.acquire_lock("k", "you", 0)
    store.store.release_lock("k", "me")
    assert store.wait_for_lock("k", 0)
    assert store.acquire_lock("k", "you", 0)


def test_unless_it_is_said_the_holder_is_the_thread_or_coroutine_that_calls():
    store = ResultStore(lock_manager=MemoryLockManager())
    assert store.acquire_lock("k")
    assert store.is_lock_holder("k")
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(store.is_lock_holder("k")))
    thread.start()
    thread.join(PATIENCE)

    async def main() -> None:
        seen.append(store.is_lock_holder("k"))
        assert await store.aacquire_lock("other")
        seen.append(store.is_lock_holder("other"))

    run(main())
    assert seen == [False, False, True]


def test_a_locked_result_is_written_by_the_holder_only_and_read_when_it_is_free(form, folder):
    store = form(folder, lock_manager=MemoryLockManager())
    store.store.acquire_lock("k", "me")
    with pytest.raises(RuntimeError, match="locked by somebody else"):
        store.write(1, "k", holder="you")
    store.write(2, "k", holder="me")
    assert store.read("k", holder="me").result == 2
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(store.read("k", holder="you").result))
    thread.start()
    store.write(3, "k", holder="me")
    store.store.release_lock("k", "me")
    thread.join(PATIENCE)
    assert answers == [3]


@pins("task_engine", 147)
def test_without_a_lock_manager_there_is_no_locking_and_no_serializable_isolation():
    store = ResultStore()
    assert store.supports_isolation_level(IsolationLevel.READ_COMMITTED)
    assert not store.supports_isolation_level(IsolationLevel.SERIALIZABLE)
    assert ResultStore(lock_manager=MemoryLockManager()).supports_isolation_level(IsolationLevel.SERIALIZABLE)
    with pytest.raises(ValueError, match="is not an isolation level"):
        store.supports_isolation_level("chaos")  # type: ignore[arg-type]
    for method in ("acquire_lock", "is_locked", "is_lock_holder", "wait_for_lock", "release_lock"):
        with pytest.raises(ConfigurationError, match="no lock manager"):
            getattr(store, method)("k")


# ------------------------------------------------------------------------------------------------ derived stores


def test_a_task_brings_storage_serializer_and_memory_of_its_own(folder):
    base = ResultStore(serializer="pickle")
    given = a_task(result_storage=folder, result_serializer="compressed/json", cache_result_in_memory=False)
    store = base.update_for_task(given)
    assert (store.result_storage, store.serializer) == (LocalFileSystem(folder), get_serializer("compressed/json"))
    assert not store.cache_result_in_memory
    plain = base.update_for_task(a_task())
    assert (plain.serializer, plain.cache) == (get_serializer("pickle"), base.cache)
    assert base.result_storage == plain.result_storage != store.result_storage


def test_the_policy_of_a_task_brings_key_storage_and_locks(folder):
    locks, others = FileSystemLockManager(folder), MemoryLockManager()
    policy = INPUTS.configure(key_storage=folder / "keys", lock_manager=locks)
    store = ResultStore().update_for_task(a_task(cache_policy=policy), others)
    assert store.metadata_storage == LocalFileSystem(folder / "keys")
    assert store.lock_manager == locks
    assert ResultStore().update_for_task(a_task(cache_policy=INPUTS), others).lock_manager is others
    assert ResultStore(lock_manager=locks).update_for_task(a_task()).lock_manager is locks


def test_a_flow_brings_what_its_tasks_start_from(folder):
    @flow(name="outer")
    def outer() -> None: ...

    store = ResultStore(folder).update_for_flow(outer)
    assert store.result_storage == LocalFileSystem(folder)
    with pytest.raises(MissingResult, match="of flow 'outer'"):
        store.read("k")


def inside(template: str, parameters: dict[str, Any]) -> str:
    """What a template means in a task run in a flow run."""
    run_of_flow: Any = SimpleNamespace(id=UUID(int=1), name="light-grove", flow_name="outer", run_count=2)
    run_of_task: Any = SimpleNamespace(id=UUID(int=2), name="inner-0", flow_run_id=UUID(int=1))
    outer: Any = SimpleNamespace(isasync=False)
    nothing: Any = SimpleNamespace()
    with FlowRunContext(outer, run_of_flow, nothing, nothing, nothing, {"f": 5}):
        with TaskRunContext(a_task(name="inner"), run_of_task, parameters, None):
            return storage_key_from(template)


@pins("task_engine", 138)
def test_a_storage_key_is_formatted_with_the_runs_and_the_parameters():
    assert inside("{parameters[x]}-bar", {"x": 1}) == "1-bar"
    assert inside("{flow_run.flow_name}__bar", {}) == "outer__bar"
    assert inside("{task_run.task_name}-{task_run.name}-{flow_run.parameters[f]}-{deployment.name}", {}) == (
        "inner-inner-0-5-None"
    )
    assert storage_key_from("{flow_run.name}-{task_run.name}") == "None-None"


@pins("task_engine", 139)
def test_a_placeholder_that_is_not_there_is_a_key_error():
    for template in ("{unknown}", "{parameters[y]}"):
        with pytest.raises(KeyError):
            inside(template, {"x": 1})


@pins("task_engine", 137)
def test_a_result_under_a_storage_key_is_found_whoever_wrote_it(folder):
    ResultStore(folder).write("theirs", "fixed")
    store = ResultStore(folder).update_for_task(a_task(result_storage_key="fixed"))
    key = store.storage_key_fn()
    assert store.exists(key)
    assert store.read(key).result == "theirs"


# ------------------------------------------------------------------------------------------------ what is current


def test_outside_of_runs_the_store_is_the_default_one_and_nothing_is_persisted(private_home):
    assert get_result_store().result_storage == LocalFileSystem(private_home / "storage")
    assert not should_persist_result()
    with temporary_settings(persist_results_by_default=True):
        assert should_persist_result()


def test_the_default_serializer_is_a_setting():
    with temporary_settings(default_serializer="json"):
        assert ResultStore().serializer == JSONSerializer()
    assert ResultStore().serializer.type == "auto"
    with pytest.raises(ValueError, match="no serializer 'cbor'"):
        ResultStore(serializer="cbor")
