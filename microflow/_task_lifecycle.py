# SPDX-License-Identifier: Apache-2.0
"""The life of a task run.

Goal: one text for blocking and asyncio runs. :class:`BaseTaskRunEngine` holds every rule; what may wait is
a private coroutine over ``self.waits``, and the two engines of ``task_engine`` differ in ``waits`` and in
one-line public steps. Shared code goes through the public step (``await settle(self.begin_run())``), so
that an override is felt.

The states of a run, in the order in which they are appended::

    Pending ─ Running ─┬─ Completed
                       ├─ Failed
                       ├─ Retrying, or AwaitingRetry ─ Retrying … (retries left)
                       └─ Crashed (interrupted)
    Pending ─ NotReady (an upstream did not complete; the function is not called)

Creation, Pending and Running of a run that is called directly share one line of the log: nobody can
observe it before, and a write less is a fifth of the cost of a call.

Re-execution (invariant I13): the end of a call that the log of an earlier execution holds is handed back,
value or exception, without running and without appending; a call that was started and not ended runs
again under the same id (``calls`` says how a call is recognised).
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from ._arguments import contains_special, find
from ._definitions import hook_name
from ._waits import Waits, now_us, settle, to_datetime, to_us
from .calls import Call, new_call
from .client.live import Answer
from .context import TaskRunContext
from .exceptions import Abort, CancelledRun, LogError, MicroflowException, Pause, StorageError, UpstreamTaskError
from .futures import RunFuture, resolve_argument
from .logging import DEBUG, ERROR, INFO, TASK_RUNS, RunLogger, task_run_logger
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
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from .client.objects import TaskRun, TaskRunInput
    from .tasks import Task

R = TypeVar("R")
ReturnType = Literal["result", "state"]


# -------------------------------------------------------------------------------------------- the engine


class BaseTaskRunEngine(Generic[R]):
    """Every rule of a task run's life. ``retries`` counts those made so far."""

    waits: Waits

    # the public steps: plain methods of the blocking engine, coroutines of the other; settle() takes both
    begin_run: Callable[[], Any]
    wait_until_ready: Callable[[], Any]
    call_task_fn: Callable[[], Any]
    call_hooks: Callable[..., Any]
    can_retry: Callable[[Any], Any]
    handle_retry: Callable[[Any], Any]
    handle_success: Callable[[Any], Any]
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
        self.wait_for = wait_for
        self.context = context or {}
        self._call: Call | None = None
        self._pending: State[Any] | None = None
        self._renamed = False
        self._value: Value[R] | None = None
        self._raised: BaseException | None = None
        self._ended_by_other: State[Any] | None = None

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
        states = [state] if self._pending is None else [self._pending, state]
        force = force or (call.again and state.type is StateType.RUNNING)
        answer = call.recorder.propose_task(
            task_run, states, force=force, source=self.task.source_digest, renamed=self._renamed
        )
        if answer.status == Answer.ABORT:
            raise self._stopped(answer)
        if answer.status == Answer.WAIT:
            return self.set_state(Pending(name="Held", message=answer.reason), force=True)
        self._pending, self._renamed = None, False
        return self.state

    async def _set_final_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """A state that must be on the disk before anybody acts on it, where durability says so."""
        state = self.set_state(state, force)
        if state.is_final() and self._call is not None and self._call.recorder.must_sync:
            await self.waits.block(self._call.recorder.sync)
        return state

    def _stopped(self, answer: Answer) -> BaseException:
        """The signal for the code around a run that its flow run does not let go on. A cancelled one is recorded so."""
        call, task_run = self._call, self.task_run
        assert call is not None and task_run is not None
        flow_state = None if call.flow_context is None else call.flow_context.flow_run.state
        if flow_state is not None and flow_state.is_suspended():
            return Pause(f"task run {task_run.name!r} does not start: {answer.reason}", state=flow_state)
        if flow_state is not None and flow_state.is_cancelling():
            self.set_state(Cancelled(message="Its flow run was cancelled."), force=True)
        return Abort(f"task run {task_run.name!r} cannot go on: {answer.reason}")

    async def _begin_run(self) -> None:
        self.set_state(Running())
        if self.state.name == "Held":
            await self._wait_while_held()
        await settle(self.call_hooks())

    async def _wait_while_held(self) -> None:
        """Wait for the end of the pause that holds this run back, then enter RUNNING, unless it is cancelled."""
        from ._boundary import released  # only while a flow run is paused

        call = self._call
        assert call is not None and call.flow_context is not None
        live = call.flow_context.live
        while self.state.name == "Held":
            await released(live, self.waits)
            if self.is_cancelled() or live.gate_closed:
                await self._cancel()
            else:
                self.set_state(Running())

    async def _wait_until_ready(self) -> None:
        state = self.state
        due = state.state_details.scheduled_time
        if due is None or state.type is not StateType.SCHEDULED:
            return
        await self.waits.sleep(((to_us(due) or 0) - now_us()) / 1e6)
        self.set_state(Retrying() if state.name == "AwaitingRetry" else Running(), force=True)
        await settle(self.call_hooks())

    async def _handle_success(self, result: R) -> R:
        terminal = return_value_to_state(result)
        if terminal.is_failed() and await settle(self.handle_retry(terminal)):
            return result
        if terminal is result:
            terminal.state_details.returned_state = True
        await self._set_final_state(terminal)
        # the state's own copy, in which a generator is a list
        self._value = terminal.data if isinstance(terminal.data, Value) and terminal is not result else Value(result)
        return result

    async def _handle_exception(self, error: Exception) -> None:
        if await settle(self.handle_retry(error)):
            return
        state = exception_to_failed_state(error, message="Task run encountered an exception:")
        await self._set_final_state(state)
        self._raised = error

    async def _handle_timeout(self, error: TimeoutError) -> None:
        if await settle(self.handle_retry(error)):
            return
        message = f"Task run failed due to timeout: {error!r}"
        self._log(ERROR, message)
        await self._set_final_state(Failed(name="TimedOut", message=message, data=error))
        self._raised = error

    def handle_crash(self, error: BaseException) -> None:
        """Record that the run was interrupted. Not retried; the interrupt goes on to the caller."""
        state = exception_to_crashed_state(error)
        self._log(ERROR, "Crash detected! %s", state.message)
        self._raised = error
        if self.task_run is not None and (self.task_run.state is None or not self.state.is_final()):
            try:
                self.set_state(state, force=True)
            except (LogError, StorageError) as refused:  # the interrupt goes on all the same
                self._log(ERROR, "The crash could not be recorded", error=refused)

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
        return delay if not jitter else delay * (1 + jitter * random.random())

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

    # ----------------------------------------------------------------------------- before the user's code

    @contextmanager
    def initialize_run(
        self, task_run_id: UUID | None = None, dependencies: dict[str, set[TaskRunInput]] | None = None
    ) -> Iterator[Any]:
        """Find or make the task run, and record an interrupt of the block as a crash."""
        if self._call is None:
            call = self._call = new_call(self.task, self.parameters, self.wait_for, dependencies, task_run_id)
            if self.task_run is not None:
                call.task_run = self.task_run
            self.task_run = call.task_run
        if self._call.ended is not None:
            yield self
            return
        assert self.task_run is not None
        if not self.task_run.recorded:
            self._pending = Pending()
            self._pending.state_details.task_run_id = self.task_run.id
            self._pending.state_details.flow_run_id = self.task_run.flow_run_id
        try:
            yield self
        except (Exception, Pause, GeneratorExit):
            raise
        except Abort as signal:
            self._log(ERROR, "Task run was aborted: %s", signal)
            raise
        except BaseException as interrupt:  # recorded, then on its way: KeyboardInterrupt, SystemExit, …
            self.handle_crash(interrupt)
            raise
        finally:
            self.log_finished_message()

    async def _prepare(self) -> bool:
        """Resolve the parameters, name the run, wait for ``wait_for``; False when an upstream failed."""
        try:
            if any(self.task_run.task_inputs.values()) if self.task_run is not None else False:
                self._record_pending()
            if contains_special(self.parameters.values()):  # plain numbers and texts hold no futures
                for name, value in self.parameters.items():
                    self.parameters[name] = await self._resolve(name, value)
            self._set_custom_task_run_name()
            if self.wait_for is not None:
                await self._wait_for_dependencies()
        except UpstreamTaskError as error:
            self.set_state(Pending(name="NotReady", message=str(error)), force=True)
            return False
        except Exception:  # an argument or a name that is no good: the caller's error; the run stays Pending
            self._record_pending()
            raise
        return True

    def _record_pending(self) -> None:
        """Record the creation of a run that has to wait: others may look for it meanwhile."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self.set_state(pending)

    async def _resolve(self, name: str, value: Any) -> Any:
        try:
            return await resolve_argument(value, self.waits)
        except (UpstreamTaskError, MicroflowException):
            raise
        except Exception as error:  # whatever a user's container does when it is rebuilt
            raise MicroflowException(
                f"Failed to resolve inputs in parameter {name!r} of task {self.task.name!r}: {describe(error)}. "
                f"Wrap the argument in quote() or opaque() if futures need not be looked for inside of it."
            ) from error

    async def _wait_for_dependencies(self) -> None:
        assert self.task_run is not None
        for future in find(self.wait_for, (RunFuture,)):
            if future.task_run_id == self.task_run.id:
                raise ValueError(
                    f"Discovered a task depending on itself: {self.task_run.name!r} is in its own wait_for, "
                    f"which would be a deadlock"
                )
        await resolve_argument(self.wait_for, self.waits)

    def _set_custom_task_run_name(self) -> None:
        name = self.task.render_run_name(self.parameters)
        if name is not None and self.task_run is not None:
            self.task_run.name = name
            self._renamed = True

    # ------------------------------------------------------------------------------------ the whole life

    @contextmanager
    def run_context(self) -> Iterator[Any]:
        """What is current while an attempt runs."""
        assert self.task_run is not None
        context = self._call.flow_context if self._call is not None else None
        client = None if context is None else context.client
        with TaskRunContext(self.task, self.task_run, self.parameters, client):
            yield self

    async def _call_task_fn(self) -> Any:
        args, kwargs = self.task.parameters.call_arguments(self.parameters)
        return await self.waits.call(self.task.fn, *args, **kwargs)

    async def _run(
        self,
        task_run_id: UUID | None = None,
        dependencies: dict[str, set[TaskRunInput]] | None = None,
    ) -> None:
        """One run from its creation to its last hook."""
        with self.initialize_run(task_run_id, dependencies):
            if self._call is not None and self._call.ended is not None:
                self._hand_back(self._call.ended)
                return
            if not await self._prepare() or await self._is_cancelled_now():
                return
            await settle(self.begin_run())
            while self.is_running():
                await settle(self.wait_until_ready())
                if await self._is_cancelled_now():
                    return
                await self._attempt()
            await settle(self.call_hooks())

    async def _is_cancelled_now(self) -> bool:
        """Record CANCELLED, in place of an attempt, if the runner asked the run to stop."""
        if not self.is_cancelled():
            return False
        await self._cancel()
        return True

    async def _cancel(self) -> None:
        message = "The run was cancelled by its task runner before it started."
        await self._set_final_state(Cancelled(message=message), force=True)
        self._raised = CancelledRun(message)

    async def _attempt(self) -> None:
        with self.run_context():
            try:
                result = await settle(self.call_task_fn())
            except TimeoutError as error:
                await settle(self.handle_timeout(error))
            except Exception as error:  # user code: the run's outcome, not ours to judge
                await settle(self.handle_exception(error))
            else:
                await settle(self.handle_success(result))

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

    # ------------------------------------------------------------------------------------------- logging

    def _log(self, level: int, message: str, *args: object, error: object = None) -> None:
        if TASK_RUNS.isEnabledFor(level):
            trace = error if isinstance(error, BaseException) else None
            self.logger.log(level, message, *args, exc_info=trace)

    def log_finished_message(self) -> None:
        """The run's last line: INFO when it completed, else ERROR."""
        state = self.task_run.state if self.task_run is not None else None
        level = INFO if state is not None and state.type is StateType.COMPLETED else ERROR
        if not TASK_RUNS.isEnabledFor(level):
            return
        hint = ""
        if state is None or (state.is_pending() and not state.is_not_ready()):
            hint = "\nPlease wait for all submitted tasks: call .result() or .wait() on their futures, or return them."
        shown = repr(state) if TASK_RUNS.isEnabledFor(DEBUG) else str(state)
        self.logger.log(level, "Finished in state %s%s", shown, hint)


def _described(failure: Exception | State[Any]) -> str | None:
    return failure.message if isinstance(failure, State) else describe(failure)
