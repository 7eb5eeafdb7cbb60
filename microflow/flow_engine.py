# SPDX-License-Identifier: Apache-2.0
"""The two engines of flow runs, and the entry points that run a flow.

Every rule of a flow run's life stands in ``_flow_lifecycle``; the engines differ in how they wait and in one-line
public methods, because those are documented, called, awaited and overridden by users.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ._flow_lifecycle import BaseFlowRunEngine
from ._termination import Termination
from ._waits import AsyncioWaits, BlockingWaits, finish, run_coroutine
from .client.orchestration import current_client
from .exceptions import Abort, CancelledRun, ConfigurationError, Pause
from .futures import resolve_futures_to_results

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator
    from multiprocessing.context import SpawnProcess

    from .client.live import LiveRun
    from .client.objects import FlowRun
    from .flows import Flow
    from .states import State

R = TypeVar("R")
ReturnType = Literal["result", "state"]


class FlowRunEngine(BaseFlowRunEngine[R]):
    """The engine of blocking flows; needs no event loop (invariant I8)."""

    waits = BlockingWaits()

    def begin_run(self) -> None:
        """Enter RUNNING and run the on_running hooks."""
        finish(self._begin_run())

    def call_flow_fn(self) -> R:
        """Call the user's function."""
        args, kwargs = self.flow.parameters.call_arguments(self.parameters or {})
        result: R = finish(self.waits.call(self.flow.fn, *args, **kwargs)).unwrap()
        return result

    def call_hooks(self, state: State[Any] | None = None) -> None:
        """Run the hooks of `state`, the present one unless given."""
        finish(self._call_hooks(state))

    def handle_success(self, result: R) -> None:
        """Record what the function returned."""
        finish(self._handle_success(result))

    def handle_exception(self, exc: Exception) -> None:
        """Record FAILED, or AwaitingRetry when a retry is left."""
        finish(self._handle_exception(exc))

    def handle_timeout(self, exc: TimeoutError) -> None:
        """Record FAILED named TimedOut, or AwaitingRetry when a retry is left."""
        finish(self._handle_timeout(exc))


class AsyncFlowRunEngine(BaseFlowRunEngine[R]):
    """The engine of coroutine flows, on the caller's event loop."""

    waits = AsyncioWaits()

    async def begin_run(self) -> None:
        """Enter RUNNING and run the on_running hooks."""
        await self._begin_run()

    async def call_flow_fn(self) -> R:
        """Call and await the user's function."""
        args, kwargs = self.flow.parameters.call_arguments(self.parameters or {})
        result: R = (await self.waits.call(self.flow.fn, *args, **kwargs)).unwrap()
        return result

    async def call_hooks(self, state: State[Any] | None = None) -> None:
        """Run the hooks of `state`, the present one unless given."""
        await self._call_hooks(state)

    async def handle_success(self, result: R) -> None:
        """Record what the function returned."""
        await self._handle_success(result)

    async def handle_exception(self, exc: Exception) -> None:
        """Record FAILED, or AwaitingRetry when a retry is left."""
        await self._handle_exception(exc)

    async def handle_timeout(self, exc: TimeoutError) -> None:
        """Record FAILED named TimedOut, or AwaitingRetry when a retry is left."""
        await self._handle_timeout(exc)


# ---------------------------------------------------------------------------------------- entry points


def _answer(engine: BaseFlowRunEngine[Any], return_type: ReturnType) -> Any:
    return engine.final_state() if return_type == "state" else engine.result()


def run_flow_sync(
    flow: Flow[Any, R],
    flow_run: FlowRun | None = None,
    parameters: dict[str, Any] | None = None,
    wait_for: Any = None,
    return_type: ReturnType = "result",
    *,
    live: LiveRun | None = None,
) -> R | State[R] | None:
    """Run a blocking flow to its end in this thread; see :func:`run_flow`."""
    engine = FlowRunEngine(flow, parameters, flow_run, wait_for, live)
    with Termination(isasync=False):
        finish(engine._run())
    answer: R | State[R] | None = _answer(engine, return_type)
    return answer


async def run_flow_async(
    flow: Flow[Any, R],
    flow_run: FlowRun | None = None,
    parameters: dict[str, Any] | None = None,
    wait_for: Any = None,
    return_type: ReturnType = "result",
    *,
    live: LiveRun | None = None,
) -> R | State[R] | None:
    """Run a coroutine flow to its end on this event loop; see :func:`run_flow`."""
    engine = AsyncFlowRunEngine(flow, parameters, flow_run, wait_for, live)
    with Termination(isasync=True):
        await engine._run()
    answer: R | State[R] | None = _answer(engine, return_type)
    return answer


def _run_items(engine: BaseFlowRunEngine[Any], return_type: ReturnType) -> Any:
    if return_type == "state":
        raise ValueError(
            f"the items of generator flow {engine.flow.name!r} are its result; it cannot return its state"
        )
    return engine._run()


def run_generator_flow_sync(
    flow: Flow[Any, R],
    flow_run: FlowRun | None = None,
    parameters: dict[str, Any] | None = None,
    wait_for: Any = None,
    return_type: ReturnType = "result",
    *,
    live: LiveRun | None = None,
) -> Generator[Any, Any, Any]:
    """Run a generator flow while its items are consumed; see :func:`run_flow`. Nothing happens before the first item
    is asked for. A consumer that stops early (``close``, ``break``) completes the run."""
    from ._handing_over import handed_over  # only for generator flows

    engine = FlowRunEngine(flow, parameters, flow_run, wait_for, live)
    return handed_over(lambda: _run_items(engine, return_type), engine.result)


def run_generator_flow_async(
    flow: Flow[Any, R],
    flow_run: FlowRun | None = None,
    parameters: dict[str, Any] | None = None,
    wait_for: Any = None,
    return_type: ReturnType = "result",
    *,
    live: LiveRun | None = None,
) -> AsyncGenerator[Any, Any]:
    """Run an async generator flow while its items are consumed; see :func:`run_generator_flow_sync`."""
    from ._handing_over import handed_over_async  # only for generator flows

    engine = AsyncFlowRunEngine(flow, parameters, flow_run, wait_for, live)
    return handed_over_async(lambda: _run_items(engine, return_type), engine.result)


def run_flow(
    flow: Flow[Any, Any],
    flow_run: FlowRun | None = None,
    parameters: dict[str, Any] | None = None,
    wait_for: Any = None,
    return_type: ReturnType = "result",
    error_logger: Any = None,
    *,
    live: LiveRun | None = None,
) -> Any:
    """Run a flow: a value or state for a blocking flow, a coroutine for an async one, a generator or async generator
    for one that yields.

    `flow_run` is an existing run to claim and run; its recorded parameters are used unless `parameters` are
    given, which replace them wholly; the signature's defaults without either. `wait_for` is waited for first.
    `return_type` is "result" or "state". `error_logger` is told, once, what the run raises, but for a Pause or Abort,
    which are no errors; it is raised all the same. `live` is a run that the caller has claimed already."""
    if parameters is None and flow_run is None and live is None:
        parameters = flow.bind((), {})
    run: Callable[..., Any]
    if flow.isgenerator:
        run = run_generator_flow_async if flow.isasync else run_generator_flow_sync
    else:
        run = run_flow_async if flow.isasync else run_flow_sync
    if error_logger is None:
        return run(flow, flow_run, parameters, wait_for, return_type, live=live)
    with _told(flow, error_logger):
        outcome = run(flow, flow_run, parameters, wait_for, return_type, live=live)
    return _awaited(flow, outcome, error_logger) if flow.isasync and not flow.isgenerator else outcome


def run_to_state(flow: Flow[Any, Any], parameters: dict[str, Any], live: LiveRun) -> Any:
    """Run a claimed run to its end, for its state alone: gives that, or a coroutine for it. Nobody wants the items of a
    generator flow: they are consumed."""
    if not flow.isgenerator:
        return run_flow(flow, None, parameters, None, "state", live=live)
    from ._handing_over import handed_over, handed_over_async  # only for generator flows

    async def consumed() -> State[Any]:
        engine = AsyncFlowRunEngine(flow, parameters, live=live)
        with Termination(isasync=True):
            async for _ in handed_over_async(engine._run, engine.final_state):
                pass
        return engine.final_state()

    if flow.isasync:
        return consumed()
    engine = FlowRunEngine(flow, parameters, live=live)
    with Termination(isasync=False):
        for _ in handed_over(engine._run, engine.final_state):
            pass
    return engine.final_state()


def run_here(flow: Flow[Any, Any], parameters: dict[str, Any], live: LiveRun) -> State[Any]:
    """:func:`run_to_state` for who blocks until the run's end, also that of a coroutine flow, with or without a loop
    that runs in this thread."""
    outcome = run_to_state(flow, parameters, live)
    state: State[Any] = run_coroutine(outcome) if flow.isasync else outcome
    return state


@contextmanager
def _told(flow: Flow[Any, Any], error_logger: Any) -> Iterator[None]:
    try:
        yield
    except (Pause, Abort):
        raise
    except BaseException as error:  # told, and raised again
        error_logger.error("Flow %r raised %r", flow.name, error, exc_info=error)
        raise


async def _awaited(flow: Flow[Any, Any], outcome: Any, error_logger: Any) -> Any:
    with _told(flow, error_logger):
        return await outcome


# ------------------------------------------------------------------------------------- in a process of its own


def run_flow_in_subprocess(
    flow: Flow[Any, Any],
    flow_run: FlowRun | None = None,
    parameters: dict[str, Any] | None = None,
    wait_for: Any = None,
) -> SpawnProcess:
    """Start a fresh process that runs the flow, as a run of its own in the same home; gives the started process.

    Its exit status is 0 when the run completed, paused or was cancelled, 1 when it failed, else that of what
    interrupted it. Futures in `parameters` and `wait_for` are waited for here, first. ConfigurationError when the flow
    cannot be imported there, or the home is in memory. As with every spawned process, the main module is imported
    again: guard it by ``if __name__ == "__main__":``."""
    from multiprocessing import get_context  # heavy, and needed for this alone

    from ._carried import describe_definition, why_not_findable  # rare: only for flows in another process

    described = describe_definition(flow)
    if described["entrypoint"] is None:
        reason = why_not_findable(flow.fn) or "it is not found there"
        raise ConfigurationError(f"flow {flow.name!r} cannot be run in another process: {reason}")
    client = current_client()
    if client.store.location == ":memory:":
        raise ConfigurationError("a home in memory is not seen by other processes; set MICROFLOW_HOME to a folder")
    resolve_futures_to_results(wait_for)
    if flow_run is None:
        given = resolve_futures_to_results(flow.bind((), parameters or {}))
        flow_run = client.create_flow_run(flow, parameters=given)
    arguments = (described, str(flow_run.id), client.store.location)
    process = get_context("spawn").Process(target=_run_here, args=arguments, name=f"microflow {flow_run.name}")
    process.start()
    return process


def _run_here(described: dict[str, Any], flow_run_id: str, home: str) -> None:
    """What the process does. An exception out of here is shown by multiprocessing, and its status is 1."""
    os.environ["MICROFLOW_HOME"] = home
    from ._carried import load_definition  # this is the other process

    flow = load_definition(described)
    flow_run = current_client().read_flow_run(flow_run_id)

    async def consume() -> None:
        async for _ in run_flow(flow, flow_run):
            pass

    try:
        if not flow.isgenerator:
            run_coroutine(run_flow(flow, flow_run)) if flow.isasync else run_flow(flow, flow_run)
        elif flow.isasync:
            run_coroutine(consume())
        else:
            for _ in run_flow(flow, flow_run):
                pass
    except (Pause, Abort, CancelledRun):
        return
