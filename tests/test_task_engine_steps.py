# SPDX-License-Identifier: Apache-2.0
"""The engines' public steps: they can be used one by one, in both colours, and an override of one is felt."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import Any

import pytest

from microflow import task, task_engine
from microflow._waits import entered
from microflow.client.orchestration import Client, SyncClient, current_client
from microflow.context import TaskRunContext
from microflow.states import State
from microflow.task_engine import AsyncTaskRunEngine, SyncTaskRunEngine
from tests.support import both, memory_home, run


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


def engine_of(made: Any, **parameters: Any) -> Any:
    kind: Any = AsyncTaskRunEngine if made.isasync else SyncTaskRunEngine
    return kind(made, parameters)


def states_of(engine: Any) -> list[str]:
    return [state.name for state in current_client().tasks.states(engine.task_run.id)]


def by_hand(engine: Any) -> Any:
    """The whole life of a run, step by step: what the entry points do."""
    with engine.start():
        while engine.is_running():
            engine.wait_until_ready()
            with engine.asset_context(), engine.run_context(), engine.transaction_context() as transaction:
                engine.call_task_fn(transaction)
    return engine.result()


async def by_hand_async(engine: Any) -> Any:
    async with engine.start():
        while engine.is_running():
            await engine.wait_until_ready()
            async with engine.asset_context(), engine.run_context(), engine.transaction_context() as transaction:
                await engine.call_task_fn(transaction)
    return engine.result()


def lived(engine: Any) -> Any:
    return run(by_hand_async(engine)) if engine.task.isasync else by_hand(engine)


ENTRY_POINTS = ["run_task", "run_task_sync", "run_task_async", "run_generator_task_sync", "run_generator_task_async"]
OF_BOTH = [
    "asset_context", "begin_run", "call_hooks", "call_task_fn", "can_retry", "client",
    "compute_transaction_key", "handle_crash", "handle_exception", "handle_retry", "handle_rollback",
    "handle_success", "handle_timeout", "initialize_run", "is_cancelled", "is_running",
    "log_finished_message", "record_terminal_state_timing", "result", "run_context", "set_state",
    "setup_run_context", "start", "state", "transaction_context", "wait_until_ready",
]  # fmt: skip


@pytest.mark.parametrize("engine", [SyncTaskRunEngine, AsyncTaskRunEngine])
@pytest.mark.parametrize("name", OF_BOTH)
def test_every_documented_name_is_there_and_says_what_it_does(engine, name):
    assert inspect.getdoc(inspect.getattr_static(engine, name))


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_the_entry_points_take_the_same_arguments(name):
    parameters = inspect.signature(getattr(task_engine, name)).parameters
    assert list(parameters) == [
        "task", "task_run_id", "task_run", "parameters", "wait_for", "return_type", "dependencies", "context",
    ]  # fmt: skip
    assert {value.default for key, value in parameters.items() if key not in ("task", "return_type")} == {None}
    assert parameters["return_type"].default == "result"


def test_a_timeout_of_a_run_is_a_timeout_error():
    assert issubclass(task_engine.TaskRunTimeoutError, TimeoutError)


@both
def test_the_steps_by_hand_make_a_whole_run(colour):
    calls: list[int] = []

    def work(x):
        calls.append(x)
        if len(calls) < 3:
            raise ValueError("again")
        return x + 1

    engine = engine_of(colour.task(work, retries=2), x=1)
    assert lived(engine) == 2
    assert states_of(engine) == ["Pending", "Running", "Retrying", "Retrying", "Completed"]
    assert engine.state.is_completed()


@both
def test_a_failure_is_handled_by_the_run_context_and_raised_by_the_result(colour):
    def work():
        raise ValueError("no")

    engine = engine_of(colour.task(work))
    with pytest.raises(ValueError, match="no"):
        lived(engine)
    assert states_of(engine) == ["Pending", "Running", "Failed"]
    assert isinstance(engine.result(raise_on_failure=False), ValueError)


def test_stop_iteration_passes_through_the_scopes_as_it_is():
    def work():
        return next(iter(()))

    engine = engine_of(task(work))
    with pytest.raises(StopIteration):
        by_hand(engine)
    assert states_of(engine) == ["Pending", "Running", "Failed"]


@both
def test_the_client_is_there_while_the_engine_is_started(colour):
    engine = engine_of(colour.task(lambda: 1))
    with pytest.raises(RuntimeError, match="not started"):
        engine.client
    seen: list[Any] = []

    async def look() -> None:
        async with entered(engine.initialize_run()) as given:
            assert given is engine
            seen.append(engine.client)

    run(look())
    assert isinstance(seen[0], Client if colour.isasync else SyncClient)
    with pytest.raises(RuntimeError, match="not started"):
        engine.client


@both
def test_the_run_context_is_current_inside_of_its_scope(colour):
    engine = engine_of(colour.task(lambda: 1))

    async def look() -> None:
        async with entered(engine.start()):
            assert TaskRunContext.get() is None
            async with entered(engine.setup_run_context("a client")) as entered_one:
                assert TaskRunContext.get() is entered_one
                context: Any = entered_one
                assert (context.task_run, context.client) == (engine.task_run, "a client")
            async with entered(engine.run_context()) as given:
                assert given is engine
                assert TaskRunContext.get() is not None
                raise ValueError("no")

    run(look())
    assert states_of(engine) == ["Pending", "Running", "Failed"]
    assert TaskRunContext.get() is None


def test_an_overridden_scope_is_felt(monkeypatch):
    """A blocking engine's may be any context manager."""
    seen: list[str] = []
    real = SyncTaskRunEngine.run_context

    @contextmanager
    def run_context(self):
        seen.append("before")
        with real(self):
            yield self
        seen.append("after")

    monkeypatch.setattr(SyncTaskRunEngine, "run_context", run_context)
    assert task(lambda: seen.append("body"))() is None
    assert seen == ["before", "body", "after"]


@both
def test_recording_the_timing_of_a_terminal_state_is_what_states_do_by_themselves(colour):
    engine = engine_of(colour.task(lambda: 1))
    lived(engine)
    before = engine.task_run.end_time
    with pytest.warns(DeprecationWarning, match="record_terminal_state_timing"):
        engine.record_terminal_state_timing(State("COMPLETED"))
    assert engine.task_run.end_time == before
