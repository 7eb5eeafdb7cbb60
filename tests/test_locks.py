# SPDX-License-Identifier: Apache-2.0
"""Locks on keys: one body for memory and files, blocking and async; then what only files have."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from microflow import _locks
from microflow.exceptions import StorageError
from microflow.results import FileSystemLockManager, MemoryLockManager
from tests.support import PATIENCE, run

if TYPE_CHECKING:
    from pathlib import Path

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Blocking:
    """A lock manager as blocking code calls it."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self.manager, name)

    def acquire(self, *args: Any) -> Any:
        return self.manager.acquire_lock(*args)

    def wait(self, *args: Any) -> Any:
        return self.manager.wait_for_lock(*args)


class Async(Blocking):
    """The same as coroutines call it, each call on a loop of its own."""

    def acquire(self, *args: Any) -> Any:
        return run(self.manager.aacquire_lock(*args))

    def wait(self, *args: Any) -> Any:
        return run(self.manager.await_for_lock(*args))


@pytest.fixture(params=["memory", "files"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return MemoryLockManager() if request.param == "memory" else FileSystemLockManager(tmp_path / "locks")


@pytest.fixture(params=[Blocking, Async])
def locks(request: pytest.FixtureRequest, manager: Any) -> Any:
    return request.param(manager)


@pytest.fixture(autouse=True)
def all_locks_are_free() -> Any:
    yield
    MemoryLockManager()._reset()


def in_a_thread(call: Any, *args: Any) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call(*args)))
    thread.start()
    return thread, answers


# ------------------------------------------------------------------------------------------------ both kinds


def test_one_holder_at_a_time_and_again_after_it_was_given_back(locks):
    assert locks.acquire("k", "me")
    assert locks.is_locked("k")
    assert (locks.is_lock_holder("k", "me"), locks.is_lock_holder("k", "you")) == (True, False)
    assert not locks.acquire("k", "you", 0)
    assert not locks.acquire("k", "you", 0.01)
    assert locks.acquire("other", "you", 0)
    locks.release_lock("k", "me")
    assert not locks.is_locked("k")
    assert locks.acquire("k", "you", 0)


def test_the_holder_gets_it_again_and_gives_it_back_once(locks):
    assert locks.acquire("k", "me")
    assert locks.acquire("k", "me", 0)
    locks.release_lock("k", "me")
    assert not locks.is_locked("k")


def test_who_does_not_hold_it_cannot_give_it_back(locks):
    with pytest.raises(ValueError, match="'me' cannot release the lock on 'k': nobody holds it"):
        locks.release_lock("k", "me")
    locks.acquire("k", "you")
    with pytest.raises(ValueError, match="it is held by 'you'"):
        locks.release_lock("k", "me")
    assert locks.is_lock_holder("k", "you")


def test_a_waiter_gets_it_when_it_is_given_back(locks):
    locks.acquire("k", "me")
    thread, answers = in_a_thread(locks.acquire, "k", "you", PATIENCE)
    assert answers == []
    locks.release_lock("k", "me")
    thread.join(PATIENCE)
    assert answers == [True]
    assert locks.is_lock_holder("k", "you")


def test_waiting_for_a_lock_does_not_take_it(locks):
    assert locks.wait("k")
    locks.acquire("k", "me")
    assert not locks.wait("k", 0)
    assert not locks.wait("k", 0.01)
    thread, answers = in_a_thread(locks.wait, "k", PATIENCE)
    locks.release_lock("k", "me")
    thread.join(PATIENCE)
    assert answers == [True]
    assert not locks.is_locked("k")


def test_a_hold_whose_time_is_over_is_free(locks):
    assert locks.acquire("k", "me", 0, 0.02)
    assert locks.acquire("k", "you", PATIENCE)
    assert not locks.is_lock_holder("k", "me")
    with pytest.raises(ValueError, match="held by 'you'"):
        locks.release_lock("k", "me")


def test_taking_it_again_sets_the_time_anew(locks):
    assert locks.acquire("k", "me", 0, -1)
    assert not locks.is_locked("k")
    assert locks.acquire("k", "me", 0, 100)
    assert locks.acquire("k", "me", 0, -1)
    assert not locks.is_locked("k")
    assert locks.acquire("k", "me")
    assert locks.is_locked("k")


def test_of_many_threads_one_at_a_time_is_inside(locks):
    inside, most, total = [], [], []

    def work(name: str) -> None:
        for _ in range(5):
            assert locks.acquire("k", name, PATIENCE)
            inside.append(name)
            most.append(len(inside))
            time.sleep(0)  # lets others run: a fault would show
            inside.remove(name)
            total.append(name)
            locks.release_lock("k", name)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert (max(most), len(total)) == (1, 30)


def test_a_waiting_coroutine_does_not_block_its_loop(manager):
    async def main() -> list[Any]:
        assert await manager.aacquire_lock("k", "me")
        waiter = asyncio.create_task(manager.aacquire_lock("k", "you", PATIENCE))
        watcher = asyncio.create_task(manager.await_for_lock("k", PATIENCE))
        await asyncio.sleep(0)
        manager.release_lock("k", "me")
        answers = [await waiter]
        manager.release_lock("k", "you")
        return [*answers, await watcher]

    assert run(main()) == [True, True]


def test_a_cancelled_waiter_leaves_the_lock_alone(manager):
    async def main() -> None:
        await manager.aacquire_lock("k", "me")
        waiter = asyncio.create_task(manager.aacquire_lock("k", "you"))
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter

    run(main())
    manager.release_lock("k", "me")
    assert not manager.is_locked("k")


def test_a_copy_of_a_manager_is_the_same_locks(manager):
    for twin in (copy.deepcopy(manager), pickle.loads(pickle.dumps(manager))):
        assert twin == manager
        assert manager.acquire_lock("k", "me")
        assert not twin.acquire_lock("k", "you", 0)
        twin.release_lock("k", "me")
        assert not manager.is_locked("k")


# ------------------------------------------------------------------------------------------------ memory


def test_there_is_one_manager_in_memory():
    assert MemoryLockManager() is MemoryLockManager()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_does_not_wait_for_threads_that_it_does_not_have():
    MemoryLockManager().acquire_lock("k", "me")
    child = os.fork()
    if child == 0:
        os._exit(0 if MemoryLockManager().acquire_lock("k", "child", 0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert MemoryLockManager().is_lock_holder("k", "me")


# ------------------------------------------------------------------------------------------------ files

HOLD = """
import sys; sys.path.insert(0, sys.argv[1])
from microflow.exceptions import StorageError
from microflow.results import FileSystemLockManager
assert FileSystemLockManager(sys.argv[2]).acquire_lock(sys.argv[3], "child", 0)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Starts a process that holds a lock until it is killed, or its standard input ends."""
    children = []

    def start(key: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, ROOT, str(tmp_path / "locks"), key]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def test_a_process_that_lives_keeps_its_lock(tmp_path, holder):
    holder("k")
    locks = FileSystemLockManager(tmp_path / "locks")
    assert locks.is_lock_holder("k", "child")
    assert not locks.acquire_lock("k", "me", 0.05)
    with pytest.raises(ValueError, match="held by 'child'"):
        locks.release_lock("k", "me")


@pytest.mark.parametrize("form", [Blocking, Async])
def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path, holder, form):
    child = holder("k")
    locks = form(FileSystemLockManager(tmp_path / "locks"))
    thread, answers = in_a_thread(locks.acquire, "k", "me", PATIENCE)
    child.send_signal(signal.SIGKILL)
    thread.join(PATIENCE)
    assert answers == [True]
    assert locks.is_lock_holder("k", "me")


def test_a_lock_that_is_given_back_leaves_no_file(tmp_path):
    folder = tmp_path / "locks"
    locks = FileSystemLockManager(folder)
    for key in ("k", "a/../b", "K", "x" * 300, "", "\0", "ä", "\ud800"):
        assert locks.acquire_lock(key, "me", 0)
    assert locks.acquire_lock("k", "me", 0)
    (file,) = folder.glob("k.lock")
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    assert len(list(folder.glob("*.lock"))) == 8
    for key in ("k", "a/../b", "K", "x" * 300, "", "\0", "ä", "\ud800"):
        locks.release_lock(key, "me")
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "5",
        '{"holder": "x"}',
        '{"holder": "x", "owner": "../../x", "until": null}',
        '{"holder": 5, "owner": "0", "until": null}',
        '{"holder": "x", "owner": "' + "0" * 32 + '", "until": null}',
        '{"holder": "x", "owner": 5, "until": "soon"}',
        "[" * 60000,
    ],
)
def test_what_is_no_record_of_a_live_owner_holds_nothing(tmp_path, content):
    folder = tmp_path / "locks"
    folder.mkdir(mode=0o700)
    (folder / "k.lock").write_text(content)
    locks = FileSystemLockManager(folder)
    assert not locks.is_locked("k")
    assert locks.acquire_lock("k", "me", 0)
    assert json.loads((folder / "k.lock").read_text())["holder"] == "me"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_holds_nothing_and_its_end_frees_nothing(tmp_path):
    locks = FileSystemLockManager(tmp_path / "locks")
    locks.acquire_lock("k", "me")
    child = os.fork()
    if child == 0:
        os._exit(1 if locks.acquire_lock("k", "child", 0) else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert locks.is_lock_holder("k", "me")


def test_a_write_of_a_record_that_fails_holds_nothing(tmp_path, monkeypatch):
    locks = FileSystemLockManager(tmp_path / "locks")
    with monkeypatch.context() as patch:
        patch.setattr(_locks._files, "write", lambda *_: 3)
        with pytest.raises(StorageError, match=r"k\.lock"):
            locks.acquire_lock("k", "me", 0)
    assert not locks.is_locked("k")
    assert locks.acquire_lock("k", "you", 0)
