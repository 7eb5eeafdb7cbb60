# SPDX-License-Identifier: Apache-2.0
"""Durability ``disk``: what is on the disk before anybody acts on it, and how few calls that takes."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from microflow import _files, flow, task, transactions
from microflow.client.orchestration import current_client
from microflow.context import TaskRunContext
from microflow.exceptions import IndeterminateAppend, Pause
from microflow.flow_runs import suspend_flow_run
from microflow.futures import TaskRunFuture, as_completed, resolve_futures_to_states, wait
from microflow.states import Failed
from microflow.stores import FileStore
from microflow.task_runners import ThreadPoolTaskRunner
from microflow.task_runs import FlowRunWatch, TaskRunWaiter
from tests.support import PATIENCE, Colour, both, run

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("disk")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, private_home: object) -> None:
    monkeypatch.setenv("MICROFLOW_DURABILITY", "disk")


class Disk:
    """The file of a log as a power cut would leave it: what had been written when a sync that has returned began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncs = 0
        self.kept = b""
        self.written = b""
        self.before_sync: Callable[[], object] = lambda: None
        self.write_seen = threading.Condition()
        write, sync_data, sync_full = _files.write, _files.sync_data, _files.sync_full
        monkeypatch.setattr(_files, "write", lambda descriptor, data: self._write(write, descriptor, data))
        monkeypatch.setattr(_files, "sync_data", lambda descriptor: self._sync(sync_data, descriptor))
        monkeypatch.setattr(_files, "sync_full", lambda descriptor: self._sync(sync_full, descriptor))

    def _write(self, real: Callable[..., int], descriptor: int, data: bytes) -> int:
        count = real(descriptor, data)
        with self.write_seen:
            self.written += data[:count]
            self.write_seen.notify_all()
        return count

    def _sync(self, real: Callable[[int], None], descriptor: int) -> None:
        self.syncs += 1
        covered = len(self.written)
        self.before_sync()
        real(descriptor)
        self.kept = max(self.kept, self.written[:covered], key=len)

    def wait_for(self, word: bytes, count: int) -> None:
        """Wait until `word` was written so often."""
        with self.write_seen:
            assert self.write_seen.wait_for(lambda: self.written.count(word) >= count, PATIENCE), self.written


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@task
def square(x: int) -> int:
    return x * x


def test_a_worker_does_not_wait_for_the_disk_and_one_sync_serves_all_that_have_ended(file):
    """Also in a program that uses transactions elsewhere."""
    assert transactions.__name__ in sys.modules

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=1))
    def body() -> int:
        file.syncs = 0
        file.before_sync = lambda: file.wait_for(b'"type":"COMPLETED"', 8)
        futures = [square.submit(x) for x in range(8)]
        total = sum(future.result() for future in futures)
        file.before_sync = lambda: None
        assert file.syncs <= 2
        return total

    assert body() == 140


async def awaited(future: TaskRunFuture[int]) -> int:
    return await future


def called_back(future: TaskRunFuture[int], file: Disk) -> bool:
    on_disk: Future[bool] = Future()
    future.add_done_callback(lambda _: on_disk.set_result(b'"json":49' in file.kept))
    return on_disk.result(PATIENCE)


def depended_on(future: TaskRunFuture[int], file: Disk) -> bool:
    @task
    def look(upstream: int) -> bool:
        return b'"json":49' in file.kept

    return look.submit(future).result()


def polled(future: TaskRunFuture[int], file: Disk) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not future.state.is_completed() and time.monotonic() < deadline:
        time.sleep(0.001)
    return b'"json":49' in file.kept


@pytest.mark.parametrize(
    "learn",
    [
        lambda future, file: future.wait(),
        lambda future, file: wait([future]),
        lambda future, file: list(as_completed([future])),
        lambda future, file: resolve_futures_to_states([future]),
        lambda future, file: asyncio.run(awaited(future)),
        polled,
        called_back,
        depended_on,
    ],
    ids=["wait", "wait for many", "as_completed", "resolved", "await", "state", "callback", "dependent"],
)
def test_whoever_learns_from_its_future_that_a_run_has_ended_finds_that_on_the_disk(file, learn):
    @flow
    def body() -> None:
        told = learn(square.submit(7), file)
        assert told is not False
        assert b'"json":49' in file.kept

    body()


@pytest.mark.parametrize("option", ["on_completion", "on_commit"])
def test_what_acts_on_an_end_finds_it_on_the_disk(file, option):
    seen = []

    def act(*_: Any) -> None:
        seen.append(b'"json":49' in file.kept)

    acting = task(square.fn, on_completion=[act]) if option == "on_completion" else task(square.fn)
    if option == "on_commit":
        acting.on_commit(act)
    flow(lambda: acting.submit(7).result())()
    assert seen == [True]


def test_a_rollback_finds_the_failure_that_it_is_for_on_the_disk(file):
    """Else a power cut leaves what it undid undone beside a call that is made again."""
    seen = []
    undone = task(square.fn)
    undone.on_rollback(lambda _: seen.append(b'"type":"FAILED"' in file.kept))

    @task
    def fail() -> Any:
        return Failed()

    @flow
    def body() -> None:
        with transactions.transaction():
            undone.submit(7).result()
            fail.submit().wait()
            assert seen == [True]

    body(return_state=True)
    assert seen == [True]


def test_the_end_of_what_may_happen_once_only_is_on_the_disk_though_nobody_looks(file):
    pay = task(square.fn, at_most_once=True)

    @flow
    def body() -> None:
        future = pay.submit(7)
        while not future.wrapped_future.done():
            time.sleep(0.001)
        assert b'"json":49' in file.kept

    body()


def test_a_done_run_that_the_disk_has_not_yet_does_not_stall_the_loop(file):
    ticks: list[int] = []

    async def tick() -> None:
        while True:
            ticks.append(len(ticks))
            await asyncio.sleep(0.001)

    def slowly() -> None:
        before = len(ticks)
        deadline = time.monotonic() + PATIENCE
        while len(ticks) < before + 3 and time.monotonic() < deadline:
            time.sleep(0.001)

    @flow
    async def body() -> int:
        future = square.submit(7)
        while not future.wrapped_future.done():  # noqa: ASYNC110 - a callback would wait for the disk itself
            await asyncio.sleep(0.001)
        ticking = asyncio.ensure_future(tick())
        file.before_sync = slowly
        value = await future
        file.before_sync = lambda: None
        ticking.cancel()
        return value

    assert run(body()) == 49
    assert len(ticks) >= 3


# ------------------------------------------------------------------------------------ after the flow, and in failure


BEGUN, GOES_ON = threading.Event(), threading.Event()
KEPT: list[Any] = []


@task
def outlives() -> int:
    BEGUN.set()
    assert GOES_ON.wait(PATIENCE)
    return 49


@flow(task_runner=ThreadPoolTaskRunner(max_workers=1))
def leaves(way: str) -> None:
    KEPT[:] = [outlives.submit()]
    assert BEGUN.wait(PATIENCE)
    threading.Timer(0.05, GOES_ON.set).start()
    if way == "suspended":
        suspend_flow_run()
    raise KeyboardInterrupt


@pytest.mark.parametrize("way", ["suspended", "interrupted"])
def test_a_future_that_is_looked_at_after_its_flow_tells_what_is_on_the_disk(file, way):
    BEGUN.clear()
    GOES_ON.clear()
    with pytest.raises((Pause, KeyboardInterrupt)):
        leaves(way)
    (future,) = KEPT
    future.wait()
    assert future.state.is_completed()
    assert b'"json":49' in file.kept


def broken() -> None:
    raise OSError(5, "the disk is broken")


@both
@pytest.mark.parametrize("hooked", [False, True])
def test_a_sync_that_fails_is_raised_by_the_result_and_not_by_the_wait(file, colour: Colour, hooked):
    """No hook is told of an end that may not last."""
    ran: list[int] = []
    kept: list[Any] = []
    hooks = [lambda *_: ran.append(1)] if hooked else []

    @colour.task(on_completion=hooks)
    def work() -> int:
        return 49

    @flow
    def body() -> None:
        file.before_sync = broken
        kept.append(work.submit())
        kept[0].wait()
        assert not kept[0].state.is_final()
        kept[0].result()

    with pytest.raises(IndeterminateAppend, match="the disk is broken"):
        body()
    with pytest.raises(IndeterminateAppend, match="the disk is broken"):
        kept[0].result()
    assert not ran


def test_the_failing_sync_of_the_flow_is_told_by_the_futures_that_nobody_looked_at(file):
    kept: list[Any] = []

    @flow
    def body() -> None:
        kept.append(square.submit(7))
        while not kept[0].wrapped_future.done():
            time.sleep(0.001)
        file.before_sync = broken

    with pytest.raises(IndeterminateAppend, match="the disk is broken"):
        body()
    with pytest.raises(IndeterminateAppend, match="the disk is broken"):
        kept[0].result()


def test_a_store_that_fails_in_its_own_way_hinders_nobody_who_waits(file, monkeypatch):
    called = threading.Event()

    def fails(*_: Any) -> None:
        raise RuntimeError("no such sync")

    @flow
    def body() -> None:
        future = square.submit(7)
        monkeypatch.setattr(FileStore, "sync", fails)
        future.add_done_callback(lambda _: called.set())
        future.wait()
        assert called.wait(PATIENCE)
        with pytest.raises(RuntimeError, match="no such sync"):
            future.result()
        monkeypatch.undo()

    body()


@both
def test_who_learns_of_a_crash_finds_it_on_the_disk(file, colour: Colour):
    @colour.task(on_completion=[lambda *_: None])
    def leave() -> None:
        raise SystemExit(1)

    @flow
    def body() -> None:
        future = leave.submit()
        future.wait()
        assert future.state.is_crashed()
        assert b'"type":"CRASHED"' in file.kept

    body()


def test_a_result_is_handed_out_when_its_end_is_on_the_disk(file):
    @flow(task_runner=ThreadPoolTaskRunner(max_workers=8))
    def body() -> None:
        futures = [square.submit(x) for x in range(100, 132)]
        for future, x in zip(futures, range(100, 132), strict=True):
            assert f'"json":{future.result()}'.encode() in file.kept
            assert future.result() == x * x
        assert square(9) == 81
        assert b'"json":81' in file.kept

    body()
    assert file.kept == file.written, "the end of the flow run"


@both
def test_what_may_happen_once_only_begins_when_its_beginning_is_on_the_disk(file, colour: Colour):
    """Else a power cut makes it happen twice: the log would not know of the first time."""
    known = []

    @colour.task(at_most_once=True)
    def pay() -> None:
        known.append(file.kept == file.written and file.kept.count(b'"RUNNING"') == 2 + len(known))

    @colour.flow
    def body() -> Any:
        yield pay()
        yield pay()

    colour.run(body)
    assert known == [True, True]


def test_an_ordinary_start_does_not_wait_for_the_disk(file):
    @flow
    def body() -> None:
        before = file.syncs
        square(1)
        assert file.syncs == before + 1, "its end"

    body()


def test_whoever_is_told_of_an_end_finds_it_on_the_disk(file):
    """Also when the process that ended the run has not waited for the disk yet."""
    seen: list[bool] = []

    @task
    def watched() -> int:
        context = TaskRunContext.get()
        assert context is not None
        TaskRunWaiter.add_done_callback(context.task_run.id, lambda: seen.append(b'"json":7' in file.kept))
        return 7

    @flow
    def body() -> None:
        watched()

    body()
    assert seen == [True]


def test_an_end_whose_sync_fails_is_told_all_the_same(file, caplog):
    """Whoever waits is not to wait for ever; the log says what it is worth."""
    state = flow(lambda: 1, name="one")(return_state=True)
    run_id = state.state_details.flow_run_id
    client = current_client()
    client.store.close(str(run_id))

    def fail() -> None:
        raise OSError(5, "the disk is broken")

    file.before_sync = fail
    ended: list[Any] = []
    FlowRunWatch(run_id, ended.append).begin()
    assert [each.name for each in ended] == ["Completed"]
    assert "may not survive a power cut" in caplog.text
    client.store.close(str(run_id))
