# SPDX-License-Identifier: Apache-2.0
"""How a task run goes from state to state, and what is called and logged on the way.

The states of a run, in the order in which they are appended::

    Pending ─ Running ─┬─ Completed, or Cached (the result was found)
                       ├─ Failed, or TimedOut
                       ├─ Retrying, or AwaitingRetry ─ Retrying … (retries left)
                       └─ Crashed (interrupted)
    Pending ─ NotReady (an upstream did not complete; the function is not called)

Creation, Pending and Running of a run that is called directly share one line of the log: nobody can
observe it before, and a write less is a fifth of the cost of a call.

What may wait is a private coroutine over ``self.waits``; the public step of the same name, in the colour of the
engine, stands in ``task_engine``. Shared code goes through the public step (``await settle(self.begin_run())``), so
that an override is felt.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from ._arguments import read_wait_for
from ._definitions import hook_name
from ._loggers import DEBUG, ERROR, INFO, TASK_RUN_LISTENERS
from ._waits import StopSignal, Waits, now_us, settle, to_datetime, to_us
from .client.live import Answer
from .exceptions import Abort, CancelledRun, LogError, Pause, RecordTooLarge, StorageError
from .states import (
    AwaitingRetry,
    Cancelled,
    Failed,
    Pending,
    Retrying,
    Running,
    State,
    StateType,
    Value,
    describe,
    exception_to_crashed_state,
    exception_to_failed_state,
    return_value_to_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._timeouts import Limit
    from ._transaction_lifecycle import BaseTransaction
    from .calls import Call
    from .client.objects import TaskRun
    from .logging import RunLogger
    from .tasks import Task

R = TypeVar("R")
ReturnType = Literal["result", "state"]


class TaskRunTimeoutError(TimeoutError):
    """A task run took longer than its ``timeout_seconds``."""


class TaskTransitions(Generic[R]):
    """Every rule of how the state of a task run changes. ``retries`` counts those made so far."""

    waits: Waits

    # as long as nothing else is said
    _call: Call | None = None
    #: when the run was made, until that is recorded
    _pending_since: int | None = None
    _renamed = False
    _value: Value[R] | None = None
    _raised: BaseException | None = None
    _limit: Limit | None = None
    _late: TaskRunTimeoutError | None = None
    _is_started = False
    #: whether anybody hears what is logged of a run that goes well; asked once, when it begins
    _is_heard = True
    _persist = False
    #: whether it is a generator task whose items are consumed while it runs
    _is_consumed = False
    _transaction: BaseTransaction | None = None

    # the public steps: plain methods of the blocking engine, coroutines of the other; settle() takes both
    begin_run: Callable[[], Any]
    wait_until_ready: Callable[[], Any]
    call_task_fn: Callable[[Any], Any]
    call_hooks: Callable[..., Any]
    can_retry: Callable[[Any], Any]
    handle_retry: Callable[[Any], Any]
    handle_success: Callable[[Any, Any], Any]
    handle_exception: Callable[[Exception], Any]
    handle_timeout: Callable[[TimeoutError], Any]

    def __init__(
        self,
        task: Task[Any, R],
        parameters: dict[str, Any] | None = None,
        task_run: TaskRun | None = None,
        retries: int = 0,
        wait_for: Any = None,
        context: dict[str, Any] | None = None,
    ) -> None:
        self.task = task
        self.parameters = parameters if parameters is not None else {}
        self.task_run = task_run
        self.retries = retries
        self.wait_for = None if wait_for is None else read_wait_for(wait_for)
        self.context = context or {}

    # ---------------------------------------------------------------------------------- what it knows

    @property
    def state(self) -> State[Any]:
        """The present state of the run."""
        if self.task_run is None or self.task_run.state is None:
            raise ValueError("the engine has no task run yet, so there is no state")
        return self.task_run.state

    @property
    def logger(self) -> RunLogger:
        """The run's logger."""
        from .logging import task_run_logger  # here, because most runs say nothing that anybody hears

        assert self.task_run is not None
        context = self._call.flow_context if self._call is not None else None
        return task_run_logger(self.task_run, self.task.name, None if context is None else context.flow_run)

    def is_running(self) -> bool:
        """Whether the run is in RUNNING, or SCHEDULED to run again."""
        state = self.task_run.state if self.task_run is not None else None
        return state is not None and state.type in (StateType.RUNNING, StateType.SCHEDULED)

    def is_cancelled(self) -> bool:
        """Whether the runner asked this run to stop (``context["cancel_event"]``)."""
        event = self.context.get("cancel_event")
        return event is not None and event.is_set()

    # ------------------------------------------------------------------------------------ transitions

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Append a state of the run and make it the present one (invariant I2: nothing else appends states).

        What an append precedes is said in ``LiveRun.propose_task``. Raises Abort when the flow run that the
        task belongs to does not run any more."""
        call, task_run = self._call, self.task_run
        assert call is not None and task_run is not None
        details = state.state_details
        details.task_run_id, details.flow_run_id = task_run.id, task_run.flow_run_id
        answer = call.recorder.propose_task(
            task_run,
            state,
            force=force or (call.again and state.type is StateType.RUNNING),
            source=self.task.source_digest,
            renamed=self._renamed,
            pending_since=self._pending_since,
        )
        if answer.status == Answer.ABORT:
            raise self._stopped(answer)
        if answer.status == Answer.WAIT:
            return self.set_state(Pending(name="Held", message=answer.reason), force=True)
        self._pending_since, self._renamed = None, False
        return self.state

    def record_terminal_state_timing(self, state: State[Any]) -> None:
        """Deprecated: entering a final state sets the run's times. Sets the end time if that is still open."""
        warnings.warn(
            "record_terminal_state_timing() is deprecated: set_state() records the times of a run",
            DeprecationWarning,
            stacklevel=2,
        )
        task_run = self.task_run
        if task_run is not None and state.is_final() and task_run.start_time and task_run.end_time is None:
            task_run.end_time = state.timestamp

    async def _set_final_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """A state that must be on the disk before anybody acts on it, where durability says so."""
        state = self.set_state(state, force)
        if self._call is not None and self._call.recorder.must_sync:
            await self._sync()
        return state

    async def _sync(self) -> None:
        call = self._call
        if call is None or not call.recorder.must_sync or not self.state.is_final():
            return
        transaction = self._transaction
        if call.leaves_sync and (
            transaction is None or (self.state.is_completed() and not transaction.has_effects())
        ):
            return  # nothing acts on the end, by a commit or a rollback, before its future is looked at
        await self.waits.block(call.recorder.sync)

    async def _sync_start(self) -> None:
        """What may happen once only must be known to have begun, also after a power cut, before it begins."""
        if self._call is not None and self._call.recorder.must_sync:
            await self.waits.block(self._call.recorder.sync)

    def rename(self, name: str) -> None:
        """Give the run its own name; recorded with its next state."""
        assert self.task_run is not None
        self._log(DEBUG, "Renamed task run %r to %r", self.task_run.name, name)
        self.task_run.name = name
        self._renamed = True

    def _stopped(self, answer: Answer) -> BaseException:
        """The signal for the code around a run that its flow run does not let go on. A cancelled one is recorded so."""
        call, task_run = self._call, self.task_run
        assert call is not None and task_run is not None
        flow_state = None if call.flow_context is None else call.flow_context.flow_run.state
        if flow_state is not None and flow_state.is_left():
            return Pause(f"task run {task_run.name!r} does not start: {answer.reason}", state=flow_state)
        if flow_state is not None and flow_state.is_cancelling():
            self.set_state(Cancelled(message="Its flow run was cancelled."), force=True)
        return Abort(f"task run {task_run.name!r} cannot go on: {answer.reason}")

    async def _begin_run(self) -> None:
        if self.set_state(Running()).name == "Held":
            await self._wait_while_held()
        if self.task.at_most_once:
            await self._sync_start()
        await settle(self.call_hooks())

    async def _wait_while_held(self) -> None:
        """Wait for the end of the pause that holds this run back, then enter RUNNING, unless it is cancelled."""
        from ._boundary import released  # only while a flow run is paused

        call = self._call
        assert call is not None and call.flow_context is not None
        live = call.flow_context.live
        while self.state.name == "Held":
            await released(live, self.waits)
            state = live.flow_run.state
            if (self.is_cancelled() or live.gate_closed) and state is not None and not state.is_left():
                await self._cancel()
            else:
                self.set_state(Running())

    async def _wait_until_ready(self) -> None:
        state = self.state
        due = state.state_details.scheduled_time
        if due is None or state.type is not StateType.SCHEDULED:
            return
        await self._sleep_until(to_us(due) or 0)
        if self.is_cancelled():
            return
        self.set_state(Retrying() if state.name == "AwaitingRetry" else Running(), force=True)
        if self.task.at_most_once:
            await self._sync_start()
        await settle(self.call_hooks())

    async def _sleep_until(self, due: int) -> None:
        """Wait for a moment, in microseconds of the wall clock, or until the run is cancelled. When its flow run was
        asked to stop meanwhile, CANCELLED is recorded (a suspended one goes on later), and the signal raised."""
        told = self.context.get("cancel_event")
        seconds = (due - now_us()) / 1e6
        flow_context = self._call.flow_context if self._call is not None else None
        if seconds < 1 or flow_context is None or not (told is None or isinstance(told, StopSignal)):
            await self.waits.sleep(seconds, told)
            return
        from ._boundary import stop_signal, until_due  # only for waits that are worth it

        live = flow_context.live
        await until_due(live, self.waits, due, lambda: self.is_cancelled() or stop_signal(live) is not None, told)
        signal = stop_signal(live)
        if signal is None or self.is_cancelled():
            return
        if isinstance(signal, Abort):
            message = "Its flow run was cancelled while it waited for its retry."
            await self._set_final_state(Cancelled(message=message), force=True)
        raise signal

    async def _handle(self, error: BaseException) -> None:
        """An attempt that failed: the handler of its kind decides."""
        refused = self._call.recorder.refused if self._call is not None else None
        if error is refused and not isinstance(error, RecordTooLarge):
            raise error  # the log does not take our word any more: say nothing in it
        if self.state.is_final():  # recorded while the function went on
            self._raised = error
        elif isinstance(error, TimeoutError):
            await settle(self.handle_timeout(error))
        else:
            assert isinstance(error, Exception)
            await settle(self.handle_exception(error))
        transaction = self._transaction
        if transaction is not None and transaction.spares_parent and self.state.is_final():
            transaction.spares_parent = False
            await transaction.roll_parent_back()

    async def _handle_success(self, result: R, transaction: Any) -> R:
        terminal = return_value_to_state(result)
        if terminal.is_failed() and await settle(self.handle_retry(terminal)):
            return result
        if terminal is result:
            terminal.state_details.returned_state = True
        if transaction is not None and terminal.is_completed():
            from ._task_transactions import stage  # loaded, since there is a transaction

            stage(self, transaction, terminal)
        await self._set_final_state(terminal)
        self._link(result)
        # the state's own copy, in which a generator is a list
        self._value = terminal.data if isinstance(terminal.data, Value) and terminal is not result else Value(result)
        return result

    def _link(self, result: Any) -> None:
        """Let calls that are given the result be recorded as depending on this run."""
        context = self._call.flow_context if self._call is not None else None
        if context is not None and self.task_run is not None:
            context.links.add(result, self.task_run.id)

    async def _handle_exception(self, error: Exception) -> None:
        if await settle(self.handle_retry(error)):
            return
        state = exception_to_failed_state(error, message="Task run encountered an exception:")
        await self._set_final_state(state)
        self._raised = error

    async def _handle_timeout(self, error: TimeoutError) -> None:
        if await settle(self.handle_retry(error)):
            return
        self._append_timeout(error)
        await self._sync()
        self._raised = error

    def handle_crash(self, exc: BaseException) -> None:
        """Record that the run was interrupted. Not retried; the interrupt goes on to the caller."""
        state = exception_to_crashed_state(exc)
        self._log(ERROR, "Crash detected! %s", state.message)
        self._log(DEBUG, "Crash details:", error=exc)
        self._raised = exc
        if self.task_run is not None and (self.task_run.state is None or not self.state.is_final()):
            try:
                self.set_state(state, force=True)
            except (LogError, StorageError) as refused:  # the interrupt goes on all the same
                self._log(ERROR, "The crash could not be recorded", error=refused)

    def handle_rollback(self, txn: BaseTransaction) -> None:
        """Note that the run was rolled back; its state stays. The engine's own rollback hook."""
        self._note("rolled_back")

    handle_rollback.log_on_run = False  # type: ignore[attr-defined]  # a hook of ours is not announced

    def _note(self, what: str) -> None:
        if self._call is not None and self.task_run is not None:
            self._call.recorder.note(self.task_run, what)

    async def _handle_retry(self, failure: Exception | State[Any]) -> bool:
        """Put the run into Retrying, or AwaitingRetry when there is a delay, if a retry is left and wanted."""
        task, log = self.task, self._log
        if self.retries >= task.retries:
            suffix = ", Retries are exhausted" if task.retries > 0 else ""
            log(ERROR, "Task run failed with %r%s", failure, suffix, error=failure)
            return False
        if not await settle(self.can_retry(failure)):
            return False
        delay = self._delay()
        when = f"{delay} second(s) from now" if delay is not None else "immediately"
        log(INFO, "Task run failed with %r. Retry %s/%s will start %s", failure, self.retries + 1, task.retries, when)
        if delay is None:
            self.set_state(Retrying(), force=True)
        else:
            due = to_datetime(now_us() + int(delay * 1e6))
            self.set_state(AwaitingRetry(scheduled_time=due, message=_described(failure)), force=True)
        if self.state.is_running():
            await settle(self.call_hooks())
        self.retries += 1
        return True

    def _delay(self) -> float | None:
        """Seconds before the next attempt; None when it is to start at once."""
        delays = self.task.retry_delay_seconds
        if not delays:
            return None
        delay = float(delays[min(self.retries, len(delays) - 1)] if isinstance(delays, list) else delays)
        jitter = self.task.retry_jitter_factor
        if not jitter:
            return delay
        import random  # only for this: it takes a millisecond to load

        return delay * (1 + jitter * random.random())

    async def _can_retry(self, failure: Exception | State[Any]) -> bool:
        condition = self.task.retry_condition_fn
        if condition is None:
            return True
        kind = "state" if isinstance(failure, State) else "exception"
        state = Failed(data=failure, message=f"Task run encountered unexpected {kind}: {failure!r}")
        outcome = await self.waits.call(condition, self.task, self.task_run, state)
        if outcome.error is not None:
            self._log(ERROR, "retry_condition_fn of task %r raised", self.task.name, error=outcome.error)
        return outcome.error is None and bool(outcome.value)

    async def _call_hooks(self, state: State[Any] | None = None) -> None:
        """Run the hooks of the present state, in order. What they raise is logged (invariant I7)."""
        state = state or self.state
        for hook in self.task.hooks_for(state.type):
            name = hook_name(hook)
            self._log(INFO, "Running hook %r in response to entering state %r", name, state.name)
            outcome = await self.waits.call(hook, self.task, self.task_run, state)
            if outcome.error is not None:
                self._log(ERROR, "An error was encountered while running hook %r", name, error=outcome.error)
            else:
                self._log(INFO, "Hook %r finished running successfully", name)

    def _append_timeout(self, error: TimeoutError, more: str = "") -> None:
        """Record FAILED, named TimedOut. It precedes the return to the caller: dying before it, the call runs again."""
        message = f"Task run failed due to timeout: {error!r}"
        if isinstance(error, TaskRunTimeoutError):
            message = f"Task run exceeded timeout of {self.task.timeout_seconds:g} second(s){more}"
        self._log(ERROR, message)
        self.set_state(Failed(name="TimedOut", message=message, data=error))

    async def _cancel(self) -> bool:
        """Record CANCELLED in place of an attempt: the runner asked the run to stop."""
        message = "The run was cancelled by its task runner before it started."
        await self._set_final_state(Cancelled(message=message), force=True)
        self._raised = CancelledRun(message)
        return True

    # ------------------------------------------------------------------------------------------- logging

    def _log(self, level: int, message: str, *args: object, error: object = None) -> None:
        if TASK_RUN_LISTENERS.hear(level):
            trace = error if isinstance(error, BaseException) else None
            self.logger.log(level, message, *args, exc_info=trace)

    def log_finished_message(self) -> None:
        """The run's last line: INFO when it completed, else ERROR."""
        state = self.task_run.state if self.task_run is not None else None
        level = INFO if state is not None and state.type is StateType.COMPLETED else ERROR
        if not (self._is_heard if level == INFO else TASK_RUN_LISTENERS.hear(level)):
            return
        hint = ""
        if state is None or (state.is_pending() and not state.is_not_ready()):
            hint = "\nPlease wait for all submitted tasks: call .result() or .wait() on their futures, or return them."
        shown = repr(state) if TASK_RUN_LISTENERS.hear(DEBUG) else str(state)
        self.logger.log(level, "Finished in state %s%s", shown, hint)


def _described(failure: Exception | State[Any]) -> str | None:
    return failure.message if isinstance(failure, State) else describe(failure)
