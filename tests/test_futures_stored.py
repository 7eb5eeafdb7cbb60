# SPDX-License-Identifier: Apache-2.0
"""Futures of runs that any process may run: deferred task runs, and flow runs."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import Future
from typing import Any
from uuid import uuid4

import pytest

from microflow import flow, task
from microflow.calls import Call
from microflow.client.orchestration import SyncClient, current_client
from microflow.context import FlowRunContext
from microflow.exceptions import MissingResult, ObjectNotFound, Pause
from microflow.flow_runs import rerun
from microflow.futures import (
    ConcurrentFuture,
    DistributedFuture,
    FlowRunFuture,
    FutureList,
    PrefectDistributedFuture,
    PrefectFlowRunFuture,
    as_completed,
    resolve_futures_to_results,
    wait,
)
from microflow.states import Completed, Suspended
from microflow.stores import FileStore
from microflow.task_engine import run_call
from tests.behaviour_support import pins
from tests.log_support import until
from tests.support import PATIENCE, memory_home


@pytest.fixture(params=["file", "memory"], autouse=True)
def home(request, monkeypatch):
    if request.param == "memory":
        memory_home(monkeypatch)
    return request.param


@task
def give(value):
    if isinstance(value, str):
        raise ValueError(value)
    return value


@flow
def made_flow(value: Any = None):
    if isinstance(value, str):
        raise ValueError(value)
    return value


class TaskKind:
    """A run that somebody else runs: a deferred task run."""

    missing = staticmethod(DistributedFuture)
    name = "Task run"

    def create(self, value: Any) -> Any:
        return give.delay(value)

    def run(self, future: Any) -> None:
        """As a worker does it."""
        client, run_id = current_client(), str(future.task_run_id)
        live = client.claim(run_id)
        call = Call(live.run.task_run(run_id), live, None, again=True)
        given = client.read_task_run_parameters(run_id)
        try:
            run_call(call, give, given["parameters"], None, threading.Event())
        finally:
            client.let_go(live)


class FlowKind:
    """A run that somebody else runs: a flow run."""

    missing = staticmethod(FlowRunFuture)
    name = "Flow run"

    def create(self, value: Any) -> Any:
        return FlowRunFuture(current_client().create_flow_run(made_flow, parameters={"value": value}).id)

    def run(self, future: Any) -> None:
        rerun(made_flow, future.flow_run_id)


kinds = pytest.mark.parametrize("kind", [TaskKind(), FlowKind()], ids=["task", "flow"])
ways = pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "async"])


def result(future: Any, blocking: bool, *args: Any, **kwargs: Any) -> Any:
    if blocking:
        return future.result(*args, **kwargs)
    return asyncio.run(future.result_async(*args, **kwargs))


def wait_for(future: Any, blocking: bool, *args: Any) -> Any:
    return future.wait(*args) if blocking else asyncio.run(future.wait_async(*args))


@kinds
@ways
@pins("futures_runners", 27, 30)
def test_a_wait_for_a_run_that_goes_on_returns(kind, blocking):
    future = kind.create(1)
    for timeout in (0, 0.01):
        assert wait_for(future, blocking, timeout) is None
        with pytest.raises(TimeoutError, match=f"{kind.name} .* did not complete within {timeout} seconds"):
            result(future, blocking, timeout)
    assert future.state.name == "Scheduled"
    assert future._final_state is None


@kinds
@ways
@pins("futures_runners", 28, 30)
def test_a_run_that_ended_before_the_future_was_made_is_known_at_once(kind, blocking):
    first = kind.create(5)
    kind.run(first)
    future = pickle.loads(pickle.dumps(first))
    assert result(future, blocking, 5) == 5
    assert future._final_state is not None
    fresh = pickle.loads(pickle.dumps(first))
    assert wait_for(fresh, blocking) is None
    assert fresh.state.is_completed()
    assert (fresh, hash(fresh)) == (future, hash(future))
    assert len({fresh, future, kind.create(1)}) == 2


@kinds
@ways
@pins("futures_runners", 29, 30)
def test_a_failure_comes_back_with_its_type_and_text(kind, blocking):
    future = kind.create("oops")
    kind.run(future)
    with pytest.raises(ValueError, match="^oops$"):
        result(future, blocking)
    assert repr(result(future, blocking, raise_on_failure=False)) == "ValueError('oops')"


@kinds
@pins("futures_runners", 29, 30)
def test_a_result_that_was_not_kept_is_missing(kind, monkeypatch):
    monkeypatch.setenv("MICROFLOW_KEEP_RESULTS", "false")
    future = kind.create(1)
    kind.run(future)
    future.wait()
    with pytest.raises(MissingResult):
        kind.missing(future._task_run_id).result()


@kinds
@ways
def test_the_end_arrives_wherever_it_is_waited_for(kind, blocking):
    """Also by a callback, by ``wait``, by ``as_completed``, and among futures of other kinds."""
    future, called = kind.create(3), list[Any]()
    future.add_done_callback(called.append)
    done = ConcurrentFuture[Any](uuid4(), _done(9))
    timer = threading.Timer(0.02, kind.run, [future])
    timer.start()
    if blocking:
        assert [each.result() for each in as_completed([future, done], timeout=PATIENCE)] == [9, 3]
        assert wait([future, done]).not_done == set()
    else:
        assert asyncio.run(_awaited(future)) == 3
    timer.join()
    assert called == [future]
    future.add_done_callback(called.append)
    kind.missing(future._task_run_id).add_done_callback(called.append)
    assert called == [future] * 3
    assert FutureList([future, done, future]).result() == [3, 9, 3]
    assert resolve_futures_to_results({"a": [future]}) == {"a": [3]}


async def _awaited(future: Any) -> Any:
    return await future


def _done(value: Any) -> Any:
    future: Future[Any] = Future()
    future.set_result(Completed(data=value))
    return future


@kinds
def test_a_callback_that_raises_is_logged(kind, caplog):
    future, seen = kind.create(3), list[Any]()

    def bad(_: Any) -> None:
        raise SystemExit("bad callback")

    future.add_done_callback(bad)
    future.add_done_callback(seen.append)
    kind.run(future)
    assert seen == [future]
    assert "bad callback" in caplog.text


def elsewhere() -> SyncClient:
    """A client as another process has it: what it appends is heard of by the follower."""
    return SyncClient(FileStore(current_client().store.location))


@pytest.mark.parametrize("home", ["file"], indirect=True)
def test_who_waits_for_another_run_is_not_held_up_by_a_callback(home):
    """Nor does he hang, when the callback wants what he holds; and news go on to be heard meanwhile."""
    first, second, third = (FlowKind().create(1) for _ in range(3))
    called, release, outcome = threading.Event(), threading.Event(), list[Any]()

    def callback(_: Any) -> None:
        called.set()
        outcome.extend([threading.current_thread(), release.wait(5)])

    store = current_client().store
    with store.follow(str(second.flow_run_id)):
        first.add_done_callback(callback)
        elsewhere().cancel_flow_run(first.flow_run_id)
        assert called.wait(PATIENCE)
    timer = threading.Timer(0.01, elsewhere().cancel_flow_run, [third.flow_run_id])
    timer.start()
    third.wait(PATIENCE)
    timer.join()
    assert third.state.is_cancelled()
    release.set()
    until(lambda: len(outcome) == 2)
    thread, released = outcome
    assert (thread.name, released) == ("microflow follower", True)
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.parametrize("home", ["file"], indirect=True)
def test_a_callback_may_wait_for_another_run(home):
    """In the follower's own thread, while somebody else waits for a third one, and hears of it."""
    first, second, third = (FlowKind().create(1) for _ in range(3))
    outcome, told = list[Any](), threading.Event()

    def callback(_: Any) -> None:
        second.wait(PATIENCE)
        outcome.append(second._final_state is not None)

    third.add_done_callback(lambda _: told.set())
    first.add_done_callback(callback)
    elsewhere().cancel_flow_run(first.flow_run_id)
    followed(second)
    elsewhere().cancel_flow_run(second.flow_run_id)
    assert until(lambda: outcome, PATIENCE + 5) == [True]
    elsewhere().cancel_flow_run(third.flow_run_id)
    assert told.wait(PATIENCE)


def followed(future: Any) -> Any:
    """Wait until somebody follows the run."""
    return until(lambda: str(future._task_run_id) in current_client().store._follower._followed)  # type: ignore[attr-defined]


@kinds
@ways
@pytest.mark.parametrize("wait_until", [result, wait_for], ids=["result", "wait"])
@pytest.mark.parametrize("home", ["file"], indirect=True)
def test_who_waits_is_told_that_the_run_was_deleted(kind, blocking, wait_until, home, caplog):
    future, called = kind.create(1), list[Any]()

    def delete() -> None:
        followed(future)
        future.add_done_callback(called.append)
        elsewhere().delete_flow_run(future._task_run_id)

    deleting = threading.Thread(target=delete)
    deleting.start()
    with pytest.raises(ObjectNotFound, match=str(future._task_run_id)):
        wait_until(future, blocking, PATIENCE)
    deleting.join()
    assert until(lambda: called) == [future]
    assert not caplog.records


@kinds
@pytest.mark.parametrize("home", ["file"], indirect=True)
def test_a_wait_for_several_is_told_that_one_was_deleted(kind, home):
    future, other = kind.create(1), kind.create(2)

    def delete() -> None:
        followed(future)
        elsewhere().delete_flow_run(future._task_run_id)

    deleting = threading.Thread(target=delete)
    deleting.start()
    with pytest.raises(ObjectNotFound, match=str(future._task_run_id)):
        wait([other, future], PATIENCE)
    deleting.join()
    kind.run(other)  # which is still waited for, by a callback


@kinds
@ways
def test_a_run_that_is_not_there_is_named(kind, blocking):
    future = kind.missing(uuid4())
    for call in (lambda: result(future, blocking), lambda: wait_for(future, blocking, 0)):
        with pytest.raises(ObjectNotFound, match=str(future._task_run_id)):
            call()
    with pytest.raises(ObjectNotFound):
        future.add_done_callback(print)
    assert future.state.is_pending()
    assert not current_client().store.bus.has_subscribers("any")


def test_a_flow_runs_future_may_stand_among_arguments_and_in_wait_for():
    kind = FlowKind()
    future = kind.create(7)
    kind.run(future)
    failed = kind.create("no")
    kind.run(failed)

    @flow
    def body():
        after = give.submit(1, wait_for=[failed])
        after.wait()
        return [give.submit([future], wait_for=[future]).result(), after.state.name]

    assert body() == [[7], "NotReady"]
    inputs = [given.task_inputs["value"] for given in _task_runs("body")]
    assert [type(each).__name__ for each in inputs[1]] == ["FlowRunResult"]


def _task_runs(flow_name: str) -> list[Any]:
    client = current_client()
    (found,) = client.read_flow_runs(flow_names=[flow_name])
    return client.read_task_runs(flow_run_id=found.id)


def test_the_reference_s_names_are_there():
    assert PrefectDistributedFuture is DistributedFuture
    assert PrefectFlowRunFuture is FlowRunFuture
    run_id = uuid4()
    assert (FlowRunFuture(run_id).flow_run_id, DistributedFuture(run_id).task_run_id) == (run_id, run_id)
    assert asyncio.run(_aresult()) == 4


async def _aresult() -> Any:
    kind = FlowKind()
    future = kind.create(4)
    await asyncio.to_thread(kind.run, future)
    return await future.aresult(timeout=PATIENCE)


# -------------------------------------------------------------------------------------------- suspension


LOOKS = {
    "wait": lambda future, timeout: future.wait(timeout),
    "result": lambda future, timeout: future.result(timeout),
    "module": lambda future, timeout: wait([future], timeout),
    "list": lambda future, timeout: FutureList([future]).wait(timeout),
    "task": lambda future, timeout: DistributedFuture(future.task_run_id).wait(timeout),
    "flow": lambda future, timeout: FlowRunFuture(other_flow_run()).result(timeout),
}


def other_flow_run() -> Any:
    return current_client().read_flow_runs(flow_names=["made-flow"])[0].id


@flow
def suspended(how: str, timeout: float):
    context = FlowRunContext.get()
    assert context is not None
    release = threading.Event()

    @task
    def held():
        release.wait(PATIENCE)

    future = held.submit()
    current_client().suspend_flow_run(context.flow_run.id, Suspended(timeout_seconds=None, pause_key="k"))
    try:
        LOOKS[how](future, timeout)
    finally:
        release.set()


@pins("futures_runners", 15)
@pytest.mark.parametrize("timeout", [0.01, 0])
@pytest.mark.parametrize("how", LOOKS)
def test_a_wait_in_a_flow_run_that_is_to_be_suspended_raises_the_pause(how, timeout):
    FlowKind().create(1)
    with pytest.raises(Pause):
        suspended(how, timeout)
