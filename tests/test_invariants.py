# SPDX-License-Identifier: Apache-2.0
"""The invariants of the design, one heading each; every test's name begins with the number.

What can be seen in the source (I2, I6) stands in ``test_invariants_text.py``, what needs a log to be cut or a process
to be killed (I11, I13) in ``test_invariants_logs.py``. I10 (nothing of ours runs after the call returned) is held by
``conftest.no_thread_left_behind`` for every test; I12 (one owner at a time) needs several processes and has a file of
its own.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from microflow import _files, _follower, _pool, _submitting, events, flow, log, stores, task
from microflow._flow_lifecycle import BaseFlowRunEngine
from microflow._waits import now_us
from microflow.client import live as live_module
from microflow.client import memory, orchestration
from microflow.client.objects import FlowRun, TaskRun
from microflow.client.orchestration import SyncClient, current_client
from microflow.context import FlowRunContext, TaskRunContext
from microflow.events import Bus, Record
from microflow.states import Completed, Failed, Pending, Running, State, StateType, Value
from microflow.stores import FileStore
from microflow.task_engine import BaseTaskRunEngine

from .invariants_support import (
    PACKAGE,
    both_colours,
    both_homes,
    home_fixture,  # noqa: F401 - autouse, named home
    new_task,
    only_run,
    published_fixture,  # noqa: F401 - named published
    run_program,
    started,
)

if TYPE_CHECKING:
    from collections.abc import Callable


# ------------------------------------------------------------------------------------------------ I1


@both_homes
@both_colours
def test_I1_what_is_published_is_in_the_log_already(isasync, published, home):
    """Broken if something were published before its append: the log would not have the record."""
    missing = []

    def look(record: Record) -> None:
        in_log = current_client().store.read(record.run_id, record.position).records
        if not any((each.position, each.data) == (record.position, record.data) for each in in_log):
            missing.append(record)

    published.append(look)
    run_program(isasync, lambda run: None)
    assert missing == []


@both_colours
def test_I1_a_state_that_user_code_can_see_is_in_the_log_already(isasync):
    """Broken if memory moved before the append: another process (a second store) would read an older state."""
    seen = []

    def look(run: FlowRun | TaskRun) -> None:
        other = SyncClient(FileStore(current_client().store.location))
        if isinstance(run, FlowRun):
            read: FlowRun | TaskRun = other.read_flow_run(run.id)
        else:
            read = other.read_task_run(run.id, flow_run_id=run.flow_run_id)
        seen.append(read.state is not None and run.state is not None and read.state.at >= run.state.at)

    run_program(isasync, look)
    assert len(seen) > 10
    assert all(seen)


# ------------------------------------------------------------------------------------------------ I2


@both_colours
def test_I2_without_set_state_a_run_has_no_state_but_its_first(isasync, monkeypatch):
    """Broken if a step of an engine recorded a state on its own."""
    for engine in (BaseTaskRunEngine, BaseFlowRunEngine):
        monkeypatch.setattr(engine, "set_state", lambda self, state, force=False: refuse())

    def refuse() -> None:
        raise OSError("nothing is set")

    with pytest.raises(OSError, match="nothing is set"):
        run_program(isasync, lambda run: None)
    run = only_run("program")
    assert [state.name for state in current_client().read_flow_run_states(run.id)] == ["Pending"]
    assert current_client().read_task_runs(flow_run_id=run.id) == []


# ------------------------------------------------------------------------------------------------ I3


def test_I3_a_transition_is_one_write(monkeypatch):
    """Broken if creation and states, or a final state and its release, were written one after the other."""
    live = started()
    tasks = [new_task(live) for _ in range(100)]
    writes = []
    write = _files.write
    monkeypatch.setattr(_files, "write", lambda fd, data: writes.append(bytes(data)) or write(fd, data))
    transitions: list[Callable[[], object]] = [
        lambda: live.propose_task(tasks[0], Running(), pending_since=now_us(), source="s"),
        lambda: live.propose_task(tasks[0], Completed(data=Value(1))),
        lambda: live.create_tasks([(task_run, Pending(), None) for task_run in tasks[1:]]),
        lambda: live.propose(Completed(), release=True),
    ]
    for transition in transitions:
        transition()
        assert len(writes) == 1
        assert writes.pop().count(b"\n") == 1
    current_client().let_go(live)
    assert writes == []


def test_I3_a_reader_sees_all_records_of_a_transition_or_none():
    """Broken if records of one transition stood in several lines: a prefix would show some of them."""
    live = started()
    path = Path(current_client().store.location, "runs", f"{live.run_id}.jsonl")
    task_run = new_task(live)
    start = path.stat().st_size
    live.propose_task(task_run, Running(), pending_since=now_us())
    end = path.stat().st_size
    live.propose(Completed(), release=True)
    current_client().let_go(live)
    for length in range(path.stat().st_size, start - 1, -1):
        os.truncate(path, length)
        run = SyncClient(FileStore(path.parent.parent)).fold(live.run_id)
        present = [task.states for task in run.tasks.values()]
        assert [len(states) for states in present] == ([2] if length >= end else [])
        assert (run.owner is None) == (run.flow_run.state_type == "COMPLETED")


# ------------------------------------------------------------------------------------------------ I4


def plain(state: State[Any] | None) -> Any:
    """A state in a form in which one of the memory and one of the log compare equal."""
    if state is None:
        return None
    data = state.data.load() if isinstance(state.data, Value) else state.data
    if isinstance(data, BaseException):
        data = type(data), data.args
    return state.id, state.type, state.name, state.message, state.at, state.state_details, data


def fields(run: FlowRun | TaskRun) -> dict[str, Any]:
    """All fields of a run, its state included."""
    return {**run._values(), "state": plain(run.state)}


@both_homes
@both_colours
def test_I4_folding_the_log_gives_the_runs_that_memory_holds(isasync, home):
    """Broken if a transition changed a field in memory and not in the fold, or the other way round.

    The objects that bodies and hooks hold are compared with the log, field by field, at that very moment. What a
    thread of the runner holds is compared too: nobody but that thread moves its run."""
    compared: list[tuple[str, str | None]] = []

    def look(run: FlowRun | TaskRun) -> None:
        client = current_client()
        if isinstance(run, FlowRun):
            folded: FlowRun | TaskRun = client.fold(str(run.id)).flow_run
        else:
            folded = client.fold(str(run.flow_run_id)).task_run(str(run.id))
        assert fields(run) == fields(folded)
        compared.append((type(run).__name__, run.state_name))

    run_program(isasync, look)
    wanted = {("FlowRun", "Running"), ("FlowRun", "Completed"), ("TaskRun", "Running"), ("TaskRun", "Completed")}
    wanted |= {("TaskRun", "Retrying")} if isasync else {("TaskRun", "Retrying"), ("TaskRun", "Failed")}
    assert wanted <= set(compared)


@both_homes
def test_I4_the_states_of_futures_are_those_of_the_log(home):
    """Broken if a future got another state than the one that was appended."""
    held: dict[Any, State[Any]] = {}

    @task
    def work(n: int) -> int:
        if n == 2:
            raise ValueError(n)
        return n

    @flow
    def main() -> None:
        futures = [work.submit(1), *work.map([2, 3]), work.submit(work.submit(2))]
        for future in futures:
            future.wait()
            held[future.task_run_id] = future.state

    main()
    run = current_client().fold(str(only_run("main").id))
    assert {key: plain(state) for key, state in held.items()} == {
        key: plain(run.task_run(str(key)).state) for key in held
    }
    assert len(held) == 4


@both_homes
def test_I4_an_interrupted_run_is_in_the_log_as_it_is_in_memory(home):
    """Broken if a crash were recorded in one place only."""
    runs: list[Any] = []

    @task
    def interrupted() -> None:
        context = TaskRunContext.get()
        assert context is not None
        runs.append(context.task_run)
        raise KeyboardInterrupt

    @flow
    def main() -> None:
        context = FlowRunContext.get()
        assert context is not None
        runs.append(context.flow_run)
        interrupted()

    with pytest.raises(KeyboardInterrupt):
        main()
    folded = current_client().fold(str(runs[0].id))
    assert fields(runs[0]) == fields(folded.flow_run)
    assert fields(runs[1]) == fields(folded.task_run(str(runs[1].id)))
    assert (runs[0].state_type, runs[1].state_type) == ("CRASHED", "CRASHED")


# ------------------------------------------------------------------------------------------------ I5


@both_homes
def test_I5_a_final_state_is_left_only_by_a_forced_call(home):
    """Broken if a row of a final state accepted anything."""
    live = started()
    task_run = new_task(live)
    live.propose_task(task_run, Failed())
    live.propose(Failed())
    for kind in StateType:
        assert not live.propose(State(kind)).accepted
        assert not live.propose_task(task_run, State(kind)).accepted
    client = current_client()
    assert [state.type for state in client.read_flow_run_states(live.run_id)] == ["PENDING", "RUNNING", "FAILED"]
    assert [state.type for state in client.read_task_run_states(task_run.id)] == ["FAILED"]
    assert client.set_flow_run_state(live.run_id, Completed(), force=True).accepted
    client.let_go(live)


@both_colours
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_I5_an_interrupt_after_the_final_state_propagates_and_changes_nothing(isasync, interrupt):
    """Broken if an interrupt in a hook, which runs after the final state, were recorded as a crash over it."""

    def interrupted(*_: Any) -> None:
        raise interrupt

    if isasync:

        @flow(on_completion=[interrupted])
        async def main() -> int:
            return 5

        run = lambda: asyncio.run(main())  # noqa: E731 - two forms of one call
    else:

        @flow(on_completion=[interrupted])
        def main() -> int:
            return 5

        run = main
    with pytest.raises(interrupt):
        run()
    client = current_client()
    states = client.read_flow_run_states(only_run("main").id)
    assert [state.type for state in states] == ["PENDING", "RUNNING", "COMPLETED"]
    assert states[-1].result(_sync=True) == 5


def test_I5_an_interrupt_after_a_tasks_final_state_crashes_the_flow_and_not_the_task():
    """Broken as above, for tasks: the interrupt ends the flow, whose state is still open."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    @task(on_completion=[interrupted])
    def work() -> int:
        return 5

    @flow
    def main() -> None:
        work()

    with pytest.raises(KeyboardInterrupt):
        main()
    run = only_run("main")
    (task_run,) = current_client().read_task_runs(flow_run_id=run.id)
    assert (task_run.state_type, run.state_type) == ("COMPLETED", "CRASHED")


# ------------------------------------------------------------------------------------------------ I7


def broken(*_: Any, **__: Any) -> Any:
    """User code that is called by us and fails."""
    raise ValueError("broken")


@both_colours
@pytest.mark.parametrize("kind", ["subscriber", "hooks", "callback", "all"])
def test_I7_what_we_call_cannot_hurt_a_run(kind, isasync, monkeypatch, caplog):
    """Broken if an exception of a subscriber, a hook or a done-callback changed a state or reached the caller."""
    hooks = dict.fromkeys(("on_running", "on_completion", "on_failure"), [broken] if kind in ("hooks", "all") else [])
    if kind in ("subscriber", "all"):
        bus = current_client().store.bus
        monkeypatch.setattr(Bus, "has_subscribers", lambda self, run_id: True)
        monkeypatch.setattr(bus, "_by_log", _Everybody([broken]))

    def called_back(future: Any) -> Any:
        if kind in ("callback", "all"):
            future.add_done_callback(broken)
        return future

    if isasync:

        @task(**hooks)
        async def work(n: int) -> int:
            return 1 // n

        @flow(**hooks)
        async def main() -> Any:
            future = called_back(work.submit(1))
            return await work(1), await future, (await work(0, return_state=True)).name

        outcome = asyncio.run(main())
    else:

        @task(**hooks)
        def work(n: int) -> int:
            return 1 // n

        @flow(**hooks)
        def main() -> Any:
            future = called_back(work.submit(1))
            return work(1), future.result(), work(0, return_state=True).name

        outcome = main()
    assert outcome == (1, 1, "Failed")
    run = only_run("main")
    assert run.state_type == "COMPLETED"
    states = sorted(task_run.state_type for task_run in current_client().read_task_runs(flow_run_id=run.id))
    assert states == ["COMPLETED", "COMPLETED", "FAILED"]
    assert "ValueError: broken" in caplog.text  # it is said, all the same


class _Everybody(dict[str, Any]):
    """A table of subscribers in which every run has these."""

    def __init__(self, subscribers: list[Any]) -> None:
        super().__init__()
        self._subscribers = tuple(subscribers)

    def get(self, key: str, default: Any = None) -> Any:
        return self._subscribers


# ------------------------------------------------------------------------------------------------ I8

BLOCKING_PROGRAM = """
import sys, threading
from microflow import flow, task

seen = []

@task(retries=1, retry_delay_seconds=0.001)
def work(n):
    if not seen:
        seen.append(1)
        raise ValueError("once")
    return n

@flow
def child(n):
    return work(n)

@flow(retries=1)
def main():
    future = work.submit(1)
    mapped = work.map([1, 2, future])
    state = work(3, return_state=True)
    mapped.wait()
    if len(seen) == 1:
        seen.append(2)
        raise ValueError("again")
    return future.result() + sum(mapped.result()) + child(4) + state.result()

results = [main()]
thread = threading.Thread(target=lambda: results.append(main()))
thread.start()
thread.join()
print(results, "asyncio" in sys.modules)
"""


def test_I8_a_blocking_run_never_loads_asyncio():
    """Broken if anything on the blocking path imported asyncio, in the main thread or in another."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKING_PROGRAM], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60
    )
    assert done.stdout == "[12, 12] False\n", done.stderr


def test_I8_a_blocking_run_works_inside_a_running_loop_and_leaves_it_alone():
    """Broken if the blocking path started a loop, or stepped the one that runs."""

    @task(retries=1, retry_delay_seconds=0.001)
    def work(n: int) -> int:
        if not seen:
            seen.append(1)
            raise ValueError("once")
        return n

    @flow
    def blocking() -> Any:
        return work(1) + work.submit(2).result() + sum(work.map([3, 4]).result())

    async def outer() -> Any:
        ticks: list[int] = []
        asyncio.get_running_loop().call_soon(ticks.append, 1)
        value = blocking()
        return value, list(ticks), await asyncio.sleep(0, "alive")

    seen: list[int] = []
    assert asyncio.run(outer()) == (10, [], "alive")


def test_I8_a_blocking_run_works_in_a_thread_of_a_loop():
    """Broken if a blocking run needed the main thread or a loop of its own there."""

    @flow
    def blocking(n: int) -> int:
        return n + 1

    async def outer() -> Any:
        return await asyncio.gather(*(asyncio.to_thread(blocking, n) for n in range(4)))

    assert asyncio.run(outer()) == [1, 2, 3, 4]


# ------------------------------------------------------------------------------------------------ I9


class Watched:
    """A lock that knows which thread holds it."""

    holders: dict[Watched, int]

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            self.holders[self] = threading.get_ident()
        return taken

    def release(self) -> None:
        self.holders.pop(self, None)
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


def watched_lock() -> Any:
    """In place of ``threading.Lock``. The turn of a waiting worker is no mutex: it is never given back."""
    caller = sys._getframe(1).f_code.co_name
    return threading.Lock() if caller == "take_again" else Watched()


@pytest.fixture
def held_here(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Watches every mutex that our modules make from now on; says how many the calling thread holds."""
    monkeypatch.setattr(Watched, "holders", {}, raising=False)
    shim = types.SimpleNamespace(**vars(threading))
    shim.Lock = watched_lock
    for module in (live_module, stores, log, _pool, _follower):
        monkeypatch.setattr(module, "threading", shim)
    for module in (memory, events):
        monkeypatch.setattr(module, "new_lock", watched_lock)
    monkeypatch.setattr(_submitting, "Lock", watched_lock)
    monkeypatch.setattr(orchestration, "_lock", Watched())
    return lambda: list(Watched.holders.values()).count(threading.get_ident())


def test_I9_no_mutex_is_held_while_user_code_runs(held_here, monkeypatch):
    """Broken if a body, hook, condition, name, callback, subscriber or a value's own code ran under a lock of ours."""
    held: dict[str, list[int]] = {}

    def look(where: str, value: Any = None) -> Any:
        held.setdefault(where, []).append(held_here())
        return value

    class Odd:
        def __reduce__(self) -> Any:
            return look("pickling", (int, (1,)))

    @task(
        retries=1,
        retry_condition_fn=lambda *_: look("condition", True),
        task_run_name=lambda: look("name", "named"),
        **{hook: [lambda *_: look("task hook")] for hook in ("on_running", "on_completion", "on_failure")},
    )
    def work(n: int) -> Any:
        look("task body")
        if n == 2 and not failed:
            failed.append(1)
            raise ValueError
        return Odd()

    @flow(
        flow_run_name=lambda: look("name", "named"),
        **{hook: [lambda *_: look("flow hook")] for hook in ("on_running", "on_completion")},
    )
    def main(value: Any) -> Any:
        look("flow body")
        futures = [work.submit(1), *work.map([2, 3])]
        futures[0].add_done_callback(lambda _: look("callback"))
        for future in futures:
            future.wait()
        work(4)
        return Odd()

    failed: list[int] = []
    bus = current_client().store.bus
    monkeypatch.setattr(Bus, "has_subscribers", lambda self, run_id: True)
    monkeypatch.setattr(bus, "_by_log", _Everybody([lambda _: look("subscriber")]))
    main(Odd())
    assert {where for where, counts in held.items() if any(counts)} == set()
    called = {"pickling", "condition", "name", "callback", "subscriber"}
    assert set(held) == called | {"task hook", "task body", "flow hook", "flow body"}


def test_I9_the_watch_sees_a_mutex_that_is_held(held_here, monkeypatch):
    """The control of the test above: user code under the mutex of a run would be counted."""
    live = started()
    assert held_here() == 0
    with live._lock:
        assert held_here() == 1
    current_client().abandon(live)
