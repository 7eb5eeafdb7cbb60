# SPDX-License-Identifier: Apache-2.0
"""What a worker serves: kinds of queued runs, and how one that was claimed is run to its end.

A *serving* says which queued runs are its own; the *work* that it makes of a claimed one runs the engine on it. A run
is served by name and place, never by code that its log names: what runs is a task or flow that whoever began the
worker gave to it.

Flow runs are run in threads of the worker, not in processes of their own. What that costs: a blocking flow whose time
is up is recorded as TimedOut and not interrupted, and a flow that ends its process ends the worker; its other runs
are then taken over like this one. What it gives: a run begins within milliseconds, in a home in memory too.

What a deferred task submits runs in threads of the worker, and beside the worker's slots, as what it calls does; it is
kept in memory like that, with the deferred run as its parent. The worker lets the run go when all of it has ended.

A worker that is told to stop waits for what runs, but not for a flow that waits in a pause of its own. Known hole: it
does wait for one that a task or a subflow has paused, or an operator. Such a run, like any, goes on elsewhere when the
process is killed after all.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ._submitting import RUNNER_OUTSIDE_FLOWS, TaskRunner
from ._waits import SLOT, AsyncioWaits
from .calls import Call
from .client.deferred import carried_by
from .context import tags
from .entrypoints import entrypoint_of
from .exceptions import Abort, Pause, describe
from .flow_engine import FlowRunEngine, run_flow
from .states import State, exception_to_failed_state
from .task_engine import run_call
from .task_runs import has_ended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from .client.fold import Run
    from .client.live import Leaving, LiveRun
    from .client.orchestration import SyncClient
    from .flows import Flow
    from .tasks import Task


class Serving(Protocol):
    """One kind of runs that a worker can serve."""

    def serves(self, run: Run) -> bool:
        """Whether the queued run is one of these."""

    def work(self, live: LiveRun, leaving: Leaving) -> Work:
        """What runs a run that was claimed. What is wrong with the run is recorded in it, and raised by nobody."""


class Work(Protocol):
    """One claimed run."""

    isasync: bool
    key: str

    def run(self) -> State[Any] | None:
        """Run it to its end in this thread; its state then, None when it was interrupted."""

    async def run_async(self) -> State[Any] | None:
        """Run it to its end on the loop of this thread."""

    def end(self, state: State[Any]) -> State[Any] | None:
        """Record a final state of a run that cannot be run, unless it has one; the state that it has then."""

    def call_hooks(self) -> None:
        """Call the hooks for a crash."""


def failure(error: BaseException) -> State[Any]:
    """The state of a run whose engine raised before or after it could record an end."""
    reason = error if isinstance(error, Exception) else RuntimeError(describe(error))
    return exception_to_failed_state(reason, message="The queued run could not be run:")


# ------------------------------------------------------------------------------------------------- tasks


class DeferredTasks:
    """Serves the deferred runs of some tasks. A run is one of a task's when their keys agree, or else, after an edit,
    their entrypoints."""

    def __init__(self, tasks: tuple[Task[Any, Any], ...]) -> None:
        self.by_key = {task.task_key: task for task in tasks}
        places = {entrypoint_of(task.fn): task for task in tasks}
        places.pop(None, None)
        self._by_place = places

    def task_of(self, run: Run) -> Task[Any, Any] | None:
        """The task whose run this is."""
        return self.by_key.get(run.header.get("task", "")) or self._by_place.get(run.header.get("entrypoint"))

    def serves(self, run: Run) -> bool:
        """Whether it is a deferred run of one of the tasks."""
        return run.is_task and self.task_of(run) is not None

    def work(self, live: LiveRun, leaving: Leaving) -> DeferredWork:
        """What runs the claimed run."""
        task = self.task_of(live.run)
        assert task is not None, "only what is served is claimed"
        return DeferredWork(task, live, leaving)


class DeferredWork:
    """One claimed run of a deferred task."""

    def __init__(self, task: Task[Any, Any], live: LiveRun, leaving: Leaving) -> None:
        self.task = task
        self.key = task.task_key
        self.isasync = task.isasync
        self._live = live
        self._leaving = leaving
        task_run = live.run.task_run(live.run_id)
        begun = task_run.state is not None and task_run.state.name not in ("Scheduled", "Pending")
        self._call = Call(task_run, live, None, again=begun)

    @contextmanager
    def _started(self, runner: TaskRunner[Any]) -> Iterator[Any]:
        """The engine's answer, in the context that the run was deferred in."""
        RUNNER_OUTSIDE_FLOWS.set(runner)  # in the context of this job
        given = self._given()
        with tags(*given.get("context", {}).get("tags", ())):
            parameters, wait_for = given.get("parameters", {}), given.get("wait_for")
            retries = _retries_of(self._live.run)
            yield run_call(self._call, self.task, parameters, wait_for, self._leaving, retries)

    def _given(self) -> dict[str, Any]:
        main = self._live.run.header.get("main")
        if main is None:
            return carried_by(self._live.run)
        from ._attempt import Importing  # only for arguments whose classes stand in the program that deferred the run

        with Importing(str(main["place"])):
            return carried_by(self._live.run)

    def run(self) -> State[Any] | None:
        """Run it to its end in this thread."""
        with TaskRunner.nested_runner() as runner, self._started(runner) as state:
            return self._call.task_run.state if state is None else state

    async def run_async(self) -> State[Any] | None:
        """Run it to its end on the loop of this thread."""
        runner = TaskRunner.nested_runner().__enter__()
        try:
            with self._started(runner) as running:
                state: State[Any] = await running
                return state
        finally:
            if not runner.is_idle():
                await AsyncioWaits().block(runner.__exit__, *sys.exc_info())

    def end(self, state: State[Any]) -> State[Any] | None:
        """Record a final state, unless the run has one."""
        task_run = self._call.task_run
        if not has_ended(task_run.state):
            state.state_details.task_run_id = task_run.id
            self._live.propose_task(task_run, state, force=True)
        return task_run.state


    def call_hooks(self) -> None:
        """None: what a task is told is how its function ended."""


def _retries_of(run: Run) -> int:
    """How many retries of a run were begun, or decided on, before."""
    names = [state.name for state in run.task_states(run.run_id)]
    return names.count("Retrying") + (names[-1] == "AwaitingRetry")


# ------------------------------------------------------------------------------------------------- flows


class ServedFlows:
    """Serves the runs of some flows, subflows aside: those are their parents'. A run is one of a flow's when their
    names agree, unless the run names another script that exists here: two scripts may well have a flow ``main``."""

    def __init__(self, flows: tuple[Flow[Any, Any], ...]) -> None:
        self.by_name: dict[str, Flow[Any, Any]] = {}
        for flow in flows:
            other = self.by_name.setdefault(flow.name, flow)
            if other is not flow and entrypoint_of(other.fn) != entrypoint_of(flow.fn):
                raise ValueError(f"two flows are called {flow.name!r}, and runs are told apart by the names of flows")
        self._scripts = {flow.name: _script_of(entrypoint_of(flow.fn)) for flow in flows}

    def serves(self, run: Run) -> bool:
        """Whether it is a run of one of the flows."""
        flow_run = run.flow_run
        if run.is_task or flow_run.parent_flow_run_id is not None or flow_run.flow_name not in self.by_name:
            return False
        mine, its = self._scripts[flow_run.flow_name], _script_of(flow_run.entrypoint)
        return mine is None or its is None or mine == its or not os.path.exists(its)

    def work(self, live: LiveRun, leaving: Leaving) -> FlowWork:
        """What runs the claimed run."""
        live.leaving = leaving
        return FlowWork(self.by_name[live.flow_run.flow_name], live)


def _script_of(entrypoint: str | None) -> str | None:
    """The path of the script that an entrypoint names; None when it names a module."""
    place = (entrypoint or "").rpartition(":")[0]
    return os.path.realpath(place) if os.path.isabs(place) else None


class FlowWork:
    """One claimed run of a flow."""

    def __init__(self, flow: Flow[Any, Any], live: LiveRun) -> None:
        self.flow = flow
        self.key = f"flow {flow.name}"
        self.isasync = flow.isasync
        self._live = live

    def _begin(self) -> Any:
        """The engine's answer. The run holds its slot until it ends, whatever it waits for: `limit` counts runs."""
        SLOT.set(None)
        parameters = self.flow.rebind(self._live.run.parameters())
        return run_flow(
            self.flow, None, parameters, None, "result" if self.flow.isgenerator else "state", live=self._live
        )

    @contextmanager
    def _to_its_state(self) -> Iterator[None]:
        """What leaves a flow that has its state on record already, or is suspended, is nobody's error here."""
        try:
            yield
        except (Pause, Abort):
            pass
        except BaseException:
            if not has_ended(self._live.flow_run.state):
                raise

    def run(self) -> State[Any] | None:
        """Run it in this thread until it has ended or is suspended."""
        with self._to_its_state():
            answer = self._begin()
            if self.flow.isgenerator:
                for _ in answer:
                    pass
        return self._live.flow_run.state

    async def run_async(self) -> State[Any] | None:
        """Run it on the loop of this thread until it has ended or is suspended."""
        with self._to_its_state():
            answer = self._begin()
            if self.flow.isgenerator:
                async for _ in answer:
                    pass
            else:
                await answer
        return self._live.flow_run.state

    def end(self, state: State[Any]) -> State[Any] | None:
        """Record a final state, unless the run has one."""
        if not has_ended(self._live.flow_run.state):
            self._live.propose(state, force=True)
        return self._live.flow_run.state


    def call_hooks(self) -> None:
        """Call the hooks for a crash, in a context without parameters: they may be what cannot be had."""
        FlowRunEngine(self.flow, {}, self._live.flow_run, live=self._live).call_hooks()


class GivenUp:
    """A claimed run that is not run any more: its end is recorded, then its hooks are called. Dying in between, they
    are not called, as everywhere; dying before, the next worker does both."""

    isasync = False

    def __init__(self, work: Work, state: State[Any]) -> None:
        self.key = work.key
        self._work = work
        self._state = state

    def run(self) -> State[Any] | None:
        """Give it up, in this thread."""
        state = self._work.end(self._state)
        self._work.call_hooks()
        return state

    async def run_async(self) -> State[Any] | None:
        """Never called: hooks may block."""
        return self.run()

    def end(self, state: State[Any]) -> State[Any] | None:
        """See :class:`Work`."""
        return self._work.end(state)

    def call_hooks(self) -> None:
        """See :class:`Work`."""
        self._work.call_hooks()


class AllOf:
    """Several servings as one: the first that serves a run works on it."""

    def __init__(self, *servings: Serving) -> None:
        self._servings = servings

    def serves(self, run: Run) -> bool:
        """Whether one of them serves the run."""
        return any(each.serves(run) for each in self._servings)

    def work(self, live: LiveRun, leaving: Leaving) -> Work:
        """What runs the claimed run."""
        return next(each for each in self._servings if each.serves(live.run)).work(live, leaving)


class ToBeDeployed:
    """A flow with the deployment that it gets when it is served: what ``flow.to_deployment(name)`` gives."""

    def __init__(self, flow: Flow[Any, Any], name: str, **fields: Any) -> None:
        self.flow = flow
        self.name = name
        self._fields = fields

    def record(self, client: SyncClient) -> UUID:
        """Write the deployment; its id."""
        return client.create_deployment(self.flow, self.name, **self._fields)
