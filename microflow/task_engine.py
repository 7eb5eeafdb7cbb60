# SPDX-License-Identifier: Apache-2.0
"""The engines of task runs, and the functions that run a task.

The life of a run is written once, in ``_task_lifecycle``. The two engines differ in ``waits`` and in the form
of their public steps, which are documented, called, awaited and overridden by users: plain methods here,
coroutines there, one line each. The lifecycle goes through them, so that an override is felt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ._task_lifecycle import BaseTaskRunEngine as BaseTaskRunEngine
from ._task_lifecycle import ReturnType
from ._task_lifecycle import TaskRunTimeoutError as TaskRunTimeoutError
from ._waits import AsyncioWaits, BlockingWaits, finish
from .client.orchestration import Client

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from uuid import UUID

    from .calls import Call
    from .client.objects import TaskRun, TaskRunInput
    from .client.orchestration import SyncClient
    from .states import State
    from .tasks import Task

R = TypeVar("R")


class SyncTaskRunEngine(BaseTaskRunEngine[R]):
    """The engine of blocking tasks; needs no event loop (invariant I8)."""

    waits = BlockingWaits()

    def _coloured(self, client: SyncClient) -> SyncClient:
        return client

    def begin_run(self) -> None:
        """Enter RUNNING and run the on_running hooks."""
        finish(self._begin_run())

    def wait_until_ready(self) -> None:
        """Sleep until the scheduled time of an AwaitingRetry, then enter RUNNING."""
        finish(self._wait_until_ready())

    def call_task_fn(self, transaction: Any) -> R:
        """Call the user's function, unless the transaction has its result already, and record its success."""
        result: R = finish(self._call_task_fn(transaction)).unwrap()
        return result

    def call_hooks(self, state: State[Any] | None = None) -> None:
        """Run the hooks of `state`, the present one unless given."""
        if self.task.hooks:
            finish(self._call_hooks(state))

    def can_retry(self, exc_or_state: Exception | State[R]) -> bool:
        """Whether the task's retry condition wants another attempt after this failure."""
        return finish(self._can_retry(exc_or_state))

    def handle_retry(self, exc_or_state: Exception | State[R]) -> bool:
        """Start or schedule another attempt if one is left; says whether."""
        return finish(self._handle_retry(exc_or_state))

    def handle_success(self, result: R, transaction: Any) -> R:
        """Record what the function returned."""
        return finish(self._handle_success(result, transaction))

    def handle_exception(self, exc: Exception) -> None:
        """Retry, or record FAILED."""
        finish(self._handle_exception(exc))

    def handle_timeout(self, exc: TimeoutError) -> None:
        """Retry, or record FAILED named TimedOut."""
        finish(self._handle_timeout(exc))


class AsyncTaskRunEngine(BaseTaskRunEngine[R]):
    """The engine of coroutine tasks, on the caller's event loop."""

    waits = AsyncioWaits()

    def _coloured(self, client: SyncClient) -> Client:
        return Client(client)

    async def begin_run(self) -> None:
        """Enter RUNNING and run the on_running hooks."""
        await self._begin_run()

    async def wait_until_ready(self) -> None:
        """Sleep until the scheduled time of an AwaitingRetry, then enter RUNNING."""
        await self._wait_until_ready()

    async def call_task_fn(self, transaction: Any) -> R:
        """Call and await the user's function, unless the transaction has its result already, and record its success."""
        result: R = (await self._call_task_fn(transaction)).unwrap()
        return result

    async def call_hooks(self, state: State[Any] | None = None) -> None:
        """Run the hooks of `state`, the present one unless given."""
        if self.task.hooks:
            await self._call_hooks(state)

    async def can_retry(self, exc_or_state: Exception | State[R]) -> bool:
        """Whether the task's retry condition wants another attempt after this failure."""
        return await self._can_retry(exc_or_state)

    async def handle_retry(self, exc_or_state: Exception | State[R]) -> bool:
        """Start or schedule another attempt if one is left; says whether."""
        return await self._handle_retry(exc_or_state)

    async def handle_success(self, result: R, transaction: Any) -> R:
        """Record what the function returned."""
        return await self._handle_success(result, transaction)

    async def handle_exception(self, exc: Exception) -> None:
        """Retry, or record FAILED."""
        await self._handle_exception(exc)

    async def handle_timeout(self, exc: TimeoutError) -> None:
        """Retry, or record FAILED named TimedOut."""
        await self._handle_timeout(exc)


# ---------------------------------------------------------------------------------------- entry points


def _answer(engine: BaseTaskRunEngine[R], return_type: ReturnType) -> Any:
    return engine.state if return_type == "state" else engine.result()


def run_task_sync(
    task: Task[Any, R],
    task_run_id: UUID | None = None,
    task_run: TaskRun | None = None,
    parameters: dict[str, Any] | None = None,
    wait_for: Any = None,
    return_type: ReturnType = "result",
    dependencies: dict[str, set[TaskRunInput]] | None = None,
    context: dict[str, Any] | None = None,
) -> R | State[R] | None:
    """Run a blocking task to its end in this thread; see :func:`run_task`."""
    engine = SyncTaskRunEngine(task, parameters, task_run, wait_for=wait_for, context=context)
    finish(engine._run(task_run_id, dependencies))
    answer: R | State[R] | None = _answer(engine, return_type)
    return answer


async def run_task_async(
    task: Task[Any, R],
    task_run_id: UUID | None = None,
    task_run: TaskRun | None = None,
    parameters: dict[str, Any] | None = None,
    wait_for: Any = None,
    return_type: ReturnType = "result",
    dependencies: dict[str, set[TaskRunInput]] | None = None,
    context: dict[str, Any] | None = None,
) -> R | State[R] | None:
    """Run a coroutine task to its end on this event loop; see :func:`run_task`."""
    engine = AsyncTaskRunEngine(task, parameters, task_run, wait_for=wait_for, context=context)
    await engine._run(task_run_id, dependencies)
    answer: R | State[R] | None = _answer(engine, return_type)
    return answer


def _begin_items(engine: BaseTaskRunEngine[Any], return_type: str, *run: Any) -> Callable[[], Any]:
    """The coroutine of a run whose items are consumed; made when the first is asked for."""
    engine._is_consumed = True

    def begin() -> Any:
        if return_type != "result":
            raise ValueError(
                f"the items of generator task {engine.task.name!r} are its result: "
                f"return_type {return_type!r} (return_state=True) cannot be had"
            )
        return engine._run(*run)

    return begin


def run_generator_task_sync(
    task: Task[Any, R],
    task_run_id: UUID | None = None,
    task_run: TaskRun | None = None,
    parameters: dict[str, Any] | None = None,
    wait_for: Any = None,
    return_type: ReturnType = "result",
    dependencies: dict[str, set[TaskRunInput]] | None = None,
    context: dict[str, Any] | None = None,
) -> Generator[R, None, Any]:
    """Run a generator task while its items are consumed; see :func:`run_task`. The generator's return value is that of
    the function. Nothing happens, and nothing is raised, before the first item is asked for."""
    from ._handing_over import handed_over  # only for generator tasks

    engine = SyncTaskRunEngine(task, parameters, task_run, wait_for=wait_for, context=context)
    return handed_over(_begin_items(engine, return_type, task_run_id, dependencies), engine.result)


def run_generator_task_async(
    task: Task[Any, R],
    task_run_id: UUID | None = None,
    task_run: TaskRun | None = None,
    parameters: dict[str, Any] | None = None,
    wait_for: Any = None,
    return_type: ReturnType = "result",
    dependencies: dict[str, set[TaskRunInput]] | None = None,
    context: dict[str, Any] | None = None,
) -> AsyncGenerator[R, None]:
    """Run an async generator task while its items are consumed; see :func:`run_generator_task_sync`."""
    from ._handing_over import handed_over_async  # only for generator tasks

    engine = AsyncTaskRunEngine(task, parameters, task_run, wait_for=wait_for, context=context)
    return handed_over_async(_begin_items(engine, return_type, task_run_id, dependencies), engine.result)


def run_task(
    task: Task[Any, R],
    task_run_id: UUID | None = None,
    task_run: TaskRun | None = None,
    parameters: dict[str, Any] | None = None,
    wait_for: Any = None,
    return_type: ReturnType = "result",
    dependencies: dict[str, set[TaskRunInput]] | None = None,
    context: dict[str, Any] | None = None,
) -> Any:
    """Run a task: a value or state for a blocking task, a coroutine for an async one, a generator of either colour for
    a generator task.

    `task_run_id` names the new run, `task_run` is an existing run to go on with, `parameters` are bound already,
    `wait_for` is waited for first, `return_type` is "result" or "state", `dependencies` are added to the run's inputs,
    `context` may hold a ``cancel_event``."""
    run: Callable[..., Any]
    if task.isgenerator:
        run = run_generator_task_async if task.isasync else run_generator_task_sync
    else:
        run = run_task_async if task.isasync else run_task_sync
    return run(task, task_run_id, task_run, parameters, wait_for, return_type, dependencies, context)


def run_call(
    call: Call, task: Task[Any, R], parameters: dict[str, Any], wait_for: Any, cancel_event: Any, retries: int = 0
) -> Any:
    """Run a call that was submitted, in the worker; gives its state, or a coroutine for it. `retries` were made
    before, by another worker."""
    kind: Callable[..., BaseTaskRunEngine[R]] = AsyncTaskRunEngine if task.isasync else SyncTaskRunEngine
    engine = kind(task, parameters, call.task_run, retries, wait_for, {"cancel_event": cancel_event})
    engine._call = call

    async def later() -> State[Any]:
        await engine._run()
        return engine.state

    return later() if task.isasync else finish(later())
