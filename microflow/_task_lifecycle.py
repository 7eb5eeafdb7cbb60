# SPDX-License-Identifier: Apache-2.0
"""The life of a task run, from its creation to its last hook.

Goal: one text for blocking and asyncio runs. The life is a nest of public scopes, each of which can also be entered
by itself (``with``, or ``async with``), around the attempts::

    start                    what comes before the first attempt and after the last
      initialize_run         the run exists; an interrupt of what is inside is recorded as a crash
        asset_context        one attempt, and what it reads and makes outside; entered only if there is something
          run_context        the run is current, its time is limited, its failure is handled
            transaction_context    entered only where somebody can tell it from none
              call_task_fn   the function, and the record of its success

How the state changes, and what may wait, is said in ``_task_transitions``; the two engines of ``task_engine`` differ in
``waits`` and in the form of their public steps.

Re-execution (invariant I13): the end of a call that the log of an earlier execution holds is handed back,
value or exception, without running and without appending; a call that was started and not ended runs
again under the same id (``calls`` says how a call is recognised).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ._loggers import DEBUG, ERROR, INFO, TASK_RUN_LISTENERS, WARNING
from ._prints import effective_log_prints
from ._task_preparation import prepare
from ._task_transitions import ReturnType as ReturnType
from ._task_transitions import TaskRunTimeoutError as TaskRunTimeoutError
from ._task_transitions import TaskTransitions
from ._waits import Outcome, Scope, entered, now_us, scope, settle
from .calls import new_call
from .client.orchestration import current_client
from .context import FlowRunContext, TaskRunContext, hydrated_context
from .exceptions import Abort, LogError, Pause, StorageError
from .settings import current_settings
from .states import (
    State,
    StateType,
    Value,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from uuid import UUID

    from typing_extensions import Self

    from ._timeouts import Limit
    from ._transaction_lifecycle import BaseTransaction
    from .client.objects import TaskRunInput
    from .client.orchestration import SyncClient
    from .tasks import Task

R = TypeVar("R")

#: the module that every program with transactions has loaded
_TRANSACTIONS = f"{__name__.rpartition('.')[0]}.transactions"


def _collected(task: Task[Any, Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """The items of a generator as a list, or a coroutine for it."""

    async def later() -> list[Any]:
        return [item async for item in task.fn(*args, **kwargs)]

    return later() if task.isasync else list(task.fn(*args, **kwargs))


#: what the state says of a function that is late in a worker thread, where nothing can stop it
_GOES_ON = "; Python cannot interrupt a worker thread: the function goes on until it returns or makes its next call"


class BaseTaskRunEngine(TaskTransitions[R]):
    """A task run from its creation to its last hook: the scopes, and the attempts inside of them."""

    @property
    def client(self) -> Any:
        """The client of the store that the run is recorded in. RuntimeError before the run is initialized."""
        if not self._is_started:
            raise RuntimeError("the engine is not started: its client is there inside of initialize_run() only")
        context = self._call.flow_context if self._call is not None else None
        return self._coloured(context.client if context is not None else current_client())

    def _coloured(self, client: SyncClient) -> Any:
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------ the scopes

    def initialize_run(
        self, task_run_id: UUID | None = None, dependencies: dict[str, set[TaskRunInput]] | None = None
    ) -> Scope[Self]:
        """Find or make the task run, and record an interrupt of the block as a crash."""
        if self.context and self.context.keys() - {"cancel_event"}:
            return self._hydrated(task_run_id, dependencies)
        return self._initialized(task_run_id, dependencies)

    @scope
    async def _hydrated(
        self, task_run_id: UUID | None, dependencies: dict[str, set[TaskRunInput]] | None
    ) -> AsyncGenerator[Self, None]:
        """The same in the contexts of another process, which were handed over as data."""
        with hydrated_context(self.context):
            async with entered(self._initialized(task_run_id, dependencies)):
                yield self

    @scope
    async def _initialized(
        self, task_run_id: UUID | None, dependencies: dict[str, set[TaskRunInput]] | None
    ) -> AsyncGenerator[Self, None]:
        call, task = self._call, self.task
        if call is None:
            afresh = self._is_consumed
            call = new_call(task, self.parameters, self.wait_for, dependencies, task_run_id, afresh=afresh)
            self._call = call
            if self.task_run is not None:
                call.task_run = self.task_run
            self.task_run = call.task_run
        if call.ended is not None:
            yield self
            return
        task_run = call.task_run
        if not task_run.recorded:
            self._pending_since = now_us()
        self._is_started = True
        self._is_heard = TASK_RUN_LISTENERS.hear(INFO)
        if self._is_heard:
            self._log(DEBUG, "Created task run %r for task %r", task_run.name, task.name)
        try:
            if task.hooks or callable(task.task_run_name) or task.retry_condition_fn is not None:
                async with entered(self.setup_run_context()):  # somebody may look, also outside of attempts
                    yield self
            else:
                yield self
        except (Exception, Pause):
            raise
        except Abort as signal:
            self._log(ERROR, "Task run was aborted: %s", signal)
            raise
        except BaseException as interrupt:  # recorded, then on its way: KeyboardInterrupt, SystemExit, …
            self.handle_crash(interrupt)
            raise
        finally:
            self._is_started = False
            self.log_finished_message()

    @scope
    async def start(
        self, task_run_id: UUID | None = None, dependencies: dict[str, set[TaskRunInput]] | None = None
    ) -> AsyncGenerator[None, None]:
        """Everything around the attempts: from the creation of the run to its last hook. The block is entered also
        when there is nothing to run (the run was handed back, or is NotReady): ask ``is_running()``."""
        async with entered(self.initialize_run(task_run_id, dependencies)):
            assert self._call is not None
            if self._call.ended is not None:
                self._hand_back(self._call.ended)
                if self._call.joins_again(self.task):
                    from ._task_transactions import join_again  # only for tasks that have to do with transactions

                    await join_again(self, self._call.ended)
                yield
                return
            if await prepare(self) and not (self.is_cancelled() and await self._cancel()):
                await settle(self.begin_run())
            try:
                yield
            except Pause:  # the run itself may have ended before its flow run is suspended
                if self.state.is_final():
                    await settle(self.call_hooks())
                raise
            await settle(self.call_hooks())

    def setup_run_context(self, client: Any = None) -> TaskRunContext:
        """The context of the run, to be entered (``with``, or ``async with``): in it the run is the current one.
        `client` is the one that the context names, the flow run's unless given."""
        assert self.task_run is not None
        flow_context = self._call.flow_context if self._call is not None else None
        if client is None and flow_context is not None:
            client = flow_context.client
        context = TaskRunContext(self.task, self.task_run, self.parameters, client, self._limit)
        context.log_prints = effective_log_prints(self.task.log_prints)
        persist = self.task.persist_result
        context.persist_result = self._persist = self._inherited(flow_context) if persist is None else persist
        if self._persist:
            from ._task_transactions import store_of  # only for runs whose results are persisted

            context.result_store = store_of(self.task)
        return context

    @staticmethod
    def _inherited(flow_context: FlowRunContext | None) -> bool:
        """Whether results are persisted where the task does not say: as the setting for tasks says, else the task or
        flow around it, else the setting for all."""
        if flow_context is None:
            settings = current_settings()
            by_default, around = settings.default_task_persist_result, settings.persist_results_by_default
        else:
            by_default, around = flow_context.tasks_persist, flow_context.persist_result
        if by_default is not None:
            return by_default
        task_context = TaskRunContext.get()
        inherited = task_context.persist_result if task_context is not None else None
        return around if inherited is None else inherited

    @scope
    async def run_context(self) -> AsyncGenerator[Self, None]:
        """One attempt: the run is current, its time is limited, and how it fails decides what comes next."""
        limit = self._limit = self._start_limit() if self.task.timeout_seconds else None
        try:
            async with entered(self.setup_run_context()):
                error: BaseException | None = None
                if self.task_run is not None and self._is_heard:
                    self._log(DEBUG, "Executing task %r for task run %r", self.task.name, self.task_run.name)
                try:
                    yield self
                except Exception as failure:  # user code: the run's outcome, not ours to judge
                    error = failure
                except BaseException as interrupt:
                    if limit is None or not limit.close() or not limit.owns(interrupt):
                        raise
                    error = interrupt
                if limit is not None and limit.close():
                    error = self._too_late(error)
                if error is not None:
                    await self._handle(error)
        finally:
            if limit is not None:
                limit.close()

    @scope
    async def transaction_context(self) -> AsyncGenerator[BaseTransaction, None]:
        """The transaction of an attempt, which is committed or rolled back, or left to the one around it."""
        from ._task_transactions import new_transaction  # only where somebody can tell it from none

        transaction = self._transaction = new_transaction(self)
        await transaction.enter()
        try:
            yield transaction
        except BaseException as error:
            own = self._limit is not None and self._limit.owns(error)
            transaction.spares_parent = (own or isinstance(error, Exception)) and self.retries < self.task.retries
            await transaction.leave(error)
            raise
        if not self.state.is_completed():  # a state that was returned is a failure like any other
            transaction.spares_parent = not self.state.is_final()
            await settle(transaction.rollback())
        await transaction.leave()

    # ------------------------------------------------------------------------------------ the whole life

    def asset_context(self) -> Any:
        """The scope of what an attempt reads and makes outside; see ``assets``."""
        from ._assets import attempt_context  # only runs that have to do with assets

        return attempt_context(self)

    def _deals_in_assets(self) -> bool:
        context = self._call.flow_context if self._call is not None else None
        return bool(self.task._asset_deps or self.task.assets or (context is not None and context.task_run_assets))

    async def _attempt_with_assets(self) -> None:
        async with entered(self.asset_context()):
            await self._attempt()

    async def _run(
        self,
        task_run_id: UUID | None = None,
        dependencies: dict[str, set[TaskRunInput]] | None = None,
    ) -> None:
        """One run from its creation to its last hook."""
        async with entered(self.start(task_run_id, dependencies)):
            while self.is_running():
                if self.state.type is StateType.SCHEDULED:
                    await settle(self.wait_until_ready())
                if not (self.is_cancelled() and await self._cancel()):
                    await self._attempt_with_assets() if self._deals_in_assets() else await self._attempt()

    async def _attempt(self) -> None:
        async with entered(self.run_context()):
            # the public step stands here, and twice: a StopIteration of the user's must not leave a coroutine (PEP 479)
            if not self._takes_part():
                await self._consume(None) if self._is_consumed else await settle(self.call_task_fn(None))
                return
            async with entered(self.transaction_context()) as transaction:
                if self._is_consumed:
                    await self._consume(transaction)
                else:
                    await settle(self.call_task_fn(transaction))

    async def _consume(self, transaction: BaseTransaction | None) -> None:
        from ._task_generators import consume  # only for generator tasks

        await consume(self, transaction)

    def _takes_part(self) -> bool:
        """Whether anybody can tell a transaction around the attempt from none: only a program that uses them has
        loaded their module, as every task does whose options have to do with them."""
        return self._persist or _TRANSACTIONS in sys.modules

    async def _call_task_fn(self, transaction: Any) -> Outcome[Any]:
        """Call the function and record what it returned. A failure stays a value until the public step raises it."""
        if transaction is not None and transaction.is_committed():
            outcome: Outcome[Any] = Outcome(await settle(transaction.read()))
        else:
            outcome = await self._call_fn()
        if outcome.error is None:
            self._stop_the_clock()
            await settle(self.handle_success(outcome.value, transaction))
        return outcome

    async def _call_fn(self) -> Outcome[Any]:
        """The call itself: here, unless an engine has it made elsewhere."""
        args, kwargs = self.task.parameters.call_arguments(self.parameters)
        if self.task.isgenerator:  # one that was submitted: nobody consumes its items
            return await self.waits.call(_collected, self.task, args, kwargs)
        return await self.waits.call(self.task.fn, *args, **kwargs)

    def compute_transaction_key(self) -> str | None:
        """The key under which the result is looked up and stored; None for no caching. A key that cannot be computed
        is warned of, once; a ``result_storage_key`` that cannot be formatted fails the attempt."""
        from ._task_transactions import compute_key  # only for runs whose results are persisted

        return compute_key(self)

    # -------------------------------------------------------------------------------------- the time limit

    def _start_limit(self) -> Limit:
        from ._timeouts import limit as start_limit  # only for tasks that have one

        seconds = self.task.timeout_seconds
        assert seconds is not None
        self._late = TaskRunTimeoutError(f"task {self.task.name!r} timed out after {seconds:g} second(s)")
        limit = start_limit(seconds, isasync=self.task.isasync, on_overrun=self._record_overrun)
        if not limit.interrupts:
            self._log(
                WARNING,
                "The timeout of %g second(s) cannot interrupt this task, which is running in a worker thread: when it "
                "is over the run is recorded as timed out, but its function goes on until it makes its next call",
                seconds,
            )
        return limit

    def _stop_the_clock(self) -> None:
        """The function has returned. From here on the run is ours, and no alarm may interrupt it."""
        if self._limit is not None and self._limit.close():
            raise self._too_late(None)

    def _taken_up(self) -> None:
        """A generator goes on. Its consumer's time counts, though the consumer was not interrupted."""
        if self._limit is not None and self._limit.resume():
            raise self._too_late(None)

    def _too_late(self, error: BaseException | None) -> TaskRunTimeoutError:
        late = self._late
        assert late is not None
        if error is not None and error is not late:
            late.__cause__ = error
        return late

    def _record_overrun(self) -> None:
        """Called by a timer, in its thread, while the function goes on and cannot be stopped. When a retry is left
        nothing can be said yet: the next attempt begins when this one is back."""
        if self.retries < self.task.retries or self._late is None:
            return
        try:
            self._append_timeout(self._late, _GOES_ON)
            if self._call is not None and self._call.recorder.must_sync:
                self._call.recorder.sync()
        except (LogError, StorageError, Abort, Pause) as refused:  # said again when the function is back
            self._log(ERROR, "The timeout could not be recorded", error=refused)
        else:
            if self._call is not None and self._call.on_early_end is not None:
                self._call.on_early_end(self.state)

    def _hand_back(self, ended: State[Any]) -> None:
        """Give what an earlier execution of the flow run recorded, without running or appending."""
        if ended.state_details.returned_state:
            self._value = Value(cast("R", ended))
        elif isinstance(ended.data, BaseException):
            self._raised = ended.data
        else:  # also of a FAILED run: the states that it returned, as its caller got them then
            self._value = ended.data

    def result(self, raise_on_failure: bool = True) -> R | BaseException | None:
        """The value that the function returned, else the exception that it raised, raised or given back."""
        if self._value is not None:
            value = self._value.load()
            return value.load() if isinstance(value, Value) else value
        if self._raised is not None:
            if raise_on_failure:
                raise self._raised
            return self._raised
        return None
