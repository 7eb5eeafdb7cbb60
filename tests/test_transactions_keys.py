# SPDX-License-Identifier: Apache-2.0
"""Transactions on a key: what is written and read under it, and who holds its lock."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest

from microflow._waits import settle
from microflow.exceptions import ConfigurationError
from microflow.results import FileSystemLockManager, ResultRecord, ResultStore
from microflow.transactions import (
    CommitMode,
    IsolationLevel,
    TransactionState,
    atransaction,
    get_transaction,
    transaction,
)
from tests.behaviour_support import pins
from tests.support import PATIENCE, both
from tests.transactions_support import Tale, ends_with, entered, new, run

if TYPE_CHECKING:
    from pathlib import Path

COMMITTED, ROLLED_BACK = TransactionState.COMMITTED, TransactionState.ROLLED_BACK
SERIALIZABLE = IsolationLevel.SERIALIZABLE


class CountedLocks(FileSystemLockManager):
    """Counts who got a lock and gave it back. A lock that is given back twice raises, as always."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.got: list[str] = []
        self.given_back: list[str] = []

    def acquire_lock(self, key: str, holder: str, *args: Any, **kwargs: Any) -> bool:
        worked = super().acquire_lock(key, holder, *args, **kwargs)
        self.got += [holder] * worked
        return worked

    async def aacquire_lock(self, key: str, holder: str, *args: Any, **kwargs: Any) -> bool:
        worked = await super().aacquire_lock(key, holder, *args, **kwargs)
        self.got += [holder] * worked
        return worked

    def release_lock(self, key: str, holder: str) -> None:
        super().release_lock(key, holder)
        self.given_back.append(holder)


@pytest.fixture
def locks(tmp_path: Path) -> CountedLocks:
    return CountedLocks(tmp_path / "locks")


@pytest.fixture
def store(tmp_path: Path, locks: CountedLocks) -> ResultStore:
    return ResultStore(tmp_path / "results", lock_manager=locks)


def value(store: ResultStore, key: str = "key") -> Any:
    return store.read(key).result


# ------------------------------------------------------------------------------------- write and read


@both
def test_the_staged_value_is_written_at_the_commit_and_found_by_the_next_one(colour, store):
    async def body() -> None:
        async with entered(new(colour, "key", store)) as first:
            assert not first.is_committed()
            first.stage({"a": 1})
            assert not store.exists("key")
        assert value(store) == {"a": 1}
        async with entered(new(colour, "key", store)) as second:
            assert second.is_committed()
            second.stage("ignored")
            assert (await settle(second.read())).result == {"a": 1}
        assert value(store) == {"a": 1}
        assert (await settle(first.read())).result == {"a": 1}, "also after the exit"

    run(colour, body)


@both
def test_a_record_is_written_under_its_own_key(colour, store):
    async def body() -> None:
        async with entered(new(colour, "key", store)) as txn:
            record = store.create_result_record(3, "key")
            txn.stage(record)
        assert record.is_persisted
        assert isinstance(await settle(txn.read()), ResultRecord)
        assert value(store) == 3

    run(colour, body)


@both
def test_what_was_not_staged_is_written_as_none_to_mark_the_key(colour, store):
    async def body() -> None:
        async with entered(new(colour, "done", store)):
            pass
        assert value(store, "done") is None
        async with entered(new(colour, "done", store)) as again:
            assert again.is_committed()

    run(colour, body)


@both
def test_overwrite_does_not_look_and_writes_again(colour, store):
    async def body() -> None:
        store.write(1, "key")
        async with entered(new(colour, "key", store, overwrite=True)) as txn:
            assert txn.is_active()
            txn.stage(2)
        assert value(store) == 2

    run(colour, body)


@both
def test_without_write_on_commit_nothing_is_written_and_the_hooks_run(colour, store):
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour, "key", store, write_on_commit=False)) as txn:
            tale.stage(txn, "value")
        assert tale == ["commit value"]
        assert txn.is_committed()
        assert not store.exists("key")

    run(colour, body)


@pytest.mark.parametrize("commit_mode", list(CommitMode), ids=str)
@both
def test_a_rollback_writes_nothing(colour, commit_mode, store):
    async def body() -> None:
        with ends_with(RuntimeError()) as error:
            async with entered(new(colour, "key", store, commit_mode=commit_mode)) as txn:
                txn.stage(1)
                raise error
        assert not store.exists("key")

    run(colour, body)


@both
def test_a_key_without_a_store_takes_the_default_store(colour, private_home):
    async def body() -> None:
        async with entered(new(colour, "key")) as txn:
            txn.stage(1)
        assert value(ResultStore()) == 1
        assert new(colour).store is None

    run(colour, body)


@both
def test_a_value_that_cannot_be_written_is_a_warning_and_is_rolled_back(colour, tmp_path, caplog):
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour, "key", ResultStore(tmp_path, serializer="json"))) as txn:
            txn.stage(object(), [tale.hook("undo")])
        assert txn.is_rolled_back()
        assert tale == ["undo"]

    run(colour, body)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "error while serializing result for transaction 'key'" in warning.getMessage()


@both
def test_a_store_that_fails_at_the_commit_is_an_error_and_is_rolled_back(colour, store, locks, caplog):
    tale = Tale()

    async def body() -> None:
        async with entered(new(colour, "key", store)) as txn:
            txn.stage(1, [tale.hook("undo")])
            locks.acquire_lock("key", "somebody else")
        locks.release_lock("key", "somebody else")
        assert txn.is_rolled_back()
        assert tale == ["undo"]

    run(colour, body)
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "error was encountered while committing" in error.getMessage()


# ------------------------------------------------------------------------------------- locks


@both
def test_serializable_needs_a_lock_manager(colour, tmp_path):
    async def body() -> None:
        txn = new(colour, "key", ResultStore(tmp_path), isolation_level="SERIALIZABLE")
        with pytest.raises(ConfigurationError, match="not supported by provided configuration.*'key'"):
            await txn.enter()
        assert get_transaction() is None

    run(colour, body)


@pytest.mark.parametrize("how", ["commit", "found", "rollback", "error", "error after commit", "failed commit"])
@both
def test_the_lock_is_held_until_the_end_and_given_back_once(colour, how, store, locks):
    """A13: given back twice, the lock manager's error would roll the parent back; not given back, nobody goes on."""

    async def body() -> None:
        if how == "found":
            store.write(1, "key")
        with suppress(RuntimeError):
            async with entered(new(colour, "key", store, isolation_level=SERIALIZABLE)) as txn:
                assert locks.is_locked("key")
                if how == "rollback":
                    await settle(txn.rollback())
                elif how == "error after commit":
                    await settle(txn.commit())
                elif how == "failed commit":
                    txn.stage(1, None, [Tale().hook("", RuntimeError())])
                if how.startswith("error"):
                    raise RuntimeError
        assert not locks.is_locked("key")
        assert (len(locks.got), locks.got) == (1, locks.given_back)

    run(colour, body)


@pytest.mark.parametrize("commit_mode", [CommitMode.EAGER, CommitMode.LAZY], ids=str)
@both
def test_a_child_gives_its_lock_back_when_it_is_committed(colour, commit_mode, store, locks):
    """A13: eager at its own exit, and not once more at its parent's, which stays committed."""
    is_eager = commit_mode is CommitMode.EAGER

    async def body() -> None:
        async with entered(new(colour)) as parent:
            async with entered(new(colour, "key", store, commit_mode, SERIALIZABLE)) as child:
                child.stage(1)
            assert locks.is_locked("key") is not is_eager
            assert store.exists("key") is is_eager
        assert not locks.is_locked("key")
        assert (len(locks.got), locks.got) == (1, locks.given_back)
        assert (parent.state, child.state, value(store)) == (COMMITTED, COMMITTED, 1)

    run(colour, body)


@both
def test_a_lock_that_was_lost_meanwhile_is_a_warning(colour, store, locks, caplog):
    async def body() -> None:
        async with entered(new(colour, "key", store, isolation_level=SERIALIZABLE)) as txn:
            locks.release_lock("key", locks.got[0])
        assert txn.is_committed()

    run(colour, body)
    assert any("lock on 'key' was lost" in record.getMessage() for record in caplog.records)


@both
def test_an_entry_that_fails_gives_the_lock_back(colour, store, locks, monkeypatch):
    def fail(key: str) -> bool:
        raise SystemExit

    async def afail(key: str) -> bool:
        raise SystemExit

    monkeypatch.setattr(store, "exists", fail)
    monkeypatch.setattr(store, "aexists", afail)

    async def body() -> None:
        txn = new(colour, "key", store, isolation_level=SERIALIZABLE)
        with pytest.raises(SystemExit):
            await txn.enter()
        assert get_transaction() is None

    run(colour, body)
    assert (len(locks.got), locks.got) == (1, locks.given_back)


@pytest.mark.parametrize("commit_mode", [CommitMode.EAGER, CommitMode.LAZY], ids=str)
@both
def test_relatives_share_a_lock_instead_of_waiting_for_each_other(colour, commit_mode, store, locks):
    """Parent and child, and siblings one of which waits for the parent's commit."""

    async def body() -> None:
        async with entered(new(colour, "key", store, isolation_level=SERIALIZABLE)) as parent:
            async with entered(new(colour, "key", store, commit_mode)) as child:
                child.stage("child")
            assert locks.is_locked("key")
            parent.stage("parent")
        assert value(store) == "parent"
        async with entered(new(colour, isolation_level=SERIALIZABLE)):
            for name in "ab":
                async with entered(new(colour, "siblings", store, commit_mode)) as child:
                    child.stage(name)
        assert value(store, "siblings") == ("a" if commit_mode is CommitMode.EAGER else "b")
        assert not locks.is_locked("key")
        assert not locks.is_locked("siblings")

    run(colour, body)


def test_a_thread_that_waits_for_a_siblings_lock_shares_it_when_the_sibling_has_ended(store, locks):
    """The parent waits for both, so the lock that waits for the parent's commit would never be given back."""
    holds, may_end = threading.Event(), threading.Event()

    def first() -> None:
        with transaction("key", store) as txn:
            txn.stage(1)
            holds.set()
            may_end.wait(PATIENCE)

    def second() -> None:
        holds.wait(PATIENCE)
        threading.Timer(0.05, may_end.set).start()
        with transaction("key", store, overwrite=True) as txn:
            txn.stage(2)

    with transaction(isolation_level=SERIALIZABLE) as parent:
        threads = [threading.Thread(target=copy_context().run, args=(each,)) for each in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert parent.is_committed()
    assert value(store) == 2
    assert not locks.is_locked("key")


@pins("task_engine", 127)
def test_of_competing_serializable_writers_the_first_ones_value_survives(store):
    entered_first, results = threading.Event(), []

    def first() -> None:
        with transaction("key", store, isolation_level=SERIALIZABLE) as txn:
            entered_first.set()
            txn.stage("first")

    def second() -> None:
        entered_first.wait(PATIENCE)
        with transaction("key", store, isolation_level=SERIALIZABLE) as txn:
            results.append(txn.is_committed())
            txn.stage("second")

    threads = [threading.Thread(target=each) for each in (second, first)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [True], "it waited for the first, and found its value"
    assert value(store) == "first"


@pins("task_engine", 129)
def test_the_holder_of_a_lock_is_the_transaction_not_the_asyncio_task(store, locks):
    """One that was entered in one asyncio task may be left in another."""

    async def body() -> None:
        async def inner() -> None:
            async with atransaction("inner", store, isolation_level=SERIALIZABLE) as txn:
                txn.stage(1)
            assert locks.is_locked("inner"), "until the parent's commit, in another asyncio task"

        async with atransaction("outer", store, isolation_level=SERIALIZABLE) as txn:
            await asyncio.get_running_loop().create_task(inner())
            txn.stage(2)
        assert not locks.is_locked("outer")
        assert not locks.is_locked("inner")
        assert (value(store, "inner"), value(store, "outer")) == (1, 2)

    asyncio.run(body())
    assert len(set(locks.got)) == 2
