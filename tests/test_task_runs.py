# SPDX-License-Identifier: Apache-2.0
"""Waiting for the end of task runs: by id, in either form, any number of waiters, whoever runs them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from microflow import flow, get_client, task
from microflow._waits import AsyncioWaits
from microflow.client.objects import new_run_id
from microflow.exceptions import DamagedLog
from microflow.flow_runs import wait_for_flow_run
from microflow.states import Cancelled, Completed, Failed, State
from microflow.task_engine import run_task_async, run_task_sync
from microflow.task_runners import ThreadPoolTaskRunner
from microflow.task_runs import FlowRunWatch, TaskRunWaiter, end_of
from tests.behaviour_support import pins
from tests.log_support import line, until
from tests.log_support import state as log_state
from tests.support import PATIENCE, memory_home, run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _fresh_waiter():
    yield
    TaskRunWaiter.instance().stop()


@pytest.fixture
def memory(monkeypatch):
    memory_home(monkeypatch)


async def until_the_flow_run_ends(run_id: UUID) -> State[Any] | None:
    return await end_of(FlowRunWatch, run_id, AsyncioWaits(), PATIENCE)


async def wait_async(run_id: UUID, timeout: float | None = None) -> State[Any] | None:
    return await TaskRunWaiter.wait_for_task_run(run_id, timeout)


either = pytest.mark.parametrize(
    "wait_for",
    [lambda *args: asyncio.run(wait_async(*args)), TaskRunWaiter.block_for_task_run],
    ids=["async", "blocking"],
)


def in_thread(work: Any, *args: Any) -> Any:
    """A future of the standard library for `work` in a thread of its own."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work, *args)
    pool.shutdown(wait=False)
    return future


class Held:
    """A task whose run goes on until it is released."""

    def __init__(self, outcome: Any = 42, **options: Any) -> None:
        self.begun, self.release, self.id = threading.Event(), threading.Event(), new_run_id()

        def held() -> Any:
            self.begun.set()
            self.release.wait(PATIENCE)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        self.task = task(held, **options) if not options else task(**options)(held)

    def start(self) -> Any:
        started = in_thread(lambda: run_task_sync(self.task, self.id, return_type="state"))
        assert self.begun.wait(PATIENCE)
        return started


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


class TestInstance:
    @pins("futures_runners", 86)
    def test_there_is_one_until_it_is_stopped(self):
        first = TaskRunWaiter.instance()
        assert TaskRunWaiter.instance() is first
        first.start()
        first.stop()
        first.stop()
        assert TaskRunWaiter.instance() is not first

    @pins("futures_runners", 88)
    def test_one_made_by_hand_is_not_it_and_works(self, memory):
        made = TaskRunWaiter()
        assert made is not TaskRunWaiter.instance()
        state = run_task_sync(task(lambda: 1), run_id := new_run_id(), return_type="state")
        assert asyncio.run(made.wait_for_task_run(run_id)) is state

    def test_stopping_wakes_who_waits(self, memory):
        waiting = in_thread(TaskRunWaiter.block_for_task_run, uuid4(), PATIENCE)
        while not TaskRunWaiter.instance()._watches:
            time.sleep(0.001)
        TaskRunWaiter.instance().stop()
        assert waiting.result(PATIENCE) is None


class TestInThisProcess:
    @either
    @pins("futures_runners", 87, 103)
    @pytest.mark.parametrize(
        ("outcome", "name"),
        [
            (lambda: 42, "Completed"),
            (lambda: ValueError("no"), "Failed"),
            (lambda: TimeoutError("slow"), "TimedOut"),
            (lambda: Completed(name="Cached", data=1), "Cached"),
            (lambda: Failed(name="Odd"), "Odd"),
            (Cancelled, "Cancelled"),
            (lambda: SystemExit(3), "Crashed"),
        ],
        ids=["completed", "failed", "timed-out", "cached", "own-name", "cancelled", "crashed"],
    )
    def test_every_kind_of_end_ends_the_wait(self, memory, wait_for, outcome, name):
        held = Held(outcome())
        started = held.start()
        waiting = in_thread(wait_for, held.id, PATIENCE)
        assert wait_for(held.id, 0.01) is None
        held.release.set()
        state = waiting.result(PATIENCE)
        assert (state.name, state.state_details.task_run_id) == (name, held.id)
        started.exception(PATIENCE)

    @either
    @pins("futures_runners", 103)
    def test_a_run_whose_upstream_failed_has_come_to_its_end(self, memory, wait_for):
        @flow
        def body():
            first = task(lambda: 1 / 0).submit()
            second = task(lambda x: x).submit(first)
            return second.task_run_id, wait_for(second.task_run_id, PATIENCE).name

        assert body()[1] == "NotReady"

    @either
    def test_a_run_whose_upstream_had_failed_before_the_wait_has_come_to_its_end(self, memory, wait_for):
        @flow
        def body():
            first = task(lambda: 1 / 0).submit()
            second = task(lambda x: x).submit(first)
            second.wait()
            return wait_for(second.task_run_id, PATIENCE).name

        assert body() == "NotReady"

    @pins("futures_runners", 103)
    def test_a_run_that_was_cancelled_in_the_queue_ends_the_wait(self, memory):
        held = Held()
        with ThreadPoolTaskRunner(max_workers=1) as runner:
            runner.submit(held.task, {})
            assert held.begun.wait(PATIENCE)
            queued = runner.submit(task(lambda: 1), {})
            waiting = in_thread(TaskRunWaiter.block_for_task_run, queued.task_run_id, PATIENCE)
            queued.add_done_callback(lambda _: held.release.set())
        assert waiting.result(PATIENCE).name == "Cancelled"

    def test_the_page_s_own_example_waits_for_a_run_that_nobody_knows_yet(self, memory):
        @task
        async def slow():
            await asyncio.sleep(0)
            return "done"

        async def main():
            run_id = uuid4()
            running = asyncio.create_task(run_task_async(slow, task_run_id=run_id))
            state = await TaskRunWaiter.wait_for_task_run(run_id)
            return state.result(_sync=True), await running

        assert run(main()) == ("done", "done")

    @pins("futures_runners", 102)
    def test_any_number_of_waiters_and_callbacks_of_one_run_are_served_once_each(self, memory):
        held, called = Held(), list[int]()
        started = held.start()
        for number in range(3):
            TaskRunWaiter.add_done_callback(held.id, lambda number=number: called.append(number))
        blocked = [in_thread(TaskRunWaiter.block_for_task_run, held.id, PATIENCE) for _ in range(3)]

        async def several():
            return await asyncio.gather(*[TaskRunWaiter.wait_for_task_run(held.id, PATIENCE) for _ in range(3)])

        looping = in_thread(lambda: asyncio.run(several()))
        while len(TaskRunWaiter.instance()._watches) < 9:
            time.sleep(0.001)
        held.release.set()
        state = started.result(PATIENCE)
        assert [*(each.result(PATIENCE) for each in blocked), *looping.result(PATIENCE)] == [state] * 6
        assert called == [0, 1, 2]
        assert not TaskRunWaiter.instance()._watches

    @pins("futures_runners", 89)
    def test_each_waiter_waits_for_its_own_run(self, memory):
        one, two = Held(1), Held(2)
        started = [one.start(), two.start()]
        one.release.set()
        state = TaskRunWaiter.block_for_task_run(one.id, PATIENCE)
        assert state is not None
        assert state.is_completed()
        assert get_client(sync_client=True).read_task_run(two.id).state_name == "Running"
        two.release.set()
        assert [each.result(PATIENCE).is_completed() for each in started] == [True, True]

    @either
    def test_a_run_that_has_ended_is_known_at_once(self, memory, wait_for):
        ids: list[UUID] = []

        @flow
        def body():
            ids.append(task(lambda: 7).submit().task_run_id)

        body()
        assert wait_for(ids[0], 0).is_final()

    def test_callbacks_are_called_once_and_what_they_raise_is_logged(self, memory, caplog):
        held, seen = Held(), list[Any]()
        started = held.start()

        def bad():
            raise SystemExit("bad callback")

        def waits_again():
            seen.append(TaskRunWaiter.block_for_task_run(held.id, PATIENCE))

        TaskRunWaiter.add_done_callback(held.id, bad)
        TaskRunWaiter.add_done_callback(held.id, waits_again)
        held.release.set()
        state = started.result(PATIENCE)
        assert seen == [state]
        assert "bad callback" in caplog.text
        TaskRunWaiter.add_done_callback(held.id, lambda: seen.append(threading.current_thread()))
        assert seen[1:] == [threading.current_thread()]

    def test_no_thread_is_begun_for_runs_of_this_process(self, monkeypatch):
        """Also with a home on the disk."""

        @flow
        def body():
            held = Held()
            future = held.task.submit()
            assert held.begun.wait(PATIENCE)
            TaskRunWaiter.add_done_callback(future.task_run_id, lambda: None)
            assert TaskRunWaiter.block_for_task_run(future.task_run_id, 0.001) is None
            names = threads()
            held.release.set()
            return names

        assert "microflow follower" not in body()

    def test_a_wait_that_timed_out_leaves_nothing_behind(self, memory):
        client = get_client(sync_client=True)
        for _ in range(10):
            assert TaskRunWaiter.block_for_task_run(uuid4(), 0.001) is None
        assert not TaskRunWaiter.instance()._watches
        assert not client.store.bus.has_subscribers("any")


# -------------------------------------------------------------------------------------------- other processes

PROGRAM = """
import sys
from microflow import flow, task
from microflow.runtime import flow_run
from microflow.task_runners import ThreadPoolTaskRunner

@task
def held(x):
    sys.stdout.write("running\\n")  # in one piece
    sys.stdout.flush()
    if sys.stdin.readline() == "raise\\n":
        raise ValueError("from there")
    return x

@flow(task_runner=ThreadPoolTaskRunner(max_workers=1))
def body():
    futures = [held.submit(5), held.submit(6)]
    ids = (flow_run.id, *(future.task_run_id for future in futures))
    sys.stdout.write(" ".join(map(str, ids)) + "\\n")
    sys.stdout.flush()
    for future in futures:
        future.wait()

body()
"""


AT_EXIT = """
import atexit, sys
from microflow import flow
from microflow.client.orchestration import current_client
from microflow.futures import FlowRunFuture
from microflow.states import Pending

run_id = current_client().create_flow_run(flow(print), state=Pending()).id

def last():
    print(run_id, flush=True)
    print("waiting", flush=True)
    future = FlowRunFuture(run_id)
    try:
        future.wait(float(sys.argv[1]))
    except RuntimeError as error:
        print(str(error).partition(":")[0], flush=True)
    else:
        print("heard" if future._final_state is not None else "never heard", flush=True)

atexit.register(last)
FlowRunFuture(run_id).add_done_callback(lambda _: None)
"""


class Elsewhere:
    """A flow in another process: one task run goes on until told to end, another one waits for its worker."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(2)]
        ids = next(line for line in lines if "running" not in line)
        self.flow_run_id, self.running, self.queued = map(UUID, ids.split())

    def tell(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(words)
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def elsewhere():
    made = Elsewhere()
    yield made
    made.close()


class TestOtherProcesses:
    @either
    def test_the_end_of_a_run_of_another_process_arrives_with_its_value(self, elsewhere, wait_for):
        waiting = in_thread(wait_for, elsewhere.running, PATIENCE)
        elsewhere.tell("go on\n")
        assert waiting.result(PATIENCE).result(_sync=True) == 5
        called = threading.Event()
        TaskRunWaiter.add_done_callback(elsewhere.queued, called.set)
        elsewhere.tell("raise\n")
        with pytest.raises(ValueError, match="from there"):
            wait_for(elsewhere.queued, PATIENCE).result(_sync=True)
        assert called.wait(PATIENCE)

    @either
    def test_a_run_whose_process_was_killed_has_crashed(self, elsewhere, wait_for):
        """Also the one that had not started."""
        waiting = [in_thread(wait_for, run_id, PATIENCE) for run_id in (elsewhere.running, elsewhere.queued)]
        assert wait_for(elsewhere.running, 0.01) is None
        os.kill(elsewhere.process.pid, signal.SIGKILL)
        assert [each.result(PATIENCE).name for each in waiting] == ["Crashed", "Crashed"]
        assert wait_for(elsewhere.running, 0).is_crashed()

    @either
    def test_a_wait_ends_when_the_log_is_damaged(self, elsewhere, wait_for):
        called, flow_run_id = threading.Event(), str(elsewhere.flow_run_id)
        TaskRunWaiter.add_done_callback(elsewhere.queued, called.set)
        waiting = in_thread(wait_for, elsewhere.queued, PATIENCE)
        store = get_client(sync_client=True).store
        until(lambda: getattr(store._follower._followed.get(flow_run_id), "count", 0) == 2)
        with (Path(store.location) / "runs" / f"{flow_run_id}.jsonl").open("ab") as file:
            file.write(line(1000, "0" * 8, [log_state()]))  # far behind the end
        with pytest.raises(DamagedLog, match=flow_run_id):
            waiting.result(PATIENCE)
        assert called.wait(PATIENCE)

    @pytest.mark.parametrize(
        "read",
        [
            lambda flow_run_id, run_id: get_client(sync_client=True).read_task_run(run_id).state,
            lambda flow_run_id, run_id: get_client(sync_client=True).read_task_runs(flow_run_id=flow_run_id)[1].state,
            lambda flow_run_id, run_id: TaskRunWaiter.block_for_task_run(run_id, 0),
        ],
        ids=["read_task_run", "read_task_runs", "waiter"],
    )
    def test_a_process_that_ends_between_the_look_at_the_log_and_the_look_at_it_is_heard_out(
        self, elsewhere, read, monkeypatch
    ):
        self.ends_when_looked_at(elsewhere, monkeypatch)
        assert read(elsewhere.flow_run_id, elsewhere.queued).name == "Failed"

    @pytest.mark.parametrize(
        "read",
        [
            lambda flow_run_id: get_client(sync_client=True).read_flow_run(flow_run_id).state,
            lambda flow_run_id: get_client(sync_client=True).read_flow_runs()[0].state,
            lambda flow_run_id: asyncio.run(wait_for_flow_run(flow_run_id, timeout=0)).state,
            lambda flow_run_id: asyncio.run(until_the_flow_run_ends(flow_run_id)),
        ],
        ids=["read_flow_run", "read_flow_runs", "wait_for_flow_run", "watch"],
    )
    def test_so_is_one_whose_flow_run_is_looked_at(self, elsewhere, read, monkeypatch):
        self.ends_when_looked_at(elsewhere, monkeypatch)
        assert read(elsewhere.flow_run_id).name == "Completed"

    @staticmethod
    def ends_when_looked_at(elsewhere: Elsewhere, monkeypatch: Any) -> None:
        """Have the process end, well, just before it is asked for whether it lives."""
        store = get_client(sync_client=True).store
        is_alive = store.is_alive

        def too_late(token: str) -> bool:
            elsewhere.tell("go on\nraise\n")
            elsewhere.process.wait(PATIENCE)
            monkeypatch.setattr(store, "is_alive", is_alive)
            return is_alive(token)

        monkeypatch.setattr(store, "is_alive", too_late)

    def test_a_callback_that_still_waits_does_not_keep_the_program_from_ending(self):
        words = (
            "from uuid import uuid4; from microflow.task_runs import TaskRunWaiter as W; "
            "W.add_done_callback(uuid4(), print)"
        )
        subprocess.run([sys.executable, "-c", words], cwd=ROOT, timeout=PATIENCE, check=True)

    def test_a_function_of_atexit_can_wait(self):
        """Also when the thread that looked for a callback has ended by then. Refused where no thread can be started."""
        with subprocess.Popen(
            [sys.executable, "-c", AT_EXIT, str(PATIENCE)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            run_id = process.stdout.readline().strip()
            assert process.stdout.readline() == "waiting\n"
            get_client(sync_client=True).cancel_flow_run(run_id)
            refused = ["no thread can be started to hear of other processes\n"] * (sys.version_info >= (3, 12))
            assert process.stdout.readline() in ["heard\n", *refused]

    @pytest.mark.skipif(sys.version_info >= (3, 12), reason="no thread can be started any more once main has ended")
    def test_a_thread_that_outlives_the_main_one_is_told(self):
        """Its wait is by a callback, as any wait for several futures is."""
        words = """
import threading, time
from microflow import task
from microflow.futures import wait
from microflow.worker import TaskWorker

@task
def add(x):
    return x + 1

future = add.delay(1)

def later():
    threading.main_thread().join()
    time.sleep(0.05)
    threading.Thread(target=TaskWorker(add).start, args=(1.0,)).start()
    assert not wait([future], timeout=20).not_done
    print("told")

threading.Thread(target=later).start()
"""
        ended = subprocess.run(
            [sys.executable, "-c", words], cwd=ROOT, timeout=PATIENCE, check=True, capture_output=True, text=True
        )
        assert ended.stdout == "told\n"
