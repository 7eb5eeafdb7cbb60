# SPDX-License-Identifier: Apache-2.0
"""What the tests of the invariants share: a fresh client, all that is published, a program that does everything."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import microflow
from microflow import flow, task
from microflow.client import orchestration
from microflow.client.objects import FlowRun, TaskRun, new_run_id
from microflow.client.orchestration import current_client
from microflow.context import FlowRunContext, TaskRunContext
from microflow.events import Bus, Record
from microflow.states import Pending, Running, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from microflow.client.live import LiveRun

PACKAGE = Path(microflow.__file__).parent

both_homes = pytest.mark.parametrize("home", ["file", "memory"], indirect=True)


@pytest.fixture(name="home", autouse=True)
def home_fixture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh client: of the private home on the disk, or of one in memory where the test asks for it."""
    monkeypatch.setattr(orchestration, "_clients", {})
    if getattr(request, "param", "file") == "memory":
        monkeypatch.setenv("MICROFLOW_HOME", ":memory:")


@pytest.fixture(name="published")
def published_fixture(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[Record], object]]:
    """Functions to be called with every record that any bus publishes, whoever has subscribed."""
    listeners: list[Callable[[Record], object]] = []
    publish = Bus.publish

    def listened(bus: Bus, records: Any) -> None:
        for record in records:
            for listener in listeners:
                listener(record)
        publish(bus, records)

    monkeypatch.setattr(Bus, "has_subscribers", lambda self, run_id: True)
    monkeypatch.setattr(Bus, "publish", listened)
    return listeners


def only_run(name: str) -> FlowRun:
    """The one run of the flow of this name, as its log has it."""
    (run,) = current_client().read_flow_runs(flow_names=[name])
    return run


def started() -> LiveRun:
    """A run of ours in RUNNING."""

    @flow
    def main() -> None: ...

    client = current_client()
    live = client.start(client.new_flow_run(main), main, {}, Pending(), own=True)
    live.propose(Running())
    return live


def new_task(live: LiveRun) -> TaskRun:
    return TaskRun(new_run_id(), "add-1", task_key="add-0", flow_run_id=live.flow_run.id)


# ------------------------------------------------------------------------------- a program that does everything


class Program:
    """Blocking and coroutine flows with calls, submits, maps, retries, failures, subflows and hooks.

    ``look(run)`` is called wherever user code can see a run: in bodies, in hooks, after a future is done."""

    def __init__(self, look: Callable[[FlowRun | TaskRun], object]) -> None:
        self._look = look
        self.problems: list[AssertionError] = []
        self.attempts: dict[str, int] = {}

    def look(self, run: FlowRun | TaskRun) -> None:
        """Look at a run. What is wrong is kept: raised here, it would merely fail a task or be logged for a hook."""
        try:
            self._look(run)
        except AssertionError as problem:
            self.problems.append(problem)

    def here(self) -> None:
        """Look at what is current."""
        for context in (FlowRunContext.get(), TaskRunContext.get()):
            if context is not None:
                self.look(context.flow_run if isinstance(context, FlowRunContext) else context.task_run)

    def hook(self, _: Any, run: FlowRun | TaskRun, state: State[Any]) -> None:
        """Look at the run of a hook, which is in the state that it is told."""
        if run.state is not state:
            self.problems.append(AssertionError(f"a hook of {run} was told {state}"))
        self.look(run)

    def fails_at_first(self, name: str) -> None:
        self.attempts[name] = self.attempts.get(name, 0) + 1
        self.here()
        if self.attempts[name] == 1:
            raise ValueError(f"{name} fails at first")

    @property
    def hooks(self) -> dict[str, Any]:
        return {"on_running": [self.hook], "on_completion": [self.hook], "on_failure": [self.hook]}

    def blocking(self) -> Any:
        """A blocking flow over all of it."""
        hooks = self.hooks

        @task(**hooks, tags=["t"])
        def add(x: int, y: int = 1) -> int:
            self.here()
            return x + y

        @task(**hooks, retries=1, retry_delay_seconds=0.001)
        def late() -> str:
            self.fails_at_first("late")
            return "late"

        @task(**hooks, retries=1, task_run_name="named {n}")
        def at_once(n: int) -> str:
            self.fails_at_first("at once")
            return "x" * 20_000  # too large for a record: goes into a file

        @task(**hooks)
        def fails() -> None:
            self.here()
            raise KeyError("always")

        @flow(**hooks)
        def child(n: int) -> int:
            self.here()
            return add(n)

        @flow(**hooks, retries=1)
        def program(n: int) -> Any:
            self.here()
            one = add.submit(add(n))
            mapped = add.map([1, 2, one], 1)
            upstream = fails.submit()
            held = add.submit(upstream)
            found = (one.result(), mapped.result(), child(n), late(), len(at_once(n)), fails(return_state=True).type)
            held.wait()
            futures: list[Any] = [one, *mapped, upstream, held]
            for future in futures:
                self.look(current_client().read_task_run(future.task_run_id))
                assert str(future.state) == str(current_client().read_task_run(future.task_run_id).state)
            self.fails_at_first("program")
            return found

        return program

    def coroutine(self) -> Any:
        """A coroutine flow over the most of it."""
        hooks = self.hooks

        @task(**hooks)
        async def add(x: int) -> int:
            self.here()
            await asyncio.sleep(0)
            return x + 1

        @task(**hooks, retries=1)
        async def late() -> str:
            self.fails_at_first("late")
            return "late"

        @flow(**hooks)
        async def child() -> int:
            return await add(10)

        @flow(**hooks)
        async def program(n: int) -> Any:
            self.here()
            future = add.submit(n)
            gathered = await asyncio.gather(add(1), add(2), late())
            return await future, gathered, await child()

        return program


def run_program(isasync: bool, look: Callable[[FlowRun | TaskRun], object]) -> Any:
    """Run it; fail with the first thing that was wrong where it looked."""
    program = Program(look)
    outcome = asyncio.run(program.coroutine()(1)) if isasync else program.blocking()(1)
    for problem in program.problems:
        raise problem
    return outcome


both_colours = pytest.mark.parametrize("isasync", [False, True], ids=["blocking", "async"])
